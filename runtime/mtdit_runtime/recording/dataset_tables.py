"""The Parquet tables and the info.json of a recorded LeRobotDataset v3."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mtdit_robots.features import ACTION, IMAGES, STATE
from mtdit_robots.robot import Positions
from mtdit_runtime.files import read_json
from mtdit_runtime.joint_order import Named, permutation
from mtdit_runtime.recording import dataset_stats
from mtdit_runtime.recording.dataset_consistency import joint_names
from mtdit_runtime.recording.dataset_layout import (
    CHUNKS_SIZE,
    DATA_PATH,
    INDICES,
    STATS,
    VIDEO_PATH,
    DatasetLayout,
)
from mtdit_runtime.recording.dataset_parquet import EPISODES, read_parquet, table_files
from mtdit_runtime.recording.dataset_reader import RecordedDataset
from mtdit_runtime.recording.dataset_stats import Stats
from mtdit_runtime.recording.episode import Episode
from mtdit_runtime.recording.video_encoder import (
    Codec,
    PngSink,
)

# -- tables


def frame_table(
    episode: Episode,
    layout: DatasetLayout,
    row: Mapping[str, Any],
    task_index: int,
    orders: Mapping[str, NDArray[np.intp]],
) -> Any:
    """The episode's table in data/: one row per frame, everything except the videos.

    orders: feature -> where each of the dataset's joints is in the episode's vectors.
    """
    import pyarrow as pa

    n, first = len(episode), row["dataset_from_index"]

    def vectors(rows: Sequence[Positions], order: NDArray[np.intp]) -> Any:
        flat = np.stack(rows)[:, order].astype(np.float32).reshape(-1)
        return pa.FixedSizeListArray.from_arrays(pa.array(flat), len(order))

    columns = {
        ACTION: vectors(episode.actions, orders[ACTION]),
        STATE: vectors(episode.states, orders[STATE]),
    }
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


def row_table(row: Mapping[str, Any], stats: Mapping[str, Stats], schema: Any = None) -> Any:
    """One row of meta/episodes with its statistics, columns in LeRobot's order. schema: that of the
    tables which are there; LeRobot opens a dataset only if none has a column that the first lacks.
    """
    import pyarrow as pa

    lists = dataset_stats.to_lists(stats)
    flat = {
        f"stats/{key}/{name}": value
        for key, values in lists.items()
        for name, value in values.items()
    }
    place = {key: value for key, value in row.items() if key.startswith("meta/")}
    values = {**{k: v for k, v in row.items() if k not in place}, **flat, **place}
    if schema is None:
        return pa.Table.from_pylist([values])
    return pa.table({part.name: _fitting(values.get(part.name), part.type) for part in schema})


def _fitting(value: Any, kind: Any) -> Any:
    """A column of one value; it is left out where the column's type cannot hold it."""
    import pyarrow as pa

    with suppress(pa.ArrowInvalid, pa.ArrowTypeError, pa.ArrowNotImplementedError):
        return pa.array([value], kind)
    return pa.nulls(1, kind)


def task_table(words: Mapping[int, str]) -> Any:
    """The words of each task number as pandas writes them, with the instruction as index: LeRobot
    looks it up there, by its place, so the numbers ascend.
    """
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
            "task_index": pa.array(sorted(words), pa.int64()),
            "task": pa.array([words[number] for number in sorted(words)], pa.string()),
        }
    )
    return table.replace_schema_metadata({"pandas": json.dumps(pandas)})


def episode_stats(episode: Episode, data: Any) -> dict[str, Stats]:
    vectors = {
        name: np.array(data[name].to_pylist() if name in (ACTION, STATE) else data[name])
        for name in (ACTION, STATE, *INDICES)
    }
    images = {
        IMAGES + camera: dataset_stats.image_stats(e.counts)
        for camera, e in episode.encodings.items()
    }
    numbers = {name: dataset_stats.vector_stats(rows) for name, rows in vectors.items()}
    return {ACTION: numbers.pop(ACTION), STATE: numbers.pop(STATE), **images, **numbers}


def merged_stats(parts: Sequence[Mapping[str, Stats]]) -> dict[str, Stats]:
    """Of the features that all parts have."""
    return {
        key: dataset_stats.merged([part[key] for part in parts])
        for key in (parts[0] if parts else ())
        if all(key in part for part in parts)
    }


def stats_so_far(recorded: RecordedDataset) -> dict[str, Stats]:
    """Of the recorded episodes: merged from those that they keep, else from stats.json. Those of
    states and actions are computed when neither has them.
    """
    parts = []
    for file in table_files(recorded.root, EPISODES):
        table = read_parquet(file, lambda name: name.startswith("stats/"))
        parts += [_unflattened(line) for line in table.to_pylist()]
    kept = read_json(recorded.root / STATS) if (recorded.root / STATS).is_file() else {}
    whole = {
        key: {name: np.array(v) for name, v in values.items()}
        for key, values in kept.items()
        if values.keys() >= dataset_stats.NEEDED
    }
    computed = {
        ACTION: dataset_stats.vector_stats(recorded.action),
        STATE: dataset_stats.vector_stats(recorded.state),
    }
    return {**computed, **whole, **merged_stats(parts)}


def _unflattened(line: Mapping[str, Any]) -> dict[str, Stats]:
    """{"stats/KEY/NAME": list} -> KEY -> NAME -> array, of the features whose statistics are
    whole.
    """
    stats: dict[str, Stats] = {}
    for column, value in line.items():
        key, _, name = column.removeprefix("stats/").rpartition("/")
        if value is not None:
            stats.setdefault(key, {})[name] = np.array(value)
    return {key: values for key, values in stats.items() if values.keys() >= dataset_stats.NEEDED}


# -- info.json


def new_info(layout: DatasetLayout) -> dict[str, Any]:
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


def vector_orders(
    info: Mapping[str, Any], layout: DatasetLayout, root: Path
) -> dict[str, NDArray[np.intp]]:
    """Feature -> where each of the dataset's joints is in the vectors of an episode: a dataset that
    is resumed keeps its own order. UserError with both lists when the joints are not the same.
    """
    arm = Named("this arm", layout.joints)
    return {
        key: permutation(
            Named(f"{root}: {key}", joint_names(root, info["features"], key)),
            arm,
            "choose another folder",
        )
        for key in (ACTION, STATE)
    }


def video_info(layout: DatasetLayout, key: str, codec: Codec) -> dict[str, Any]:
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


def write_json(value: Any) -> str:
    return json.dumps(value, indent=4, ensure_ascii=False)
