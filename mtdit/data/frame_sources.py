"""The files that hold a camera's frames, and which frame of a file belongs to which row.

Every row has exactly one frame, and every frame at most one row: two episodes that claim the same
frames of a video are refused, as some merges leave them. Each video is decoded once from front to
back, which is far cheaper than seeking to single frames.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Protocol

import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray

from mtdit.data.frame_times import Clock, Match, match, not_decodable, read_clock
from mtdit.data.lerobot_dataset import Dataset
from mtdit.data.video_frames import (
    SKIP,
    Frame,
    Part,
    PngRowGroup,
    Video,
    image_bytes,
    picture,
)
from mtdit_robots.errors import UserError
from mtdit_runtime.files import sha256
from mtdit_runtime.recording.dataset_layout import INFO
from mtdit_runtime.recording.dataset_parquet import need_columns
from mtdit_runtime.recording.dataset_videos import open_video

Rows = NDArray[np.int64]
PICTURES_AT_ONCE = 256  # PNGs of a table file that are in memory while they are read


class Source(Protocol):
    """A file that holds frames of one camera."""

    @property
    def path(self) -> Path: ...
    @property
    def rows(self) -> Rows:
        """(R,) the dataset's rows whose frames it holds."""

    def identity(self, content: str) -> str:
        """A hash that changes when another frame belongs to a row; `content` is that of the file,
        and rows that all move by one number change nothing.
        """

    def content(self) -> str:
        """A hash of what the frames are decoded from; reads the file."""

    def frames(self) -> Iterator[tuple[int, Frame]]:
        """Every (row, frame (H, W, 3) RGB) once. UserError when the file is damaged."""

    def parts(self) -> Iterator[Part]:
        """What decodes single frames. UserError when frames are missing or claimed twice."""


def frame_sources(dataset: Dataset, camera: str, tolerance_s: float) -> list[Source]:
    """The files that hold a camera's frames. UserError when a row has none, or more than one."""
    sources: list[Source] = []
    if dataset.is_video(camera):
        for name, times in dataset.video_places(camera).items():
            rows, wanted = np.array(list(times), np.int64), np.array(list(times.values()))
            sources.append(VideoSource(dataset, dataset.root / name, rows, wanted, tolerance_s))
    else:
        key = dataset.image_keys[camera]
        sources = [TableSource(file, key, rows) for file, rows in dataset.places.items()]
        for file in dataset.places:
            need_columns(file, pq.read_schema(file).names, [key])
    once = Once(dataset, camera)
    for source in sources:
        once.mark(source.rows)
    once.check_all()
    return sources


def check_cameras_apart(dataset: Dataset) -> None:
    """UserError when info.json leads two cameras to the same video."""
    owner: dict[str, str] = {}
    for camera in filter(dataset.is_video, dataset.cameras):
        for name in dataset.video_places(camera):
            if name in owner:
                raise UserError(
                    f"{dataset.root}/{INFO}: video_path leads cameras {owner[name]!r} and "
                    f"{camera!r} to the same file {name}; put {{video_key}} into video_path"
                )
            owner[name] = camera


class Once:
    """Notes which rows of a camera have a frame, so that each gets exactly one."""

    def __init__(self, dataset: Dataset, camera: str) -> None:
        self.dataset, self.camera = dataset, camera
        self.done = np.zeros(len(dataset.state), bool)

    def mark(self, rows: Rows | int) -> None:
        """UserError when one of the rows has a frame already."""
        rows = np.atleast_1d(rows)
        again = rows[self.done[rows]]
        if len(again):
            self._refuse(again, "has two frames of camera")
        self.done[rows] = True

    def check_all(self) -> None:
        """UserError when a row has no frame."""
        if not self.done.all():
            self._refuse(np.flatnonzero(~self.done), "has no frame of camera")

    def _refuse(self, rows: Rows, what: str) -> None:
        raise UserError(
            f"{self.dataset.root}: {self.dataset.describe(rows[0])} {what} {self.camera!r} "
            f"({len(rows)} of {len(self.done)} rows); copy the dataset again"
        )


