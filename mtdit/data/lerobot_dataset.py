"""Reads a LeRobotDataset v3 folder: metadata, states, actions and decoded frames.

The files are meta/, data/*.parquet and videos/*.mp4. Each video is decoded once from front to
back, which is far cheaper than seeking to single frames. Source of the format:
lerobot/datasets/{dataset_metadata,dataset_reader,video_utils}.py, codebase_version v3.0. Windows
and batches are made in `mtdit.data.loader`.
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from mtdit.config import Feature
from mtdit_robots.errors import UserError
from mtdit_robots.features import ACTION, IMAGES, STATE
from mtdit_runtime.files import read_json
from mtdit_runtime.text import first_line

INFO, STATS = "meta/info.json", "meta/stats.json"
# LeRobot's default for video_path in meta/info.json
VIDEO_PATH = "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4"


@dataclass(frozen=True)
class Dataset:
    """An opened dataset: everything except the frames is in memory.

    A row is a frame of the whole dataset; rows are sorted by episode.
    """

    root: Path
    fps: int
    robot_type: str
    joints: tuple[str, ...]  # names of the action's dimensions, without ".pos"
    cameras: Mapping[str, tuple[int, int, int]]  # camera -> (H, W, 3), in the order of info.json
    image_keys: Mapping[str, str]  # camera -> feature key
    tasks: tuple[str, ...]
    state: NDArray[np.float32]  # (N, J)
    action: NDArray[np.float32]  # (N, A)
    task: NDArray[np.int64]  # (N,) index into tasks
    episode_ends: NDArray[np.int64]  # (E,) exclusive
    stats: Mapping[str, Mapping[str, NDArray[np.float32]]]  # meta/stats.json, else computed
    info: Mapping[str, Any]
    episodes: pa.Table

    @property
    def features(self) -> tuple[dict[str, Feature], dict[str, Feature]]:
        """Input and output features as in LeRobot's policy config."""
        images = {
            self.image_keys[c]: Feature("VISUAL", (s[2], s[0], s[1]))
            for c, s in self.cameras.items()
        }
        inputs = {STATE: Feature("STATE", (self.state.shape[1],)), **images}
        ordered = {k: inputs[k] for k in self.info["features"] if k in inputs}
        return ordered, {ACTION: Feature("ACTION", (self.action.shape[1],))}

    @property
    def max_speed(self) -> tuple[float, ...]:
        """99.9th percentile of each joint's commanded speed, in units per second."""
        steps = np.abs(np.diff(self.action, axis=0)) * self.fps
        inside = np.delete(steps, self.episode_ends[:-1] - 1, axis=0)
        return (
            tuple(float(v) for v in np.quantile(inside, 0.999, axis=0))
            if len(inside)
            else (0.0,) * len(self.joints)
        )

    def frames(self, camera: str) -> Iterator[tuple[int, NDArray[np.uint8]]]:
        """Every (row, frame (H, W, 3) RGB) of a camera. UserError when a video lacks frames."""
        key = self.image_keys[camera]
        return _video_frames(self, key) if is_video(self, key) else _png_frames(self, key)


def find_dataset(name: str) -> Path:
    """The folder of a dataset that is given as a folder or as a Hub repo id (then downloaded).

    UserError says why there is no dataset.
    """
    folder = Path(name).expanduser()
    if (folder / INFO).is_file():
        return folder
    if folder.is_dir():
        raise UserError(
            f"{folder} is not a LeRobotDataset: it has no {INFO}; "
            "give the folder that contains meta/"
        )
    if folder.is_absolute() or name.count("/") != 1 or name.startswith("."):
        raise UserError(
            f"there is no dataset at {folder}; check the path, or record one with "
            f"`mtdit simulate --out {folder}`"
        )
    return _from_hub(name)


def _from_hub(repo_id: str) -> Path:
    from huggingface_hub import snapshot_download
    from lerobot.utils.constants import HF_LEROBOT_HOME

    local = Path(HF_LEROBOT_HOME) / repo_id
    if (local / INFO).is_file():
        return local
    try:
        return Path(snapshot_download(repo_id, repo_type="dataset", local_dir=local))
    except Exception as error:
        raise UserError(
            f"there is no dataset {repo_id!r}, neither as a folder nor on the Hub "
            f"({first_line(error)}); check the name"
        ) from None


