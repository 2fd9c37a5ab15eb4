"""Writes and reads LeRobotDataset v3 folders (meta/, data/, videos/) without torch or LeRobot.

Episodes are saved one at a time, each in its own files: they are written to a temporary folder,
flushed to disk and renamed one after the other, the row in meta/episodes third to last. A process
that is killed at any moment loses only the episode it was recording; files that it leaves behind
are overwritten by the next session. Source of the format: LeRobot `datasets/` (codebase_version
v3.0).
"""

from __future__ import annotations

import fcntl
import json
import logging
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mtdit_robots.errors import UserError
from mtdit_robots.robot import Frame, Positions
from mtdit_runtime import dataset_stats
from mtdit_runtime.dataset_stats import Stats
from mtdit_runtime.encode import INSTALL, Codec, Encoding, PngSink, Sink, VideoSink, find_codec

ACTION, STATE, IMAGES = "action", "observation.state", "observation.images."
ROBOT_TYPE = "so_follower"  # LeRobot's name for an SO-100 or SO-101 follower
INFO, STATS, TASKS = "meta/info.json", "meta/stats.json", "meta/tasks.parquet"
EPISODES_PATH = "meta/episodes/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet"
DATA_PATH = "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet"
VIDEO_PATH = "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4"
ASIDE = ".recording"  # temporary folder of unfinished episodes; readers ignore it
CHUNKS_SIZE = 1000
FEWEST_FRAMES = 2  # the statistics of one frame have no spread

_INDICES = {
    "timestamp": "float32",
    "frame_index": "int64",
    "episode_index": "int64",
    "index": "int64",
    "task_index": "int64",
}
_COUNTERS = ("total_episodes", "total_frames", "total_tasks", "splits")

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Layout:
    """The features of a dataset: what every frame contains."""

    fps: int
    joints: tuple[str, ...]
    cameras: Mapping[str, tuple[int, int]]  # name -> (height, width)
    video: bool = True  # False: PNG images in the tables, lossless and 20 times larger
    robot_type: str = ROBOT_TYPE

    def features(self) -> dict[str, dict[str, Any]]:
        """The features as in info.json, in the order that LeRobot's recorder writes."""
        names = [f"{joint}.pos" for joint in self.joints]
        vector = {"dtype": "float32", "shape": [len(names)], "names": names}
        pictures = {
            IMAGES + camera: {
                "dtype": "video" if self.video else "image",
                "shape": [height, width, 3],
                "names": ["height", "width", "channels"],
            }
            for camera, (height, width) in self.cameras.items()
        }
        numbers = {
            name: {"dtype": dtype, "shape": [1], "names": None} for name, dtype in _INDICES.items()
        }
        return {ACTION: vector, STATE: dict(vector), **pictures, **numbers}

    def check(self) -> None:
        """Raise UserError for features that cannot be recorded."""
        if self.fps < 1:
            raise UserError(f"--fps {self.fps} is too low: use --fps 30")
        for camera, (height, width) in self.cameras.items():
            if "/" in camera or not camera:
                raise UserError(
                    f"camera name {camera!r} cannot be a feature name: use letters, digits and _"
                )
            if self.video and (height % 2 or width % 2):
                raise UserError(
                    f"camera {camera!r} is {width}x{height}, "
                    "video needs an even width and height: choose another size"
                )


@dataclass
class Episode:
    """An episode that is being recorded: `add` frames, then `Recording.keep` or `discard` it."""

    task: str
    encodings: Mapping[str, Encoding]  # camera -> the encoder of its frames
    states: list[Positions] = field(default_factory=list)  # (J,) per frame
    actions: list[Positions] = field(default_factory=list)  # (J,) per frame

    def add(self, state: Positions, action: Positions, frames: Mapping[str, Frame]) -> None:
        """Add one tick: measured positions (J,), the command (J,), camera -> (H, W, 3) uint8 RGB.

        Frames are encoded in another thread; this does not wait for it.
        """
        for camera, encoding in self.encodings.items():
            encoding.add(frames[camera])
        self.states.append(np.array(state, np.float32))
        self.actions.append(np.array(action, np.float32))

    def __len__(self) -> int:
        return len(self.actions)

    @property
    def repeated(self) -> dict[str, int]:
        """Camera -> frames replaced by the frame before, because the encoder was too slow."""
        return {name: e.repeated for name, e in self.encodings.items() if e.repeated}

    def discard(self) -> None:
        """Stop the encoders; nothing of the episode is saved."""
        for encoding in self.encodings.values():
            encoding.abandon()


