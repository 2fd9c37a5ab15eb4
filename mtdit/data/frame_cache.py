"""A dataset as arrays: states, actions, tasks, and frames in the size in which they are stored.

Where the frames are kept is in `mtdit.data.frames`; windows, batches and normalisation are in
`mtdit.data.loader`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torchvision.transforms.v2.functional import InterpolationMode, resize  # type: ignore[import-untyped]

from mtdit.config import Feature
from mtdit.data.frame_sources import Source, check_cameras_apart, frame_sources
from mtdit.data.frame_times import TOLERANCE_S
from mtdit.data.lerobot_dataset import Dataset
from mtdit.data.spot_check import spot_check
from mtdit.data.video_frames import Part, SeekingFrames
from mtdit.stats import DatasetFacts, DatasetStats
from mtdit_robots.errors import UserError
from mtdit_runtime.recording.dataset_layout import INFO
from mtdit_runtime.recording.dataset_units import dataset_units

ARRAYS = ("state", "action", "task", "episode_ends")
OnProgress = Callable[[int, int], None]  # done, total


@dataclass(frozen=True)
class CacheInfo:
    """What a cache knows of its dataset besides the arrays."""

    facts: DatasetFacts
    input_features: dict[str, Feature]  # with the dataset's frame sizes, not the stored ones
    output_features: dict[str, Feature]
    image_keys: dict[str, str]  # camera -> feature key
    doubts: tuple[str, ...] = ()  # frames that may not be those of their rows, a line each


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
    tolerance_s: float = TOLERANCE_S  # how far a frame may be from its row's time
    check_frames: bool = True  # compare some with the dataset's statistics

    def shape(self, camera: str) -> tuple[int, int, int, int]:
        """(N, H, W, 3) of a camera's stored frames."""
        return (len(self.dataset.state), *(self.size or self.dataset.cameras[camera][:2]), 3)

    def n_bytes(self, cameras: Sequence[str]) -> int:
        """Bytes that the decoded frames of these cameras need."""
        return sum(math.prod(self.shape(camera)) for camera in cameras)

    def info(self, doubts: Sequence[str] = ()) -> CacheInfo:
        """What a cache knows of the dataset besides the arrays."""
        facts, features = dataset_facts(self.dataset), self.dataset.features
        return CacheInfo(facts, *features, dict(self.dataset.image_keys), tuple(doubts))

    @cached_property
    def sources(self) -> dict[str, list[Source]]:
        """Camera -> the files of its frames. UserError when they do not fit the rows."""
        check_cameras_apart(self.dataset)
        return {c: frame_sources(self.dataset, c, self.tolerance_s) for c in self.dataset.cameras}

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

    def checked(self, camera: str) -> tuple[SeekingFrames, list[str]]:
        """A camera's frames, decoded when they are asked for, and what is doubtful about them.

        UserError when a row has no frame or shares one, or when frames do not look as the dataset's
        statistics say: found here, before hours of decoding.
        """
        parts = [part for source in self.sources[camera] for part in source.parts()]
        doubts: list[str] = []
        if self.check_frames:
            recorded = replace(self, size=None)._seeking(camera, parts)  # means need no resizing
            doubts = spot_check(self.dataset, camera, recorded)
            recorded.close()
        return self._seeking(camera, parts), doubts

    def _seeking(self, camera: str, parts: Sequence[Part]) -> SeekingFrames:
        n_rows, height, width, _ = self.shape(camera)
        return SeekingFrames(n_rows, (height, width), parts, partial(self.finish, camera))

    def decoded(self, camera: str) -> Iterator[tuple[int, NDArray[np.uint8]]]:
        """Every (row, frame in the stored size) of a camera, each video from front to back."""
        for source in self.sources[camera]:
            for row, frame in source.frames():
                yield row, self.finish(camera, frame)

    def cache(
        self, frames: Mapping[str, NDArray[np.uint8] | SeekingFrames], doubts: Sequence[str]
    ) -> FrameCache:
        """A cache of these frames and of the dataset's other arrays."""
        arrays = {n: getattr(self.dataset, n) for n in ARRAYS}
        info, stats = self.info(doubts), self.dataset.stats
        return FrameCache(self.dataset.root, info, stats, frames, **arrays)


class Progress:
    """Tells how many of `total` frames are done, now and then and at the end."""

    def __init__(self, total: int, tell: OnProgress | None) -> None:
        self.total, self.tell, self.done = total, tell, 0

    def step(self) -> None:
        self.done += 1
        if self.tell is not None and (self.done % 200 == 0 or self.done == self.total):
            self.tell(self.done, self.total)


def resized(frame: NDArray[np.uint8], size: tuple[int, int]) -> NDArray[np.uint8]:
    """Frame (H, W, 3) -> (*size, 3), resized as LeRobot resizes a float image, then rounded."""
    image = torch.from_numpy(frame).permute(2, 0, 1).float()
    small = resize(image, list(size), interpolation=InterpolationMode.BILINEAR, antialias=True)
    return small.round().clamp(0, 255).byte().permute(1, 2, 0).numpy()


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
        state_joints=dataset.state_joints,
    )