def open_dataset(name: str) -> Dataset:
    """Opens a LeRobotDataset v3. UserError says what is missing or damaged."""
    root = find_dataset(name)
    info = read_json(root / INFO)
    _check_info(root, info)
    episodes = _read_table(root, "meta/episodes", "episodes")
    columns, tasks = _read_rows(root, _rows_of(episodes)), _tasks(root)
    _check_rows(root, columns, tasks, episodes, info["fps"])
    state, action = (_vectors(root, columns, key, info["features"][key]) for key in (STATE, ACTION))
    images = [k for k, f in info["features"].items() if f["dtype"] in ("video", "image")]
    shapes = {k: _image_shape(root, k, info["features"][k]) for k in images}
    return Dataset(
        root=root,
        fps=int(info["fps"]),
        robot_type=str(info.get("robot_type") or ""),
        joints=_names(info["features"][ACTION], action.shape[1]),
        cameras={k.removeprefix(IMAGES): shapes[k] for k in images},
        image_keys={k.removeprefix(IMAGES): k for k in images},
        tasks=tasks,
        state=state,
        action=action,
        task=columns["task_index"].astype(np.int64),
        episode_ends=np.append(
            np.flatnonzero(np.diff(columns["episode_index"])) + 1, len(state)
        ).astype(np.int64),
        stats=_stats(root, state, action),
        info=info,
        episodes=episodes,
    )


def _check_info(root: Path, info: Any) -> None:
    version = str(info.get("codebase_version", "?")) if isinstance(info, dict) else "?"
    if not version.startswith("v3."):
        raise UserError(
            f"{root} is a LeRobotDataset of version {version}, but mtdit needs v3.x; "
            "convert it with LeRobot's script"
        )
    if not isinstance(info.get("features"), dict):
        raise UserError(f"{root}/{INFO} lists no features; copy the dataset again")
    for key, feature in info["features"].items():
        if not isinstance(feature, dict) or not {"dtype", "shape"} <= set(feature):
            raise UserError(
                f"{root}/{INFO}: feature {key!r} lacks dtype or shape; copy the dataset again"
            )
    for key in (STATE, ACTION):
        if key not in info["features"]:
            raise UserError(
                f"{root} has no feature {key!r}; record it, or rename the feature in meta/info.json"
            )
    if type(info.get("fps")) is not int or info["fps"] <= 0:
        raise UserError(f"{root}/{INFO}: fps must be a positive integer, got {info.get('fps')!r}")


def _image_shape(root: Path, key: str, feature: Mapping[str, Any]) -> tuple[int, int, int]:
    shape, names = list(feature["shape"]), list(feature.get("names") or [])
    if names[:1] in (["channel"], ["channels"]) or (not names and shape[0] == 3):
        shape = [*shape[1:], shape[0]]
    if len(shape) != 3 or shape[2] != 3:
        raise UserError(
            f"{root}: camera {key!r} has shape {feature['shape']}, but mtdit needs RGB (H, W, 3)"
        )
    return int(shape[0]), int(shape[1]), 3


def _listed_names(feature: Mapping[str, Any]) -> list[Any]:
    """Dimension names: a list, or in older recordings a dict that contains one list."""
    names = feature.get("names")
    if isinstance(names, dict):
        names = next(iter(names.values()), None)
    return names if isinstance(names, list) else []


def _names(feature: Mapping[str, Any], count: int) -> tuple[str, ...]:
    names = _listed_names(feature) or [f"joint_{i + 1}" for i in range(count)]
    return tuple(str(n).removesuffix(".pos") for n in names)


def _rows_of(episodes: pa.Table) -> int | None:
    """The number of rows in finished episodes; None where the table of episodes lacks it."""
    return (
        max(episodes["dataset_to_index"].to_pylist(), default=0)
        if "dataset_to_index" in episodes.column_names
        else None
    )


def _read_rows(root: Path, n_rows: int | None) -> dict[str, NDArray[Any]]:
    """The columns that training needs, sorted by row.

    Rows after the last finished episode, left by a killed recorder, are dropped.
    """
    wanted = [STATE, ACTION, "timestamp", "index", "episode_index", "task_index"]
    table = _read_table(root, "data", "frames", wanted).slice(0, n_rows)
    if not len(table):
        raise UserError(f"{root} has no frames; record episodes first")
    return {name: _to_numpy(root, name, table.column(name)) for name in wanted}


def data_files(root: Path, folder: str = "data") -> list[Path]:
    """The parquet files of a folder of the dataset, in the order of their rows."""
    return sorted((root / folder).glob("chunk-*/file-*.parquet"))


