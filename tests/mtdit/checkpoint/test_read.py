"""What happens to broken checkpoints: one line that says what is wrong."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from mtdit.checkpoint.names import PRETRAINED
from mtdit.checkpoint.read import open_checkpoint
from mtdit_robots.errors import UserError


def test_nothing_there(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="mtdit train"):
        open_checkpoint(tmp_path / "nowhere")
    with pytest.raises(UserError, match="no checkpoint in"):
        open_checkpoint(tmp_path)


@pytest.mark.parametrize("found", ["pretrained_model", "checkpoint", "run"])
@pytest.mark.parametrize(
    ("config", "says"),
    [
        (
            {"type": "diffusion", "vision_backbone": "resnet18"},
            "Diffusion Policy.*not supported yet",
        ),
        ({"type": "act"}, "'act'.*not supported"),
        ({"type": "pi05"}, "'pi05'.*not supported"),
        ({"type": "smolvla"}, "'smolvla'.*not supported"),
        (
            {"type": "multi_task_dit", "vision_encoder_name": "google/siglip-base-patch16-224"},
            "must name a CLIP model",
        ),
        (
            {"type": "multi_task_dit", "vision_encoder_name": "facebook/dinov3-vitb16"},
            "must name a CLIP model",
        ),
        (
            {"model_type": "clip", "architectures": ["CLIPModel"]},
            "a transformers model .'clip'., not a policy",
        ),
    ],
)
def test_other_policies_are_told_apart(
    config: dict[str, Any], says: str, found: str, tmp_path: Path
) -> None:
    """As LeRobot's trainer lays a run out; every command opens checkpoints here."""
    folder = tmp_path / "run/checkpoints/000002/pretrained_model"
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(config))
    path = {"pretrained_model": folder, "checkpoint": folder.parent, "run": tmp_path / "run"}[found]
    with pytest.raises(UserError, match=says):
        open_checkpoint(path)


def edit_weights(folder: Path, change: Any) -> None:
    path = folder / PRETRAINED / "model.safetensors"
    weights = load_file(path)
    change(weights)
    save_file(weights, path)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (
            lambda w: w.pop("noise_predictor.input_proj.bias"),
            "lacks noise_predictor.input_proj.bias",
        ),
        (lambda w: w.update(extra=torch.zeros(1)), "unknown tensor 'extra'"),
        (
            lambda w: w.update({"noise_predictor.input_proj.bias": torch.zeros(3)}),
            r"\(3,\), not \(32,\)",
        ),
    ],
)
def test_weights_that_do_not_fit_are_refused(change: Any, says: str, saved: Path) -> None:
    edit_weights(saved, change)
    with pytest.raises(UserError, match=says):
        open_checkpoint(saved).policy()


def test_damaged_files(saved: Path) -> None:
    folder = saved / PRETRAINED
    weights = folder / "model.safetensors"
    (folder / "clip/config.json").write_text("[]")
    with pytest.raises(UserError, match="CLIP"):
        open_checkpoint(saved).policy()
    (folder / "clip/config.json").unlink()
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(UserError, match="cannot be read"):
        open_checkpoint(saved).policy()
    weights.unlink()
    with pytest.raises(UserError, match="does not exist"):
        open_checkpoint(saved).policy()
    (folder / "mtdit.json").write_text('{"colour": 1}')
    with pytest.raises(UserError, match=r"mtdit\.json"):
        open_checkpoint(saved)
    (folder / "mtdit.json").unlink()
    (folder / "policy_preprocessor.json").write_text("[]")
    with pytest.raises(UserError, match="does not name the normalizer's file of statistics"):
        open_checkpoint(saved)
    (folder / "policy_preprocessor.json").write_text('{"steps": []}')
    with pytest.raises(UserError, match="does not name the normalizer's file of statistics"):
        open_checkpoint(saved)


def test_paths_that_are_no_checkpoint(saved: Path, tmp_path: Path) -> None:
    weights = saved / PRETRAINED / "model.safetensors"
    with pytest.raises(UserError, match=rf"is a file: give its folder, {saved / PRETRAINED}"):
        open_checkpoint(weights)
    alone = tmp_path / "alone"
    alone.mkdir()
    shutil.copyfile(weights, alone / "model.safetensors")
    with pytest.raises(
        UserError, match=r"has model\.safetensors but no config\.json: copy the whole"
    ):
        open_checkpoint(alone)
    (alone / "config.json").write_text("[1, 2]")
    with pytest.raises(UserError, match="describes no policy: it has no 'type'"):
        open_checkpoint(alone)
    shutil.copyfile(saved / PRETRAINED / "config.json", alone / "config.json")
    with pytest.raises(
        UserError, match=r"no policy_preprocessor\.json, which names the file of statistics"
    ):
        open_checkpoint(alone)


def test_statistics_that_are_not_there(saved: Path) -> None:
    checkpoint = open_checkpoint(saved)
    without = replace(
        checkpoint,
        dataset_stats={k: v for k, v in checkpoint.dataset_stats.items() if k != "action"},
    )
    with pytest.raises(UserError, match="'action'"):
        _ = without.action_stats
    bare = replace(
        checkpoint,
        dataset_stats={**checkpoint.dataset_stats, "action": {"mean": np.zeros(6, np.float32)}},
    )
    with pytest.raises(UserError, match="statistics lack 'min', which MIN_MAX needs"):
        _ = bare.action_stats


def test_fields_of_a_newer_lerobot(saved: Path) -> None:
    """One that is off is ignored and named; one that is on may change what the policy computes."""
    path = saved / PRETRAINED / "config.json"
    raw = json.loads(path.read_text())
    path.write_text(json.dumps({**raw, "use_memory": False, "tool": None}))
    assert "ignored tool, use_memory" in open_checkpoint(saved).notes[0]
    for field, says in (
        ({"use_memory": True}, "'use_memory' = True; it is of a newer LeRobot"),
        ({"clip_sampel": False}, "did you mean 'clip_sample'"),
    ):
        path.write_text(json.dumps({**raw, **field}))
        with pytest.raises(UserError, match=says):
            open_checkpoint(saved)
