"""A small LeRobotDataset v3 in memory, of which the truth of every row is known, and its files.

Each picture shows a number as a pattern of 4 x 4 blocks, which any codec keeps. A test changes the
model as converters, merges, edits and recorders do (`dataset_liberties`), writes it, and compares
what is read with the truth that each line carries.
"""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

JOINTS = ("shoulder_pan", "shoulder_lift", "elbow_flex", "wrist_flex", "wrist_roll", "gripper")
STATE, ACTION, IMAGES = "observation.state", "action", "observation.images."
ON, OFF = np.array([230, 190, 60]), np.array([25, 45, 100])  # colours of the pattern's blocks
FILLER = 0  # a picture that belongs to no row
VECTORS, NUMBERS = (ACTION, STATE), ("frame_index", "episode_index", "index", "task_index")
PICTURE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
Place = tuple[int, int]  # chunk and file


@dataclass(frozen=True)
class Truth:
    """What a row is, whatever its files say. pictures: feature key -> number that it shows."""

    state: np.ndarray
    action: np.ndarray
    words: str
    pictures: Mapping[str, int]


@dataclass(eq=False)
class Line:
    """A line of a table: its values, and the file that it is in."""

    values: dict[str, Any]
    file: Any = (0, 0)
    truth: Truth | None = None

    @property
    def place(self) -> tuple[int, int]:
        return int(self.values["episode_index"]), int(self.values["frame_index"])


@dataclass
class Camera:
    key: str
    size: tuple[int, int]
    kind: str = "video"
    codec: str = "libx264"
    options: dict[str, str] = field(default_factory=lambda: {"g": "2", "crf": "10", "bf": "0"})
    pix_fmt: str = "yuv420p"