class Recording:
    """A dataset folder to which whole episodes are added.

    root: a new folder, or an existing dataset if `resume`. codec: h264 or av1. wait: when the
    encoder is slow, wait for it (lock-step) instead of repeating frames. Raises UserError when the
    folder is not empty, its dataset has another layout, another program records into it, or PyAV
    or pyarrow is not installed.
    """

    def __init__(
        self,
        root: Path,
        layout: Layout,
        resume: bool = False,
        codec: str = "h264",
        wait: bool = False,
    ) -> None:
        layout.check()
        self.root, self.layout, self._wait = root, layout, wait
        self._codec: Codec = find_codec(codec)
        _parquet()
        self.tasks: list[str] = []
        self._rows: list[dict[str, Any]] = []  # of meta/episodes, without statistics
        self._stats: list[dict[str, Stats]] = []  # per episode; those before a resume are merged
        self._info = _new_info(layout)
        self._resumed_at = 0
        _check_folder(root, resume)
        self._staging = root / ASIDE
        with ExitStack() as lock:
            lock.enter_context(_locked(root))
            if (root / INFO).is_file():
                with _damage_named(root):
                    self._resume()
            shutil.rmtree(self._staging, ignore_errors=True)
            self._staging.mkdir()
            self._lock = lock.pop_all()

    @property
    def n_episodes(self) -> int:
        return len(self._rows)

    @property
    def n_frames(self) -> int:
        return int(self._rows[-1]["dataset_to_index"]) if self._rows else 0

    def begin(self, task: str) -> Episode:
        """Start an episode; its encoders start with it."""
        return Episode(
            task, {c: Encoding(partial(self._sink, c), self._wait) for c in self.layout.cameras}
        )

    def keep(self, episode: Episode) -> None:
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
        tasks = self.tasks if episode.task in self.tasks else [*self.tasks, episode.task]
        row = self._new_row(episode)
        data = _frame_table(episode, self.layout, row, tasks.index(episode.task))
        stats = _episode_stats(episode, data)
        info = self._info_with([*self._rows, row], tasks)
        for old, new in self._staged(row, data, stats, tasks, info):
            new.parent.mkdir(parents=True, exist_ok=True)
            os.replace(old, new)
        self._rows, self.tasks, self._info = [*self._rows, row], tasks, info
        self._stats.append(stats)

    def drop_last(self) -> bool:
        """Delete the last episode of this session. False when there is none."""
        if self.n_episodes <= self._resumed_at:
            return False
        row = self._rows.pop()
        self._stats.pop()
        # First its row: from then on the episode is not part of the dataset.
        self._path(EPISODES_PATH, row, "meta/episodes").unlink()
        self._info = self._info_with(self._rows, self.tasks)
        self._write_json(STATS, dataset_stats.to_lists(_merged(self._stats)))
        self._write_json(INFO, self._info)
        self._path(DATA_PATH, row, "data").unlink()
        for key in self._video_keys():
            self._path(VIDEO_PATH, row, f"videos/{key}").unlink()
        return True

    def close(self) -> None:
        """Remove unfinished files, and the folder itself if it is empty. Releases the lock."""
        shutil.rmtree(self._staging, ignore_errors=True)
        if self.root.is_dir() and not any(self.root.iterdir()):
            self.root.rmdir()
        self._lock.close()

    # -- continuing an earlier session

    def _resume(self) -> None:
        """Read the existing dataset. Counters and statistics are computed from its episodes, since
        stats.json and info.json may be one episode behind.
        """
        pq = _parquet()
        self._info = read_info(self.root)
        _check_same(self._info, self.layout, self.root)
        self._rows = list(_episode_rows(self.root))
        self._resumed_at = len(self._rows)
        tasks = pq.read_table(self.root / TASKS).to_pylist()
        self.tasks = [str(row["task"]) for row in sorted(tasks, key=lambda row: row["task_index"])]
        if self._rows:
            self._stats = [_stats_so_far(self.root, self._rows)]

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
        tasks: Sequence[str],
        info: Mapping[str, Any],
    ) -> list[tuple[Path, Path]]:
        """Write all files of an episode to the temporary folder and flush them.

        Returns (temporary path, final path) in the order in which they must be renamed.
        """
        pq, staging = _parquet(), self._staging
        pq.write_table(data, staging / "data.parquet", compression="snappy")
        pq.write_table(_task_table(tasks), staging / "tasks.parquet")
        pq.write_table(_row_table(row, stats), staging / "episode.parquet", compression="snappy")
        merged = dataset_stats.to_lists(_merged([*self._stats, stats]))
        (staging / "stats.json").write_text(_json(merged))
        (staging / "info.json").write_text(_json(info))
        moves = [
            *((f"{key.removeprefix(IMAGES)}.mp4", self._path(VIDEO_PATH, row, f"videos/{key}"))
              for key in self._video_keys()),
            ("tasks.parquet", self.root / TASKS),
            ("data.parquet", self._path(DATA_PATH, row, "data")),
            ("episode.parquet", self._path(EPISODES_PATH, row, "meta/episodes")),
            ("stats.json", self.root / STATS),
            ("info.json", self.root / INFO),
        ]  # fmt: skip
        for name, _ in moves:
            _flush(staging / name)
        return [(staging / name, place) for name, place in moves]

    def _path(self, pattern: str, row: Mapping[str, Any], columns: str) -> Path:
        """Path of the file of this episode. columns: the kind of file, as in the row's columns."""
        chunk, file = row[f"{columns}/chunk_index"], row[f"{columns}/file_index"]
        return self.root / pattern.format(
            video_key=columns.removeprefix("videos/"), chunk_index=chunk, file_index=file
        )

    def _new_row(self, episode: Episode) -> dict[str, Any]:
        """The episode's row in meta/episodes: its frames and its files."""
        first = self.n_frames
        row: dict[str, Any] = {
            "episode_index": self.n_episodes,
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
        chunk, file = f"{columns}/chunk_index", f"{columns}/file_index"
        size, number = int(self._info["chunks_size"]), 0
        if self._rows:
            number = int(self._rows[-1][chunk]) * size + int(self._rows[-1][file]) + 1
        return {chunk: number // size, file: number % size}

    def _video_keys(self) -> list[str]:
        return [IMAGES + camera for camera in self.layout.cameras] if self.layout.video else []

    def _info_with(self, rows: Sequence[Mapping[str, Any]], tasks: Sequence[str]) -> dict[str, Any]:
        features = {key: dict(feature) for key, feature in self._info["features"].items()}
        for key in self._video_keys():
            features[key].setdefault("info", _video_info(self.layout, key, self._codec))
        n_frames = rows[-1]["dataset_to_index"] if rows else 0
        counters = (len(rows), n_frames, len(tasks), {"train": f"0:{len(rows)}"})
        return {**self._info, "features": features, **dict(zip(_COUNTERS, counters, strict=True))}

    def _write_json(self, name: str, value: Any) -> None:
        staging = self._staging / "rewritten.json"
        staging.write_text(_json(value))
        _flush(staging)
        os.replace(staging, self.root / name)


# -- reading


@dataclass(frozen=True)
class Recorded:
    """One recorded episode, without its images."""

    fps: int
    joints: tuple[str, ...]
    task: str
    states: NDArray[np.float64]  # (N, J)
    actions: NDArray[np.float64]  # (N, J)


def read_episode(root: Path, number: int) -> Recorded:
    """Read episode `number` of a LeRobotDataset v3.

    Raises UserError when there is no dataset or no such episode, or when its tables are damaged.
    """
    pq, info = _parquet(), read_info(root)
    with _damage_named(root):
        rows = list(_episode_rows(root))
        if not 0 <= number < len(rows):
            numbers = f"episodes 0 to {len(rows) - 1}" if rows else "no episodes"
            raise UserError(f"{root} has no episode {number}: it has {numbers}")
        row = rows[number]
        pattern = info.get("data_path") or DATA_PATH
        indices = {"chunk_index": row["data/chunk_index"], "file_index": row["data/file_index"]}
        table = pq.read_table(
            root / pattern.format(**indices),
            columns=[ACTION, STATE, "episode_index"],
            filters=[("episode_index", "=", number)],
        )
        states, actions = (np.array(table[key].to_pylist(), np.float64) for key in (STATE, ACTION))
        names = info["features"][ACTION].get("names") or []
        joints = tuple(str(name).removesuffix(".pos") for name in names)
        return Recorded(int(info["fps"]), joints, row["tasks"][0], states, actions)


@contextmanager
def _damage_named(root: Path) -> Iterator[None]:
    """Raise UserError for any error that a damaged table causes in the block."""
    try:
        yield
    except (OSError, ValueError, KeyError, IndexError, TypeError, AttributeError) as error:
        what = (str(error).splitlines() or [""])[0][:160]
        raise UserError(
            f"{root} is damaged ({type(error).__name__}: {what}): restore it from a copy"
        ) from error


def read_info(root: Path) -> dict[str, Any]:
    """Read meta/info.json. Raises UserError when `root` is not a v3 dataset."""
    try:
        info = json.loads((root / INFO).read_text())
    except FileNotFoundError as error:
        raise UserError(
            f"{root} is not a dataset, it has no {INFO}: give the folder that contains meta/"
        ) from error
    except (OSError, ValueError) as error:
        raise UserError(
            f"{root / INFO} cannot be read ({error}): copy the dataset again"
        ) from error
    version = info.get("codebase_version") if isinstance(info, dict) else None
    if not str(version).startswith("v3."):
        raise UserError(
            f"{root} is a dataset of version {version}, mtdit needs v3.x: "
            "convert it with LeRobot's script"
        )
    return dict(info)


def _episode_rows(root: Path) -> Iterator[dict[str, Any]]:
    """The rows of meta/episodes without their statistics, in order."""
    pq, rows = _parquet(), []
    for file in sorted((root / "meta/episodes").glob("chunk-*/file-*.parquet")):
        columns = [name for name in pq.read_schema(file).names if not name.startswith("stats/")]
        rows += pq.read_table(file, columns=columns).to_pylist()
    yield from sorted(rows, key=lambda row: int(row["episode_index"]))


# -- tables


def _frame_table(episode: Episode, layout: Layout, row: Mapping[str, Any], task_index: int) -> Any:
    """The episode's table in data/: one row per frame, everything except the videos."""
    import pyarrow as pa

    n, first = len(episode), row["dataset_from_index"]

    def vectors(rows: Sequence[Positions]) -> Any:
        flat = np.concatenate(rows).astype(np.float32)
        return pa.FixedSizeListArray.from_arrays(pa.array(flat), len(layout.joints))

    columns = {ACTION: vectors(episode.actions), STATE: vectors(episode.states)}
    for camera, encoding in episode.encodings.items():
        if isinstance(encoding.sink, PngSink):
            columns[IMAGES + camera] = _image_column(encoding.sink.images)
    columns |= {
        "timestamp": pa.array((np.arange(n) / layout.fps).astype(np.float32)),
        "frame_index": pa.array(np.arange(n, dtype=np.int64)),
        "episode_index": pa.array(np.full(n, row["episode_index"], np.int64)),
        "index": pa.array(np.arange(first, first + n, dtype=np.int64)),
        "task_index": pa.array(np.full(n, task_index, np.int64)),
    }
    return pa.table(columns)


def _image_column(images: Sequence[bytes]) -> Any:
    """PNG bytes in the form of Hugging Face's Image feature."""
    import pyarrow as pa

    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    return pa.array(
        [{"bytes": image, "path": f"frame-{i:06d}.png"} for i, image in enumerate(images)], kind
    )


def _row_table(row: Mapping[str, Any], stats: Mapping[str, Stats]) -> Any:
    """One row of meta/episodes with its statistics, columns in LeRobot's order."""
    import pyarrow as pa

    lists = dataset_stats.to_lists(stats)
    flat = {
        f"stats/{key}/{name}": value
        for key, values in lists.items()
        for name, value in values.items()
    }
    place = {key: value for key, value in row.items() if key.startswith("meta/")}
    return pa.Table.from_pylist(
        [{**{k: v for k, v in row.items() if k not in place}, **flat, **place}]
    )


def _task_table(tasks: Sequence[str]) -> Any:
    """The tasks as pandas writes them, with the instruction as index: LeRobot looks it up there."""
    import pyarrow as pa

    def column(name: str | None, kind: str, dtype: str, metadata: Any = None) -> dict[str, Any]:
        return {
            "name": name,
            "field_name": name,
            "pandas_type": kind,
            "numpy_type": dtype,
            "metadata": metadata,
        }

    pandas = {
        "index_columns": ["task"],
        "column_indexes": [column(None, "unicode", "object", {"encoding": "UTF-8"})],
        "columns": [column("task_index", "int64", "int64"), column("task", "unicode", "object")],
        "attributes": {},
        "creator": {"library": "pyarrow", "version": pa.__version__},
        "pandas_version": "2.2.0",
    }
    table = pa.table(
        {
            "task_index": pa.array(range(len(tasks)), pa.int64()),
            "task": pa.array(tasks, pa.string()),
        }
    )
    return table.replace_schema_metadata({"pandas": json.dumps(pandas)})


def _episode_stats(episode: Episode, data: Any) -> dict[str, Stats]:
    vectors = {
        name: np.array(data[name].to_pylist() if name in (ACTION, STATE) else data[name])
        for name in (ACTION, STATE, *_INDICES)
    }
    images = {
        IMAGES + camera: dataset_stats.image_stats(e.counts)
        for camera, e in episode.encodings.items()
    }
    numbers = {name: dataset_stats.vector_stats(rows) for name, rows in vectors.items()}
    return {ACTION: numbers.pop(ACTION), STATE: numbers.pop(STATE), **images, **numbers}


def _merged(parts: Sequence[Mapping[str, Stats]]) -> dict[str, Stats]:
    return {
        key: dataset_stats.merged([part[key] for part in parts])
        for key in (parts[0] if parts else ())
    }


def _stats_so_far(root: Path, rows: Sequence[Mapping[str, Any]]) -> dict[str, Stats]:
    """Merged from the statistics of the episodes; from stats.json if those have none."""
    pq, parts = _parquet(), list[dict[str, Stats]]()
    for file in sorted({EPISODES_PATH.format(**_place(row)) for row in rows}):
        table = pq.read_table(root / file)
        names = [name for name in table.column_names if name.startswith("stats/")]
        parts += [_unflattened(line) for line in table.select(names).to_pylist()]
    if parts and all(parts):
        return _merged(parts)
    kept = json.loads((root / STATS).read_text()) if (root / STATS).is_file() else {}
    return {key: {name: np.array(v) for name, v in values.items()} for key, values in kept.items()}


def _unflattened(line: Mapping[str, Any]) -> dict[str, Stats]:
    """{"stats/KEY/NAME": list} -> KEY -> NAME -> array."""
    stats: dict[str, Stats] = {}
    for column, value in line.items():
        key, _, name = column.removeprefix("stats/").rpartition("/")
        stats.setdefault(key, {})[name] = np.array(value)
    return stats


def _place(row: Mapping[str, Any]) -> dict[str, int]:
    return {name: int(row[f"meta/episodes/{name}"]) for name in ("chunk_index", "file_index")}


# -- info.json


def _new_info(layout: Layout) -> dict[str, Any]:
    return {
        "codebase_version": "v3.0",
        "fps": layout.fps,
        "features": layout.features(),
        "total_episodes": 0,
        "total_frames": 0,
        "total_tasks": 0,
        "chunks_size": CHUNKS_SIZE,
        "data_files_size_in_mb": 100,
        "video_files_size_in_mb": 200,
        "data_path": DATA_PATH,
        "video_path": VIDEO_PATH if layout.video and layout.cameras else None,
        "robot_type": layout.robot_type,
        "splits": {},
    }


def _video_info(layout: Layout, key: str, codec: Codec) -> dict[str, Any]:
    height, width = layout.cameras[key.removeprefix(IMAGES)]
    return {
        "video.height": height,
        "video.width": width,
        "video.codec": codec.name,
        "video.pix_fmt": "yuv420p",
        "video.fps": layout.fps,
        "video.channels": 3,
        "has_audio": False,
        "video.g": codec.g,
        "video.crf": codec.crf,
        "video.preset": codec.preset,
        "video.fast_decode": 0,
        "video.video_backend": "pyav",
        "video.extra_options": {},
        "is_depth_map": False,
    }


@contextmanager
def _locked(root: Path) -> Iterator[None]:
    """Create the folder and lock it; the lock ends with the process. Raises UserError while another
    process holds the lock.
    """
    root.mkdir(parents=True, exist_ok=True)
    folder = os.open(root, os.O_RDONLY)
    try:
        try:
            fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise UserError(
                f"another program records into {root}: wait for it, or choose another --out"
            ) from error
        except OSError as error:  # some network file systems have no locks
            log.debug("%s cannot be locked: %s", root, error)
        yield
    finally:
        os.close(folder)


def _check_folder(root: Path, resume: bool) -> None:
    """Raise UserError for a folder that holds something else, or a dataset without `resume`."""
    if root.exists() and not root.is_dir():
        raise UserError(f"{root} is not a folder: choose another --out")
    found = {path.name for path in root.iterdir()} - {ASIDE} if root.is_dir() else set()
    if found and not (root / INFO).is_file():
        raise UserError(
            f"{root} contains {sorted(found)[0]} but is not a dataset: choose another --out"
        )
    if found and not resume:
        raise UserError(
            f"{root} already contains a dataset: add --resume to continue it, "
            "or choose another --out"
        )


def _check_same(info: Mapping[str, Any], layout: Layout, root: Path) -> None:
    """Raise UserError with the first feature in which the dataset differs from `layout`."""
    asked = _new_info(layout)
    for name in ("fps", "robot_type"):
        if info.get(name) != asked[name]:
            raise UserError(
                f"{root} has {name} {info.get(name)}, not {asked[name]}: choose another --out"
            )
    for key in dict.fromkeys([*asked["features"], *info["features"]]):
        ours, theirs = (
            _feature_text(features.get(key)) for features in (asked["features"], info["features"])
        )
        if ours != theirs:
            raise UserError(
                f"{root} has {key} as {theirs}, this arm gives {ours}: choose another --out"
            )


def _feature_text(feature: Mapping[str, Any] | None) -> str:
    """dtype, shape and names of a feature, for the comparison and the message."""
    if feature is None:
        return "nothing"
    text = f"{feature['dtype']} {'x'.join(map(str, feature['shape']))}"
    has_names = feature["dtype"] == "float32" and feature["names"]
    return f"{text} of {', '.join(feature['names'])}" if has_names else text


def _json(value: Any) -> str:
    return json.dumps(value, indent=4, ensure_ascii=False)


def _flush(path: Path) -> None:
    """Flush a file to the disk, so that it is not empty after a rename and a power cut."""
    with path.open("rb") as file:
        os.fsync(file.fileno())


def _parquet() -> Any:
    try:
        import pyarrow.parquet as pq
    except ImportError as error:
        raise UserError(INSTALL) from error
    return pq
