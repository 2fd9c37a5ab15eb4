"""A camera whose frames come from a video file or from a camera of a LeRobotDataset."""

from __future__ import annotations

import time
from collections.abc import Generator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mtdit_robots.cameras.images import Frame
from mtdit_robots.errors import UserError
from mtdit_robots.extras import missing
from mtdit_robots.features import IMAGES


class FilmCamera:
    """Plays video files in place of a camera, in a loop and at their own frame rate.

    For trying things out without a camera. UserError when a file does not exist or has another
    size.
    """

    pixel_format = "film"

    def __init__(self, name: str, films: Sequence[Path], height: int, width: int) -> None:
        self.name, self.height, self.width = name, height, width
        missing = [film for film in films if not film.is_file()]
        if missing:
            raise UserError(f"camera {name!r}: there is no file {missing[0]}")
        self.arrived = 0  # frames shown so far
        self._rate_hz = _rate_hz(name, films[0])
        self._frames = _frames_of(name, films)
        self._frame = next(self._frames)
        if self._frame.shape != (height, width, 3):
            got = f"{self._frame.shape[1]}x{self._frame.shape[0]}"
            raise UserError(
                f"camera {name!r}: {films[0]} is {got}, not {width}x{height}: ask for {got}"
            )
        self._shown_s = time.monotonic()  # when the latest frame was due

    def read(self) -> tuple[Frame, float]:
        """As `Camera.read`. After a pause in reading, playback skips at most one second."""
        now_s, period_s = time.monotonic(), 1 / self._rate_hz
        self._shown_s = max(self._shown_s, now_s - 1.0)
        while self.arrived == 0 or now_s - self._shown_s >= period_s:
            self._frame = next(self._frames) if self.arrived else self._frame
            self._shown_s += period_s if self.arrived else 0.0
            self.arrived += 1
        return self._frame, now_s - self._shown_s

    def close(self) -> None:
        self._frames.close()


def _rate_hz(name: str, film: Path) -> float:
    with _opened(name, film) as video:
        return float(video.streams.video[0].average_rate or 30)


def _frames_of(name: str, films: Sequence[Path]) -> Generator[Frame, None, None]:
    """Every frame (H, W, 3) RGB of every file, in an endless loop."""
    while True:
        for film in films:
            with _opened(name, film) as video:
                for picture in video.decode(video=0):
                    yield np.asarray(picture.to_ndarray(format="rgb24"), np.uint8)


def _opened(name: str, film: Path) -> Any:
    try:
        import av
    except ImportError as error:
        raise missing("av", "using a video file as a camera needs PyAV") from error
    try:
        video = av.open(str(film), metadata_errors="replace")
    except (av.error.FFmpegError, OSError) as error:
        raise UserError(
            f"camera {name!r}: {film} is not a video ({error}): choose another file"
        ) from error
    if not video.streams.video:
        video.close()
        raise UserError(f"camera {name!r}: {film} has no video stream: choose another file")
    return video


def films(folder: Path, camera: str) -> list[Path]:
    """The video files of one camera of a LeRobotDataset. UserError lists the cameras it has."""
    films = sorted((folder / "videos" / f"{IMAGES}{camera}").glob("chunk-*/file-*.mp4"))
    if not films:
        known = sorted(path.name.removeprefix(IMAGES) for path in (folder / "videos").glob("*"))
        raise UserError(
            f"{folder} has no videos of a camera {camera!r}: "
            f"its cameras are: {', '.join(known) or 'none'}"
        )
    return films
