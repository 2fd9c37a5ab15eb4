"""Cameras: the latest frame and how old it is.

Knows capture and colour order. Refuses to know resizing, encoding and what a frame is for: the policy's graphs take the
camera's own pixels. OpenCV is imported where a camera is opened.
"""

from __future__ import annotations

import os
import threading
import time
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from mtdit_robots.errors import UserError

Frame = NDArray[np.uint8]  # (H, W, 3) RGB

_CLOSE_S = 2.0  # a device that hangs keeps its thread for V4L2's 10 s or longer; nobody waits for that
_MISSES = 10  # frames in a row: a damaged JPEG now and then is normal on USB, a camera that went away is not


class Camera(Protocol):
    """An open camera. `read` never waits for a new frame; it may wait for the very first one.

    A camera that stops goes on giving its last frame, older and older: whoever acts on frames watches their age.
    """

    @property
    def name(self) -> str: ...

    @property
    def height(self) -> int: ...

    @property
    def width(self) -> int: ...

    def read(self) -> tuple[Frame, float]:
        """The latest frame (H, W, 3) uint8 RGB and its age in seconds. OSError when there has never been one."""
        ...

    def close(self) -> None:
        """Release the device. Safe to call twice."""


class OpenCvCamera:
    """A V4L2 camera, or anything else OpenCV opens, read by a thread of its own; only the latest frame is kept.

    name: the camera's name in the policy, e.g. "top". device: index (0 is /dev/video0) or path. height, width, fps:
    asked of the device; UserError when it delivers another size, since the policy was trained on one.
    """

    def __init__(
        self,
        name: str,
        device: int | str,
        height: int = 480,
        width: int = 640,
        fps: float = 30.0,
        first_frame_s: float = 5.0,
    ) -> None:
        self.name, self.height, self.width = name, height, width
        self._device = device
        self._first_frame_s = first_frame_s
        self._capture = _open(name, device, height, width, fps)
        self._latest: tuple[Frame, float] | None = None  # frame, time.monotonic() of its arrival
        self._failure: str | None = None
        self._changed = threading.Condition()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._grab, name=f"camera-{name}", daemon=True)
        self._thread.start()

    def read(self) -> tuple[Frame, float]:
        with self._changed:
            self._changed.wait_for(lambda: self._latest is not None or self._failure, timeout=self._first_frame_s)
            if self._latest is None:
                problem = self._failure or f"gave no frame within {self._first_frame_s:g} s; check its USB cable"
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
            if 0 < misses < _MISSES:
                continue
            with self._changed:
                if not arrived:
                    self._failure = "stopped delivering frames; check its USB cable"
                elif image.shape != (self.height, self.width, 3):
                    got, wanted = f"{image.shape[1]}x{image.shape[0]}", f"{self.width}x{self.height}"
                    self._failure = f"delivers {got}, not {wanted}; set it to that size"
                else:
                    self._latest = (np.ascontiguousarray(image[..., ::-1]), now_s)  # BGR -> RGB
                self._changed.notify_all()
                if self._failure:
                    return


def _open(name: str, device: int | str, height: int, width: int, fps: float) -> Any:
    """An opened cv2.VideoCapture of exactly this size. UserError otherwise."""
    os.environ.setdefault("OPENCV_LOG_LEVEL", "ERROR")  # its warnings would bury the one line that helps
    try:
        import cv2
    except ImportError as error:
        raise UserError('cameras need OpenCV: run `pip install "mtdit[runtime]"`') from error
    is_v4l2 = isinstance(device, int) or device.startswith("/dev/")
    capture = cv2.VideoCapture(device, cv2.CAP_V4L2 if is_v4l2 else cv2.CAP_ANY)
    if not capture.isOpened():
        raise UserError(
            f"cannot open camera {name!r} ({device}): pick one of `ls /dev/video*`, and close its other users"
        )
    capture.set(cv2.CAP_PROP_FRAME_WIDTH, width)
    capture.set(cv2.CAP_PROP_FRAME_HEIGHT, height)
    capture.set(cv2.CAP_PROP_FPS, fps)
    capture.set(cv2.CAP_PROP_BUFFERSIZE, 1)
    got = int(capture.get(cv2.CAP_PROP_FRAME_WIDTH)), int(capture.get(cv2.CAP_PROP_FRAME_HEIGHT))
    if got != (width, height):
        capture.release()
        raise UserError(
            f"camera {name!r} ({device}) delivers {got[0]}x{got[1]}, not {width}x{height}: "
            f"pick a size it offers (`v4l2-ctl --device {device} --list-formats-ext`)"
        )
    return capture
