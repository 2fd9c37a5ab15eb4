"""A dataset as arrays: decoded frames on disk, in memory or still in their videos, and everything
else beside them.

Knows files and sizes. Refuses to know windows, batches and normalisation. A FrameCache on disk is a
plain folder of .npy files; once it exists, training touches neither videos nor lerobot.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torchvision.transforms.v2.functional import InterpolationMode, resize  # type: ignore[import-untyped]

from mtdit.checkpoint import DatasetFacts, DatasetStats, facts_from_json
from mtdit.config import Feature, read_json
from mtdit.dataset import INFO, Dataset, find_dataset, open_dataset
from mtdit.seeking import SeekingFrames
from mtdit_robots.errors import UserError

CACHE, STATS_FILE = "frames.json", "stats.json"
ARRAYS = ("state", "action", "task", "episode_ends")
OnProgress = Callable[[int, int], None]  # done, total


@dataclass(frozen=True)
class CacheInfo:
    """What frames.json says."""

    facts: DatasetFacts
    input_features: dict[str, Feature]  # as in the dataset, whatever size is stored
    output_features: dict[str, Feature]
    image_keys: dict[str, str]  # camera -> feature key
    fingerprint: str  # of the dataset's metadata and the stored size


@dataclass(frozen=True)
class FrameCache:
    """The frames and everything else of a dataset, as arrays."""

    folder: Path  # of the cache, or of the dataset when there is none on disk
    info: CacheInfo
    stats: DatasetStats
    frames: Mapping[str, NDArray[np.uint8] | SeekingFrames]  # camera -> (N, H, W, 3)
    state: NDArray[np.float32]  # (N, J), units
    action: NDArray[np.float32]  # (N, A), units
    task: NDArray[np.int64]  # (N,)
    episode_ends: NDArray[np.int64]  # (E,)


def frame_cache(
    dataset: str,
    folder: Path,
    size: tuple[int, int] | None,
    on_progress: OnProgress | None = None,
    say: Callable[[str], None] | None = None,
    kind: str = "disk",
) -> FrameCache:
    """The frames of `dataset`, the same whatever the kind. `dataset` may itself be a cache, which
    is then opened.

    size: height and width the frames are stored with (float bilinear, antialiased, rounded); None
    keeps their own. kind: "disk" decodes them once into `folder`, unless they are there; "memory"
    decodes them now, into RAM (of every process); "video" decodes each when it is asked for.
    UserError when there is not room enough.
    """
    if (Path(dataset) / CACHE).is_file():
        return open_cache(Path(dataset))
    root = find_dataset(dataset)
    if kind == "disk" and (folder / CACHE).is_file():
        cache = open_cache(folder)
        if cache.info.fingerprint == fingerprint(root, size):
            return cache
    opened = open_dataset(dataset)
    if kind == "video":
        return _beside(opened, size, {c: _seeking(opened, c, size) for c in opened.cameras})
    needed, place = cache_bytes(opened, size), str(folder) if kind == "disk" else "memory"
    if kind == "disk":
        _check_folder(folder, needed)
    else:
        _check_memory(needed)
    if say is not None:
        say(f"decoding {dataset} once, {needed / 1e6:.0f} MB in {place}")
    if kind == "disk":
        return _write_cache(opened, folder, size, on_progress)
    frames = {
        c: np.empty((len(opened.state), *_stored_size(opened, c, size), 3), np.uint8)
        for c in opened.cameras
    }
    for camera, row, frame in _decoded(opened, size, on_progress):
        frames[camera][row] = frame
    return _beside(opened, size, frames)


def check_dataset(dataset: str) -> None:
    """UserError at once when `dataset` is neither a dataset nor a cache."""
    if not (Path(dataset) / CACHE).is_file():
        find_dataset(dataset)


def fingerprint(root: Path, size: tuple[int, int] | None) -> str:
    """Changes with the dataset's metadata and with the size its frames are stored in."""
    digest = hashlib.sha256(repr(size).encode())
    for path in [
        root / INFO,
        root / "meta/stats.json",
        *sorted((root / "meta/episodes").rglob("*.parquet")),
    ]:
        digest.update(path.read_bytes() if path.is_file() else b"")
    return digest.hexdigest()[:16]


