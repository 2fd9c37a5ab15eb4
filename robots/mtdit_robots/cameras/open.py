"""Opens a camera from its source: a device, file:CLIP.mp4 or dataset:FOLDER:CAMERA."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np

from mtdit_robots.cameras.camera import V4l2Camera
from mtdit_robots.cameras.film_camera import FilmCamera, films
from mtdit_robots.cameras.images import Frame
from mtdit_robots.cameras.options import CameraOptions
from mtdit_robots.errors import UserError

FILE, DATASET = "file:", "dataset:"
Device = V4l2Camera | FilmCamera


class OpenedCamera:
    """A camera as its options describe it: frames are turned, and the first `read` waits until the
    warm-up is over. It counts from the opening, so that several cameras warm up together.
    """

    def __init__(self, device: Device, rotation: int = 0, warmup_s: float = 0.0) -> None:
        self._device, self._rotation = device, rotation
        self._warm_at_s = time.monotonic() + warmup_s
        self._seen: Frame | None = None  # as the device gave it, and the same frame turned
        self._turned: Frame | None = None

    @property
    def name(self) -> str:
        return self._device.name

    @property
    def height(self) -> int:
        return self._device.width if self._rotation in (90, -90) else self._device.height

    @property
    def width(self) -> int:
        return self._device.height if self._rotation in (90, -90) else self._device.width

    @property
    def arrived(self) -> int:
        """Number of frames so far."""
        return self._device.arrived

    @property
    def pixel_format(self) -> str:
        """What the device sends, e.g. MJPG."""
        return self._device.pixel_format

    def read(self) -> tuple[Frame, float]:
        """As `Camera.read`; before the end of the warm-up it waits for that too."""
        time.sleep(max(0.0, self._warm_at_s - time.monotonic()))
        frame, age_s = self._device.read()
        if self._turned is None or frame is not self._seen:
            self._seen, self._turned = frame, turned(frame, self._rotation)
        return self._turned, age_s

    def close(self) -> None:
        """Release the device. Safe to call twice."""
        self._device.close()

    def __enter__(self) -> OpenedCamera:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def turned(frame: Frame, rotation: int) -> Frame:
    """A frame (H, W, 3), turned clockwise by 0, 90, 180 or -90 degrees, as cv2.rotate does."""
    return np.ascontiguousarray(np.rot90(frame, -rotation // 90))


def open_camera(
    name: str,
    source: str | CameraOptions,
    height: int = 480,
    width: int = 640,
    fps: float = 30.0,
) -> OpenedCamera:
    """Open a camera; its frames are (height, width, 3) uint8 RGB.

    name: the camera's name in the policy, e.g. "top". source: a device path (best one from
    /dev/v4l/by-id, which does not change), an index ("0" is /dev/video0), or a recording in place
    of a camera: `file:clip.mp4` or `dataset:FOLDER:camera`; or `CameraOptions`, whose size and rate
    go before the other arguments. UserError when it cannot be opened or delivers another size or
    pixel format, or when Pillow is not installed.

        with mtdit.open_camera("top", "/dev/video0") as camera:
            frame, age_s = camera.read()
    """
    options = CameraOptions(source) if isinstance(source, str) else source
    size = options.height or height, options.width or width
    if options.rotation in (90, -90):  # the device gives a lying frame, and it is stood up here
        size = size[::-1]
    device = _opened(name, options, *size, options.fps or fps)
    return OpenedCamera(device, options.rotation, options.warmup_s)


def _opened(name: str, options: CameraOptions, height: int, width: int, fps: float) -> Device:
    source = options.source
    if source.startswith(FILE):
        return FilmCamera(name, [Path(source.removeprefix(FILE))], height, width)
    if source.startswith(DATASET):
        folder, colon, camera = source.removeprefix(DATASET).rpartition(":")
        if not colon:
            raise UserError(
                f"camera {name!r}: {source} does not name a camera: write dataset:FOLDER:camera"
            )
        return FilmCamera(name, films(Path(folder), camera), height, width)
    device = int(source) if source.isdigit() else source
    return V4l2Camera(name, device, height, width, fps, fourcc=options.fourcc)
