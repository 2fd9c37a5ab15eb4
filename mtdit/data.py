"""From a dataset to training batches: decoded frames on disk, windows around an instant, normalised tensors.

Knows LeRobot's windows (lerobot/datasets/dataset_reader.py): observations at offsets 1-n_obs_steps..0, actions from
1-n_obs_steps on, clamped to the episode, with the clamped actions marked. Refuses to know networks and optimisers.

A FrameCache is a plain folder of .npy files; once it exists, training touches neither videos nor lerobot. Everything
random about step n follows from (seed, n), so a resumed run sees exactly the batches it would have seen.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torchvision.transforms.v2.functional import InterpolationMode, resize  # type: ignore[import-untyped]

from mtdit.checkpoint import DatasetFacts, DatasetStats, facts_from_json, feature_stats, image_scaling
from mtdit.config import ACTION, STATE, Feature, PolicyConfig, read_json
from mtdit.dataset import INFO, Dataset, find_dataset, open_dataset
from mtdit.policy import Batch
from mtdit_robots.errors import UserError

CACHE = "frames.json"
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
OnProgress = Callable[[int, int], None]  # done, total


# --- the cache ----------------------------------------------------------------------------------------------------


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
    """Decoded frames and everything else of a dataset, as arrays mapped from disk."""

    folder: Path
    info: CacheInfo
    stats: DatasetStats
    frames: Mapping[str, NDArray[np.uint8]]  # camera -> (N, H, W, 3)
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
) -> FrameCache:
    """The cache of `dataset` in `folder`, decoded now unless it is there already. `dataset` may itself be a cache.

    size: height and width the frames are stored with (float bilinear, antialiased, rounded); None keeps their own.
    """
    if (Path(dataset) / CACHE).is_file():
        return open_cache(Path(dataset))
    root = find_dataset(dataset)
    if (folder / CACHE).is_file():
        cache = open_cache(folder)
        if cache.info.fingerprint == fingerprint(root, size):
            return cache
    opened = open_dataset(dataset)
    if say is not None:
        say(f"decoding {dataset} once, {cache_bytes(opened, size) / 1e6:.0f} MB in {folder}")
    return _write_cache(opened, folder, size, on_progress)


def check_dataset(dataset: str) -> None:
    """UserError at once when `dataset` is neither a dataset nor a cache."""
    if not (Path(dataset) / CACHE).is_file():
        find_dataset(dataset)


def fingerprint(root: Path, size: tuple[int, int] | None) -> str:
    """Changes with the dataset's metadata and with the size its frames are stored in."""
    digest = hashlib.sha256(repr(size).encode())
    for path in [root / INFO, root / "meta/stats.json", *sorted((root / "meta/episodes").rglob("*.parquet"))]:
        digest.update(path.read_bytes() if path.is_file() else b"")
    return digest.hexdigest()[:16]


def cache_bytes(dataset: Dataset, size: tuple[int, int] | None) -> int:
    """What the decoded frames will take on disk."""
    return sum(len(dataset.state) * int(np.prod(size or s[:2])) * 3 for s in dataset.cameras.values())


def open_cache(folder: Path) -> FrameCache:
    """Opens a cache folder. UserError when it is not complete."""
    raw = read_json(folder / CACHE)
    features = {
        side: {k: Feature(f["type"], tuple(f["shape"])) for k, f in raw[side].items()}
        for side in ("input_features", "output_features")
    }
    info = CacheInfo(
        facts_from_json(raw["facts"]), **features, image_keys=raw["image_keys"], fingerprint=raw["fingerprint"]
    )
    try:
        arrays = {n: np.load(folder / f"{n}.npy", mmap_mode="r") for n in ("state", "action", "task", "episode_ends")}
        frames = {c: np.load(folder / f"frames.{c}.npy", mmap_mode="r") for c in info.image_keys}
    except (OSError, ValueError) as error:
        raise UserError(f"{folder} is not a complete frame cache ({error}); remove it and train again") from None
    stats = {
        k: {n: np.asarray(v, np.float32) for n, v in s.items()} for k, s in read_json(folder / "stats.json").items()
    }
    return FrameCache(folder, info, stats, frames, **arrays)


