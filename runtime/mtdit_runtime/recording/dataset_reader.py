"""Reads a LeRobotDataset v3 folder without torch or LeRobot: everything except the frames.

Replay, training and a resumed recording read with it. Source of the format: LeRobot
`datasets/{dataset_metadata,dataset_reader,video_utils}.py`, codebase_version v3.0. Frames are
decoded in `mtdit.data`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from shlex import quote
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mtdit_robots.errors import UserError
from mtdit_robots.features import ACTION, IMAGES, STATE
from mtdit_runtime.files import read_json
from mtdit_runtime.recording import dataset_features
from mtdit_runtime.recording.dataset_consistency import (
    check_info,
    check_rows,
    check_vectors,
    joint_names,
)
from mtdit_runtime.recording.dataset_interrupted import check_finished
from mtdit_runtime.recording.dataset_layout import INFO, STATS
from mtdit_runtime.recording.dataset_parquet import (
    DATA,
    EPISODES,
    need_columns,
    read_parquet,
    table_files,
    to_numpy,
    whole_numbers,
)
from mtdit_runtime.recording.dataset_tasks import check_own_words, read_tasks
from mtdit_runtime.recording.dataset_units import dataset_units
from mtdit_runtime.recording.dataset_videos import video_piece
from mtdit_runtime.text import first_line, numbers_text
from mtdit_runtime.units import NOT_SAID, Judged

NUMBERS = ("episode_index", "frame_index", "task_index")
COLUMNS = (STATE, ACTION, "timestamp", *NUMBERS)  # those of data/ that are read


@dataclass(frozen=True)
class RecordedDataset:
    """A dataset without its frames. A row is a frame of the whole dataset: rows are counted in the
    order of episode and frame, whatever numbers the files keep.
    """

    root: Path
    info: Mapping[str, Any]  # meta/info.json
    joints: tuple[str, ...]  # names of the action's dimensions, without ".pos"
    state_joints: tuple[str, ...]  # those of the state's, in the state's own order
    cameras: Mapping[str, tuple[int, int, int]]  # camera -> (H, W, 3), in the order of info.json
    image_keys: Mapping[str, str]  # camera -> feature key
    unused: Mapping[str, str]  # feature key -> why it is left out
    tasks: tuple[str, ...]
    state: NDArray[Any]  # (N, J), as stored
    action: NDArray[Any]  # (N, A), as stored
    timestamp: NDArray[np.float64]  # (N,) seconds since the start of the episode's piece of video
    task: NDArray[np.int64]  # (N,) index into tasks
    episode_ends: NDArray[np.int64]  # (E,) exclusive
    episodes: Sequence[Mapping[str, Any]]  # the rows of meta/episodes, without statistics
    places: Mapping[Path, NDArray[np.int64]]  # data file -> the row of each of its lines, or -1
    notes: tuple[str, ...]  # what a person should know about it, a line each

    @property
    def fps(self) -> int:
        return int(self.info["fps"])

    @property
    def robot_type(self) -> str:
        return str(self.info.get("robot_type") or "")

    @property
    def episode_starts(self) -> NDArray[np.int64]:
        """(E,) the first row of each episode."""
        return np.append(0, self.episode_ends[:-1]).astype(np.int64)

    def is_video(self, camera: str) -> bool:
        """Whether a camera is stored as video; otherwise its PNGs are in the data files."""
        return bool(self.info["features"][self.image_keys[camera]]["dtype"] == "video")

    def video_places(self, camera: str) -> dict[str, dict[int, float]]:
        """Video path (relative to the root) -> row -> time of its frame in the video, s.

        The time is LeRobot's: where the episode's piece begins, and the row's own timestamp. Rows
        may be cut out of the tables while the videos stay whole. UserError when meta/episodes does
        not say so.
        """
        key = self.image_keys[camera]
        places: dict[str, dict[int, float]] = {}
        for episode, row, end in zip(
            self.episodes, self.episode_starts.tolist(), self.episode_ends.tolist(), strict=True
        ):
            piece = video_piece(self.root, self.info, episode, key)
            times = zip(range(row, end), (piece.begin_s + self.timestamp[row:end]), strict=True)
            places.setdefault(piece.path, {}).update((n, float(t)) for n, t in times)
        return places


@dataclass(frozen=True)
class RecordedEpisode:
    """One episode, without its frames. units: of its body joints, as known or judged."""

    fps: int
    joints: tuple[str, ...]  # of the actions, in their order
    task: str
    states: NDArray[np.float64]  # (N, S)
    actions: NDArray[np.float64]  # (N, J)
    units: Judged = NOT_SAID
    state_joints: tuple[str, ...] = ()  # of the states, in their order; (): the actions'

    def __post_init__(self) -> None:
        if not self.state_joints:
            object.__setattr__(self, "state_joints", self.joints)


def read_dataset(root: Path) -> RecordedDataset:
    """Read a dataset and check that its parts agree. UserError says what is missing or damaged."""
    info = read_info(root)
    with damage_named(root):
        check_finished(root, info)
    return read_tables(root, info)


def read_tables(root: Path, info: Mapping[str, Any]) -> RecordedDataset:
    """As `read_dataset`, where the recording is known to have ended."""
    with damage_named(root):
        episodes = read_episodes(root)
        if not episodes and not info.get("total_episodes"):
            raise UserError(
                f"{root} has no episodes yet; record some with "
                f"`mtdit record --resume --out {quote(str(root))}`"
            )
        _need_files(root, EPISODES, "episodes")
        columns, places = _read_rows(root, episodes)
        ends = check_rows(root, columns, episodes, info["fps"])
        table, numbers = read_tasks(root), columns["task_index"]
        task = table.indices(numbers, columns["episode_index"])
        used = [frozenset(part.tolist()) for part in np.split(numbers, ends[:-1])]
        features = info["features"]
        state, action = (check_vectors(root, columns, k, features[k]) for k in (STATE, ACTION))
        sizes, unused = dataset_features.cameras(features), dataset_features.unused(features)
        return RecordedDataset(
            root=root,
            info=info,
            joints=joint_names(root, features, ACTION),
            state_joints=joint_names(root, features, STATE),
            cameras={key.removeprefix(IMAGES): size for key, size in sizes.items()},
            image_keys={key.removeprefix(IMAGES): key for key in sizes},
            unused=unused,
            tasks=table.tasks,
            state=state,
            action=action,
            timestamp=columns["timestamp"],
            task=task,
            episode_ends=ends,
            episodes=episodes,
            places=places,
            notes=tuple(check_own_words(root, table, used, episodes)),
        )


def read_episode(root: Path | str, number: int) -> RecordedEpisode:
    """Read the episode with the index `number` of the LeRobotDataset v3 in the folder `root`,
    without its frames. UserError as `read_dataset`, and when there is no such episode.
    """
    dataset = read_dataset(Path(root))
    known = [int(episode["episode_index"]) for episode in dataset.episodes]
    if number not in known:
        raise UserError(
            f"{root} has no episode {number}: it has episodes {numbers_text(known)}; "
            "choose one of those"
        )
    place = known.index(number)
    rows = slice(int(dataset.episode_starts[place]), int(dataset.episode_ends[place]))
    return RecordedEpisode(
        dataset.fps,
        dataset.joints,
        dataset.tasks[int(dataset.task[rows][0])],
        dataset.state[rows].astype(np.float64),
        dataset.action[rows].astype(np.float64),
        units=dataset_units(dataset),
        state_joints=dataset.state_joints,
    )


def read_stats(
    root: Path, vectors: Mapping[str, NDArray[np.float32]]
) -> dict[str, dict[str, NDArray[np.float32]]]:
    """meta/stats.json as arrays; what it lacks of `vectors` (feature -> (N, D)) is computed."""
    raw = read_json(root / STATS) if (root / STATS).is_file() else {}
    try:
        with np.errstate(over="ignore"):  # what float32 cannot hold is refused below
            stats = {
                k: {n: np.asarray(v, np.float32) for n, v in values.items()}
                for k, values in raw.items()
            }
    except (AttributeError, TypeError, ValueError):
        raise UserError(
            f"{root / STATS} does not hold statistics; delete it, and mtdit computes them"
        ) from None
    for key, rows in vectors.items():
        known = {"min": rows.min(0), "max": rows.max(0), "mean": rows.mean(0), "std": rows.std(0)}
        stats[key] = {**known, **stats.get(key, {})}
        if stats[key]["min"].shape != rows.shape[1:]:
            shape = stats[key]["min"].shape
            raise UserError(
                f"{root}: the statistics of {key} have shape {shape}, but its frames have "
                f"{rows.shape[1:]}; delete {STATS}, and mtdit computes them"
            )
        if not all(np.isfinite(stats[key][name]).all() for name in known):
            raise UserError(
                f"{root}: the statistics of {key} are not finite; delete {STATS}, and mtdit "
                "computes them"
            )
    return stats


# -- metadata


def check_folder(root: Path) -> None:
    """Raise UserError for a folder that is not a dataset."""
    if not (root / INFO).is_file():
        raise UserError(
            f"{root} is not a LeRobotDataset: it has no {INFO}; give the folder that contains meta/"
        )


def read_info(root: Path) -> dict[str, Any]:
    """Read meta/info.json. Raises UserError when `root` is not a v3 dataset."""
    check_folder(root)
    with damage_named(root):
        info = read_json(root / INFO)
        check_info(root, info)
        return {**info, "fps": int(info["fps"])}


def read_episodes(root: Path) -> list[dict[str, Any]]:
    """The rows of meta/episodes without their statistics, in order. A new dataset has none."""
    rows: list[dict[str, Any]] = []
    for file in table_files(root, EPISODES):
        table = read_parquet(file, lambda name: not name.startswith("stats/"))
        need_columns(file, table.column_names, ("episode_index",))
        numbers = whole_numbers(file, table, "episode_index").tolist()
        counted = zip(table.to_pylist(), numbers, _lengths(file, table), strict=True)
        rows += [
            {**row, "episode_index": number, "length": length} for row, number, length in counted
        ]
    rows.sort(key=lambda row: row["episode_index"])
    for one, other in pairwise(rows):
        if one["episode_index"] == other["episode_index"]:
            raise UserError(
                f"{root}/{EPISODES} lists episode {one['episode_index']} twice; "
                "copy the dataset again"
            )
    return rows


def _lengths(file: Path, table: Any) -> list[int]:
    """How many rows each episode has."""
    if "length" in table.column_names:
        return whole_numbers(file, table, "length").tolist()
    ends = ("dataset_to_index", "dataset_from_index")
    need_columns(file, table.column_names, ends)
    end, begin = (whole_numbers(file, table, name) for name in ends)
    return (end - begin).tolist()


# -- tables


def _need_files(root: Path, folder: str, what: str) -> list[Path]:
    files = table_files(root, folder)
    if not files:
        raise UserError(
            f"{root} has no {what}: {folder}/chunk-000/file-000.parquet is missing; "
            "copy the whole dataset"
        )
    return files


def _read_rows(
    root: Path, episodes: Sequence[Mapping[str, Any]]
) -> tuple[dict[str, NDArray[Any]], dict[Path, NDArray[np.int64]]]:
    """COLUMNS of all data files in the order of episode and frame, and the row of each line.

    What the files are called and what `index` says does not count: edits and merges leave both
    stale. Lines of episodes that meta/episodes does not list, left by a killed recorder, have no
    row.
    """
    files = _need_files(root, DATA, "frames")
    parts = [_columns(file) for file in files]
    columns = {name: _joined(root, name, [part[name] for part in parts]) for name in COLUMNS}
    order = np.lexsort([columns["frame_index"], columns["episode_index"]])
    listed = [episode["episode_index"] for episode in episodes]
    order = order[np.isin(columns["episode_index"][order], listed)]
    if not len(order):
        raise UserError(f"{root} has no frames; record episodes first")
    rows = np.full(len(columns["episode_index"]), -1, np.int64)
    rows[order] = np.arange(len(order))
    ends = np.cumsum([len(part["episode_index"]) for part in parts])
    places = dict(zip(files, np.split(rows, ends[:-1]), strict=True))
    return {name: values[order] for name, values in columns.items()}, places


def _columns(file: Path) -> dict[str, NDArray[Any]]:
    table = read_parquet(file, COLUMNS.__contains__)
    need_columns(file, table.column_names, COLUMNS)
    vectors = {name: to_numpy(file, table, name) for name in (STATE, ACTION)}
    times = to_numpy(file, table, "timestamp").reshape(-1).astype(np.float64)
    numbers = {name: whole_numbers(file, table, name) for name in NUMBERS}
    rows = {name: v if v.ndim == 2 else v[:, None] for name, v in vectors.items()}
    return {**rows, "timestamp": times, **numbers}


def _joined(root: Path, name: str, parts: Sequence[NDArray[Any]]) -> NDArray[Any]:
    filled = [part for part in parts if len(part)] or parts[:1]
    widths = sorted({part.shape[1:] for part in filled})
    if len(widths) > 1:
        raise UserError(
            f"{root}: {name!r} has {widths[0][0]} numbers in one file and {widths[-1][0]} in "
            "another; record the dataset again"
        )
    return np.concatenate(filled)


@contextmanager
def damage_named(root: Path) -> Iterator[None]:
    """Raise UserError for any error that a damaged file causes in the block."""
    try:
        yield
    except (OSError, ValueError, KeyError, IndexError, TypeError, AttributeError) as error:
        raise UserError(
            f"{root} is damaged ({type(error).__name__}: {first_line(error)}): "
            "restore it from a copy"
        ) from error
