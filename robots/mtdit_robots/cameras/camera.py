"""Cameras: capture frames, give the latest one as RGB with its age, reopen after a disconnect.

Frames are not resized here: the policy's graphs take the camera's own pixels. OpenCV and PyAV are
imported only when a camera is opened.
"""

from __future__ import annotations

import os
import threading
import time
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from mtdit_robots.errors import UserError
from mtdit_robots.extras import missing

Frame = NDArray[np.uint8]  # (H, W, 3) RGB

# Longest wait for the capture thread at close: a device that hangs blocks it for 10 s or more
_CLOSE_S = 2.0
# Failed reads in a row that mean "disconnected": a single damaged JPEG is normal on USB
_MISSES = 10
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


class OpenCvCamera:
    """A V4L2 camera, or any other source OpenCV opens. A thread reads it and keeps the last frame.

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
    ) -> None:
        self.name, self.height, self.width = name, height, width
        self.arrived = self.reopened = 0
        self._device, self._fps, self._fourcc = device, fps, fourcc
        self._first_frame_s = first_frame_s
        self._capture = self._open()
        self.pixel_format = _pixel_format(self._capture)  # as read back; "MJPG" on most USB cameras
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
        self._stop.set()
        self._thread.join(_CLOSE_S)
        if not self._thread.is_alive():
            self._capture.release()

    def __enter__(self) -> OpenCvCamera:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _grab(self) -> None:
        misses = 0
        while not self._stop.is_set():
            arrived, image = self._capture.read()
            now_s = time.monotonic()
            misses = 0 if arrived else misses + 1
            if arrived:
                self._take(image, now_s)
            elif misses >= _MISSES:
                self._fail("stopped delivering frames; check its USB cable")
                self._reopen()

    def _take(self, image: Any, now_s: float) -> None:
        if image.shape != (self.height, self.width, 3):
            got, wanted = f"{image.shape[1]}x{image.shape[0]}", f"{self.width}x{self.height}"
            self._fail(f"delivers {got}, not {wanted}; set it to that size")
            return
        with self._changed:
            self._latest = (np.ascontiguousarray(image[..., ::-1]), now_s)  # BGR -> RGB
            self._failure = None
            self.arrived += 1
            self._changed.notify_all()

    def _fail(self, problem: str) -> None:
        with self._changed:
            self._failure = problem
            self._changed.notify_all()

    def _reopen(self) -> None:
        """Try until the camera is back or `close` is called."""
        self._capture.release()
        while not self._stop.wait(_REOPEN_S):
            try:
                self._capture = self._open()
            except UserError:
                continue  # still gone; `read` returns the last frame with a growing age
            self.reopened += 1
            return

    def _open(self) -> Any:
        return _open(self.name, self._device, self.height, self.width, self._fps, self._fourcc)


def _open(
    name: str, device: int | str, height: int, width: int, fps: float, fourcc: str | None
) -> Any:
    """An open cv2.VideoCapture that delivers exactly this size and, if one is given, this pixel
    format. UserError otherwise.
    """
    cv2 = _cv2()
    is_v4l2 = isinstance(device, int) or device.startswith("/dev/")
    capture = cv2.VideoCapture(device, cv2.CAP_V4L2 if is_v4l2 else cv2.CAP_ANY)
    if not capture.isOpened():
        raise UserError(
            f"cannot open camera {name!r} ({device}): choose one that `mtdit find-cameras` lists, "
            "and close other programs that use it"
        )
    # MJPG is compressed in the camera: two raw streams do not fit on one USB 2 bus. Set the format
    # before the size, because the sizes on offer depend on it.
    if is_v4l2 or fourcc is not None:
        capture.set(cv2.CAP_PROP_FOURCC, cv2.VideoWriter.fourcc(*(fourcc or "MJPG")))
    capture.set(cv2.CAP_PROP_FRAME_WIDTH, width)
    capture.set(cv2.CAP_PROP_FRAME_HEIGHT, height)
    capture.set(cv2.CAP_PROP_FPS, fps)
    capture.set(cv2.CAP_PROP_BUFFERSIZE, 1)
    got = int(capture.get(cv2.CAP_PROP_FRAME_WIDTH)), int(capture.get(cv2.CAP_PROP_FRAME_HEIGHT))
    if got != (width, height):
        capture.release()
        raise UserError(
            f"camera {name!r} ({device}) delivers {got[0]}x{got[1]}, not {width}x{height}: "
            "choose a size it offers (`mtdit find-cameras` lists them)"
        )
    if fourcc not in (None, _pixel_format(capture)):
        found = _pixel_format(capture) or "another pixel format"
        capture.release()
        raise UserError(
            f"camera {name!r} ({device}) delivers {found}, not {fourcc}: "
            "choose a fourcc it offers (`mtdit find-cameras` lists them)"
        )
    return capture


def _pixel_format(capture: Any) -> str:
    """The four-letter code of the format the device sends; empty when OpenCV cannot tell."""
    code = int(capture.get(_cv2().CAP_PROP_FOURCC))
    return code.to_bytes(4, "little").decode("ascii", "replace").strip("\0 ") if code > 0 else ""


def _cv2() -> Any:
    # OpenCV's warnings would hide our error message
    os.environ.setdefault("OPENCV_LOG_LEVEL", "ERROR")
    try:
        import cv2
    except ImportError as error:
        raise missing("cv2", "cameras need OpenCV") from error
    return cv2
