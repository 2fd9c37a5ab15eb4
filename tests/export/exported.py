"""What most tests of the export begin with."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from once import once
from plans_ahead import PlansAhead
from workshop import CAMERA, SHAPE, STEPS, Workshop

from mtdit.policies.multi_task_dit.tiny_clip import make_tiny_clip
from mtdit_export.export import export
from mtdit_export.options import ExportOptions
from mtdit_robots.so101.joints import JOINTS


@pytest.fixture(scope="session")
def workshop(tmp_path_factory: pytest.TempPathFactory) -> Workshop:
    return Workshop(once(tmp_path_factory, "clip-small", lambda out: make_tiny_clip(out, SHAPE)))


@pytest.fixture(scope="session")
def checkpoint(workshop: Workshop, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two cameras, one tower, RoPE, two observation steps."""
    return once(
        tmp_path_factory,
        "checkpoint/pretrained_model",
        lambda out: workshop.checkpoint(out, workshop.config()),
    )


@pytest.fixture(scope="session")
def bundle(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The checkpoint above in fp32, four steps of DDIM. Not to be written to."""
    options = ExportOptions(steps=STEPS)
    return once(tmp_path_factory, "small.mtdit", lambda out: export(checkpoint, out, options))


@pytest.fixture(scope="session")
def half_bundle(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same in fp16."""
    options = ExportOptions(steps=STEPS, precision="fp16")
    return once(tmp_path_factory, "half.mtdit", lambda out: export(checkpoint, out, options))


@pytest.fixture(scope="session")
def int8_bundle(
    checkpoint: Path, recording: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """The same in int8, calibrated on noise."""
    options = ExportOptions(steps=STEPS, dataset=recording, precision="int8")
    return once(tmp_path_factory, "int8.mtdit", lambda out: export(checkpoint, out, options))


@pytest.fixture(scope="session")
def plans_ahead(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PlansAhead]:
    """One process for all graphs of all tests."""
    builder = PlansAhead(tmp_path_factory.mktemp("plans"))
    yield builder
    builder.close()


@pytest.fixture(scope="session")
def recording(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return once(tmp_path_factory, "drawer", lambda out: record_drawer(out, CAMERA))


def record_drawer(folder: Path, size: tuple[int, int]) -> Path:
    """Two short episodes written by LeRobot, with the policy's cameras."""
    from lerobot.datasets.lerobot_dataset import LeRobotDataset

    vector = {"dtype": "float32", "shape": (6,), "names": [f"{joint}.pos" for joint in JOINTS]}
    camera = {"dtype": "image", "shape": (*size, 3), "names": ["height", "width", "channels"]}
    images = {f"observation.images.{name}": camera for name in ("top", "wrist")}
    dataset = LeRobotDataset.create(
        "mtdit/drawer",
        30,
        {"action": vector, "observation.state": vector, **images},
        root=folder,
        use_videos=False,
    )
    rng = np.random.default_rng(0)
    for task in ("close the drawer", "wave"):
        for _ in range(6):
            state = rng.uniform(-20, 20, 6).astype(np.float32)
            pictures = {key: rng.integers(0, 256, (*size, 3), np.uint8) for key in images}
            dataset.add_frame(
                {"observation.state": state, "action": state, "task": task, **pictures}
            )
        dataset.save_episode()
    dataset.finalize()
    return folder
