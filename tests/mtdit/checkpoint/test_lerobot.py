"""Checkpoints both ways between LeRobot and us: the same actions, the same files."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from lerobot_oracle import lerobot_policy, our_policy, save_as_lerobot, statistics
from safetensors.torch import load_file
from small_checkpoint import POLICIES, TASK, files_for, observations
from small_dataset import JOINTS

from mtdit.checkpoint.names import PRETRAINED
from mtdit.checkpoint.read import open_checkpoint
from mtdit.checkpoint.write import save_pretrained
from mtdit.torch_policy import TorchPolicy, joint_names, open_policy


def our_actions(policy: TorchPolicy, ticks: int, noises: list[np.ndarray]) -> np.ndarray:
    """LeRobot's queue, written out: every tick observes, an empty queue asks for a chunk."""
    policy.reset(TASK, seed=0)
    queue: list[np.ndarray] = []
    actions = []
    for positions, frames in observations(ticks):
        policy.observe(positions, frames)
        if not queue:
            start = policy.n_obs_steps - 1
            queue = list(policy.chunk(noises.pop(0))[start : start + policy.n_action_steps])
        actions.append(queue.pop(0))
    return np.array(actions)


def their_actions(folder: Path, ticks: int, noises: list[np.ndarray]) -> np.ndarray:
    """LeRobot's policy and processors, loaded from the folder; the noise of each chunk is put in
    where it draws it.
    """
    policy, before, after = loaded_as_lerobot_eval_does(folder)
    actions = []
    for positions, frames in observations(ticks):
        item: dict[str, Any] = {
            "observation.state": torch.from_numpy(positions).float(),
            "task": TASK,
        }
        for camera, frame in frames.items():
            item[f"observation.images.{camera}"] = (
                torch.from_numpy(frame).permute(2, 0, 1).float() / 255
            )
        torch.manual_seed(len(actions))
        if not policy._queues["action"]:
            noises.append(torch.randn(1, policy.config.horizon, 6)[0].numpy())
        torch.manual_seed(len(actions))
        actions.append(after(policy.select_action(before(item))).squeeze(0).numpy())
    return np.array(actions)


def loaded_as_lerobot_eval_does(folder: Path) -> tuple[Any, Any, Any]:
    """Config, policy and processors through the functions and overrides of lerobot-eval and
    lerobot-rollout.
    """
    from lerobot.configs.policies import PreTrainedConfig
    from lerobot.policies.factory import make_policy, make_pre_post_processors

    config = PreTrainedConfig.from_pretrained(folder, cli_overrides=["--device=cpu"])
    config.pretrained_path = folder
    vector = {"dtype": "float32", "shape": (6,), "names": list(JOINTS)}
    meta = SimpleNamespace(features={"action": vector, "observation.state": vector}, stats=None)
    overrides = {
        "device_processor": {"device": "cpu"},
        "rename_observations_processor": {"rename_map": {}},
    }
    before, after = make_pre_post_processors(
        config, pretrained_path=str(folder), preprocessor_overrides=overrides
    )
    return make_policy(config, ds_meta=meta), before, after


def assert_same_sixty_ticks(folder: Path) -> None:
    noises: list[np.ndarray] = []
    theirs = their_actions(folder, 60, noises)
    ours = our_actions(open_policy(folder), 60, noises)
    assert not noises, "both asked for the same number of chunks"
    assert np.ptp(ours, axis=0)[:4].min() > 1.0, "the arm moves, so there is something to compare"
    error = float(np.abs(ours - theirs).max())
    assert error < 1e-3, f"actions differ by up to {error:.1e} degrees"


@pytest.mark.parametrize(("cameras", "options"), POLICIES, ids=str)
def test_sixty_ticks_of_what_we_saved(
    cameras: int, options: dict[str, Any], clip_folder: Path, tmp_path: Path
) -> None:
    from lerobot.policies.multi_task_dit.modeling_multi_task_dit import MultiTaskDiTPolicy

    policy = our_policy(lerobot_policy(clip_folder, cameras, **options))
    save_pretrained(tmp_path / PRETRAINED, files_for(policy, clip_folder))
    strict = MultiTaskDiTPolicy.from_pretrained(tmp_path / PRETRAINED, strict=True)
    assert all(torch.equal(v, strict.state_dict()[k]) for k, v in policy.state_dict().items())
    assert_same_sixty_ticks(tmp_path / PRETRAINED)


@pytest.mark.parametrize(("cameras", "options"), POLICIES, ids=str)
def test_sixty_ticks_of_what_lerobot_saved(
    cameras: int, options: dict[str, Any], clip_folder: Path, tmp_path: Path
) -> None:
    """Written by LeRobot's own save_pretrained, read by us: same weights, statistics, tokens and
    actions.
    """
    theirs = lerobot_policy(clip_folder, cameras, **options)
    save_as_lerobot(theirs, tmp_path)
    checkpoint = open_checkpoint(tmp_path)
    assert checkpoint.facts is None
    # nobody knows which joint a number belongs to, so no robot has these
    assert joint_names(checkpoint) == (tuple(f"unnamed_{i + 1}" for i in range(6)),) * 2
    np.testing.assert_array_equal(
        checkpoint.action_stats.low, statistics(np.random.default_rng(1))["action"]["min"]
    )
    loaded = checkpoint.policy().state_dict()
    assert all(torch.equal(loaded[k], v) for k, v in theirs.state_dict().items())
    assert_same_sixty_ticks(tmp_path)


def test_our_files_are_lerobots(saved: Path, clip_folder: Path, tmp_path: Path) -> None:
    """The processor files are, key by key, what LeRobot would have written."""
    from lerobot.policies.factory import make_pre_post_processors

    theirs = lerobot_policy(clip_folder, 2, **POLICIES[0][1])
    stats = {
        k: {n: torch.from_numpy(v) for n, v in s.items()}
        for k, s in statistics(np.random.default_rng(0)).items()
    }
    for processor in make_pre_post_processors(theirs.config, dataset_stats=stats):
        processor.save_pretrained(tmp_path / "theirs")
    for path in sorted((tmp_path / "theirs").iterdir()):
        own = saved / PRETRAINED / path.name
        if path.suffix == ".json":
            assert json.loads(own.read_text()) == json.loads(path.read_text()), path.name
        else:
            expected, found = load_file(path), load_file(own)
            assert {k: v.shape for k, v in expected.items()} == {
                k: v.shape for k, v in found.items()
            }