def _write_cache(
    dataset: Dataset, folder: Path, size: tuple[int, int] | None, on_progress: OnProgress | None
) -> FrameCache:
    partial = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    _check_room(partial, cache_bytes(dataset, size))
    try:
        for name in ("state", "action", "task", "episode_ends"):
            np.save(partial / f"{name}.npy", getattr(dataset, name))
        stats = {k: {n: v.tolist() for n, v in s.items()} for k, s in dataset.stats.items()}
        (partial / "stats.json").write_text(json.dumps(stats))
        _write_frames(dataset, partial, size, on_progress)
        (partial / CACHE).write_text(json.dumps(asdict(_cache_info(dataset, size)), indent=2) + "\n")
        shutil.rmtree(folder, ignore_errors=True)
        os.replace(partial, folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return open_cache(folder)


def _cache_info(dataset: Dataset, size: tuple[int, int] | None) -> CacheInfo:
    inputs, outputs = dataset.features
    return CacheInfo(dataset_facts(dataset), inputs, outputs, dict(dataset.image_keys), fingerprint(dataset.root, size))


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


def _write_frames(dataset: Dataset, folder: Path, size: tuple[int, int] | None, on_progress: OnProgress | None) -> None:
    total, done = len(dataset.state) * len(dataset.cameras), 0
    for camera, shape in dataset.cameras.items():
        stored = (len(dataset.state), *(size or shape[:2]), 3)
        out = np.lib.format.open_memmap(folder / f"frames.{camera}.npy", mode="w+", dtype=np.uint8, shape=stored)
        for row, frame in dataset.frames(camera):
            if frame.shape != shape:
                raise UserError(
                    f"{dataset.root}: a frame of camera {camera!r} is {frame.shape}, not {shape}; re-record"
                )
            out[row] = frame if frame.shape[:2] == stored[1:3] else resized(frame, (stored[1], stored[2]))
            done += 1
            if on_progress is not None and (done % 200 == 0 or done == total):
                on_progress(done, total)
        out.flush()


def resized(frame: NDArray[np.uint8], size: tuple[int, int]) -> NDArray[np.uint8]:
    """Frame (H, W, 3) -> (*size, 3), as LeRobot resizes a float image, rounded to whole numbers."""
    image = torch.from_numpy(frame).permute(2, 0, 1).float()
    small = resize(image, list(size), interpolation=InterpolationMode.BILINEAR, antialias=True)
    return small.round().clamp(0, 255).byte().permute(1, 2, 0).numpy()


def _check_room(folder: Path, needed: int) -> None:
    free = shutil.disk_usage(folder).free
    if needed > 0.95 * free:
        raise UserError(
            f"decoded frames need {needed / 1e9:.1f} GB, {folder.parent} has {free / 1e9:.1f} GB free; "
            "choose another cache_dir or a smaller image_resize_shape"
        )


# --- windows ------------------------------------------------------------------------------------------------------


def episode_bounds(ends: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """First and last row of the episode of every row, each (N,)."""
    starts = np.concatenate([[0], ends[:-1]])
    lengths = ends - starts
    return np.repeat(starts, lengths), np.repeat(ends - 1, lengths)


def usable_rows(ends: NDArray[np.int64], drop_n_last_frames: int) -> NDArray[np.int64]:
    """Rows training may start from: all but the last of each episode. UserError when none is left."""
    _, last = episode_bounds(ends)
    rows = np.arange(len(last))
    usable = rows[rows <= last - drop_n_last_frames]
    if not len(usable):
        raise UserError(f"every episode is shorter than drop_n_last_frames = {drop_n_last_frames}; lower it")
    return usable


def rows_of_step(usable: NDArray[np.int64], step: int, batch_size: int, seed: int) -> NDArray[np.int64]:
    """The rows of training step `step` (from 0): consecutive pieces of one random permutation per epoch."""
    first = step * batch_size
    pieces = []
    while batch_size:
        epoch, start = divmod(first, len(usable))
        order = np.random.default_rng((seed, epoch)).permutation(len(usable))[start : start + batch_size]
        pieces.append(usable[order])
        first, batch_size = first + len(order), batch_size - len(order)
    return np.concatenate(pieces)


@dataclass
class Loader:
    """Batches of a cache for one policy, on one device. States and actions are normalised once, here."""

    cache: FrameCache
    config: PolicyConfig
    stats: DatasetStats
    text: Tensor  # (tasks, W) pooled text features, on the device
    batch_size: int
    seed: int
    random_shift_px: int = 0
    random_brightness: float = 0.0

    def __post_init__(self) -> None:
        self.state = torch.from_numpy(feature_stats(self.config, self.stats, STATE).normalize(self.cache.state))
        self.action = torch.from_numpy(feature_stats(self.config, self.stats, ACTION).normalize(self.cache.action))
        self.first, self.last = episode_bounds(np.asarray(self.cache.episode_ends))
        self.usable = usable_rows(np.asarray(self.cache.episode_ends), self.config.drop_n_last_frames or 0)
        self.scaling = {c: image_scaling(self.config, self.stats, c) for c in self.config.cameras}
        self.device = self.text.device

    def step(self, step: int) -> Batch:
        """The batch of training step `step`."""
        return self.rows(rows_of_step(self.usable, step, self.batch_size, self.seed))

    def rows(self, rows: NDArray[np.int64]) -> Batch:
        """The batch around these rows (B,)."""
        steps = self.config.n_obs_steps
        first, last = self.first[rows][:, None], self.last[rows][:, None]
        seen = np.clip(rows[:, None] + np.arange(1 - steps, 1), first, last)  # (B, S)
        wanted = rows[:, None] + np.arange(1 - steps, 1 - steps + self.config.horizon)  # (B, T)
        done = np.clip(wanted, first, last)
        images = {c: self.images(self.cache.frames[c][seen], c) for c in self.config.cameras}
        return Batch(
            images=images,
            state=self.state[seen].to(self.device),
            text=self.text[torch.from_numpy(np.asarray(self.cache.task[rows])).to(self.device)],
            actions=self.action[done].to(self.device),
            is_pad=torch.from_numpy(wanted != done).to(self.device),
        )

    def images(self, frames: NDArray[np.uint8], camera: str) -> Tensor:
        """Frames (B, S, H, W, 3) -> normalised (B, S, 3, H, W)."""
        if self.random_shift_px:
            frames = random_shift(frames, self.random_shift_px)
        offset, scale = self.scaling[camera]
        images = normalized_images(torch.from_numpy(frames).to(self.device), offset, scale)
        if self.random_brightness:
            images = random_brightness(images, offset, scale, self.random_brightness)
        return images


def normalized_images(frames: Tensor, offset: NDArray[np.float32], scale: NDArray[np.float32]) -> Tensor:
    """uint8 (..., H, W, 3) -> float (..., 3, H, W): (pixel / 255 - offset) / scale per channel."""
    images = frames.movedim(-1, -3).to(torch.float32).contiguous()
    shape = (3, 1, 1)
    offset_, scale_ = (torch.from_numpy(v).to(frames.device).view(shape) for v in (offset, scale))
    return (images / 255 - offset_) / scale_


def random_shift(frames: NDArray[np.uint8], most_px: int) -> NDArray[np.uint8]:
    """Moves each sample's frames (B, S, H, W, 3) by its own random offset, repeating edge pixels (arXiv 2004.13649)."""
    height, width = frames.shape[2:4]
    p = most_px
    padded = np.pad(frames, ((0, 0), (0, 0), (p, p), (p, p), (0, 0)), mode="edge")
    down, right = torch.randint(0, 2 * p + 1, (2, len(frames))).tolist()
    moved = [x[:, y : y + height, z : z + width] for x, y, z in zip(padded, down, right, strict=True)]
    return np.stack(moved)


def random_brightness(images: Tensor, offset: NDArray[np.float32], scale: NDArray[np.float32], spread: float) -> Tensor:
    """Normalised images (B, S, 3, H, W) as if each sample's pixels had been multiplied by its own 1 + N(0, spread)."""
    factor = (1 + spread * torch.randn(len(images))).to(images.device).view(-1, 1, 1, 1, 1)
    black = torch.from_numpy(-offset / scale).to(images.device).view(3, 1, 1)  # what a pixel of 0 becomes
    return black + factor * (images - black)


def with_imagenet_stats(stats: DatasetStats, image_keys: Sequence[str]) -> DatasetStats:
    """The statistics with every camera's mean and std replaced by ImageNet's, as LeRobot does by default."""
    fixed = {"mean": np.array(IMAGENET_MEAN, np.float32), "std": np.array(IMAGENET_STD, np.float32)}
    shaped = {n: v.reshape(3, 1, 1) for n, v in fixed.items()}
    return {**stats, **{key: {**stats.get(key, {}), **shaped} for key in image_keys}}
