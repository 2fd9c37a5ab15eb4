"""Cameras: the latest frame and how old it is.

Knows capture, colour order, and how to come back after a cable was out. Refuses to know resizing,
encoding and what a frame is for: the policy's graphs take the camera's own pixels. OpenCV is
imported where a camera is opened.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Generator, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from mtdit_robots.errors import UserError

Frame = NDArray[np.uint8]  # (H, W, 3) RGB

_CLOSE_S = (
    2.0  # a device that hangs keeps its thread for V4L2's 10 s or longer; nobody waits for that
)
# frames in a row: a damaged JPEG now and then is normal on USB, a camera that went away is not
_MISSES = 10
_REOPEN_S = 0.5  # between two attempts to find a camera that went away
FILE, DATASET = "file:", "dataset:"


class Camera(Protocol):
    """An open camera. `read` never waits for a new frame; it may wait for the very first one.

    A camera that stops goes on giving its last frame, older and older: whoever acts on frames
    watches their age.
    """

    @property
    def name(self) -> str: ...

    @property
    def height(self) -> int: ...

    @property
    def width(self) -> int: ...

    def read(self) -> tuple[Frame, float]:
        """The latest frame (H, W, 3) uint8 RGB and its age in seconds. OSError when there has never
        been one.
        """
        ...

    def close(self) -> None:
        """Release the device. Safe to call twice."""


def open_camera(
    name: str, source: str, height: int = 480, width: int = 640, fps: float = 30.0
) -> OpenCvCamera | FilmCamera:
    """A camera from what a user types: a device, an index, `file:clip.mp4` or
    `dataset:FOLDER:camera`.

    UserError: cannot be opened, or delivers another size.
    """
    if source.startswith(FILE):
        return FilmCamera(name, [Path(source.removeprefix(FILE))], height, width)
    if source.startswith(DATASET):
        folder, colon, camera = source.removeprefix(DATASET).rpartition(":")
        if not colon:
            raise UserError(
                f"camera {name!r}: {source} names no camera: write dataset:FOLDER:camera"
            )
        return FilmCamera(name, _films(Path(folder), camera), height, width)
    return OpenCvCamera(name, int(source) if source.isdigit() else source, height, width, fps)


class OpenCvCamera:
    """A V4L2 camera, or anything else OpenCV opens, read by a thread of its own; only the latest
    frame is kept.

    A camera that goes away is opened again as soon as it is back: by the same path, so give one
    from /dev/v4l/by-id. `arrived` counts its frames, `reopened` how often it had to be opened
    again.

    name: the camera's name in the policy, e.g. "top". device: index (0 is /dev/video0) or path.
    height, width, fps: asked of the device; UserError when it delivers another size, since the
    policy was trained on one.
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
        self.arrived = self.reopened = 0
        self._device, self._fps = device, fps
        self._first_frame_s = first_frame_s
        self._capture = _open(name, device, height, width, fps)
        self.pixel_format = _pixel_format(self._capture)  # as read back, "MJPG" on most USB cameras
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
            self._latest, self._failure = (
                (np.ascontiguousarray(image[..., ::-1]), now_s),
                None,
            )  # BGR -> RGB
            self.arrived += 1
            self._changed.notify_all()

    def _fail(self, problem: str) -> None:
        with self._changed:
            self._failure = problem
            self._changed.notify_all()

    def _reopen(self) -> None:
        """Try until the camera is back or nobody wants it any more; meanwhile its last frame grows
        old.
        """
        self._capture.release()
        while not self._stop.wait(_REOPEN_S):
            try:
                self._capture = _open(self.name, self._device, self.height, self.width, self._fps)
            except UserError:
                continue  # still away; `read` goes on telling the age of the last frame
            self.reopened += 1
            return


class FilmCamera:
    """Video files in the place of a camera, one after the other and over again, at their own rate.

    For trying things out without a camera: what was recorded once is seen again. UserError: no such
    file, other size.
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
                f"camera {name!r}: {films[0]} is {got}, not {width}x{height}: ask for that size"
            )
        self._shown_s = time.monotonic()  # when the latest frame was due

    def read(self) -> tuple[Frame, float]:
        """As `Camera`. A film nobody looked at for a second goes on from where it stopped."""
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
    """Every frame (H, W, 3) RGB of every film, for ever."""
    while True:
        for film in films:
            with _opened(name, film) as video:
                for picture in video.decode(video=0):
                    yield np.asarray(picture.to_ndarray(format="rgb24"), np.uint8)


def _opened(name: str, film: Path) -> Any:
    try:
        import av
    except ImportError as error:
        raise UserError('films as cameras need PyAV: pip install "mtdit[record]"') from error
    try:
        video = av.open(str(film))
    except (av.error.FFmpegError, OSError) as error:
        raise UserError(
            f"camera {name!r}: {film} is no video ({error}): give another file"
        ) from error
    if not video.streams.video:
        video.close()
        raise UserError(f"camera {name!r}: {film} has no pictures: give another file")
    return video


def _films(folder: Path, camera: str) -> list[Path]:
    """The video files of a LeRobotDataset's camera. UserError lists the cameras there are."""
    films = sorted((folder / "videos" / f"observation.images.{camera}").glob("chunk-*/file-*.mp4"))
    if not films:
        known = sorted(
            path.name.removeprefix("observation.images.") for path in (folder / "videos").glob("*")
        )
        raise UserError(
            f"{folder} has no videos of a camera {camera!r}: it has {', '.join(known) or 'none at all'}"
        )
    return films


def _open(name: str, device: int | str, height: int, width: int, fps: float) -> Any:
    """An opened cv2.VideoCapture of exactly this size. UserError otherwise."""
    cv2 = _cv2()
    is_v4l2 = isinstance(device, int) or device.startswith("/dev/")
    capture = cv2.VideoCapture(device, cv2.CAP_V4L2 if is_v4l2 else cv2.CAP_ANY)
    if not capture.isOpened():
        raise UserError(
            f"cannot open camera {name!r} ({device}): pick one of `mtdit find-cameras`, and close its other users"
        )
    # compressed in the camera: two raw streams do not fit on one USB 2 bus. Before the size, which
    # it decides
    if is_v4l2:
        capture.set(cv2.CAP_PROP_FOURCC, cv2.VideoWriter.fourcc(*"MJPG"))
    capture.set(cv2.CAP_PROP_FRAME_WIDTH, width)
    capture.set(cv2.CAP_PROP_FRAME_HEIGHT, height)
    capture.set(cv2.CAP_PROP_FPS, fps)
    capture.set(cv2.CAP_PROP_BUFFERSIZE, 1)
    got = int(capture.get(cv2.CAP_PROP_FRAME_WIDTH)), int(capture.get(cv2.CAP_PROP_FRAME_HEIGHT))
    if got != (width, height):
        capture.release()
        raise UserError(
            f"camera {name!r} ({device}) delivers {got[0]}x{got[1]}, not {width}x{height}: "
            "pick a size it offers, `mtdit find-cameras` lists them"
        )
    return capture


def _pixel_format(capture: Any) -> str:
    """The four letters of what the device really sends; empty where OpenCV cannot tell."""
    code = int(capture.get(_cv2().CAP_PROP_FOURCC))
    return code.to_bytes(4, "little").decode("ascii", "replace").strip("\0 ") if code > 0 else ""


def _cv2() -> Any:
    os.environ.setdefault(
        "OPENCV_LOG_LEVEL", "ERROR"
    )  # its warnings would bury the one line that helps
    try:
        import cv2
    except ImportError as error:
        raise UserError('cameras need OpenCV: run `pip install "mtdit[runtime]"`') from error
    return cv2