def cache_bytes(dataset: Dataset, size: tuple[int, int] | None) -> int:
    """What the decoded frames will take on disk."""
    return sum(
        len(dataset.state) * int(np.prod(size or s[:2])) * 3 for s in dataset.cameras.values()
    )


def open_cache(folder: Path) -> FrameCache:
    """Opens a cache folder. UserError when it is not complete."""
    raw = read_json(folder / CACHE)
    features = {
        side: {k: Feature(f["type"], tuple(f["shape"])) for k, f in raw[side].items()}
        for side in ("input_features", "output_features")
    }
    info = CacheInfo(
        facts_from_json(raw["facts"]),
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


def _beside(
    dataset: Dataset,
    size: tuple[int, int] | None,
    frames: Mapping[str, NDArray[np.uint8] | SeekingFrames],
) -> FrameCache:
    """A cache of these frames, with all the rest as the dataset has it."""
    arrays = {n: getattr(dataset, n) for n in ARRAYS}
    return FrameCache(dataset.root, _cache_info(dataset, size), dataset.stats, frames, **arrays)


# --- decoding


def _stored_size(dataset: Dataset, camera: str, size: tuple[int, int] | None) -> tuple[int, int]:
    return size or dataset.cameras[camera][:2]


def _finish(
    dataset: Dataset, camera: str, size: tuple[int, int] | None, frame: NDArray[np.uint8]
) -> NDArray[np.uint8]:
    """A decoded frame as it is stored. UserError when it has not the shape that the dataset
    promises.
    """
    if frame.shape != dataset.cameras[camera]:
        raise UserError(
            f"{dataset.root}: a frame of camera {camera!r} is {frame.shape}, {INFO} says {dataset.cameras[camera]}; "
            "correct it there or record again"
        )
    stored = _stored_size(dataset, camera, size)
    return frame if frame.shape[:2] == stored else resized(frame, stored)


def _seeking(dataset: Dataset, camera: str, size: tuple[int, int] | None) -> SeekingFrames:
    return SeekingFrames(
        dataset,
        camera,
        _stored_size(dataset, camera, size),
        lambda frame: _finish(dataset, camera, size, frame),
    )


def _decoded(
    dataset: Dataset, size: tuple[int, int] | None, on_progress: OnProgress | None
) -> Iterator[tuple[str, int, NDArray[np.uint8]]]:
    """Every (camera, row, frame as stored), each video from front to back."""
    total, done = len(dataset.state) * len(dataset.cameras), 0
    for camera in dataset.cameras:
        for row, frame in dataset.frames(camera):
            yield camera, row, _finish(dataset, camera, size, frame)
            done += 1
            if on_progress is not None and (done % 200 == 0 or done == total):
                on_progress(done, total)


def resized(frame: NDArray[np.uint8], size: tuple[int, int]) -> NDArray[np.uint8]:
    """Frame (H, W, 3) -> (*size, 3), as LeRobot resizes a float image, rounded to whole numbers."""
    image = torch.from_numpy(frame).permute(2, 0, 1).float()
    small = resize(image, list(size), interpolation=InterpolationMode.BILINEAR, antialias=True)
    return small.round().clamp(0, 255).byte().permute(1, 2, 0).numpy()


# --- on disk


def _write_cache(
    dataset: Dataset, folder: Path, size: tuple[int, int] | None, on_progress: OnProgress | None
) -> FrameCache:
    """Writes under another name and renames, so that a crash or a full disk leaves no half cache."""
    partial = _partial(folder)
    shutil.rmtree(partial, ignore_errors=True)
    try:
        partial.mkdir(parents=True)
        for name in ARRAYS:
            np.save(partial / f"{name}.npy", getattr(dataset, name))
        stats = {k: {n: v.tolist() for n, v in s.items()} for k, s in dataset.stats.items()}
        (partial / STATS_FILE).write_text(json.dumps(stats))
        _write_frames(dataset, partial, size, on_progress)
        (partial / CACHE).write_text(
            json.dumps(asdict(_cache_info(dataset, size)), indent=2) + "\n"
        )
        shutil.rmtree(folder, ignore_errors=True)
        os.replace(partial, folder)
    except OSError as error:
        raise UserError(
            f"the frame cache cannot be written to {folder} ({error.strerror or error}); choose another --cache-dir, "
            "or train with --frames video"
        ) from None
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return open_cache(folder)


def _write_frames(
    dataset: Dataset, folder: Path, size: tuple[int, int] | None, on_progress: OnProgress | None
) -> None:
    """Plain writes, not a memory map: a disk that fills up is then an error and not a dead process."""
    with ExitStack() as stack:
        files = {
            c: stack.enter_context((folder / f"frames.{c}.npy").open("wb")) for c in dataset.cameras
        }
        starts = {}
        for camera, file in files.items():
            shape = (len(dataset.state), *_stored_size(dataset, camera, size), 3)
            np.lib.format.write_array_header_1_0(
                file, {"descr": "|u1", "fortran_order": False, "shape": shape}
            )
            starts[camera] = file.tell()
        for camera, row, frame in _decoded(dataset, size, on_progress):
            files[camera].seek(starts[camera] + row * frame.nbytes)
            files[camera].write(frame.tobytes())


def _partial(folder: Path) -> Path:
    return folder.with_name(f".{folder.name}.partial")


def _cache_info(dataset: Dataset, size: tuple[int, int] | None) -> CacheInfo:
    inputs, outputs = dataset.features
    return CacheInfo(
        dataset_facts(dataset),
        inputs,
        outputs,
        dict(dataset.image_keys),
        fingerprint(dataset.root, size),
    )


def dataset_facts(dataset: Dataset) -> DatasetFacts:
    """What a checkpoint keeps of its dataset."""
    return DatasetFacts(
        dataset=dataset.root.name,
        fps=dataset.fps,
        joints=dataset.joints,
        tasks=dataset.tasks,
        max_speed=dataset.max_speed,
        robot_type=dataset.robot_type,
    )


def _check_folder(folder: Path, needed: int) -> None:
    """UserError when `folder` holds anything but a cache, or its disk has no room."""
    if (
        folder.exists()
        and not (folder / CACHE).is_file()
        and (not folder.is_dir() or any(folder.iterdir()))
    ):
        raise UserError(
            f"{folder} exists and is no frame cache; choose another --cache-dir or remove it"
        )
    others = [
        p.name for p in folder.glob("*") if p.suffix != ".npy" and p.name not in (CACHE, STATS_FILE)
    ]
    if others:
        raise UserError(
            f"{folder} is the frame cache of other data, and holds {others[0]}; choose another --cache-dir"
        )
    place = next(p for p in [folder, *folder.absolute().parents] if p.is_dir())
    free = shutil.disk_usage(place).free
    if needed > 0.95 * free:
        raise UserError(
            f"decoded frames need {needed / 1e9:.1f} GB, {place} has {free / 1e9:.1f} GB free; choose another "
            "--cache-dir, a smaller image_resize_shape, or --frames video, which needs no room"
        )


def _check_memory(needed: int) -> None:
    free = free_memory()
    if needed > 0.8 * free:
        raise UserError(
            f"decoded frames need {needed / 1e9:.1f} GB, {free / 1e9:.1f} GB of memory are free; use --frames disk, "
            "or --frames video, which needs no room"
        )


def free_memory() -> int:
    """Bytes that programs could still take."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        return next(
            int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable")
        )
    except (OSError, StopIteration):  # not Linux
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2
