"""Opens a camera from its source: a device, file:CLIP.mp4 or dataset:FOLDER:CAMERA."""

from __future__ import annotations

from pathlib import Path

from mtdit_robots.cameras.camera import OpenCvCamera
from mtdit_robots.cameras.film_camera import FilmCamera, films
from mtdit_robots.errors import UserError

FILE, DATASET = "file:", "dataset:"


def open_camera(
    name: str, source: str, height: int = 480, width: int = 640, fps: float = 30.0
) -> OpenCvCamera | FilmCamera:
    """Open a camera; its frames are (height, width, 3) uint8 RGB.

    name: the camera's name in the policy, e.g. "top". source: a device path (best one from
    /dev/v4l/by-id, which does not change), an index ("0" is /dev/video0), or a recording in place
    of a camera: `file:clip.mp4` or `dataset:FOLDER:camera`. UserError when it cannot be opened or
    delivers another size, or when OpenCV is not installed.

        with mtdit.open_camera("top", "/dev/video0") as camera:
            frame, age_s = camera.read()
    """
    if source.startswith(FILE):
        return FilmCamera(name, [Path(source.removeprefix(FILE))], height, width)
    if source.startswith(DATASET):
        folder, colon, camera = source.removeprefix(DATASET).rpartition(":")
        if not colon:
            raise UserError(
                f"camera {name!r}: {source} does not name a camera: write dataset:FOLDER:camera"
            )
        return FilmCamera(name, films(Path(folder), camera), height, width)
    return OpenCvCamera(name, int(source) if source.isdigit() else source, height, width, fps)
