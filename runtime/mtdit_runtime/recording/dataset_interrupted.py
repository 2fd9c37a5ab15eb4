"""A recording that was interrupted: which of its episodes are whole.

LeRobot keeps its newest Parquet files open while it records, and the list of the newest episodes in
memory. A program that is killed then leaves files without a footer, which nothing can read, and
rows that meta/episodes does not list. What was closed before is whole. `dataset_repair` keeps it.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from shlex import quote
from typing import Any

import numpy as np

from mtdit_robots.errors import UserError
from mtdit_runtime.recording.dataset_parquet import (
    DATA,
    EPISODES,
    is_unfinished,
    read_parquet,
    table_files,
    to_numpy,
    whole_numbers,
)
from mtdit_runtime.recording.dataset_tasks import read_tasks
from mtdit_runtime.recording.dataset_videos import (
    import_av,
    open_video,
    video_keys,
    video_piece,
)
from mtdit_runtime.text import numbers_text

Row = Mapping[str, Any]  # of meta/episodes
READY = ".repaired"  # a folder with the files of a repair, which only have to take their places


@dataclass(frozen=True)
class Salvage:
    """What is left of a recording.

    unfinished: files without a footer. whole: the rows of meta/episodes of the whole episodes, in
    order. lost: the numbers of the others, as far as they are known. unlisted: the numbers of the
    episodes in data/ that meta/episodes does not list. doubt: why some of these are lost, or "".
    """

    unfinished: tuple[Path, ...]
    whole: tuple[Row, ...]
    lost: tuple[int, ...]
    unlisted: tuple[int, ...]
    doubt: str = ""

    @property
    def is_whole(self) -> bool:
        return not (self.unfinished or self.lost or self.unlisted)


@dataclass
class _Frames:
    """The rows of one episode in the readable data files."""

    count: int = 0
    first_s: float = math.inf  # the earliest time
    tasks: set[int] = field(default_factory=set)
    files: list[Path] = field(default_factory=list)


def unfinished_files(root: Path) -> tuple[Path, ...]:
    """The tables of the dataset that were begun and never closed."""
    files = [*table_files(root, EPISODES), *table_files(root, DATA)]
    return tuple(file for file in files if is_unfinished(file))


def check_finished(root: Path, info: Mapping[str, Any]) -> None:
    """UserError when the recording of a dataset was interrupted: what happened, which episodes are
    whole, and how to keep them.
    """
    if (root / READY).is_dir():
        raise UserError(
            f"{root}: its repair was interrupted; run `mtdit repair {quote(str(root))}` again"
        )
    unfinished = unfinished_files(root)
    nothing_listed = info.get("total_episodes") and not table_files(root, EPISODES)
    if not unfinished and not (nothing_listed and table_files(root, DATA)):
        return
    found = salvage(root, info)
    what = f"{root / EPISODES} was not written"
    if unfinished:
        more = f" nor have {len(unfinished) - 1} others" if len(unfinished) > 1 else ""
        what = f"{unfinished[0]} cannot be read, it has no footer{more}"
    if not found.whole:
        raise UserError(
            f"{root}: the recording was interrupted ({what}); no episode is whole{found.doubt}, so "
            "record again into another folder"
        )
    whole = numbers_text([int(row["episode_index"]) for row in found.whole])
    lost = f", lost: {numbers_text(found.lost)}{found.doubt}" if found.lost else ""
    raise UserError(
        f"{root}: the recording was interrupted ({what}); whole episodes: {whole}{lost}; keep "
        f"the whole ones with `mtdit repair {quote(str(root))}`"
    )


def salvage(root: Path, info: Mapping[str, Any]) -> Salvage:
    """The whole episodes: all their rows are in readable files, and their videos are long enough.

    Episodes that meta/episodes does not list follow the listed ones; their place in the videos
    comes from the lengths, because LeRobot appends one episode after the other. It writes the rows
    of an episode before its pictures: where all rows are there, pictures that are left over mean
    that something else did, and that no length tells a place.
    """
    unfinished = unfinished_files(root)
    frames, listed = _frames(root, unfinished), _listed(root, unfinished)
    videos = Videos(root, info, listed)
    whole = [
        row
        for row in listed
        if (there := frames.get(int(row["episode_index"]))) is not None
        and there.count == int(row["length"])
        and videos.short(row) is None
    ]
    placed, doubt = list(_placed(root, listed, frames, videos)), ""
    has_all_rows = not any(file.is_relative_to(root / DATA) for file in unfinished)
    if placed and has_all_rows and (film := videos.left_over()) is not None:
        placed = []
        doubt = f" ({film} has pictures of no row, so where theirs begin is not known)"
    whole += placed
    kept = {int(row["episode_index"]) for row in whole}
    numbers = {int(row["episode_index"]) for row in listed}
    known = numbers | frames.keys() | set(range(int(info.get("total_episodes") or 0)))
    lost, unlisted = sorted(known - kept), sorted(frames.keys() - numbers)
    return Salvage(unfinished, tuple(whole), tuple(lost), tuple(unlisted), doubt)


def _frames(root: Path, unfinished: Sequence[Path]) -> dict[int, _Frames]:
    """Episode -> its rows."""
    found: dict[int, _Frames] = {}
    for file in table_files(root, DATA):
        if file in unfinished:
            continue
        table = read_parquet(file, {"episode_index", "task_index", "timestamp"}.__contains__)
        episode = whole_numbers(file, table, "episode_index")
        task = whole_numbers(file, table, "task_index")
        times = to_numpy(file, table, "timestamp").reshape(-1)
        for number in np.unique(episode).tolist():
            frames = found.setdefault(number, _Frames())
            frames.count += int((episode == number).sum())
            frames.tasks |= set(task[episode == number].tolist())
            frames.first_s = min(frames.first_s, float(times[episode == number].min()))
            frames.files.append(file)
    return found


def _listed(root: Path, unfinished: Sequence[Path]) -> list[Row]:
    rows: list[Row] = []
    for file in table_files(root, EPISODES):
        if file not in unfinished:
            rows += read_parquet(file).to_pylist()
    return sorted(rows, key=lambda row: int(row["episode_index"]))


def _placed(
    root: Path, listed: Sequence[Row], frames: Mapping[int, _Frames], videos: Videos
) -> Iterator[Row]:
    """Rows of meta/episodes for the episodes behind the listed ones, until one is missing or does
    not fit its videos.
    """
    number = max((int(row["episode_index"]) for row in listed), default=-1) + 1
    while (there := frames.get(number)) is not None and len(there.files) == 1:
        place = file_place(there.files[0])
        if place is None:
            return
        row: dict[str, Any] = {
            "episode_index": number,
            "tasks": _words(root, there.tasks),
            "length": there.count,
            "data/chunk_index": place[0],
            "data/file_index": place[1],
        }
        for key in videos.keys:
            film = videos.next_place(key, there.count)
            if film is None or there.first_s != 0:
                return
            row |= film
        yield row
        number += 1


def _words(root: Path, tasks: Iterable[int]) -> list[str]:
    words = read_tasks(root).words
    return list(dict.fromkeys(words[task] for task in sorted(tasks) if task in words))


def file_place(file: Path) -> tuple[int, int] | None:
    """Chunk and number of .../chunk-000/file-000.parquet; None for a file with another name."""
    found = re.fullmatch(r"chunk-(\d+)/file-(\d+)", f"{file.parent.name}/{file.stem}")
    return (int(found[1]), int(found[2])) if found else None


class Videos:
    """The videos of a dataset: how long they are, and how much of them its episodes use."""

    def __init__(self, root: Path, info: Mapping[str, Any], rows: Sequence[Row]) -> None:
        self.root, self.info, self.fps = root, info, float(info["fps"])
        self.keys = video_keys(info, rows)
        self._seconds: dict[Path, float] = {}
        self._used: dict[Path, float] = {}
        for row in rows:
            for key in self.keys:
                path, end_s = self._piece(row, key)
                self._used[path] = max(self._used.get(path, 0.0), end_s)

    def short(self, row: Row) -> Path | None:
        """The first video of an episode that cannot be opened, or ends before the episode."""
        for key in self.keys:
            path, end_s = self._piece(row, key)
            if self._length(path) < end_s - 0.5 / self.fps:
                return path
        return None

    def next_place(self, key: str, length: int) -> Row | None:
        """The columns of the next episode of `length` frames: behind the last used picture, or in
        the first video that no episode uses. None: what is left there is too short.
        """
        files = table_files(self.root, f"videos/{key}", "mp4")
        last = max((i for i, file in enumerate(files) if file in self._used), default=0)
        for file in files[last:]:
            begin = round(self._used.get(file, 0.0) * self.fps) / self.fps
            left = self._length(file) - begin
            if left < 0.5 / self.fps:
                continue
            place = file_place(file)
            if left < (length - 0.5) / self.fps or place is None:
                return None
            self._used[file] = begin + length / self.fps
            return {
                f"videos/{key}/chunk_index": place[0],
                f"videos/{key}/file_index": place[1],
                f"videos/{key}/from_timestamp": begin,
                f"videos/{key}/to_timestamp": self._used[file],
            }
        return None

    def left_over(self) -> Path | None:
        """The first video of which something is left behind the last picture that is used."""
        for key in self.keys:
            files = table_files(self.root, f"videos/{key}", "mp4")
            last = max((i for i, file in enumerate(files) if file in self._used), default=0)
            for file in files[last:]:
                if self._length(file) > self._used.get(file, 0.0) + 0.5 / self.fps:
                    return file
        return None

    def _piece(self, row: Row, key: str) -> tuple[Path, float]:
        """The video of an episode, and when the episode ends in it, s."""
        piece = video_piece(self.root, self.info, row, key)
        return self.root / piece.path, piece.begin_s + int(row["length"]) / self.fps

    def _length(self, path: Path) -> float:
        if path not in self._seconds:
            self._seconds[path] = video_seconds(path)
        return self._seconds[path]


def video_seconds(path: Path) -> float:
    """The length of a video; 0 when it is missing, cut off, or cannot be opened."""
    av, seconds = import_av(), 0.0
    if _is_cut_off(path):
        return seconds
    with suppress(av.error.FFmpegError, OSError, IndexError), open_video(path) as video:
        stream = video.streams.video[0]
        if stream.duration is not None and stream.time_base is not None:
            seconds = float(stream.duration * stream.time_base)
        else:
            seconds = float(video.duration or 0) / 1e6
    return seconds


def _is_cut_off(path: Path) -> bool:
    """Whether the last part of an MP4 file is not whole. A file whose index is in front can be
    opened nevertheless. Source: ISO 14496-12, a box begins with its size and four letters.
    """
    with suppress(OSError), path.open("rb") as file:
        size, end = path.stat().st_size, 0
        while end < size:
            file.seek(end)
            head = file.read(16)
            length = int.from_bytes(head[:4], "big")
            if length == 1:  # the size is behind the letters
                length = int.from_bytes(head[8:], "big")
            if length == 0:  # the rest of the file
                return False
            end += max(length, 8)
        return end > size
    return True
