"""A LeRobotDataset v3 for training: float32 arrays, policy features, decoded frames, the Hub.

The files are read and checked by `mtdit_runtime.recording.dataset_reader`. Each video is decoded
once from front to back, which is far cheaper than seeking to single frames. Windows and batches
are made in `mtdit.data.loader`.
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray

from mtdit.config import Feature
from mtdit.data.hub_dataset import fetch_dataset
from mtdit_robots.errors import UserError
from mtdit_robots.features import ACTION, STATE
from mtdit_runtime.recording.dataset_reader import (
    RecordedDataset,
    check_folder,
    read_dataset,
    read_stats,
)


@dataclass(frozen=True)
class Dataset(RecordedDataset):
    """An opened dataset: everything except the frames is in memory."""

    state: NDArray[np.float32]  # (N, J)
    action: NDArray[np.float32]  # (N, A)
    stats: Mapping[str, Mapping[str, NDArray[np.float32]]]  # meta/stats.json, else computed

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
        return _video_frames(self, camera) if self.is_video(camera) else _png_frames(self, camera)


def open_dataset(name: str) -> Dataset:
    """Opens a LeRobotDataset v3: a folder or a Hub repo id. UserError says what is missing or
    damaged.
    """
    recorded = read_dataset(find_dataset(name))
    state, action = recorded.state.astype(np.float32), recorded.action.astype(np.float32)
    stats = read_stats(recorded.root, {STATE: state, ACTION: action})
    return Dataset(**{**vars(recorded), "state": state, "action": action, "stats": stats})


def find_dataset(name: str) -> Path:
    """The folder of a dataset that is given as a folder or as a Hub repo id (then downloaded).

    UserError says why there is no dataset.
    """
    folder = Path(name).expanduser()
    if folder.is_dir():
        check_folder(folder)
        return folder
    if folder.is_absolute() or name.count("/") != 1 or name.startswith("."):
        raise UserError(
            f"there is no dataset at {folder}; check the path, or record one with "
            f"`mtdit simulate --out {folder}`"
        )
    return fetch_dataset(name)


# --- frames


def _video_frames(dataset: Dataset, camera: str) -> Iterator[tuple[int, NDArray[np.uint8]]]:
    for path, rows in dataset.video_places(camera).items():
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


def _png_frames(dataset: Dataset, camera: str) -> Iterator[tuple[int, NDArray[np.uint8]]]:
    key = dataset.image_keys[camera]
    for file in dataset.data_files:
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