@dataclass
class Made:
    """The dataset before it is written. films: (key, chunk, file) -> numbers of its pictures."""

    fps: int
    cameras: list[Camera]
    lines: list[Line]
    episodes: list[Line]
    words: dict[int, str]  # task number -> instruction
    info: dict[str, Any]
    films: dict[tuple[str, int, int], list[int]] = field(default_factory=dict)
    stats: dict[str, Any] | None = None
    types: dict[str, Any] = field(default_factory=dict)  # column -> type in data/
    extra: dict[str, Callable[[Line], Any]] = field(default_factory=dict)  # column -> its values
    dropped: dict[str, set[str]] = field(default_factory=dict)  # folder -> columns
    parquet: dict[str, Any] = field(default_factory=dict)  # options of its writer
    task_order: list[int] | None = None  # numbers in the order of the table
    task_style: str = "named"
    text: Any = None  # pyarrow's type of texts, where it is not the usual one
    data_name: str = "data/chunk-{0:03d}/file-{1:03d}.parquet"
    encode: Callable[[np.ndarray], Any] = None  # type: ignore[assignment]
    after: list[Callable[[Path], None]] = field(default_factory=list)  # edits of the files

    @property
    def features(self) -> dict[str, Any]:
        return self.info["features"]

    def videos(self) -> list[Camera]:
        return [camera for camera in self.cameras if camera.kind == "video"]

    def of_episode(self, number: int) -> list[Line]:
        return [line for line in self.lines if line.values["episode_index"] == number]

    def expected(self) -> list[tuple[tuple[int, int], Truth]]:
        """The rows in the order of episode and frame. Lines without truth are no rows."""
        rows = [(line.place, line.truth) for line in self.lines if line.truth is not None]
        return sorted(rows, key=lambda row: row[0])

    def write(self, root: Path) -> Path:
        for file, lines in _by_file(self.lines).items():
            self._write(root / self.data_name.format(*file), self._data_table(lines))
        for file, lines in _by_file(self.episodes).items():
            path = root / "meta/episodes/chunk-{:03d}/file-{:03d}.parquet".format(*file)
            gone = self.dropped.get("episodes", set())
            rows = [{k: v for k, v in line.values.items() if k not in gone} for line in lines]
            self._write(path, _as_text(pa.Table.from_pylist(rows), self.text))
        self._write_tasks(root / "meta/tasks.parquet")
        (root / "meta/info.json").write_text(json.dumps(self.info))
        if self.stats is not None:
            (root / "meta/stats.json").write_text(json.dumps(self.stats))
        for (key, chunk, file), shown in self.films.items():
            camera = next(c for c in self.cameras if c.key == key)
            pattern = self.info.get("video_path") or VIDEO_PATH
            name = pattern.format(video_key=key, chunk_index=chunk, file_index=file)
            film(root / name, camera, shown, self.fps)
        for change in self.after:
            change(root)
        return root

    def _data_table(self, lines: list[Line]) -> pa.Table:
        columns: dict[str, Any] = {}
        for name in (*VECTORS, "timestamp", *NUMBERS):
            values = [line.values[name] for line in lines]
            kind = self.types.get(name) or _usual(name, len(values[0]) if name in VECTORS else 0)
            columns[name] = _column(values, kind)
        for camera in self.cameras:
            if camera.kind == "image":
                shown = [line.truth.pictures[camera.key] if line.truth else 0 for line in lines]
                made = [(self.encode or as_png)(picture(n, camera.size)) for n in shown]
                columns[camera.key] = pa.array(made, self.types.get(camera.key, PICTURE))
        for name, value in self.extra.items():
            columns[name] = _column([value(line) for line in lines], self.types.get(name))
        gone = self.dropped.get("data", set())
        return pa.table({name: v for name, v in columns.items() if name not in gone})

    def _write_tasks(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        numbers = self.task_order or sorted(self.words)
        texts = [self.words[n] for n in numbers]
        if self.task_style == "column":
            frame = pd.DataFrame({"task_index": numbers, "task": texts})
        elif self.task_style == "number as index":
            frame = pd.DataFrame({"task": texts}, index=pd.Index(numbers, name="task_index"))
        else:
            name = "task" if self.task_style == "named" else None
            frame = pd.DataFrame({"task_index": numbers}, index=pd.Index(texts, name=name))
        frame.to_parquet(path)
        if self.text is not None:
            table = pq.read_table(path)
            kept = table.schema.metadata
            pq.write_table(_as_text(table, self.text).replace_schema_metadata(kept), path)

    def _write(self, path: Path, table: pa.Table) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(table, path, **self.parquet)


VIDEO_PATH = "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4"


def _by_file(lines: Iterable[Line]) -> dict[Any, list[Line]]:
    files: dict[Any, list[Line]] = {}
    for line in lines:
        files.setdefault(line.file, []).append(line)
    return files


def _usual(name: str, size: int) -> Any:
    if size:
        return pa.list_(pa.float32(), size)
    return pa.float32() if name == "timestamp" else pa.int64()


def _column(values: list[Any], kind: Any) -> Any:
    plain = [v.tolist() if isinstance(v, np.ndarray) else v for v in values]
    if kind is not None and pa.types.is_integer(kind):
        plain = [None if v is None else int(v) for v in plain]
    return pa.array(plain, kind)


def _as_text(table: pa.Table, kind: Any) -> pa.Table:
    """The table with its texts stored as `kind`."""
    for place, column in enumerate(table.schema):
        if kind is not None and pa.types.is_string(column.type):
            table = table.set_column(place, column.name, table[column.name].cast(kind))
    return table


# -- pictures


def picture(number: int, size: tuple[int, int]) -> np.ndarray:
    """The pattern of a number, (height, width, 3)."""
    bits = (number >> np.arange(16)) & 1
    blocks = np.where(bits[:, None] == 1, ON, OFF).astype(np.uint8).reshape(4, 4, 3)
    return blocks.repeat(size[0] // 4, 0).repeat(size[1] // 4, 1)


def number_of(image: np.ndarray) -> int:
    """The number that a picture shows; -1 when its colours are not those of a pattern."""
    height, width, _ = image.shape
    blocks = image.reshape(4, height // 4, 4, width // 4, 3)[:, 1:-1, :, 1:-1]
    means = blocks.mean(axis=(1, 3)).reshape(16, 3)  # without the edges of the blocks
    bits = means[:, 0] > (ON[0] + OFF[0]) / 2
    if np.abs(means - np.where(bits[:, None], ON, OFF)).max() > 30:
        return -1
    return int((bits.astype(int) << np.arange(16)).sum())


def encoded(image: np.ndarray, kind: str) -> bytes:
    file = io.BytesIO()
    Image.fromarray(image).save(file, kind, **({"quality": 95} if kind == "JPEG" else {}))
    return file.getvalue()


def as_png(image: np.ndarray) -> dict[str, Any]:
    return {"bytes": encoded(image, "PNG"), "path": None}


def film(path: Path, camera: Camera, numbers: Iterable[int], fps: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as out:
        stream = out.add_stream(camera.codec, rate=fps)
        stream.height, stream.width = camera.size
        stream.pix_fmt, stream.options = camera.pix_fmt, dict(camera.options)
        for place, number in enumerate(numbers):
            frame = av.VideoFrame.from_ndarray(picture(number, camera.size), "rgb24")
            frame.pts, frame.time_base = place, Fraction(1, fps)
            out.mux(stream.encode(frame))
        out.mux(stream.encode())


# -- the plain form


TASKS = ("open the drawer", "push the red cube to the left", "put the cube into the bowl")
INDICES = {"timestamp": "float32", **dict.fromkeys(NUMBERS, "int64")}


def plain(rng: np.random.Generator) -> Made:
    """A dataset as LeRobot's recorder writes it, of drawn size."""
    fps = int(rng.choice([10, 30, 50]))
    names = rng.permutation(["top", "wrist", "side"])[: rng.integers(0, 3)]
    kind = str(rng.choice(["video", "video", "image"]))
    sizes = [(32, 32), (32, 48)]
    cameras = [Camera(IMAGES + name, sizes[rng.integers(2)], kind) for name in names]
    lengths = rng.integers(4, 11, rng.integers(2, 5)).tolist()
    words = dict(enumerate(TASKS[: rng.integers(1, 4)]))
    numbers = iter(rng.permutation(np.arange(1, 2**16)).tolist())
    lines, episodes, start = list[Line](), list[Line](), 0
    for episode, length in enumerate(lengths):
        task = int(rng.integers(len(words)))
        for i in range(length):
            state, action = (rng.integers(0, 800, (2, 6)) / 8).astype(np.float32)
            shown = {camera.key: next(numbers) for camera in cameras}
            values = {
                STATE: state,
                ACTION: action,
                "timestamp": float(np.float32(i / fps)),
                "frame_index": i,
                "episode_index": episode,
                "index": start + i,
                "task_index": task,
            }
            lines.append(Line(values, truth=Truth(state, action, words[task], shown)))
        entry = {
            "episode_index": episode,
            "tasks": [words[task]],
            "length": length,
            "data/chunk_index": 0,
            "data/file_index": 0,
            "dataset_from_index": start,
            "dataset_to_index": start + length,
            "meta/episodes/chunk_index": 0,
            "meta/episodes/file_index": 0,
        }
        episodes.append(Line(entry))
        start += length
    made = Made(fps, cameras, lines, episodes, words, {})
    made.info = _info(made)
    for camera in made.videos():
        place_videos(made, camera.key, dict.fromkeys(range(len(lengths)), (0, 0)))
    return made


def place_videos(
    made: Made, key: str, files: Mapping[int, Place], gaps: Mapping[int, int] | None = None
) -> None:
    """Film the episodes of a camera, in the order of `files`: each behind the one before it in its
    file, after a gap of some pictures.
    """
    for known in [place for place in made.films if place[0] == key]:
        del made.films[known]
    entries = {line.values["episode_index"]: line for line in made.episodes}
    for episode, (chunk, file) in files.items():
        shown = made.films.setdefault((key, chunk, file), [])
        shown += [FILLER] * (gaps or {}).get(episode, 0)
        begin = len(shown)
        rows = sorted(made.of_episode(episode), key=lambda line: line.values["frame_index"])
        shown += [row.truth.pictures[key] for row in rows if row.truth is not None]
        entries[episode].values |= {
            f"videos/{key}/chunk_index": chunk,
            f"videos/{key}/file_index": file,
            f"videos/{key}/from_timestamp": begin / made.fps,
            f"videos/{key}/to_timestamp": len(shown) / made.fps,
        }


def _info(made: Made) -> dict[str, Any]:
    names = [f"{joint}.pos" for joint in JOINTS]
    features: dict[str, Any] = {
        key: {"dtype": "float32", "shape": [6], "names": list(names)} for key in VECTORS
    }
    for camera in made.cameras:
        shape = [*camera.size, 3]
        names = ["height", "width", "channels"]
        features[camera.key] = {"dtype": camera.kind, "shape": shape, "names": names}
    for name, dtype in INDICES.items():
        features[name] = {"dtype": dtype, "shape": [1], "names": None}
    return {
        "codebase_version": "v3.0",
        "robot_type": "so_follower",
        "total_episodes": len(made.episodes),
        "total_frames": len(made.lines),
        "total_tasks": len(made.words),
        "chunks_size": 1000,
        "data_files_size_in_mb": 100,
        "video_files_size_in_mb": 200,
        "fps": made.fps,
        "splits": {"train": f"0:{len(made.episodes)}"},
        "data_path": "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet",
        "video_path": VIDEO_PATH if made.videos() else None,
        "features": features,
    }
