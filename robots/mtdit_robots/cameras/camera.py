"""Cameras: capture frames, give the latest one as RGB with its age, reopen after a disconnect.

Frames are not resized here: the policy's graphs take the camera's own pixels. Pillow and PyAV are
imported only when a camera is opened.
"""

from __future__ import annotations

import threading
import time
from typing import Protocol

from mtdit_robots.cameras.images import Frame, import_pillow
from mtdit_robots.cameras.v4l2 import KERNEL, Kernel
from mtdit_robots.cameras.v4l2_stream import V4l2Stream
from mtdit_robots.errors import UserError

# Longest wait for the capture thread at close: a device that hangs in the kernel blocks it
_CLOSE_S = 2.0
# Reads without a frame in a row that mean "disconnected": a damaged JPEG is normal on USB
_MISSES = 10
_FRAME_S = 0.3  # longest wait for one frame
_REOPEN_S = 0.5  # between two attempts to reopen a camera


class Camera(Protocol):
    """An open camera. `read` never waits for a new frame; it may wait for the very first one.

    A camera that has stopped keeps returning its last frame with a growing age, so the caller must
    check the age before it acts on a frame.
    """

    @property
    def name(self) -> str: ...

    @property
    def height(self) -> int: ...

    @property
    def width(self) -> int: ...

    def read(self) -> tuple[Frame, float]:
        """The latest frame (H, W, 3) uint8 RGB and its age in seconds.

        OSError when no frame has arrived yet.
        """
        ...

    def close(self) -> None:
        """Release the device. Safe to call twice."""


class V4l2Camera:
    """A V4L2 camera. A thread reads it and keeps the last frame.

    A camera that is unplugged is reopened when it is back, by the same path: pass one from
    /dev/v4l/by-id, which does not change. `arrived` counts frames, `reopened` counts reconnects.

    name: the camera's name in the policy, e.g. "top". device: index (0 is /dev/video0) or path.
    height, width, fps: requested from the device. UserError when it delivers another size, since
    the policy was trained on one size. fourcc: the pixel format; UserError when the device delivers
    another one. None: MJPG where the device has it.
    """

    def __init__(
        self,
        name: str,
        device: int | str,
        height: int = 480,
        width: int = 640,
        fps: float = 30.0,
        first_frame_s: float = 5.0,
        fourcc: str | None = None,
        kernel: Kernel = KERNEL,
    ) -> None:
        import_pillow("cameras need")
        self.name, self.height, self.width = name, height, width
        self.arrived = self.reopened = 0
        self._device = f"/dev/video{device}" if isinstance(device, int) else device
        self._fps, self._fourcc = fps, fourcc
        self._first_frame_s, self._kernel = first_frame_s, kernel
        self._stream = self._open()
        self.pixel_format = self._stream.pixel_format  # "MJPG" on most USB cameras
        self._latest: tuple[Frame, float] | None = None  # frame, time.monotonic() of its arrival
        self._failure: str | None = None
        self._changed = threading.Condition()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._grab, name=f"camera-{name}", daemon=True)
        self._thread.start()

    def read(self) -> tuple[Frame, float]:
        with self._changed:
            self._changed.wait_for(
                lambda: self._latest is not None or self._failure, timeout=self._first_frame_s
            )
            if self._latest is None:
                problem = (
                    self._failure
                    or f"gave no frame within {self._first_frame_s:g} s; check its USB cable"
                )
                raise OSError(f"camera {self.name!r} ({self._device}) {problem}")
            frame, arrived_s = self._latest
        return frame, time.monotonic() - arrived_s

    def close(self) -> None:
        if not self._stop.is_set():
            self._stop.set()
            self._thread.join(_CLOSE_S)

    def __enter__(self) -> V4l2Camera:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _open(self) -> V4l2Stream:
        return V4l2Stream(
            self.name,
            self._device,
            self.height,
            self.width,
            self._fps,
            self._fourcc,
            self._kernel,
        )

    def _grab(self) -> None:
        """The thread: every frame, until `close`. It alone touches the stream."""
        misses = 0
        while not self._stop.is_set():
            try:
                frame = self._stream.read(_FRAME_S)
                now_s = time.monotonic()
            except OSError:
                frame, misses = None, _MISSES
            misses = misses + 1 if frame is None else 0
            if frame is not None:
                self._take(frame, now_s)
            elif misses >= _MISSES:
                self._fail("stopped delivering frames; check its USB cable")
                self._reopen()
                misses = 0
        self._stream.close()

    def _take(self, frame: Frame, now_s: float) -> None:
        if frame.shape != (self.height, self.width, 3):
            got, wanted = f"{frame.shape[1]}x{frame.shape[0]}", f"{self.width}x{self.height}"
            self._fail(f"delivers {got}, not {wanted}; set it to that size")
            return
        with self._changed:
            self._latest = (frame, now_s)
            self._failure = None
            self.arrived += 1
            self._changed.notify_all()

    def _fail(self, problem: str) -> None:
        with self._changed:
            self._failure = problem
            self._changed.notify_all()

    def _reopen(self) -> None:
        """Try until the camera is back or `close` is called."""
        self._stream.close()
        while not self._stop.wait(_REOPEN_S):
            try:
                self._stream = self._open()
            except UserError:
                continue  # still gone; `read` returns the last frame with a growing age
            self.reopened += 1
            return
