"""A small LeRobotDataset written by LeRobot itself."""

from __future__ import annotations

from pathlib import Path

import numpy as np

JOINTS = ("shoulder_pan", "shoulder_lift", "elbow_flex", "wrist_flex", "wrist_roll", "gripper")
TASKS = ("open the drawer", "close the drawer")
LENGTHS = (24, 31, 18)
SIZE = 64


def write_dataset(folder: Path, use_videos: bool) -> Path:
    from lerobot.datasets.lerobot_dataset import LeRobotDataset

    names = [f"{joint}.pos" for joint in JOINTS]
    vector = {"dtype": "float32", "shape": (6,), "names": names}
    kind = "video" if use_videos else "image"
    camera = {"dtype": kind, "shape": (SIZE, SIZE, 3), "names": ["height", "width", "channels"]}
    images = {"observation.images.top": camera, "observation.images.wrist": camera}
    features = {"action": vector, "observation.state": vector, **images}
    dataset = LeRobotDataset.create(
        "mtdit/small", 10, features, root=folder, robot_type="so_follower", use_videos=use_videos
    )
    rng = np.random.default_rng(0)
    for episode, length in enumerate(LENGTHS):
        start = rng.uniform(-40, 40, 6)
        for i in range(length):
            state = (start + 20 * np.sin(i / 9 + np.arange(6))).astype(np.float32)
            frame = {k: _picture(state, i, k) for k in images}
            action = state + rng.normal(0, 0.1, 6).astype(np.float32)
            dataset.add_frame(
                {"observation.state": state, "action": action, "task": TASKS[episode % 2], **frame}
            )
        dataset.save_episode()
    dataset.finalize()
    return folder


def _picture(state: np.ndarray, i: int, key: str) -> np.ndarray:
    """A bright square that moves with the first joints on a smooth background."""
    y, x = np.mgrid[0:SIZE, 0:SIZE]
    image = np.stack([x * 2 + i, y * 2, np.full_like(x, 80 if "top" in key else 160)], axis=-1)
    row, column = (int(np.clip(32 + state[j] / 3, 4, 58)) for j in (0, 1))
    image[row - 4 : row + 4, column - 4 : column + 4] = (250, 240, 30)
    return image.clip(0, 255).astype(np.uint8)
