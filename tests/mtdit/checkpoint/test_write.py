"""A checkpoint is written as a whole."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch
from lerobot_oracle import lerobot_policy, our_policy
from safetensors.torch import load_file
from small_checkpoint import files_for

from mtdit.checkpoint.names import TRAINING_STATE
from mtdit.checkpoint.read import open_checkpoint
from mtdit.checkpoint.write import save_checkpoint
from mtdit_robots.errors import UserError


def test_a_failed_save_leaves_the_one_before(saved: Path, clip_folder: Path) -> None:
    """What cannot be written, first at the start of a checkpoint, then near its end."""
    run = saved.parent.parent
    files = files_for(open_checkpoint(saved).policy(), clip_folder)
    in_the_way = run / "checkpoints/.000008.part"
    in_the_way.write_text("a file where a folder must be made")
    with pytest.raises(UserError, match="the previous checkpoint is intact"):
        save_checkpoint(run, 8, files, {}, {})
    in_the_way.unlink()
    with pytest.raises(UserError, match="the previous checkpoint is intact"):
        save_checkpoint(run, 8, files, {"no/such/folder.safetensors": {"x": torch.zeros(1)}}, {})
    assert os.readlink(run / "checkpoints/last") == "000007"
    assert [p.name for p in (run / "checkpoints").iterdir() if "8" in p.name] == []
    open_checkpoint(run).policy()


def test_training_state_travels_with_the_checkpoint(clip_folder: Path, tmp_path: Path) -> None:
    policy = our_policy(lerobot_policy(clip_folder, 0))
    state = {"optimizer_state.safetensors": {"state/0/step": torch.tensor(3.0)}}
    folder = save_checkpoint(tmp_path, 3, files_for(policy, clip_folder), state, {"elapsed_s": 4.5})
    assert json.loads((folder / TRAINING_STATE / "training_step.json").read_text()) == {
        "step": 3,
        "elapsed_s": 4.5,
    }
    assert load_file(folder / TRAINING_STATE / "optimizer_state.safetensors")["state/0/step"] == 3
    again = save_checkpoint(tmp_path, 3, files_for(policy, clip_folder), state, {"elapsed_s": 5.0})
    assert again == folder
