"""Decodes frames by row when they are needed, so that training needs no frame cache.

A SeekingFrames object behaves like the array (N, H, W, 3) of a frame cache: it has a shape, and
indexing it with an array of rows returns frames. Each thread keeps its own files open, so several
threads may read at once.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray

from mtdit.data.lerobot_dataset import Dataset, picture
from mtdit_robots.errors import UserError

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


class SeekingFrames:
    """The frames of one camera, (N, *size, 3).

    finish: brings a decoded frame to `size`. UserError when a row has no frame.
    """

    def __init__(
        self, dataset: Dataset, camera: str, size: tuple[int, int], finish: Callable[[Frame], Frame]
    ) -> None:
        self.shape = (len(dataset.state), *size, 3)
        self.finish = finish
        is_video = dataset.is_video(camera)
        places = _in_videos(dataset, camera) if is_video else _in_parquet(dataset, camera)
        self.openers: list[Callable[[], Opened]] = []
        self.where = np.full((len(dataset.state), 2), -1, np.int64)  # row -> opener, number there
        for opener, rows, numbers in places:
            used = rows < len(dataset.state)  # an unfinished episode may follow the last row
            self.where[rows[used]] = np.stack(
                [np.full(used.sum(), len(self.openers)), numbers[used]], axis=1
            )
            self.openers.append(opener)
        if (self.where < 0).any():
            missing = int(np.argmax((self.where < 0).any(axis=1)))
            raise UserError(
                f"{dataset.root}: camera {camera!r} has no frame for row {missing}; "
                "copy the dataset again"
            )
        self.own = threading.local()

    def __getitem__(self, rows: NDArray[np.int64]) -> Frame:
        """Rows (...,) -> frames (..., H, W, 3). UserError names a file that lacks a frame."""
        wanted, back = np.unique(rows, return_inverse=True)
        out = np.empty((len(wanted), *self.shape[1:]), np.uint8)
        for i in np.lexsort(self.where[wanted].T[::-1]):
            opener, number = self.where[wanted[i]].tolist()
            out[i] = self.finish(self._opened(opener).frame(number))
        return out[back.reshape(np.shape(rows))]

    def _opened(self, number: int) -> Opened:
        kept: OrderedDict[int, Opened] = self.own.__dict__.setdefault("kept", OrderedDict())
        if number not in kept:
            kept[number] = self.openers[number]()
        kept.move_to_end(number)
        if len(kept) > MAX_OPEN:
            kept.popitem(last=False)[1].close()
        return kept[number]


# How to open a video or row group, the rows it holds, and their frame numbers in it.
Place = tuple[Callable[[], Opened], NDArray[np.int64], NDArray[np.int64]]


def _in_videos(dataset: Dataset, camera: str) -> Iterator[Place]:
    for name, rows in dataset.video_places(camera).items():
        path = dataset.root / name
        if not path.is_file():
            raise UserError(f"{path} does not exist; copy the whole dataset")
        yield partial(Video, path, dataset.fps), np.array(list(rows.values())), np.array(list(rows))


def _in_parquet(dataset: Dataset, camera: str) -> Iterator[Place]:
    key = dataset.image_keys[camera]
    for file in dataset.data_files:
        opened = pq.ParquetFile(file)
        for group in range(opened.num_row_groups):
            rows = opened.read_row_group(group, columns=["index"])["index"].to_numpy()
            yield partial(PngRowGroup, file, group, key), rows, np.arange(len(rows))


class Video:
    """An open video. It seeks to a frame, or decodes on when the frame is at most SKIP ahead."""

    def __init__(self, path: Path, fps: int) -> None:
        import av

        self.path, self.fps = path, fps
        self.number = -1  # of the last decoded frame
        self.newest: Frame = np.empty(0, np.uint8)
        try:
            self.file = av.open(str(path))
            self.stream = self.file.streams.video[0]
        except (av.error.FFmpegError, OSError, IndexError) as error:
            raise _broken(path, error) from None
        # One decoding thread: the loader's threads read several videos at once.
        self.stream.codec_context.thread_count = 1
        self.frames = self.file.decode(self.stream)

    def frame(self, number: int) -> Frame:
        """The frame (H, W, 3) whose time stamp is nearest to number / fps."""
        import av

        if number == self.number:
            return self.newest
        try:
            if not 0 < number - self.number <= SKIP:
                assert self.stream.time_base is not None
                self.file.seek(
                    round(number / self.fps / float(self.stream.time_base)), stream=self.stream
                )
                self.frames = self.file.decode(self.stream)
            for frame in self.frames:
                self.number = round(float(frame.time) * self.fps)
                if self.number >= number:
                    break
        except (av.error.FFmpegError, OSError) as error:
            self.number = UNKNOWN
            raise _broken(self.path, error) from None
        if self.number != number:
            self.number = UNKNOWN
            raise UserError(f"{self.path} lacks frame {number}; copy the dataset again")
        self.newest = np.asarray(frame.to_ndarray(format="rgb24"), np.uint8)
        return self.newest

    def close(self) -> None:
        self.file.close()


def _broken(path: Path, error: Any) -> UserError:
    return UserError(f"{path} cannot be decoded ({error}); copy the dataset again")


class PngRowGroup:
    """One row group of PNGs, held compressed in memory."""

    def __init__(self, file: Path, group: int, key: str) -> None:
        self.file = file
        self.pictures = pq.ParquetFile(file).read_row_group(group, columns=[key])[key].to_pylist()

    def frame(self, number: int) -> Frame:
        return picture(self.file, self.pictures[number])

    def close(self) -> None:
        self.pictures = []
