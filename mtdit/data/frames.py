"""Opens a dataset for training: its arrays, and its frames on disk, in memory or in the videos.

Frames are decoded once to disk, once into memory, or from the videos whenever they are needed.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mtdit.data.cache_folder import Say, current_cache, decoding, open_cache
from mtdit.data.cache_record import CACHE
from mtdit.data.frame_cache import FrameCache, OnProgress, Progress, StoredDataset
from mtdit.data.frame_sources import Once
from mtdit.data.frame_times import TOLERANCE_S
from mtdit.data.lerobot_dataset import chosen_cameras, find_dataset, open_dataset
from mtdit_robots.errors import UserError
from mtdit_runtime.memory import free_memory


def frame_cache(
    dataset: str,
    folder: Path,
    size: tuple[int, int] | None,
    on_progress: OnProgress | None = None,
    say: Say | None = None,
    kind: str = "disk",
    tolerance_s: float = TOLERANCE_S,
    check_frames: bool = True,
    cameras: Sequence[str] | None = None,
    preferred: Collection[str] = (),
) -> FrameCache:
    """The arrays of `dataset`; the frames are the same for every kind.

    dataset: a folder, a Hub repo id, or the folder of a cache, which is then opened. size: height
    and width of the stored frames (float bilinear, antialiased, rounded); None keeps the dataset's
    size. kind: "disk" decodes the frames once into `folder` and later only those that changed,
    "memory" decodes them now into RAM (of every process), "video" decodes each frame when it is
    used. tolerance_s: how far a frame may be from its row's time. check_frames: compare
    some with the dataset's statistics. cameras, preferred: as `chosen_cameras`; what else the
    dataset has is left out, and said. UserError when a row has no frame of its own, or when there
    is not enough space.
    """
    say = say or (lambda line: None)
    if (Path(dataset) / CACHE).is_file():
        cache = _only(open_cache(Path(dataset)), cameras, preferred)
    else:
        opened = open_dataset(dataset, cameras, preferred)
        for line in (*opened.notes, *filter(None, [opened.left_out])):
            say(line)
        stored = StoredDataset(opened, size, tolerance_s, check_frames)
        if kind == "disk":
            cache = current_cache(stored, dataset, folder, on_progress, say)
        else:
            cache = _without_folder(stored, dataset, kind, on_progress, say)
    for line in cache.info.doubts:
        say(line)
    return cache


def _only(
    cache: FrameCache, cameras: Sequence[str] | None, preferred: Collection[str]
) -> FrameCache:
    """The cache with the chosen cameras."""
    keys = chosen_cameras(cache.info.image_keys, {}, cameras, preferred)
    others = set(cache.info.image_keys.values()) - set(keys.values())
    inputs = {key: f for key, f in cache.info.input_features.items() if key not in others}
    info = replace(cache.info, input_features=inputs, image_keys=keys)
    return replace(cache, info=info, frames={camera: cache.frames[camera] for camera in keys})


def _without_folder(
    stored: StoredDataset, name: str, kind: str, on_progress: OnProgress | None, say: Say
) -> FrameCache:
    cameras = list(stored.dataset.cameras)
    checked = {c: stored.checked(c) for c in cameras}
    doubts = [line for _, lines in checked.values() for line in lines]
    if kind == "video":
        return stored.cache({c: frames for c, (frames, _) in checked.items()}, doubts)
    needed = stored.n_bytes(cameras)
    _check_memory(needed)
    say(decoding(name, needed, "memory"))
    return stored.cache(_in_memory(stored, on_progress), doubts)


def _in_memory(
    stored: StoredDataset, on_progress: OnProgress | None
) -> dict[str, NDArray[np.uint8]]:
    cameras = list(stored.dataset.cameras)
    frames: dict[str, NDArray[np.uint8]] = {}
    progress = Progress(len(stored.dataset.state) * len(cameras), on_progress)
    for camera in cameras:
        frames[camera] = np.empty(stored.shape(camera), np.uint8)
        once = Once(stored.dataset, camera)
        for row, frame in stored.decoded(camera):
            once.mark(row)
            frames[camera][row] = frame
            progress.step()
        once.check_all()
    return frames


def check_dataset(dataset: str) -> None:
    """UserError when `dataset` is neither a dataset nor a cache."""
    if not (Path(dataset) / CACHE).is_file():
        find_dataset(dataset)


def _check_memory(needed: int) -> None:
    free = free_memory()
    if needed > 0.8 * free:
        raise UserError(
            f"the decoded frames need {needed / 1e9:.1f} GB, but only {free / 1e9:.1f} GB of "
            "memory are free; use --frames disk, or --frames video, which needs no cache"
        )
