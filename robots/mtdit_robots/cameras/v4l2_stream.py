"""Frames of a V4L2 camera: format, size and rate, then buffers that the kernel fills.

Source: linux/videodev2.h and the kernel's "Video Capture" example.
"""

from __future__ import annotations

import contextlib
import errno
import mmap
import struct
from typing import Any

from mtdit_robots.cameras.images import Frame, from_jpeg, from_yuyv
from mtdit_robots.cameras.v4l2 import (
    KERNEL,
    MMAP,
    REQBUFS,
    STREAMOFF,
    STREAMON,
    VIDEO_CAPTURE,
    Kernel,
    ask,
    explain,
    letters,
    switch,
)
from mtdit_robots.errors import UserError

# type, then of the picture: width, height, pixel format, field, bytes per line
_S_FMT = (0xC0D05605, struct.Struct("I4x5I180x"))
# type, capability, mode, seconds per frame as numerator and denominator
_S_PARM = (0xC0CC5616, struct.Struct("5I184x"))
# index, type, bytes used, flags, field, time, timecode, sequence, memory, offset, length
_BUFFER = struct.Struct("5I4x2q16s2IQI2I4x")
_QUERYBUF, _QBUF, _DQBUF = ((code, _BUFFER) for code in (0xC0585609, 0xC058560F, 0xC0585611))
_DAMAGED = 0x40  # V4L2_BUF_FLAG_ERROR
_BUFFERS = 4
# MJPG first: it is compressed in the camera, and two raw streams do not fit on one USB 2 bus
FORMATS = "MJPG", "JPEG", "YUYV"


class V4l2Stream:
    """An open camera that delivers exactly this size.

    fourcc: the pixel format to ask for; None: the first of FORMATS that it offers. UserError when
    it cannot be opened, is busy, or delivers another size or format.
    """

    def __init__(
        self,
        name: str,
        device: str,
        height: int,
        width: int,
        fps: float,
        fourcc: str | None = None,
        kernel: Kernel = KERNEL,
    ) -> None:
        self.height, self.width = height, width
        self._kernel, self._who = kernel, f"camera {name!r} ({device})"
        self._maps: list[mmap.mmap] = []
        self._line_bytes = 0
        try:
            self._fd = kernel.open(device)
        except OSError as error:
            raise UserError(
                f"cannot open camera {name!r} ({device}): {error.strerror}; choose one that "
                "`mtdit find-cameras` lists"
            ) from error
        try:
            self.pixel_format = self._set_format(fourcc)
            with contextlib.suppress(OSError):  # not every camera has a choice of rates
                self._ask(_S_PARM, VIDEO_CAPTURE, 0, 0, 1000, round(fps * 1000))
            self._start()
        except OSError as error:
            self.close()
            raise UserError(f"{self._who} {explain(error)}") from error
        except UserError:
            self.close()
            raise

    def read(self, timeout_s: float) -> Frame | None:
        """The next frame; None when it came damaged, or when none came within the time.

        OSError when the camera is gone.
        """
        if not self._kernel.wait(self._fd, timeout_s):
            return None
        try:
            index, _, used, flags, *_ = self._ask(_DQBUF, *_empty())
        except OSError as error:
            if error.errno == errno.EAGAIN:
                return None
            raise
        data = self._maps[index][:used]
        self._ask(_QBUF, *_empty(index))
        if flags & _DAMAGED:
            return None
        try:
            if self.pixel_format == "YUYV":
                return from_yuyv(data, self.height, self.width, self._line_bytes)
            return from_jpeg(data)
        except OSError:
            return None

    def close(self) -> None:
        """Stop streaming and release the device. Safe to call twice."""
        if self._fd < 0:
            return
        with contextlib.suppress(OSError):
            switch(self._kernel, self._fd, STREAMOFF)
        for mapped in self._maps:
            mapped.close()
        self._kernel.close(self._fd)
        self._fd = -1

    def _set_format(self, wanted: str | None) -> str:
        """Asks for one format after the other; returns the one that the camera took."""
        if wanted is not None and wanted not in FORMATS:
            raise UserError(
                f"{self._who}: mtdit reads {', '.join(FORMATS)}, not fourcc {wanted!r}: choose one"
            )
        sent = ""
        for pixel_format in (wanted,) if wanted else FORMATS:
            code = int.from_bytes(pixel_format.encode(), "little")
            _, width, height, code, _, self._line_bytes = self._ask(
                _S_FMT, VIDEO_CAPTURE, self.width, self.height, code, 0, 0
            )
            sent = letters(code)
            if sent == pixel_format:
                break
        else:
            raise UserError(
                f"{self._who} delivers {sent}, not {wanted or ' or '.join(FORMATS)}: choose "
                "a fourcc it offers (`mtdit find-cameras` lists them), or another camera"
            )
        if (width, height) != (self.width, self.height):
            raise UserError(
                f"{self._who} delivers {width}x{height}, not {self.width}x{self.height}: "
                "choose a size it offers (`mtdit find-cameras` lists them)"
            )
        return sent

    def _start(self) -> None:
        count, *_ = self._ask(REQBUFS, _BUFFERS, VIDEO_CAPTURE, MMAP, 0)
        for index in range(count):
            *_, offset, length, _, _ = self._ask(_QUERYBUF, *_empty(index))
            self._maps.append(self._kernel.map(self._fd, length, offset & 0xFFFF_FFFF))
            self._ask(_QBUF, *_empty(index))
        switch(self._kernel, self._fd, STREAMON)

    def _ask(self, request: tuple[int, struct.Struct], *fields: Any) -> tuple[Any, ...]:
        return ask(self._kernel, self._fd, request, fields)


def _empty(index: int = 0) -> tuple[Any, ...]:
    """A v4l2_buffer that only says which one is meant."""
    return (index, VIDEO_CAPTURE, 0, 0, 0, 0, 0, b"", 0, MMAP, 0, 0, 0, 0)
