"""A recording made without torch or LeRobot trains with both trainers, unchanged."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from command_line import mtdit
from lerobot_oracle import SMALL

from mtdit_robots.so101.joints import JOINTS
from mtdit_runtime.recording.dataset_layout import DatasetLayout
from mtdit_runtime.recording.dataset_writer import DatasetWriter

TIMEOUT_S = 400
SIZE = 64


@pytest.fixture(scope="module", params=[True, False], ids=["video", "images"])
def recording(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("recorded") / "set"
    made = DatasetWriter(
        root, DatasetLayout(10, JOINTS, {"top": (SIZE, SIZE)}, video=request.param), wait=True
    )
    for episode in range(2):
        taking = made.begin("open the drawer")
        for i in range(24):
            pose = 20 * np.sin(i / 9 + episode + np.arange(6))
            taking.add(pose, pose + 1, {"top": np.full((SIZE, SIZE, 3), 9 * i, np.uint8)})
        made.save_episode(taking)
    made.close()
    return root


def run(*command: str, cwd: Path) -> None:
    quiet = {
        **os.environ,
        "HF_HUB_OFFLINE": "1",
        "HF_HOME": str(cwd / "hf"),
        "WANDB_MODE": "disabled",
    }
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=TIMEOUT_S, cwd=cwd, env=quiet
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]


def test_mtdit_train(recording: Path, tmp_path: Path) -> None:
    options = ("--preset", "tiny", "--steps", "2", "--batch-size", "2", "--out", "run")
    done = mtdit("train", "--dataset", recording, *options, cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert (tmp_path / "run/checkpoints/000002/pretrained_model/model.safetensors").is_file()


def test_lerobot_train(recording: Path, tmp_path: Path, clip_folder: Path) -> None:
    fields = {
        **SMALL,
        "type": "multi_task_dit",
        "device": "cpu",
        "push_to_hub": "false",
        "vision_encoder_name": clip_folder,
        "text_encoder_name": clip_folder,
        "image_resize_shape": "null",
        "image_crop_shape": "null",
    }
    policy = [f"--policy.{name}={_word(value)}" for name, value in fields.items()]
    run(
        sys.executable,
        "-m",
        "lerobot.scripts.lerobot_train",
        "--dataset.repo_id=mtdit/recorded",
        f"--dataset.root={recording}",
        "--dataset.video_backend=pyav",
        *policy,
        "--output_dir=run",
        "--steps=2",
        "--batch_size=2",
        "--num_workers=0",
        "--save_freq=2",
        "--log_freq=1",
        "--wandb.enable=false",
        cwd=tmp_path,
    )
    saved = tmp_path / "run/checkpoints/000002/pretrained_model"
    assert (saved / "model.safetensors").is_file()
    assert json.loads((saved / "config.json").read_text())["type"] == "multi_task_dit"


def _word(value: object) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return json.dumps(list(value)) if isinstance(value, tuple) else str(value)
