"""Find V4L2 cameras and their formats, sizes and rates by ioctl, and say why a stream does not
start.

Capturing is in `v4l2_stream`. Source: linux/videodev2.h. Struct layouts are those of 64-bit
kernels.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import mmap
import os
import select
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# ioctl code and struct layout of each request, with the fields of the struct
# driver, card, bus, version, capabilities, device capabilities
_QUERYCAP = (0x80685600, struct.Struct("16s32s32s3I12x"))
# index, type, flags, description, pixel format
_ENUM_FMT = (0xC0405602, struct.Struct("3I32sI16x"))
# index, pixel format, kind, width, height ...
_ENUM_FRAMESIZES = (0xC02C564A, struct.Struct("3I6I8x"))
# index, pixel format, width, height, kind, numerator, denominator ...
_ENUM_FRAMEINTERVALS = (0xC034564B, struct.Struct("5I6I8x"))
# count, type, memory
REQBUFS = (0xC0145608, struct.Struct("4I4x"))
STREAMON, STREAMOFF = 0x40045612, 0x40045613
_CAPTURE, _STREAMING, _DEVICE_CAPS = 0x1, 0x0400_0000, 0x8000_0000
VIDEO_CAPTURE, MMAP, _DISCRETE = 1, 1, 1

BANDWIDTH = (
    "the USB bus has no bandwidth left for another camera: plug one into another port "
    "(not the same hub), or use a smaller size or a lower frame rate"
)


Request = tuple[int, struct.Struct]


class Kernel:
    """The system calls that a camera needs. A virtual camera of the tests takes its place."""

    def open(self, path: str) -> int:
        return os.open(path, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)

    def ioctl(self, fd: int, code: int, buffer: bytearray) -> None:
        fcntl.ioctl(fd, code, buffer)

    def map(self, fd: int, length: int, offset: int) -> mmap.mmap:
        return mmap.mmap(fd, length, mmap.MAP_SHARED, mmap.PROT_READ, offset=offset)

    def wait(self, fd: int, timeout_s: float) -> bool:
        """Whether a frame is there, or an error, within the time."""
        return bool(select.select([fd], [], [], timeout_s)[0])

    def close(self, fd: int) -> None:
        os.close(fd)


KERNEL = Kernel()


@dataclass(frozen=True)
class Mode:
    """One format and size a camera offers, with its frame rates, highest first. height and width
    are 0 when it supports any size.
    """

    pixel_format: str
    height: int
    width: int
    rates_hz: tuple[float, ...]


@dataclass(frozen=True)
class Device:
    """A camera as the kernel reports it. path: the name to use, a by-id link where there is one,
    because it stays the same after a reboot. node: /dev/videoN. card: the product name.
    """

    path: str
    node: str
    card: str = ""
    bus: str = ""  # cameras on one USB controller have the same beginning here
    modes: tuple[Mode, ...] = ()
    problem: str = ""  # why it could not be queried


def find_devices(dev: Path = Path("/dev"), kernel: Kernel = KERNEL) -> list[Device]:
    """Every capture device below `dev`, with its by-id link where there is one. Metadata nodes are
    left out.
    """
    named = {
        str(link.resolve()): str(link)
        for link in sorted((dev / "v4l/by-id").glob("*"), reverse=True)
    }
    nodes = sorted(dev.glob("video[0-9]*"), key=lambda node: int(node.name.removeprefix("video")))
    found = (
        _device(str(node), named.get(str(node.resolve()), str(node)), kernel) for node in nodes
    )
    return [device for device in found if device is not None]


def _device(node: str, path: str, kernel: Kernel) -> Device | None:
    try:
        fd = kernel.open(node)
    except OSError as error:
        return Device(path, node, problem=_why_closed(error))
    try:
        _, card, bus, _, all_caps, own_caps = ask(kernel, fd, _QUERYCAP)
        caps = own_caps if all_caps & _DEVICE_CAPS else all_caps
        if not (caps & _CAPTURE and caps & _STREAMING):
            return None
        return Device(path, node, _text(card), _text(bus), tuple(_modes(kernel, fd)))
    except OSError as error:
        return Device(path, node, problem=f"is not a camera ({error.strerror})")
    finally:
        kernel.close(fd)


def _why_closed(error: OSError) -> str:
    if error.errno in (errno.EACCES, errno.EPERM):
        return "no permission: run `sudo usermod -aG video $USER`, then log in again"
    return f"cannot be opened ({error.strerror})"


def _modes(kernel: Kernel, fd: int) -> Iterator[Mode]:
    def each(request: Request, *question: Any) -> Iterator[tuple[Any, ...]]:
        """Replies to an enumeration ioctl, index by index, until the driver returns EINVAL."""
        for index in range(256):  # more than any camera offers; a broken driver might never end
            try:
                yield ask(kernel, fd, request, (index, *question))
            except OSError as error:
                if error.errno == errno.EINVAL:
                    return
                raise

    zeros = [0] * 7
    for _, _, _, _, code in each(_ENUM_FMT, VIDEO_CAPTURE, 0, b"", 0):
        for _, _, kind, width, height, *_ in each(_ENUM_FRAMESIZES, code, *zeros):
            if kind != _DISCRETE:  # a stepwise range: any size
                yield Mode(letters(code), 0, 0, ())
                break
            intervals = each(_ENUM_FRAMEINTERVALS, code, width, height, *zeros)
            rates = {
                round(d / n, 2)
                for *_, kind, n, d, _, _, _, _ in intervals
                if kind == _DISCRETE and n
            }
            yield Mode(letters(code), height, width, tuple(sorted(rates, reverse=True)))


def ask(kernel: Kernel, fd: int, request: Request, fields: tuple[Any, ...] = ()) -> tuple[Any, ...]:
    """One ioctl: fields in, fields out."""
    code, layout = request
    buffer = bytearray(layout.pack(*fields) if fields else bytes(layout.size))
    kernel.ioctl(fd, code, buffer)
    return layout.unpack(buffer)


def switch(kernel: Kernel, fd: int, code: int) -> None:
    """STREAMON or STREAMOFF."""
    kernel.ioctl(fd, code, bytearray(struct.pack("i", VIDEO_CAPTURE)))


def why_no_stream(node: str, kernel: Kernel = KERNEL) -> str:
    """Why this camera does not start streaming while the others run; empty when it starts.

    ENOSPC ("No space left on device") means that the USB bus has no bandwidth left.
    """
    try:
        fd = kernel.open(node)
    except OSError as error:
        return _why_closed(error)
    try:
        ask(kernel, fd, REQBUFS, (2, VIDEO_CAPTURE, MMAP, 0))
        switch(kernel, fd, STREAMON)
    except OSError as error:
        return explain(error)
    finally:
        with contextlib.suppress(OSError):
            switch(kernel, fd, STREAMOFF)
        kernel.close(fd)
    return ""


def explain(error: OSError) -> str:
    """Why a stream did not start, and the fix."""
    if error.errno == errno.ENOSPC:
        return BANDWIDTH
    if error.errno == errno.EBUSY:
        return "another program uses it: close that program"
    return f"does not start ({error.strerror}): unplug it and plug it in again"


def letters(code: int) -> str:
    """The four letters of a pixel format: "MJPG" for 0x47504A4D."""
    return code.to_bytes(4, "little").decode("ascii", "replace").strip()


def _text(field: bytes) -> str:
    return field.split(b"\0")[0].decode("utf-8", "replace")
