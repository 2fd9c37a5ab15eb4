"""The policy of a checkpoint, as a robot uses it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from small_checkpoint import TASK, observations, save_small

from mtdit.checkpoint.names import FACTS, PRETRAINED
from mtdit.checkpoint.read import open_checkpoint
from mtdit.torch_policy import open_policy
from mtdit_robots.errors import UserError
from mtdit_robots.features import ACTION


@pytest.fixture
def saved(clip_folder: Path, tmp_path: Path) -> Path:
    return save_small(clip_folder, tmp_path / "run")


def test_moved_checkpoint_needs_no_clip_folder(saved: Path, tmp_path: Path) -> None:
    """We find the towers' shape and the tokenizer beside the weights, whatever the names in
    config.json.
    """
    moved = tmp_path / "elsewhere"
    shutil.copytree(saved / PRETRAINED, moved)
    raw = json.loads((moved / "config.json").read_text())
    gone = {"vision_encoder_name": "/gone/clip", "text_encoder_name": "/gone/clip"}
    (moved / "config.json").write_text(json.dumps({**raw, **gone}))
    policy = open_policy(moved)
    policy.reset(TASK, seed=0)
    policy.observe(*observations(1)[0])
    assert np.isfinite(policy.chunk()).all()


def test_observations_that_do_not_fit(saved: Path) -> None:
    policy = open_policy(saved)
    with pytest.raises(RuntimeError, match="reset"):
        policy.request()
    policy.reset(TASK, seed=0)
    positions, frames = observations(1)[0]
    with pytest.raises(UserError, match=r"positions of shape \(5,\), the policy needs 6 joints"):
        policy.observe(positions[:5], frames)
    with pytest.raises(UserError, match="'wrist'"):
        policy.observe(positions, {"top": frames["top"]})
    with pytest.raises(UserError, match="delivers 96x40"):
        policy.observe(positions, {**frames, "top": frames["top"][:40]})


def test_seed_decides_the_noise(saved: Path) -> None:
    policy = open_policy(saved)
    chunks = []
    for seed in (1, 1, 2):
        policy.reset(TASK, seed=seed)
        policy.observe(*observations(1)[0])
        chunks.append(policy.chunk())
    assert np.array_equal(chunks[0], chunks[1])
    assert not np.allclose(chunks[0], chunks[2])


def test_a_request_is_frozen_and_preparing_changes_nothing(saved: Path) -> None:
    """What a worker computes later is what was asked, whatever has been observed since."""
    policy, seen = open_policy(saved), observations(3)
    noise = np.random.default_rng(0).standard_normal((12, 6), dtype=np.float32)
    policy.reset(TASK, seed=0)
    policy.observe(*seen[0])
    policy.prepare()()
    policy.observe(*seen[1])
    now, later = policy.chunk(noise), policy.request(noise)
    policy.observe(*seen[2])
    np.testing.assert_allclose(later(), now, atol=1e-5)
    assert not np.allclose(policy.chunk(noise), now, atol=1e-3)


def test_it_knows_how_the_demonstrations_moved_if_its_checkpoint_does(saved: Path) -> None:
    checkpoint = open_checkpoint(saved)
    assert checkpoint.facts is not None
    joints = open_policy(saved).demonstrated
    assert tuple(joint.max_speed for joint in joints) == checkpoint.facts.max_speed
    assert [joint.high for joint in joints] == checkpoint.dataset_stats[ACTION]["max"].tolist()
    (checkpoint.folder / FACTS).unlink()
    assert open_policy(saved).demonstrated == ()
