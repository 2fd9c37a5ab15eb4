"""A camera that the kernel might have: V4L2's requests are answered, buffers are filled."""

from __future__ import annotations

import errno
import mmap
import struct
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from io import BytesIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from mtdit_robots.cameras.v4l2 import Kernel, letters

HEIGHT, WIDTH = 48, 64
PERIOD_S = 0.01


def red(number: int = 0) -> NDArray[np.uint8]:
    return np.full((HEIGHT, WIDTH, 3), (255, 0, 0), np.uint8)


def jpeg(picture: NDArray[np.uint8]) -> bytes:
    file = BytesIO()
    Image.fromarray(picture).save(file, "JPEG", quality=95)
    return file.getvalue()


@dataclass
class VirtualCamera(Kernel):
    """A camera with one size. formats: what it can send. sends: the bytes of frame n.

    gone: unplugged. hangs: frames stop and nothing is said. busy: another program streams.
    damaged: frames with these numbers are flagged as incomplete. opened: how often it was opened.
    """

    sends: Callable[[int], bytes] = lambda number: jpeg(red(number))
    formats: tuple[str, ...] = ("MJPG", "YUYV")
    damaged: tuple[int, ...] = ()
    busy: bool = False
    opened: int = 0
    open_now: int = 0
    sent: int = 0
    rate_hz: float = 0.0
    gone: threading.Event = field(default_factory=threading.Event)
    hangs: threading.Event = field(default_factory=threading.Event)
    _format: str = ""
    _streams: bool = False
    _maps: list[mmap.mmap] = field(default_factory=list)
    _queued: list[int] = field(default_factory=list)

    def open(self, path: str) -> int:
        if self.gone.is_set():
            raise OSError(errno.ENOENT, "No such file or directory")
        self.opened += 1
        self.open_now += 1
        return 1000 + self.opened

    def close(self, fd: int) -> None:
        assert fd > 1000
        self.open_now -= 1

    def map(self, fd: int, length: int, offset: int) -> mmap.mmap:
        assert offset == len(self._maps) * 0x10000
        self._maps.append(mmap.mmap(-1, length))
        return self._maps[-1]

    def wait(self, fd: int, timeout_s: float) -> bool:
        if self.hangs.is_set():
            time.sleep(timeout_s)
            return False
        time.sleep(PERIOD_S)
        return True

    def ioctl(self, fd: int, code: int, buffer: bytearray) -> None:
        if self.gone.is_set():
            raise OSError(errno.ENODEV, "No such device")
        number, size = code & 0xFF, code >> 16 & 0x3FFF
        assert size == len(buffer)
        answers = {0: self._about, 2: self._formats, 5: self._set_format, 22: self._set_rate}
        answers |= {74: self._sizes, 75: self._rates, 8: self._request, 9: self._query}
        answers |= {15: self._queue, 17: self._take, 18: self._start, 19: self._stop}
        answers[number](buffer)

    def _about(self, buffer: bytearray) -> None:
        struct.pack_into("16s32s32s3I", buffer, 0, b"uvc", b"Virtual", b"usb-1", 0, 0x0400_0001, 0)

    def _formats(self, buffer: bytearray) -> None:
        index = self._indexed(buffer, len(self.formats))
        buffer[44:48] = self.formats[index].encode()

    def _sizes(self, buffer: bytearray) -> None:
        self._indexed(buffer, 1)
        struct.pack_into("3I", buffer, 8, 1, WIDTH, HEIGHT)

    def _rates(self, buffer: bytearray) -> None:
        index = self._indexed(buffer, 2)
        struct.pack_into("3I", buffer, 16, 1, 1, (30, 15)[index])

    def _indexed(self, buffer: bytearray, count: int) -> int:
        (index,) = struct.unpack_from("I", buffer)
        if index >= count:
            raise OSError(errno.EINVAL, "Invalid argument")
        return int(index)

    def _set_format(self, buffer: bytearray) -> None:
        asked = letters(struct.unpack_from("I", buffer, 16)[0])
        self._format = asked if asked in self.formats else self.formats[0]
        struct.pack_into("2I", buffer, 8, WIDTH, HEIGHT)
        buffer[16:20] = self._format.encode()
        struct.pack_into("I", buffer, 24, 0 if self._format == "MJPG" else 2 * WIDTH)

    def _set_rate(self, buffer: bytearray) -> None:
        numerator, denominator = struct.unpack_from("2I", buffer, 12)
        self.rate_hz = denominator / numerator

    def _request(self, buffer: bytearray) -> None:
        if self.busy:
            raise OSError(errno.EBUSY, "Device or resource busy")
        self._maps, self._queued = [], []
        struct.pack_into("I", buffer, 0, min(3, struct.unpack_from("I", buffer)[0]))

    def _query(self, buffer: bytearray) -> None:
        (index,) = struct.unpack_from("I", buffer)
        struct.pack_into("IxxxxI", buffer, 64, index * 0x10000, 3 * HEIGHT * WIDTH)

    def _queue(self, buffer: bytearray) -> None:
        (index,) = struct.unpack_from("I", buffer)
        assert index not in self._queued
        self._queued.append(index)

    def _take(self, buffer: bytearray) -> None:
        if not self._streams or not self._queued:
            raise OSError(errno.EAGAIN, "Resource temporarily unavailable")
        index, data = self._queued.pop(0), self.sends(self.sent)
        self._maps[index][: len(data)] = data
        struct.pack_into("4I", buffer, 0, index, 1, len(data), 0x40 * (self.sent in self.damaged))
        self.sent += 1

    def _start(self, buffer: bytearray) -> None:
        assert struct.unpack("i", buffer) == (1,)
        self._streams = True

    def _stop(self, buffer: bytearray) -> None:
        self._streams = False