def _read_table(root: Path, folder: str, what: str, columns: list[str] | None = None) -> pa.Table:
    files = data_files(root, folder)
    if not files:
        raise UserError(
            f"{root} has no {what}: {folder}/chunk-000/file-000.parquet is missing; "
            "copy the whole dataset"
        )
    tables = [_read_parquet(file, columns) for file in files]
    for file, table in zip(files, tables, strict=True):
        missing = [c for c in columns or [] if c not in table.column_names]
        if missing:
            raise UserError(
                f"{file} has no column {missing[0]!r}, so the dataset does not match its "
                "meta/info.json; copy the dataset again"
            )
    joined = pa.concat_tables(tables, promote_options="permissive")
    return joined.sort_by("index") if columns else joined


def _read_parquet(file: Path, columns: list[str] | None) -> pa.Table:
    try:
        return pq.ParquetFile(file).read(columns=columns)
    except (pa.ArrowException, OSError) as error:
        raise UserError(
            f"{file} cannot be read ({first_line(error)}); copy the dataset again"
        ) from None


def _to_numpy(root: Path, name: str, column: pa.ChunkedArray) -> NDArray[Any]:
    """A column as (N,), a column of lists as (N, D). UserError: lengths differ, values missing."""
    if column.null_count:
        raise UserError(
            f"{root}: {column.null_count} values are missing in column {name!r}; "
            "copy the dataset again"
        )
    if not (pa.types.is_list(column.type) or pa.types.is_fixed_size_list(column.type)):
        return column.to_numpy()
    lengths = np.unique(pc.list_value_length(column).to_numpy())
    if len(lengths) != 1:
        raise UserError(
            f"{root}: {name!r} has {lengths[0]} numbers in one frame and {lengths[-1]} in another; "
            "record the dataset again"
        )
    return pc.list_flatten(column).to_numpy().reshape(len(column), -1)


def _check_rows(
    root: Path,
    columns: Mapping[str, NDArray[Any]],
    tasks: tuple[str, ...],
    episodes: pa.Table,
    fps: int,
) -> None:
    """UserError when the frames, the episodes, the tasks and fps contradict each other."""
    index, episode = columns["index"], columns["episode_index"]
    if not np.array_equal(index, np.arange(len(index))):
        gap = int(np.argmax(index != np.arange(len(index))))
        raise UserError(f"{root}/data: row {gap} is missing or duplicated; copy the dataset again")
    ends = [*(np.flatnonzero(np.diff(episode)) + 1).tolist(), len(index)]
    listed = (
        episodes["dataset_to_index"].to_pylist()
        if "dataset_to_index" in episodes.column_names
        else ends
    )
    if ends != listed:
        raise UserError(
            f"{root}: data/ has {len(ends)} episodes and {len(index)} frames, but meta/episodes "
            f"lists {len(listed)} and {max(listed, default=0)}; copy the dataset again, or finish "
            "its recording"
        )
    used = int(columns["task_index"].max())
    if used >= len(tasks) or columns["task_index"].min() < 0:
        raise UserError(
            f"{root}/data uses task number {used}, but meta/tasks.parquet has {len(tasks)} tasks; "
            "copy the dataset again"
        )
    times = np.delete(
        np.diff(columns["timestamp"].reshape(-1).astype(np.float64)), np.array(ends[:-1], int) - 1
    )
    if len(times) and abs(np.median(times) * fps - 1) > 0.01:
        raise UserError(
            f"{root}/{INFO} says fps {fps}, but the frames are {np.median(times):.4g} s apart "
            f"({1 / max(np.median(times), 1e-9):.4g} fps); correct fps in that file"
        )


def _vectors(
    root: Path, columns: Mapping[str, NDArray[Any]], key: str, feature: Mapping[str, Any]
) -> NDArray[np.float32]:
    values = columns[key].astype(np.float32).reshape(len(columns[key]), -1)  # (N, D)
    if list(feature.get("shape", ())) != [values.shape[1]]:
        raise UserError(
            f"{root}: {key} has {values.shape[1]} numbers per frame, but {INFO} says shape "
            f"{feature.get('shape')}; copy the dataset again"
        )
    names = _listed_names(feature)
    if names and len(names) != values.shape[1]:
        raise UserError(
            f"{root}/{INFO}: {key} has {values.shape[1]} dimensions but {len(names)} names; "
            "correct the names"
        )
    bad = np.flatnonzero(~np.isfinite(values).all(axis=1))
    if len(bad):
        episode = columns["episode_index"][bad[0]]
        raise UserError(
            f"{root}: {key} is not finite in frame {bad[0]} (episode {episode}); "
            "remove that episode"
        )
    return values


