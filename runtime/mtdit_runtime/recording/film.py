"""Videos of runs: camera frames side by side with a caption, written as MP4 with OpenCV.

`Film` writes in its own thread, so that it does not slow down the control loop.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mtdit_robots.errors import UserError
from mtdit_robots.extras import missing
from mtdit_robots.robot import Frame

CAPTION_HEIGHT = 24  # pixels
WAITING = 90  # most frames in the queue: three seconds


class VideoWriter:
    """An MP4 file. size: (width, height). `write` takes (H, W, 3) uint8 RGB of that size."""

    def __init__(self, path: Path, fps: float, size: tuple[int, int]) -> None:
        self._cv2 = _import_cv2()
        path.parent.mkdir(parents=True, exist_ok=True)
        self._size = size
        self._file = self._cv2.VideoWriter(
            str(path), self._cv2.VideoWriter.fourcc(*"mp4v"), fps, size
        )
        if not self._file.isOpened():
            raise UserError(
                f"cannot write a video to {path}: use a writable folder and a name ending in .mp4"
            )

    def write(self, frame: Frame) -> None:
        if frame.shape != (self._size[1], self._size[0], 3):
            raise ValueError(f"the video is {self._size}, the frame {frame.shape}")
        self._file.write(np.ascontiguousarray(frame[..., ::-1]))  # OpenCV wants BGR

    def close(self) -> None:
        self._file.release()

    def __enter__(self) -> VideoWriter:
        return self

    def __exit__(self, *_error: object) -> None:
        self.close()


def tile(frames: Sequence[Frame], height: int) -> Frame:
    """Frames of any size side by side, scaled to `height`, each width even: (height, W, 3)."""
    cv2 = _import_cv2()

    def scaled(frame: Frame) -> Frame:
        width = max(2, round(frame.shape[1] * height / frame.shape[0] / 2) * 2)
        shrinks = frame.shape[0] > height
        resized: Frame = cv2.resize(
            frame, (width, height), interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_NEAREST
        )
        return resized

    return np.concatenate([scaled(frame) for frame in frames], axis=1)


def caption(frame: Frame, text: str) -> Frame:
    """The frame with a line of text on a dark strip below it: (H + CAPTION_HEIGHT, W, 3)."""
    cv2 = _import_cv2()
    strip = np.full((CAPTION_HEIGHT, frame.shape[1], 3), 24, np.uint8)
    cv2.putText(
        strip, text, (6, 17), cv2.FONT_HERSHEY_SIMPLEX, 0.45, (235, 235, 235), 1, cv2.LINE_AA
    )
    return np.concatenate([frame, strip])


class Film:
    """An MP4 of frames side by side with a caption, written in a thread.

    The first frames set the size. wait: when the writer is slow, wait for it (lock-step) instead of
    dropping the frame (real time). dropped: how many frames were dropped.
    """

    def __init__(self, path: Path, fps: float, height: int = 240, wait: bool = False) -> None:
        _import_cv2()
        self._path, self._fps, self._height, self._wait = path, fps, height, wait
        self._todo: queue.Queue[tuple[list[Frame], str] | None] = queue.Queue(WAITING)
        self._error: Exception | None = None
        self.dropped = 0
        self._thread = threading.Thread(target=self._write_all, name="film", daemon=True)
        self._thread.start()

    def add(self, frames: Mapping[str, Frame], text: str) -> None:
        """Queue one image of the video: the frames in the order of the mapping, and `text`."""
        try:
            self._todo.put((list(frames.values()), text), block=self._wait)
        except queue.Full:
            self.dropped += 1

    def close(self) -> None:
        """Finish the file. Raises what writing raised."""
        self._todo.put(None)
        self._thread.join()
        if self._error is not None:
            raise self._error

    def _write_all(self) -> None:
        writer: VideoWriter | None = None
        while (item := self._todo.get()) is not None:
            if self._error is not None:
                continue
            try:
                picture = caption(tile(item[0], self._height), item[1])
                writer = writer or VideoWriter(
                    self._path, self._fps, (picture.shape[1], picture.shape[0])
                )
                writer.write(picture)
            except Exception as error:  # raised by `close`
                self._error = error
        if writer is not None:
            writer.close()


def _import_cv2() -> Any:
    try:
        import cv2
    except ImportError as error:
        raise missing("cv2", "videos need OpenCV") from error
    return cv2
