"""A tiny CLIP and a small LeRobotDataset written by LeRobot itself, shared by the tests of this
folder.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from once import once
from small_dataset import write_dataset

from mtdit.policies.multi_task_dit.tiny_clip import make_tiny_clip

torch.set_num_threads(1)


@pytest.fixture(scope="session")
def clip_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return once(tmp_path_factory, "clip-tiny", make_tiny_clip)


@pytest.fixture(scope="session")
def dataset_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three episodes, two tasks, two cameras, 10 fps, as video."""
    return once(tmp_path_factory, "small", lambda out: write_dataset(out, use_videos=True))