@dataclass(frozen=True)
class VideoSource:
    """A video, the rows whose frames it holds and their times in it."""

    dataset: Dataset
    path: Path
    rows: Rows  # (R,)
    wanted: NDArray[np.float64]  # (R,) s
    tolerance_s: float

    def content(self) -> str:
        self._need_file()
        return sha256(self.path)

    def identity(self, content: str) -> str:
        order = (self.rows - self.rows.min()).tobytes()
        return _hash(content, repr(self.tolerance_s), order, self.wanted.tobytes())

    def frames(self) -> Iterator[tuple[int, Frame]]:
        import av

        left = dict(zip(self.stamps.tolist(), self.rows.tolist(), strict=True))
        try:
            with open_video(self.path) as video:
                for frame in video.decode(video=0):
                    row = left.pop(frame.pts, None)
                    if row is not None:
                        yield row, np.asarray(frame.to_ndarray(format="rgb24"), np.uint8)
        except (av.error.FFmpegError, OSError, IndexError) as error:
            raise not_decodable(self.path, error) from None
        if left:
            raise self._lacks(np.array(list(left.values())))

    def parts(self) -> Iterator[Part]:
        near = SKIP * self._clock.period if len(self.rows) > 1 else SKIP
        yield partial(Video, self.path, near), self.rows, self.stamps

    @cached_property
    def _clock(self) -> Clock:
        self._need_file()
        return read_clock(self.path)

    @cached_property
    def stamps(self) -> NDArray[np.int64]:
        """(R,) the time stamp of each row's frame, in ticks of the video's clock.

        UserError when two rows claim one frame, or a row lies on none.
        """
        clock = self._clock
        found = match(clock, self.wanted, self.tolerance_s)
        self._check_apart(found, clock)
        if not found.found.all():
            raise self._off_the_frames(found, clock)
        return clock.stamps[found.number]

    def _check_apart(self, found: Match, clock: Clock) -> None:
        numbers, counts = np.unique(found.number[found.found], return_counts=True)
        shared = numbers[counts > 1]
        if not len(shared):
            return
        rows = np.sort(self.rows[found.found & np.isin(found.number, shared)])
        episodes = sorted({self.dataset.place(row)[0] for row in rows.tolist()})
        frames = f"frame {shared[0]}"
        if len(shared) > 1:
            frames = f"{len(shared)} frames ({shared[0]} to {shared[-1]})"
        if len(episodes) == 1:
            who = f"{self.dataset.describe(rows[0])} and a later row both claim"
            fix = "correct the column timestamp in data/"
        else:
            who = f"episodes {_listed(episodes)} claim the same"
            fix = f"merge its sources again, or {_without(episodes)}"
        times = " to ".join(f"{clock.times[n]:.4g} s" for n in (shared[0], shared[-1]))
        raise UserError(f"{self.path}: {who} {frames}, {times} of the video; {fix}")

    def _off_the_frames(self, found: Match, clock: Clock) -> UserError:
        """The error for rows that lie on no frame: between two, or where the video has none."""
        off = np.flatnonzero(~found.found)
        half_s = clock.period * clock.tick_s / 2
        gone = off[~(found.away_s[off] <= 1.01 * half_s)]
        if len(gone):
            return self._lacks(self.rows[gone])
        first, most_s = off[0], float(found.away_s[off].max())
        apart = len(np.unique(found.number)) == len(found.number)
        nearest = (
            f"take the nearest frames with --tolerance-seconds {math.ceil(most_s * 1e3) / 1e3:g}"
        )
        return UserError(
            f"{self.path} has no frame at the time of {len(off)} of {len(self.rows)} rows: "
            f"{self.dataset.describe(self.rows[first])} is at {self.wanted[first]:.5g} s, the "
            f"nearest frame {found.away_s[first] * 1e3:.3g} ms away; correct the column timestamp "
            f"in data/{f', or {nearest}' if apart else ' or record the dataset again'}"
        )

    def _lacks(self, rows: Rows) -> UserError:
        first = int(rows.min())
        at_s = self.wanted[np.flatnonzero(self.rows == first)[0]]
        episodes = sorted({self.dataset.place(row)[0] for row in rows.tolist()})
        return UserError(
            f"{self.path} lacks {len(rows)} of {len(self.rows)} frames (first: "
            f"{self.dataset.describe(first)}, at {at_s:.5g} s); copy the dataset again, or "
            f"{_without(episodes)}"
        )

    def _need_file(self) -> None:
        if not self.path.is_file():
            raise UserError(
                f"{self.path} does not exist; copy the whole dataset (its decoded frames, if there "
                "are any, train without it: --dataset FOLDER_OF_THE_FRAMES)"
            )


class TableSource:
    """A table file of data/ that holds a camera's PNGs. rows_of_lines: the dataset's row of each
    of its lines, -1 for lines of an unfinished episode.
    """

    def __init__(self, path: Path, key: str, rows_of_lines: Rows) -> None:
        self.path, self.key, self._of_lines = path, key, rows_of_lines
        self.rows: Rows = rows_of_lines[rows_of_lines >= 0]

    def content(self) -> str:
        digest = hashlib.sha256()
        for batch in pq.ParquetFile(self.path).iter_batches(PICTURES_AT_ONCE, columns=[self.key]):
            for image in batch.column(0).to_pylist():
                data = image_bytes(image)
                digest.update(len(data).to_bytes(8, "little") + data)
        return digest.hexdigest()

    def identity(self, content: str) -> str:
        return _hash(content, (self.rows - self.rows.min(initial=0)).tobytes())

    def frames(self) -> Iterator[tuple[int, Frame]]:
        lines = iter(self._of_lines.tolist())
        for batch in pq.ParquetFile(self.path).iter_batches(PICTURES_AT_ONCE, columns=[self.key]):
            for image in batch.column(0).to_pylist():
                row = next(lines)
                if row >= 0:
                    yield row, picture(self.path, image)

    def parts(self) -> Iterator[Part]:
        metadata, first = pq.ParquetFile(self.path).metadata, 0
        for group in range(metadata.num_row_groups):
            rows = self._of_lines[first : first + metadata.row_group(group).num_rows]
            opener = partial(PngRowGroup, self.path, group, self.key)
            yield opener, rows[rows >= 0], np.flatnonzero(rows >= 0)
            first += len(rows)


def _hash(*parts: str | bytes) -> str:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part.encode() if isinstance(part, str) else part)
    return digest.hexdigest()


def _listed(numbers: Sequence[int], most: int = 8) -> str:
    """[0, 1, 2] -> "0, 1 and 2"."""
    shown = [str(n) for n in numbers[:most]]
    more = len(numbers) - len(shown)
    tail = f"{more} more" if more else shown.pop()
    return f"{', '.join(shown)} and {tail}" if shown else tail


def _without(episodes: Sequence[int]) -> str:
    noun = "episode" if len(episodes) == 1 else "episodes"
    return (
        f"remove {noun} {_listed(episodes)} with "
        "`lerobot-edit-dataset --operation.type delete_episodes`"
    )
