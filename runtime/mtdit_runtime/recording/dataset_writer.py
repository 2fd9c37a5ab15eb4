"""Writes LeRobotDataset v3 folders (meta/, data/, videos/) without torch or LeRobot.

Episodes are saved one at a time, each in its own files: they are written to a temporary folder,
flushed to disk and renamed one after the other, the row in meta/episodes third to last. A process
that is killed at any moment loses only the episode it was recording; files that it leaves behind
are overwritten by the next session. Source of the format: LeRobot `datasets/` (codebase_version
v3.0).
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from mtdit_robots.errors import UserError
from mtdit_robots.features import ACTION, IMAGES, STATE
from mtdit_robots.files import flush_to_disk, new_file
from mtdit_runtime.files import locked
from mtdit_runtime.recording import dataset_stats
from mtdit_runtime.recording.dataset_features import listed_names
from mtdit_runtime.recording.dataset_layout import (
    ASIDE,
    COUNTERS,
    DATA_PATH,
    EPISODES_PATH,
    FEWEST_FRAMES,
    INFO,
    RECORDER,
    STATS,
    TASKS,
    DatasetLayout,
)
from mtdit_runtime.recording.dataset_parquet import import_parquet
from mtdit_runtime.recording.dataset_reader import damage_named
from mtdit_runtime.recording.dataset_resume import chunks_size, read_before
from mtdit_runtime.recording.dataset_stats import Stats
from mtdit_runtime.recording.dataset_tables import (
    episode_stats,
    frame_table,
    merged_stats,
    new_info,
    row_table,
    task_table,
    vector_orders,
    video_info,
    write_json,
)
from mtdit_runtime.recording.dataset_videos import video_pattern
from mtdit_runtime.recording.episode import Episode
from mtdit_runtime.recording.video_encoder import (
    Codec,
    Encoding,
    PngSink,
    Sink,
    VideoSink,
    find_codec,
)


class DatasetWriter:
    """A LeRobotDataset v3 folder to which whole episodes are added.

        episode = writer.begin("open the drawer")
        episode.add(positions, action, {"top": frame})  # once per tick
        writer.save_episode(episode)  # and in the end writer.close()

    root: a new folder, or an existing dataset if `resume`. codec: h264 or av1. crf: the video's
    quality instead of the codec's usual one; lower is better. wait: when the encoder is slow, wait
    for it (lock-step) instead of repeating frames. Raises UserError when the folder is not empty,
    its dataset has another layout, another program records into it, or PyAV or pyarrow is not
    installed.
    """

    def __init__(
        self,
        root: Path | str,
        layout: DatasetLayout,
        resume: bool = False,
        codec: str = "h264",
        crf: int | None = None,
        wait: bool = False,
    ) -> None:
        layout.check()
        self.root = root = Path(root)
        self.layout, self._wait = layout, wait
        self._codec: Codec = find_codec(codec, crf)
        import_parquet()
        self._words: dict[int, str] = {}  # task number -> instruction
        self._rows: list[dict[str, Any]] = []  # of meta/episodes, without statistics
        self._stats: list[dict[str, Stats]] = []  # per episode; those before a resume are merged
        self._info = new_info(layout)
        self._orders = vector_orders(self._info, layout, root)
        self._resumed_at = 0
        self._schema: Any = None  # of meta/episodes of a resumed set
        self._last: dict[str, int] = {}  # kind of file -> number of the last one of a resumed set
        _check_folder(root, resume)
        self._staging = root / ASIDE
        with ExitStack() as lock:
            lock.enter_context(_locked(root))
            if (root / INFO).is_file():
                with damage_named(root):
                    self._resume()
            shutil.rmtree(self._staging, ignore_errors=True)
            self._staging.mkdir()
            self._lock = lock.pop_all()

    @property
    def n_episodes(self) -> int:
        return len(self._rows)

    @property
    def n_frames(self) -> int:
        return sum(int(row["length"]) for row in self._rows)

    @property
    def tasks(self) -> list[str]:
        return list(dict.fromkeys(self._words.values()))

    def begin(self, task: str) -> Episode:
        """Start an episode; its encoders start with it."""
        return Episode(
            task, {c: Encoding(partial(self._sink, c), self._wait) for c in self.layout.cameras}
        )

    def save_episode(self, episode: Episode) -> None:
        """Save the episode: finish its encoders and add it to the dataset.

        This takes too long for the control loop. Raises UserError when the episode is too short,
        and OSError when the disk is full; the dataset is then unchanged.
        """
        if len(episode) < FEWEST_FRAMES:
            episode.discard()
            raise UserError(
                f"an episode of {len(episode)} frames is too short: record a longer one"
            )
        for encoding in episode.encodings.values():
            encoding.finish()
        number, words = self._numbered(episode.task)
        row = self._new_row(episode)
        data = frame_table(episode, self.layout, row, number, self._orders)
        stats = episode_stats(episode, data)
        info = self._info_with([*self._rows, row], words)
        moves = self._staged(row, data, stats, words, info)
        if not (self.root / INFO).is_file():  # a set without episodes, until the first one is whole
            (self.root / INFO).parent.mkdir(exist_ok=True)
            self._write_json(INFO, self._info_with([], {}))
        for old, new in moves:
            new.parent.mkdir(parents=True, exist_ok=True)
            os.replace(old, new)
        self._rows, self._words, self._info = [*self._rows, row], words, info
        self._stats.append(stats)

    def drop_last(self) -> bool:
        """Delete the last episode of this session. False when there is none."""
        if self.n_episodes <= self._resumed_at:
            return False
        row = self._rows.pop()
        self._stats.pop()
        # LeRobot opens no dataset that lists fewer episodes than it counts: the count goes first.
        # For us the episode is gone when its row is.
        self._info = self._info_with(self._rows, self._words)
        self._write_json(INFO, self._info)
        self._write_json(STATS, dataset_stats.to_lists(merged_stats(self._stats)))
        self._path(EPISODES_PATH, row, "meta/episodes").unlink()
        self._path(DATA_PATH, row, "data").unlink()
        for key in self._video_keys():
            self._video_path(row, key).unlink()
        return True

    def close(self) -> None:
        """Remove unfinished files, and the folder itself if it is empty. Releases the lock."""
        shutil.rmtree(self._staging, ignore_errors=True)
        if self.root.is_dir() and not any(self.root.iterdir()):
            self.root.rmdir()
        self._lock.close()

    # -- continuing an earlier session

    def _resume(self) -> None:
        """Open all that the session will add to. Counters and statistics are computed from the
        episodes, since stats.json and info.json may be one episode behind.
        """
        before = read_before(self.root, self.layout)
        self._info, self._rows, self._words = before.info, before.rows, before.words
        self._stats, self._last, self._schema = before.stats, before.last, before.schema
        self._orders = vector_orders(self._info, self.layout, self.root)
        self._resumed_at = len(self._rows)

    def _numbered(self, task: str) -> tuple[int, dict[int, str]]:
        """The number of a task, and all words with it."""
        numbers = {words: number for number, words in reversed(self._words.items())}
        number = numbers.get(task, max(self._words, default=-1) + 1)
        return number, {**self._words, number: task}

    # -- one episode's files

    def _sink(self, camera: str) -> Sink:
        height, width = self.layout.cameras[camera]
        if not self.layout.video:
            return PngSink(height, width)
        return VideoSink(
            self._staging / f"{camera}.mp4", self.layout.fps, height, width, self._codec
        )

    def _staged(
        self,
        row: Mapping[str, Any],
        data: Any,
        stats: Mapping[str, Stats],
        words: Mapping[int, str],
        info: Mapping[str, Any],
    ) -> list[tuple[Path, Path]]:
        """Write all files of an episode to the temporary folder and flush them.

        Returns (temporary path, final path) in the order in which they must be renamed.
        """
        pq, staging = import_parquet(), self._staging
        pq.write_table(data, staging / "data.parquet", compression="snappy")
        pq.write_table(task_table(words), staging / "tasks.parquet")
        entry = row_table(row, stats, self._schema)
        pq.write_table(entry, staging / "episode.parquet", compression="snappy")
        merged = dataset_stats.to_lists(merged_stats([*self._stats, stats]))
        (staging / "stats.json").write_text(write_json(merged))
        (staging / "info.json").write_text(write_json(info))
        (staging / "mtdit.json").write_text(write_json({"units": self.layout.units}))
        moves = [
            *((f"{key.removeprefix(IMAGES)}.mp4", self._video_path(row, key))
              for key in self._video_keys()),
            ("mtdit.json", self.root / RECORDER),
            ("tasks.parquet", self.root / TASKS),
            ("data.parquet", self._path(DATA_PATH, row, "data")),
            ("episode.parquet", self._path(EPISODES_PATH, row, "meta/episodes")),
            ("stats.json", self.root / STATS),
            ("info.json", self.root / INFO),
        ]  # fmt: skip
        for name, _ in moves:
            flush_to_disk(staging / name)
        return [(staging / name, place) for name, place in moves]

    def _path(self, pattern: str, row: Mapping[str, Any], columns: str) -> Path:
        """Path of the file of this episode. columns: the kind of file, as in the row's columns."""
        chunk, file = row[f"{columns}/chunk_index"], row[f"{columns}/file_index"]
        return self.root / pattern.format(
            video_key=columns.removeprefix("videos/"), chunk_index=chunk, file_index=file
        )

    def _video_path(self, row: Mapping[str, Any], key: str) -> Path:
        return self._path(video_pattern(self._info), row, f"videos/{key}")

    def _new_row(self, episode: Episode) -> dict[str, Any]:
        """The episode's row in meta/episodes: its frames and its files."""
        first = self.n_frames
        row: dict[str, Any] = {
            "episode_index": int(self._rows[-1]["episode_index"]) + 1 if self._rows else 0,
            "tasks": [episode.task],
            "length": len(episode),
        }
        row |= self._next_file("data")
        row |= {"dataset_from_index": first, "dataset_to_index": first + len(episode)}
        for key in self._video_keys():
            row |= self._next_file(f"videos/{key}")
            row |= {
                f"videos/{key}/from_timestamp": 0.0,
                f"videos/{key}/to_timestamp": len(episode) / self.layout.fps,
            }
        return row | self._next_file("meta/episodes")

    def _next_file(self, columns: str) -> dict[str, int]:
        """Chunk and file index of the next file of one kind."""
        chunk, file, size = (
            f"{columns}/chunk_index",
            f"{columns}/file_index",
            chunks_size(self._info),
        )
        number = self._last.get(columns, -1) + 1
        if self.n_episodes > self._resumed_at:
            number = int(self._rows[-1][chunk]) * size + int(self._rows[-1][file]) + 1
        return {chunk: number // size, file: number % size}

    def _video_keys(self) -> list[str]:
        return [IMAGES + camera for camera in self.layout.cameras] if self.layout.video else []

    def _info_with(
        self, rows: Sequence[Mapping[str, Any]], words: Mapping[int, str]
    ) -> dict[str, Any]:
        """info.json with the counters of these episodes, its features in the current form."""
        current, known = self.layout.features(), self._info["features"]
        features = {key: {**known[key], **current[key]} for key in known}
        for key in (ACTION, STATE):  # a resumed dataset keeps the order of its joints
            names = [name.removesuffix(".pos") for name in listed_names(known[key])]
            features[key]["names"] = [f"{name}.pos" for name in names]
        for key in self._video_keys():
            features[key].setdefault("info", video_info(self.layout, key, self._codec))
        n_frames = sum(int(row["length"]) for row in rows)
        counters = (len(rows), n_frames, len(words), {"train": f"0:{len(rows)}"})
        new = {"features": features, **dict(zip(COUNTERS, counters, strict=True))}
        if self._video_keys():
            new["video_path"] = video_pattern(self._info)
        return {**self._info, **new}

    def _write_json(self, name: str, value: Any) -> None:
        with new_file(self.root / name, sync=True) as part:
            part.write_text(write_json(value))


@contextmanager
def _locked(root: Path) -> Iterator[None]:
    """Create the folder and lock it; the lock ends with the process. Raises UserError while another
    process holds the lock.
    """
    root.mkdir(parents=True, exist_ok=True)
    with locked(
        root, f"another program records into {root}: wait for it, or choose another folder"
    ):
        yield


def _check_folder(root: Path, resume: bool) -> None:
    """Raise UserError for a folder that holds something else, or a dataset without `resume`."""
    if root.exists() and not root.is_dir():
        raise UserError(f"{root} is not a folder: choose another folder")
    found = {path.name for path in root.iterdir()} - {ASIDE} if root.is_dir() else set()
    if found and not (root / INFO).is_file():
        raise UserError(
            f"{root} contains {sorted(found)[0]} but is not a dataset: choose another folder"
        )
    if found and not resume:
        raise UserError(
            f"{root} already contains a dataset: add --resume (resume=True in Python) "
            "to continue it, or choose another folder"
        )
