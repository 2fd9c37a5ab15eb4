"""Reads a LeRobotDataset v3 folder without torch or LeRobot: everything except the frames.

Replay, training and a resumed recording read with it. Source of the format: LeRobot
`datasets/{dataset_metadata,dataset_reader,video_utils}.py`, codebase_version v3.0. Frames are
decoded in `mtdit.data`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mtdit_robots.errors import UserError
from mtdit_robots.extras import missing
from mtdit_robots.features import ACTION, IMAGES, STATE
from mtdit_runtime.files import read_json
from mtdit_runtime.recording.dataset_consistency import (
    check_info,
    check_rows,
    check_vectors,
    image_shape,
    joint_names,
)
from mtdit_runtime.recording.dataset_layout import INFO, STATS, TASKS, VIDEO_PATH
from mtdit_runtime.recording.dataset_units import dataset_units
from mtdit_runtime.text import first_line
from mtdit_runtime.units import NOT_SAID, Judged

COLUMNS = (STATE, ACTION, "timestamp", "index", "episode_index", "task_index")  # those of data/
EPISODES, DATA = "meta/episodes", "data"  # folders of tables


@dataclass(frozen=True)
class RecordedDataset:
    """A dataset without its frames. A row is a frame of the whole dataset, sorted by episode."""

    root: Path
    info: Mapping[str, Any]  # meta/info.json
    joints: tuple[str, ...]  # names of the action's dimensions, without ".pos"
    state_joints: tuple[str, ...]  # those of the state's, in the state's own order
    cameras: Mapping[str, tuple[int, int, int]]  # camera -> (H, W, 3), in the order of info.json
    image_keys: Mapping[str, str]  # camera -> feature key
    tasks: tuple[str, ...]
    state: NDArray[Any]  # (N, J), as stored
    action: NDArray[Any]  # (N, A), as stored
    task: NDArray[np.int64]  # (N,) index into tasks
    timestamp: NDArray[Any]  # (N,) seconds since the start of the episode's piece of video
    episode_ends: NDArray[np.int64]  # (E,) exclusive
    episodes: Sequence[Mapping[str, Any]]  # the rows of meta/episodes, without statistics

    @property
    def fps(self) -> int:
        return int(self.info["fps"])

    @property
    def robot_type(self) -> str:
        return str(self.info.get("robot_type") or "")

    @property
    def data_files(self) -> list[Path]:
        return table_files(self.root, DATA)

    def is_video(self, camera: str) -> bool:
        """Whether a camera is stored as video; otherwise its PNGs are in the data files."""
        return bool(self.info["features"][self.image_keys[camera]]["dtype"] == "video")

    def video_places(self, camera: str) -> dict[str, dict[int, float]]:
        """Video path (relative to the root) -> row -> time of its frame in the video, s.

        The time is LeRobot's: where the episode's piece begins, and the row's own timestamp. Rows
        may be cut out of the tables while the videos stay whole. UserError when meta/episodes lacks
        the columns that say so.
        """
        key = self.image_keys[camera]
        columns = [f"videos/{key}/{n}" for n in ("chunk_index", "file_index", "from_timestamp")]
        pattern = self.info.get("video_path") or VIDEO_PATH
        places: dict[str, dict[int, float]] = {}
        row = 0
        for episode, end in zip(self.episodes, self.episode_ends.tolist(), strict=True):
            missing = [column for column in columns if episode.get(column) is None]
            if missing:
                raise UserError(
                    f"{self.root}/{EPISODES} has no column {missing[0]!r}; copy the dataset again"
                )
            chunk, file, start = (episode[column] for column in columns)
            try:
                path = pattern.format(video_key=key, chunk_index=chunk, file_index=file)
            except (KeyError, IndexError, ValueError, AttributeError):
                raise UserError(
                    f"{self.root}/{INFO}: video_path {pattern!r} is not a valid pattern; "
                    f"LeRobot's is {VIDEO_PATH!r}"
                ) from None
            times = float(start) + self.timestamp[row:end].astype(np.float64)
            places.setdefault(path, {}).update(zip(range(row, end), times.tolist(), strict=True))
            row = end
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
        episodes = read_episodes(root)
        _need_files(root, EPISODES, "episodes")
        columns, tasks = _read_rows(root, episodes), read_tasks(root)
        check_rows(root, columns, tasks, episodes, info["fps"])
        features = info["features"]
        state, action = (check_vectors(root, columns, k, features[k]) for k in (STATE, ACTION))
        pictures = [key for key, f in features.items() if f["dtype"] in ("video", "image")]
        keys = {key.removeprefix(IMAGES): key for key in pictures}
        return RecordedDataset(
            root=root,
            info=info,
            joints=joint_names(root, features, ACTION),
            state_joints=joint_names(root, features, STATE),
            cameras={c: image_shape(root, key, features[key]) for c, key in keys.items()},
            image_keys=keys,
            tasks=tasks,
            state=state,
            action=action,
            task=columns["task_index"].astype(np.int64),
            timestamp=columns["timestamp"].reshape(-1),
            episode_ends=np.append(
                np.flatnonzero(np.diff(columns["episode_index"])) + 1, len(state)
            ).astype(np.int64),
            episodes=episodes,
        )


def read_episode(root: Path | str, number: int) -> RecordedEpisode:
    """Read episode `number`, counted from 0, of the LeRobotDataset v3 in the folder `root`, without
    its frames. UserError as `read_dataset`, and when there is no such episode.
    """
    dataset = read_dataset(Path(root))
    ends = dataset.episode_ends
    if not 0 <= number < len(ends):
        raise UserError(
            f"{root} has no episode {number}: it has episodes 0 to {len(ends) - 1}; "
            "choose one of those"
        )
    rows = slice(int(ends[number - 1]) if number else 0, int(ends[number]))
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
        return dict(info)


def read_episodes(root: Path) -> list[dict[str, Any]]:
    """The rows of meta/episodes without their statistics, in order. A new dataset has none."""
    rows: list[dict[str, Any]] = []
    for file in table_files(root, EPISODES):
        table = _read_parquet(file, lambda name: not name.startswith("stats/"))
        _need_columns(file, table, ("episode_index", "dataset_to_index"))
        rows += table.to_pylist()
    return sorted(rows, key=lambda row: int(row["episode_index"]))


def read_tasks(root: Path) -> tuple[str, ...]:
    """The instructions of meta/tasks.parquet, by their index."""
    path = root / TASKS
    if not path.is_file():
        raise UserError(f"{path} does not exist; copy the whole dataset")
    table = _read_parquet(path)
    name = next((n for n in ("task", "__index_level_0__") if n in table.column_names), None)
    if name is None:
        raise UserError(f"{path} has no column 'task'; every episode needs an instruction")
    rows = sorted(zip(table["task_index"].to_pylist(), table[name].to_pylist(), strict=True))
    return tuple(str(task) for _, task in rows)


# -- tables


def table_files(root: Path, folder: str) -> list[Path]:
    """The parquet files of a folder of the dataset, in the order of their rows."""
    return sorted((root / folder).glob("chunk-*/file-*.parquet"))


def _need_files(root: Path, folder: str, what: str) -> list[Path]:
    files = table_files(root, folder)
    if not files:
        raise UserError(
            f"{root} has no {what}: {folder}/chunk-000/file-000.parquet is missing; "
            "copy the whole dataset"
        )
    return files


def _read_rows(root: Path, episodes: Sequence[Mapping[str, Any]]) -> dict[str, NDArray[Any]]:
    """COLUMNS of all data files, sorted by row.

    Rows after the last finished episode, left by a killed recorder, are dropped.
    """
    import pyarrow as pa

    files = _need_files(root, DATA, "frames")
    tables = [_read_parquet(file, COLUMNS.__contains__) for file in files]
    for file, table in zip(files, tables, strict=True):
        _need_columns(file, table, COLUMNS)
    table = pa.concat_tables(tables, promote_options="permissive").sort_by("index")
    table = table.slice(0, max((row["dataset_to_index"] for row in episodes), default=0))
    if not len(table):
        raise UserError(f"{root} has no frames; record episodes first")
    return {name: _to_numpy(root, name, table.column(name)) for name in COLUMNS}


def _need_columns(file: Path, table: Any, names: Sequence[str]) -> None:
    missing = [name for name in names if name not in table.column_names]
    if missing:
        raise UserError(
            f"{file} has no column {missing[0]!r}, so the dataset does not match its "
            "meta/info.json; copy the dataset again"
        )


def _to_numpy(root: Path, name: str, column: Any) -> NDArray[Any]:
    """A column as (N,), a column of lists as (N, D). UserError: lengths differ, values missing."""
    import pyarrow as pa
    import pyarrow.compute as pc

    if column.null_count:
        raise UserError(
            f"{root}: {column.null_count} values are missing in column {name!r}; "
            "copy the dataset again"
        )
    values: NDArray[Any]
    if not (pa.types.is_list(column.type) or pa.types.is_fixed_size_list(column.type)):
        values = column.to_numpy()
        return values
    lengths = np.unique(pc.list_value_length(column).to_numpy())
    if len(lengths) != 1:
        raise UserError(
            f"{root}: {name!r} has {lengths[0]} numbers in one frame and {lengths[-1]} in another; "
            "record the dataset again"
        )
    values = pc.list_flatten(column).to_numpy().reshape(len(column), -1)
    return values


def _read_parquet(file: Path, wanted: Callable[[str], bool] = lambda name: True) -> Any:
    """The columns of a file whose names are `wanted`, as a pyarrow Table."""
    pq = import_parquet()
    import pyarrow as pa

    try:
        with pq.ParquetFile(file) as opened:
            names = [name for name in opened.schema_arrow.names if wanted(name)]
            return opened.read(columns=names)
    except (pa.ArrowException, OSError) as error:
        reason = str(error).splitlines()[0][:120]
        raise UserError(f"{file} cannot be read ({reason}); copy the dataset again") from None


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


def import_parquet() -> Any:
    try:
        import pyarrow.parquet as pq
    except ImportError as error:
        raise missing("pyarrow", "datasets need pyarrow") from error
    return pq
