"""A dataset as arrays: states, actions, tasks, and frames that are cached or decoded on demand.

Frames are decoded once to disk, once into memory, or from the videos whenever they are needed. A
FrameCache on disk is a folder of .npy files; once it exists, training needs neither the videos nor
lerobot. Windows, batches and normalisation are in `mtdit.data.loader`.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torchvision.transforms.v2.functional import InterpolationMode, resize  # type: ignore[import-untyped]

from mtdit.config import Feature
from mtdit.data.lerobot_dataset import Dataset, find_dataset, open_dataset
from mtdit.data.video_frames import SeekingFrames
from mtdit.stats import DatasetFacts, DatasetStats, facts_from_json
from mtdit_robots.errors import UserError
from mtdit_robots.files import new_folder
from mtdit_runtime.files import read_json
from mtdit_runtime.recording.dataset_layout import INFO, RECORDER, STATS
from mtdit_runtime.recording.dataset_units import dataset_units

CACHE, STATS_FILE = "frames.json", "stats.json"
ARRAYS = ("state", "action", "task", "episode_ends")
OnProgress = Callable[[int, int], None]  # done, total


@dataclass(frozen=True)
class CacheInfo:
    """The content of frames.json."""

    facts: DatasetFacts
    input_features: dict[str, Feature]  # with the dataset's frame sizes, not the stored ones
    output_features: dict[str, Feature]
    image_keys: dict[str, str]  # camera -> feature key
    fingerprint: str  # of the dataset's metadata and the stored size


@dataclass(frozen=True)
class FrameCache:
    """A dataset as arrays, frames included."""

    folder: Path  # of the cache, or of the dataset if the cache is not on disk
    info: CacheInfo
    stats: DatasetStats
    frames: Mapping[str, NDArray[np.uint8] | SeekingFrames]  # camera -> (N, H, W, 3)
    state: NDArray[np.float32]  # (N, J), units
    action: NDArray[np.float32]  # (N, A), units
    task: NDArray[np.int64]  # (N,)
    episode_ends: NDArray[np.int64]  # (E,)


@dataclass(frozen=True)
class StoredDataset:
    """A dataset whose frames are stored in `size`, (height, width); None keeps the dataset's."""

    dataset: Dataset
    size: tuple[int, int] | None

    def shape(self, camera: str) -> tuple[int, int, int, int]:
        """(N, H, W, 3) of a camera's stored frames."""
        return (len(self.dataset.state), *(self.size or self.dataset.cameras[camera][:2]), 3)

    @property
    def n_bytes(self) -> int:
        """Bytes that the decoded frames need."""
        return sum(math.prod(self.shape(camera)) for camera in self.dataset.cameras)

    @property
    def info(self) -> CacheInfo:
        inputs, outputs = self.dataset.features
        keys = dict(self.dataset.image_keys)
        identity = fingerprint(self.dataset.root, self.size)
        return CacheInfo(dataset_facts(self.dataset), inputs, outputs, keys, identity)

    def finish(self, camera: str, frame: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """A decoded frame in the stored size. UserError when its shape is not that in info.json."""
        if frame.shape != self.dataset.cameras[camera]:
            raise UserError(
                f"{self.dataset.root}: a frame of camera {camera!r} has shape {frame.shape}, but "
                f"{INFO} says {self.dataset.cameras[camera]}; correct that file or record the "
                "dataset again"
            )
        stored = self.shape(camera)[1:3]
        return frame if frame.shape[:2] == stored else resized(frame, stored)

    def decoded(
        self, on_progress: OnProgress | None
    ) -> Iterator[tuple[str, int, NDArray[np.uint8]]]:
        """Every (camera, row, frame in the stored size), each video from front to back."""
        total, done = len(self.dataset.state) * len(self.dataset.cameras), 0
        for camera in self.dataset.cameras:
            for row, frame in self.dataset.frames(camera):
                yield camera, row, self.finish(camera, frame)
                done += 1
                if on_progress is not None and (done % 200 == 0 or done == total):
                    on_progress(done, total)

    def cache(self, frames: Mapping[str, NDArray[np.uint8] | SeekingFrames]) -> FrameCache:
        """A cache of these frames and of the dataset's other arrays."""
        arrays = {n: getattr(self.dataset, n) for n in ARRAYS}
        return FrameCache(self.dataset.root, self.info, self.dataset.stats, frames, **arrays)


def frame_cache(
    dataset: str,
    folder: Path,
    size: tuple[int, int] | None,
    on_progress: OnProgress | None = None,
    say: Callable[[str], None] | None = None,
    kind: str = "disk",
) -> FrameCache:
    """The arrays of `dataset`; the frames are the same for every kind.

    dataset: a folder, a Hub repo id, or the folder of a cache, which is then opened. size: height
    and width of the stored frames (float bilinear, antialiased, rounded); None keeps the dataset's
    size. kind: "disk" decodes the frames once into `folder`, "memory" decodes them now into RAM (of
    every process), "video" decodes each frame when it is used. UserError when there is not enough
    space.
    """
    if (Path(dataset) / CACHE).is_file():
        return open_cache(Path(dataset))
    root = find_dataset(dataset)
    if kind == "disk" and (folder / CACHE).is_file():
        cache = open_cache(folder)
        if cache.info.fingerprint == fingerprint(root, size):
            return cache
    stored = StoredDataset(open_dataset(dataset), size)
    cameras = stored.dataset.cameras
    if kind == "video":
        return stored.cache({c: _seeking(stored, c) for c in cameras})
    needed, place = stored.n_bytes, str(folder) if kind == "disk" else "memory"
    if kind == "disk":
        _check_folder(folder, needed)
    else:
        _check_memory(needed)
    if say is not None:
        say(f"decoding the frames of {dataset} once: {needed / 1e6:.0f} MB in {place}")
    if kind == "disk":
        return _write_cache(stored, folder, on_progress)
    frames = {c: np.empty(stored.shape(c), np.uint8) for c in cameras}
    for camera, row, frame in stored.decoded(on_progress):
        frames[camera][row] = frame
    return stored.cache(frames)


def _seeking(stored: StoredDataset, camera: str) -> SeekingFrames:
    size = stored.shape(camera)[1:3]
    return SeekingFrames(stored.dataset, camera, size, partial(stored.finish, camera))


def check_dataset(dataset: str) -> None:
    """UserError when `dataset` is neither a dataset nor a cache."""
    if not (Path(dataset) / CACHE).is_file():
        find_dataset(dataset)


def fingerprint(root: Path, size: tuple[int, int] | None) -> str:
    """A hash of the dataset's metadata and of the size in which its frames are stored."""
    digest = hashlib.sha256(repr(size).encode())
    for path in [
        root / INFO,
        root / RECORDER,
        root / STATS,
        *sorted((root / "meta/episodes").rglob("*.parquet")),
    ]:
        digest.update(path.read_bytes() if path.is_file() else b"")
    return digest.hexdigest()[:16]


def open_cache(folder: Path) -> FrameCache:
    """Opens the folder of a cache. UserError when it is not complete."""
    raw = read_json(folder / CACHE)
    features = {
        side: {k: Feature(f["type"], tuple(f["shape"])) for k, f in raw[side].items()}
        for side in ("input_features", "output_features")
    }
    info = CacheInfo(
        facts_from_json(folder / CACHE, raw["facts"], "remove it and train again"),
        **features,
        image_keys=raw["image_keys"],
        fingerprint=raw["fingerprint"],
    )
    try:
        arrays = {n: np.load(folder / f"{n}.npy", mmap_mode="r") for n in ARRAYS}
        frames = {
            c: np.asarray(np.load(folder / f"frames.{c}.npy", mmap_mode="r"))
            for c in info.image_keys
        }
    except (OSError, ValueError) as error:
        raise UserError(
            f"{folder} is not a complete frame cache ({error}); remove it and train again"
        ) from None
    stats = {
        k: {n: np.asarray(v, np.float32) for n, v in s.items()}
        for k, s in read_json(folder / STATS_FILE).items()
    }
    return FrameCache(folder, info, stats, frames, **arrays)


def resized(frame: NDArray[np.uint8], size: tuple[int, int]) -> NDArray[np.uint8]:
    """Frame (H, W, 3) -> (*size, 3), resized as LeRobot resizes a float image, then rounded."""
    image = torch.from_numpy(frame).permute(2, 0, 1).float()
    small = resize(image, list(size), interpolation=InterpolationMode.BILINEAR, antialias=True)
    return small.round().clamp(0, 255).byte().permute(1, 2, 0).numpy()


# --- on disk


def _write_cache(stored: StoredDataset, folder: Path, on_progress: OnProgress | None) -> FrameCache:
    """Writes to a temporary folder and renames it, so a crash leaves no incomplete cache."""
    dataset = stored.dataset
    try:
        with new_folder(folder) as part:
            for name in ARRAYS:
                np.save(part / f"{name}.npy", getattr(dataset, name))
            stats = {k: {n: v.tolist() for n, v in s.items()} for k, s in dataset.stats.items()}
            (part / STATS_FILE).write_text(json.dumps(stats))
            _write_frames(stored, part, on_progress)
            (part / CACHE).write_text(json.dumps(asdict(stored.info), indent=2) + "\n")
    except OSError as error:
        raise UserError(
            f"the frame cache cannot be written to {folder} ({error.strerror or error}); "
            "choose another --cache-dir, or train with --frames video"
        ) from None
    return open_cache(folder)


def _write_frames(stored: StoredDataset, folder: Path, on_progress: OnProgress | None) -> None:
    """Plain writes: on a full disk they raise an error; a memory map would kill the process."""
    with ExitStack() as stack:
        files = {
            c: stack.enter_context((folder / f"frames.{c}.npy").open("wb"))
            for c in stored.dataset.cameras
        }
        starts = {}
        for camera, file in files.items():
            shape = stored.shape(camera)
            np.lib.format.write_array_header_1_0(
                file, {"descr": "|u1", "fortran_order": False, "shape": shape}
            )
            starts[camera] = file.tell()
        for camera, row, frame in stored.decoded(on_progress):
            files[camera].seek(starts[camera] + row * frame.nbytes)
            files[camera].write(frame.tobytes())


def dataset_facts(dataset: Dataset) -> DatasetFacts:
    """What a checkpoint stores about its dataset."""
    return DatasetFacts(
        dataset=dataset.root.name,
        fps=dataset.fps,
        joints=dataset.joints,
        tasks=dataset.tasks,
        max_speed=dataset.max_speed,
        robot_type=dataset.robot_type,
        units=dataset_units(dataset).units,
    )


def _check_folder(folder: Path, needed: int) -> None:
    """UserError when `folder` holds anything but a cache, or its disk has too little space."""
    if (
        folder.exists()
        and not (folder / CACHE).is_file()
        and (not folder.is_dir() or any(folder.iterdir()))
    ):
        raise UserError(
            f"{folder} exists and is not a frame cache; choose another --cache-dir or remove it"
        )
    others = [
        p.name for p in folder.glob("*") if p.suffix != ".npy" and p.name not in (CACHE, STATS_FILE)
    ]
    if others:
        raise UserError(
            f"{folder} is the frame cache of other data and also contains {others[0]}, so it is "
            "not overwritten; choose another --cache-dir"
        )
    place = next(p for p in [folder, *folder.absolute().parents] if p.is_dir())
    free = shutil.disk_usage(place).free
    if needed > 0.95 * free:
        raise UserError(
            f"the decoded frames need {needed / 1e9:.1f} GB, but {place} has {free / 1e9:.1f} GB "
            "free; choose another --cache-dir, a smaller image_resize_shape, or --frames video, "
            "which needs no cache"
        )


def _check_memory(needed: int) -> None:
    free = free_memory()
    if needed > 0.8 * free:
        raise UserError(
            f"the decoded frames need {needed / 1e9:.1f} GB, but only {free / 1e9:.1f} GB of "
            "memory are free; use --frames disk, or --frames video, which needs no cache"
        )


def free_memory() -> int:
    """Bytes of memory that are available to programs."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        return next(
            int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable")
        )
    except (OSError, StopIteration):  # not Linux
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2
