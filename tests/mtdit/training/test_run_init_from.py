"""A run that starts from the weights of another one."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from small_cache import CAMERAS
from small_run import config_for, run

from mtdit.checkpoint.names import PRETRAINED
from mtdit.checkpoint.read import open_checkpoint
from mtdit_robots.errors import UserError


def test_init_from_starts_at_the_checkpoints_weights(
    frames: Path, clip_folder: Path, tmp_path: Path
) -> None:
    first, _ = run(config_for(frames, tmp_path / "a", clip_folder, steps=3))
    options = {"init_from": first, "steps": 1, "ema": False}
    second, _ = run(config_for(frames, tmp_path / "b", clip_folder, **options))
    start = open_checkpoint(first).policy().state_dict()
    moved = open_checkpoint(second).policy().state_dict()
    assert all((moved[k] - v).abs().max() < 1e-3 for k, v in start.items()), (
        "one warm-up step moves little"
    )


def test_init_from_a_run_that_was_moved_makes_its_own_clip(
    frames: Path, clip_folder: Path, tmp_path: Path
) -> None:
    options = {"vision_encoder_name": "tiny", "text_encoder_name": "tiny"}
    run(config_for(frames, tmp_path / "a", clip_folder, steps=1, policy=options))
    (tmp_path / "a").rename(tmp_path / "moved")
    again = config_for(frames, tmp_path / "b", clip_folder, steps=1, init_from=tmp_path / "moved")
    second, _ = run(replace(again, policy={}))
    assert open_checkpoint(second).config.vision_encoder_name == str(tmp_path / "b/clip-tiny")
    assert (tmp_path / "b/clip-tiny/model.safetensors").is_file()


def test_options_change_what_a_checkpoint_goes_on_with(
    frames: Path, clip_folder: Path, tmp_path: Path
) -> None:
    first, _ = run(config_for(frames, tmp_path / "a", clip_folder, steps=1))
    policy = {"optimizer_lr": 1e-5, "scheduler_warmup_steps": 0}
    second, _ = run(
        config_for(frames, tmp_path / "b", clip_folder, steps=1, init_from=first, policy=policy)
    )
    assert open_checkpoint(second).config.optimizer_lr == 1e-5
    with pytest.raises(UserError, match="does not match"):
        run(
            config_for(
                frames, tmp_path / "c", clip_folder, init_from=first, policy={"num_layers": 2}
            )
        )


def test_init_from_another_arm(frames: Path, clip_folder: Path, tmp_path: Path) -> None:
    config = config_for(frames, tmp_path / "a", clip_folder, steps=1, cameras="top")
    first, _ = run(config)
    more = config_for(frames, tmp_path / "b", clip_folder, init_from=first, cameras="wrist,top")
    with pytest.raises(UserError, match=r"trained on .*dataset has .*wrist"):
        run(more)


@pytest.mark.parametrize(
    ("vector", "key"), [("state", "state_joints"), ("action", "joints")], ids=["state", "action"]
)
@pytest.mark.parametrize("resume", [False, True], ids=["init", "resume"])
def test_numbers_of_other_joints_never_reach_a_policy(
    vector: str, key: str, resume: bool, frames: Path, clip_folder: Path, tmp_path: Path
) -> None:
    """The dataset names its joints in another order than the one that the policy was trained on."""
    first, _ = run(config_for(frames, tmp_path / "a", clip_folder, steps=1))
    path = first / PRETRAINED / "mtdit.json"
    facts = json.loads(path.read_text())
    path.write_text(json.dumps({**facts, key: facts["joints"][::-1]}))
    again = {"resume": True} if resume else {"init_from": first}
    out = tmp_path / ("a" if resume else "b")
    with pytest.raises(
        UserError, match=f"the {vector} of the checkpoint has joints .*, in this or"
    ):
        run(config_for(frames, out, clip_folder, steps=2, **again))


def test_a_checkpoint_keeps_its_order_of_cameras(
    frames: Path, clip_folder: Path, tmp_path: Path
) -> None:
    """The dataset's is another one; the network tells cameras by their place."""
    first, _ = run(config_for(frames, tmp_path / "a", clip_folder, steps=1))
    path = first / PRETRAINED / "config.json"
    raw = json.loads(path.read_text())
    path.write_text(
        json.dumps({**raw, "input_features": dict(reversed(raw["input_features"].items()))})
    )
    second, _ = run(config_for(frames, tmp_path / "b", clip_folder, steps=1, init_from=first))
    assert list(open_checkpoint(second).config.cameras) == list(reversed(CAMERAS))
