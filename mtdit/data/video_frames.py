"""Decodes frames by row when they are needed, so that training needs no frame cache.

A SeekingFrames object behaves like the array (N, H, W, 3) of a frame cache: it has a shape, and
indexing it with an array of rows returns frames. Each thread keeps its own files open, so several
threads may read at once.
"""

from __future__ import annotations

import io
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray

from mtdit.data.frame_times import not_decodable
from mtdit_robots.errors import UserError
from mtdit_runtime.recording.dataset_videos import open_video

Frame = NDArray[np.uint8]
MAX_OPEN = 16  # files or row groups that a thread keeps open
UNKNOWN = 1 << 62  # position after an error: no frame is near it, so the next one is sought
# Up to this many frames are decoded and dropped instead of sought. LeRobot's videos have a key
# frame every second frame.
SKIP = 8


class Opened(Protocol):
    """An open video or row group of PNGs; it returns frames by their number in it."""

    def frame(self, number: int) -> Frame: ...

    def close(self) -> None: ...


# How to open a video or row group, the rows it holds, and the numbers of their frames in it.
Part = tuple[Callable[[], Opened], NDArray[np.int64], NDArray[np.int64]]


class SeekingFrames:
    """The frames of one camera, (N, *size, 3).

    parts: hold each row's frame once. finish: brings a decoded frame to `size`.
    """

    def __init__(
        self,
        n_rows: int,
        size: tuple[int, int],
        parts: Iterable[Part],
        finish: Callable[[Frame], Frame],
    ) -> None:
        self.shape = (n_rows, *size, 3)
        self.finish = finish
        self.openers: list[Callable[[], Opened]] = []
        self.where = np.full((n_rows, 2), -1, np.int64)  # row -> opener, number there
        for opener, rows, numbers in parts:
            self.where[rows, 0], self.where[rows, 1] = len(self.openers), numbers
            self.openers.append(opener)
        self.own = threading.local()

    def __getitem__(self, rows: NDArray[np.int64]) -> Frame:
        """Rows (...,) -> frames (..., H, W, 3). UserError names a file that lacks a frame."""
        wanted, back = np.unique(rows, return_inverse=True)
        out = np.empty((len(wanted), *self.shape[1:]), np.uint8)
        for i in np.lexsort(self.where[wanted].T[::-1]):
            opener, number = self.where[wanted[i]].tolist()
            out[i] = self.finish(self._opened(opener).frame(number))
        return out[back.reshape(np.shape(rows))]

    def close(self) -> None:
        """Close the files that this thread has open; they are opened again when needed."""
        while self._kept:
            self._kept.popitem()[1].close()

    @property
    def _kept(self) -> OrderedDict[int, Opened]:
        kept: OrderedDict[int, Opened] = self.own.__dict__.setdefault("kept", OrderedDict())
        return kept

    def _opened(self, number: int) -> Opened:
        kept = self._kept
        if number not in kept:
            kept[number] = self.openers[number]()
        kept.move_to_end(number)
        if len(kept) > MAX_OPEN:
            kept.popitem(last=False)[1].close()
        return kept[number]


class Video:
    """An open video. It seeks to a frame, or decodes on when the frame is at most `near` ahead.

    Frames are numbered by their time stamps, in the ticks of the file's clock, and so is `near`.
    """

    def __init__(self, path: Path, near: float) -> None:
        import av

        self.path, self.near = path, near
        self.number = UNKNOWN  # of the last decoded frame
        self.newest: Frame = np.empty(0, np.uint8)
        try:
            self.file = open_video(path)
            self.stream = self.file.streams.video[0]
        except (av.error.FFmpegError, OSError, IndexError) as error:
            raise not_decodable(path, error) from None
        # One decoding thread: the loader's threads read several videos at once.
        self.stream.codec_context.thread_count = 1
        self.frames = self.file.decode(self.stream)

    def frame(self, number: int) -> Frame:
        """The frame (H, W, 3) with this time stamp."""
        import av

        if number == self.number:
            return self.newest
        try:
            if not 0 < number - self.number <= self.near or not self._reached(number):
                self._seek(number)
                if not self._reached(number):
                    self._seek(0)  # the index of some files leads behind the frame
                    self._reached(number)
        except (av.error.FFmpegError, OSError) as error:
            self.number = UNKNOWN
            raise not_decodable(self.path, error) from None
        if self.number != number:
            self.number = UNKNOWN
            raise UserError(f"{self.path} has changed since training began; start it again")
        return self.newest

    def _seek(self, number: int) -> None:
        self.file.seek(number, stream=self.stream)
        self.frames = self.file.decode(self.stream)

    def _reached(self, number: int) -> bool:
        """Decode until a frame is at or after `number`; whether it is that frame."""
        for frame in self.frames:
            if frame.pts is not None and frame.pts >= number:
                self.number = frame.pts
                self.newest = np.asarray(frame.to_ndarray(format="rgb24"), np.uint8)
                return self.number == number
        self.number = UNKNOWN
        return False

    def close(self) -> None:
        self.file.close()


class PngRowGroup:
    """One row group of PNGs, held compressed in memory."""

    def __init__(self, file: Path, group: int, key: str) -> None:
        self.file = file
        self.pictures = pq.ParquetFile(file).read_row_group(group, columns=[key])[key].to_pylist()

    def frame(self, number: int) -> Frame:
        return picture(self.file, self.pictures[number])

    def close(self) -> None:
        self.pictures = []


def image_bytes(image: Any) -> bytes:
    """The file of an image, PNG or JPEG: {"bytes": PNG}, or the bytes alone. Empty: it has none."""
    data = image.get("bytes") if isinstance(image, dict) else image
    return data if isinstance(data, bytes) else b""


def picture(file: Path, image: Any) -> Frame:
    """An image of a parquet file as (H, W, 3). UserError when it is damaged."""
    from PIL import Image

    try:
        return np.array(Image.open(io.BytesIO(image_bytes(image))).convert("RGB"))
    except (OSError, ValueError) as error:
        raise UserError(
            f"{file} contains an image that cannot be decoded ({error}); copy the dataset again"
        ) from None