def _tasks(root: Path) -> tuple[str, ...]:
    path = root / "meta/tasks.parquet"
    if not path.is_file():
        raise UserError(f"{path} does not exist; copy the whole dataset")
    table = _read_parquet(path, None)
    name = next((n for n in ("task", "__index_level_0__") if n in table.column_names), None)
    if name is None:
        raise UserError(f"{path} has no column 'task'; every episode needs an instruction")
    rows = sorted(zip(table["task_index"].to_pylist(), table[name].to_pylist(), strict=True))
    return tuple(str(task) for _, task in rows)


def _stats(
    root: Path, state: NDArray[np.float32], action: NDArray[np.float32]
) -> dict[str, dict[str, NDArray[np.float32]]]:
    """meta/stats.json as arrays; missing statistics of state and action are computed."""
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
    for key, rows in ((STATE, state), (ACTION, action)):
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


# --- frames


def is_video(dataset: Dataset, key: str) -> bool:
    """Whether a camera is stored as video; otherwise its PNGs are in the data files."""
    return dataset.info["features"][key]["dtype"] == "video"


def video_places(dataset: Dataset, key: str) -> dict[str, dict[int, int]]:
    """Video path (relative to the root) -> frame number in the video -> row.

    UserError when meta/episodes lacks the columns that say so.
    """
    columns = ["dataset_from_index", "length"]
    columns += [f"videos/{key}/{n}" for n in ("chunk_index", "file_index", "from_timestamp")]
    missing = [c for c in columns if c not in dataset.episodes.column_names]
    if missing:
        raise UserError(
            f"{dataset.root}/meta/episodes has no column {missing[0]!r}; copy the dataset again"
        )
    pattern = dataset.info.get("video_path") or VIDEO_PATH
    places: dict[str, dict[int, int]] = {}
    for row, length, chunk, file, start in zip(
        *(dataset.episodes[c].to_pylist() for c in columns), strict=True
    ):
        try:
            path = pattern.format(video_key=key, chunk_index=chunk, file_index=file)
        except (KeyError, IndexError, ValueError, AttributeError):
            raise UserError(
                f"{dataset.root}/{INFO}: video_path {pattern!r} is not a valid pattern; "
                f"LeRobot's is {VIDEO_PATH!r}"
            ) from None
        first = round(start * dataset.fps)
        places.setdefault(path, {}).update({first + i: row + i for i in range(length)})
    return places


def _video_frames(dataset: Dataset, key: str) -> Iterator[tuple[int, NDArray[np.uint8]]]:
    for path, rows in video_places(dataset, key).items():
        yield from _decode(dataset.root / path, rows, dataset.fps)


def _decode(path: Path, rows: dict[int, int], fps: int) -> Iterator[tuple[int, NDArray[np.uint8]]]:
    """Frame numbers come from the time stamps, so a dropped frame is noticed."""
    import av

    left = dict(rows)
    try:
        with av.open(str(path)) as video:
            for frame in video.decode(video=0):
                row = left.pop(round(float(frame.time) * fps), None)
                if row is not None:
                    yield row, np.asarray(frame.to_ndarray(format="rgb24"), np.uint8)
    except (av.error.FFmpegError, OSError, IndexError) as error:
        raise UserError(f"{path} cannot be decoded ({error}); copy the dataset again") from None
    if left:
        raise UserError(
            f"{path} lacks {len(left)} of {len(rows)} frames (first: {min(left)}); "
            "copy the dataset again"
        )


def _png_frames(dataset: Dataset, key: str) -> Iterator[tuple[int, NDArray[np.uint8]]]:
    for file in data_files(dataset.root):
        opened = pq.ParquetFile(file)
        for group in range(opened.num_row_groups):
            table = opened.read_row_group(group, columns=["index", key])
            for row, image in zip(table["index"].to_pylist(), table[key].to_pylist(), strict=True):
                if row < len(dataset.state):
                    yield row, picture(file, image)


def picture(file: Path, image: Any) -> NDArray[np.uint8]:
    """An image of a parquet file, {"bytes": PNG}, as (H, W, 3). UserError when it is damaged."""
    from PIL import Image

    try:
        return np.array(Image.open(io.BytesIO(image["bytes"])).convert("RGB"))
    except (OSError, TypeError, KeyError, ValueError) as error:
        raise UserError(
            f"{file} contains an image that cannot be decoded ({error}); copy the dataset again"
        ) from None
