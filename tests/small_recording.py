"""A small dataset that our writer records: three episodes of two tasks, two cameras, 10 fps."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from mtdit_robots.so101.joints import JOINTS
from mtdit_runtime.recording.dataset_layout import DatasetLayout
from mtdit_runtime.recording.dataset_writer import DatasetWriter
from mtdit_runtime.recording.episode import Episode

FPS = 10
CAMERAS = {"top": (48, 64), "wrist": (64, 64)}
TASKS = ("open the drawer", "close the drawer")
LENGTHS = (12, 17, 9)


def picture(camera: str, episode: int, i: int) -> np.ndarray:
    """Smooth, so that video keeps it, and different in every frame."""
    height, width = CAMERAS[camera]
    y, x = np.mgrid[0:height, 0:width]
    return (
        np.stack([x + 5 * i, y + 9 * episode, np.full_like(x, 40 + 8 * i)], axis=-1)
        .clip(0, 255)
        .astype(np.uint8)
    )


def state(episode: int, i: int) -> np.ndarray:
    return (20 * np.sin(i / 5 + episode + np.arange(6))).astype(np.float32)


def fill(recording: DatasetWriter, episode: int, length: int) -> Episode:
    taking = recording.begin(TASKS[episode % 2])
    for i in range(length):
        frames = {camera: picture(camera, episode, i) for camera in CAMERAS}
        taking.add(state(episode, i), state(episode, i) + 1, frames)
    return taking


def layout(video: bool = True) -> DatasetLayout:
    return DatasetLayout(FPS, JOINTS, CAMERAS, video)


def write(
    root: Path, video: bool = True, lengths: tuple[int, ...] = LENGTHS, codec: str = "h264"
) -> Path:
    recording = DatasetWriter(root, layout(video), codec=codec, wait=True)
    for episode, length in enumerate(lengths):
        recording.save_episode(fill(recording, episode, length))
    recording.close()
    return root


def lerobot(root: Path, **options: Any) -> Any:
    from lerobot.datasets.lerobot_dataset import LeRobotDataset

    return LeRobotDataset("mtdit/recorded", root=root, video_backend="pyav", **options)
