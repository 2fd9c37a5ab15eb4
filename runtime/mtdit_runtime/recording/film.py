"""Videos of runs: camera frames side by side with a caption, as H.264 MP4, which browsers play.

`Film` writes in its own thread, so that it does not slow down the control loop. Pillow scales the
frames and draws the caption; the file is written by the encoder of recordings.
"""

from __future__ import annotations

import os
import queue
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from mtdit_robots.cameras.images import import_pillow
from mtdit_robots.errors import UserError
from mtdit_robots.robot import Frame
from mtdit_runtime.recording.video_encoder import VideoSink, find_codec

CAPTION_HEIGHT = 24  # pixels
WAITING = 90  # most frames in the queue: three seconds
KEY_FRAMES = 30  # one in so many frames; a film is played, not read frame by frame


def check_film(path: Path) -> None:
    """Raise UserError when no film can be written to `path`: a package is missing, the name does
    not end in .mp4, or its folder is not writable.
    """
    import_pillow("videos need")
    find_codec("h264")
    folder = next(folder for folder in path.absolute().parents if folder.exists())
    if path.suffix != ".mp4" or not (folder.is_dir() and os.access(folder, os.W_OK)):
        raise _unwritable(path)


def _unwritable(path: Path) -> UserError:
    return UserError(
        f"cannot write a video to {path}: use a writable folder and a name ending in .mp4"
    )


def tile(frames: Sequence[Frame], height: int) -> Frame:
    """Frames of any size side by side, scaled to `height`, each width even: (height, W, 3)."""
    image = import_pillow("videos need")

    def scaled(frame: Frame) -> Frame:
        width = max(2, round(frame.shape[1] * height / frame.shape[0] / 2) * 2)
        way = image.Resampling.BOX if frame.shape[0] > height else image.Resampling.NEAREST
        return np.asarray(image.fromarray(frame).resize((width, height), way))

    return np.concatenate([scaled(frame) for frame in frames], axis=1)


def caption(frame: Frame, text: str) -> Frame:
    """The frame with a line of text on a dark strip below it: (H + CAPTION_HEIGHT, W, 3)."""
    strip = import_pillow("videos need").new("RGB", (frame.shape[1], CAPTION_HEIGHT), (24, 24, 24))
    draw, font = _pen(strip)
    draw.text((6, 4), text, (235, 235, 235), font)
    return np.concatenate([frame, np.asarray(strip)])


class Film:
    """An MP4 of frames side by side with a caption, written in a thread.

    The first frames set the size. wait: when the writer is slow, wait for it (lock-step) instead of
    dropping the frame (real time). dropped: how many frames were dropped.
    """

    def __init__(self, path: Path, fps: int, height: int = 240, wait: bool = False) -> None:
        check_film(path)
        self._path, self._fps, self._height, self._wait = path, fps, height, wait
        self._codec = replace(find_codec("h264"), g=KEY_FRAMES)
        self._todo: queue.Queue[tuple[list[Frame], str] | None] = queue.Queue(WAITING)
        self._file: VideoSink | None = None
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
        while (item := self._todo.get()) is not None:
            if self._error is None:
                self._attempt(partial(self._write, *item))
        if self._file is not None:
            self._attempt(self._file.close)

    def _attempt(self, work: Callable[[], None]) -> None:
        """Do it and keep the first error, which `close` raises."""
        try:
            work()
        except OSError:
            self._error = self._error or _unwritable(self._path)
        except Exception as error:
            self._error = self._error or error

    def _write(self, frames: Sequence[Frame], text: str) -> None:
        picture = caption(tile(frames, self._height), text)
        if self._file is None:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            height, width = picture.shape[:2]
            self._file = VideoSink(self._path, self._fps, height, width, self._codec)
        self._file.write(picture)


def _pen(strip: Any) -> tuple[Any, Any]:
    """What draws on the picture, and a font that covers Latin letters."""
    from PIL import ImageDraw, ImageFont

    return ImageDraw.Draw(strip), ImageFont.load_default(13)
