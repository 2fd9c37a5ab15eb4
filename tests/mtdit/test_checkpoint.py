"""Checkpoints both ways between LeRobot and us, and what happens to broken ones."""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import JOINTS
from lerobot_oracle import lerobot_policy, our_policy
from safetensors.torch import load_file, save_file

from mtdit.checkpoint import (
    PRETRAINED,
    TRAINING_STATE,
    DatasetFacts,
    PretrainedFiles,
    find_last_checkpoint,
    open_checkpoint,
    save_checkpoint,
    save_pretrained,
)
from mtdit.encoders import load_tokenizer
from mtdit.policy import Policy
from mtdit.rollout import TorchPolicy, joint_names, open_policy
from mtdit_robots.errors import UserError

TASK = "push the red cube to the left"
SAMPLERS: list[dict[str, Any]] = [
    {"noise_scheduler_type": "DDIM", "num_inference_steps": 10, "n_obs_steps": 2},
    {"noise_scheduler_type": "DDIM", "num_inference_steps": 10, "n_obs_steps": 1, "use_rope": False},
    {"objective": "flow_matching", "num_integration_steps": 5, "n_obs_steps": 3},
]


def statistics(rng: np.random.Generator) -> dict[str, dict[str, np.ndarray]]:
    low = rng.uniform(-90, 0, 6).astype(np.float32)
    high = (low + rng.uniform(20, 120, 6)).astype(np.float32)
    high[4] = low[4]  # a joint that never moved
    image = {"mean": np.full((3, 1, 1), 0.45, np.float32), "std": np.full((3, 1, 1), 0.22, np.float32)}
    vectors = {"observation.state": {"min": low, "max": high}, "action": {"min": low - 1, "max": high + 1}}
    return {**vectors, **{f"observation.images.{c}": image for c in ("top", "wrist")}}


def facts() -> DatasetFacts:
    return DatasetFacts("small", 10, JOINTS, (TASK,), (30.0,) * 6, "so_follower")


def files_for(policy: Policy, clip: Path) -> PretrainedFiles:
    stats = statistics(np.random.default_rng(0))
    return PretrainedFiles(policy, policy.state_dict(), stats, facts(), load_tokenizer(clip), {"steps": 3})


@pytest.fixture
def saved(clip_folder: Path, tmp_path: Path) -> Path:
    """One checkpoint of ours, with awake weights."""
    policy = our_policy(lerobot_policy(clip_folder, 2, **SAMPLERS[0]))
    return save_checkpoint(tmp_path / "run", 7, files_for(policy, clip_folder), {}, {"elapsed_s": 1.0})


def observations(ticks: int) -> list[tuple[np.ndarray, dict[str, np.ndarray]]]:
    rng = np.random.default_rng(3)
    pose = rng.uniform(-60, 20, 6)
    walk = pose + np.cumsum(rng.normal(0, 1, (ticks, 6)), axis=0)
    return [(p, {c: rng.integers(0, 256, (80, 96, 3), np.uint8) for c in ("top", "wrist")}) for p in walk]


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
    """LeRobot's policy and processors, loaded from the folder; the noise of each chunk is put in where it draws it."""
    from lerobot.policies.factory import make_pre_post_processors
    from lerobot.policies.multi_task_dit.modeling_multi_task_dit import MultiTaskDiTPolicy

    policy = MultiTaskDiTPolicy.from_pretrained(folder)
    before, after = make_pre_post_processors(policy.config, pretrained_path=str(folder))
    actions = []
    for positions, frames in observations(ticks):
        item: dict[str, Any] = {"observation.state": torch.from_numpy(positions).float(), "task": TASK}
        for camera, frame in frames.items():
            item[f"observation.images.{camera}"] = torch.from_numpy(frame).permute(2, 0, 1).float() / 255
        torch.manual_seed(len(actions))
        if not policy._queues["action"]:
            noises.append(torch.randn(1, policy.config.horizon, 6)[0].numpy())
        torch.manual_seed(len(actions))
        actions.append(after(policy.select_action(before(item))).squeeze(0).numpy())
    return np.array(actions)


@pytest.mark.parametrize("options", SAMPLERS, ids=str)
def test_sixty_ticks_are_lerobots_select_action(options: dict[str, Any], clip_folder: Path, tmp_path: Path) -> None:
    """Saved by us, loaded by both; degrees."""
    policy = our_policy(lerobot_policy(clip_folder, 2, **options))
    save_pretrained(tmp_path / PRETRAINED, files_for(policy, clip_folder))
    noises: list[np.ndarray] = []
    theirs = their_actions(tmp_path / PRETRAINED, 60, noises)
    ours = our_actions(open_policy(tmp_path), 60, noises)
    assert not noises, "both asked for the same number of chunks"
    assert np.ptp(ours, axis=0)[:4].min() > 1.0, "the arm moves, so there is something to compare"
    assert np.abs(ours - theirs).max() < 0.01


def test_a_checkpoint_lerobot_saved(clip_folder: Path, tmp_path: Path) -> None:
    """Written by LeRobot's own save_pretrained, read by us: same weights, statistics, tokens and chunk."""
    from lerobot.policies.factory import make_pre_post_processors

    theirs = lerobot_policy(clip_folder, 2, **SAMPLERS[0])
    stats = {k: {n: torch.from_numpy(v) for n, v in s.items()} for k, s in statistics(np.random.default_rng(1)).items()}
    folder = tmp_path / "theirs"
    theirs.save_pretrained(folder)
    for processor in make_pre_post_processors(theirs.config, dataset_stats=stats):
        processor.save_pretrained(folder)
    checkpoint = open_checkpoint(folder)
    assert checkpoint.facts is None
    assert joint_names(checkpoint) == JOINTS
    np.testing.assert_array_equal(checkpoint.action_stats.low, stats["action"]["min"])
    loaded = checkpoint.policy().state_dict()
    assert all(torch.equal(loaded[k], v) for k, v in theirs.state_dict().items())
    noises: list[np.ndarray] = []
    expected = their_actions(folder, 20, noises)
    assert np.abs(our_actions(open_policy(folder), 20, noises) - expected).max() < 0.01


def test_our_files_are_lerobots(saved: Path, clip_folder: Path, tmp_path: Path) -> None:
    """The processor files are, key by key, what LeRobot would have written."""
    from lerobot.policies.factory import make_pre_post_processors

    theirs = lerobot_policy(clip_folder, 2, **SAMPLERS[0])
    stats = {k: {n: torch.from_numpy(v) for n, v in s.items()} for k, s in statistics(np.random.default_rng(0)).items()}
    for processor in make_pre_post_processors(theirs.config, dataset_stats=stats):
        processor.save_pretrained(tmp_path / "theirs")
    for path in sorted((tmp_path / "theirs").iterdir()):
        own = saved / PRETRAINED / path.name
        if path.suffix == ".json":
            assert json.loads(own.read_text()) == json.loads(path.read_text()), path.name
        else:
            expected, found = load_file(path), load_file(own)
            assert {k: v.shape for k, v in expected.items()} == {k: v.shape for k, v in found.items()}


def test_moved_checkpoint_needs_no_clip_folder(saved: Path, tmp_path: Path) -> None:
    """We find the towers' shape and the tokenizer beside the weights, whatever the names in config.json."""
    moved = tmp_path / "elsewhere"
    shutil.copytree(saved / PRETRAINED, moved)
    raw = json.loads((moved / "config.json").read_text())
    gone = {"vision_encoder_name": "/gone/clip", "text_encoder_name": "/gone/clip"}
    (moved / "config.json").write_text(json.dumps({**raw, **gone}))
    policy = open_policy(moved)
    policy.reset(TASK, seed=0)
    policy.observe(*observations(1)[0])
    assert np.isfinite(policy.chunk()).all()


def test_found_by_run_checkpoint_or_folder(saved: Path) -> None:
    run = saved.parent.parent
    for path in (run, run / "checkpoints", run / "checkpoints/last", saved, saved / PRETRAINED):
        assert open_checkpoint(path).folder.resolve() == (saved / PRETRAINED).resolve(), path
    (run / "checkpoints/last").unlink()
    assert find_last_checkpoint(run) == saved


def test_a_failed_save_leaves_the_one_before(saved: Path, clip_folder: Path) -> None:
    """What cannot be written, first at the start of a checkpoint, then near its end."""
    run = saved.parent.parent
    files = files_for(open_checkpoint(saved).policy(), clip_folder)
    in_the_way = run / "checkpoints/.000008.partial"
    in_the_way.write_text("a file where a folder must be made")
    with pytest.raises(UserError, match="the checkpoint before is intact"):
        save_checkpoint(run, 8, files, {}, {})
    in_the_way.unlink()
    with pytest.raises(UserError, match="the checkpoint before is intact"):
        save_checkpoint(run, 8, files, {"no/such/folder.safetensors": {"x": torch.zeros(1)}}, {})
    assert os.readlink(run / "checkpoints/last") == "000007"
    assert [p.name for p in (run / "checkpoints").iterdir() if "8" in p.name] == []
    open_checkpoint(run).policy()


def test_training_state_travels_with_the_checkpoint(clip_folder: Path, tmp_path: Path) -> None:
    policy = our_policy(lerobot_policy(clip_folder, 0))
    state = {"optimizer_state.safetensors": {"state/0/step": torch.tensor(3.0)}}
    folder = save_checkpoint(tmp_path, 3, files_for(policy, clip_folder), state, {"elapsed_s": 4.5})
    assert json.loads((folder / TRAINING_STATE / "training_step.json").read_text()) == {"step": 3, "elapsed_s": 4.5}
    assert load_file(folder / TRAINING_STATE / "optimizer_state.safetensors")["state/0/step"] == 3
    again = save_checkpoint(tmp_path, 3, files_for(policy, clip_folder), state, {"elapsed_s": 5.0})
    assert again == folder


def test_observations_that_do_not_fit(saved: Path) -> None:
    policy = open_policy(saved)
    with pytest.raises(RuntimeError, match="reset"):
        policy.request()
    policy.reset(TASK, seed=0)
    positions, frames = observations(1)[0]
    with pytest.raises(UserError, match="5 positions"):
        policy.observe(positions[:5], frames)
    with pytest.raises(UserError, match="'wrist'"):
        policy.observe(positions, {"top": frames["top"]})
    with pytest.raises(UserError, match=r"\(40, 96, 3\)"):
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


# --- broken checkpoints -------------------------------------------------------------------------------------------


def test_nothing_there(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="mtdit train"):
        open_checkpoint(tmp_path / "nowhere")
    with pytest.raises(UserError, match="no checkpoint in"):
        open_checkpoint(tmp_path)


def edit_weights(folder: Path, change: Any) -> None:
    path = folder / PRETRAINED / "model.safetensors"
    weights = load_file(path)
    change(weights)
    save_file(weights, path)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda w: w.pop("noise_predictor.input_proj.bias"), "lacks noise_predictor.input_proj.bias"),
        (lambda w: w.update(extra=torch.zeros(1)), "unknown extra"),
        (lambda w: w.update({"noise_predictor.input_proj.bias": torch.zeros(3)}), r"\(3,\), not \(32,\)"),
    ],
)
def test_weights_that_do_not_fit_are_refused(change: Any, says: str, saved: Path) -> None:
    edit_weights(saved, change)
    with pytest.raises(UserError, match=says):
        open_checkpoint(saved).policy()


def test_damaged_files(saved: Path) -> None:
    folder = saved / PRETRAINED
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(UserError, match="cannot be read"):
        open_checkpoint(saved).policy()
    (folder / "clip/config.json").write_text("[]")
    with pytest.raises(UserError, match="CLIP"):
        open_checkpoint(saved).policy()
    (folder / "clip/config.json").unlink()
    weights.unlink()
    with pytest.raises(UserError, match="does not exist"):
        open_checkpoint(saved).policy()
    (folder / "mtdit.json").write_text('{"colour": 1}')
    with pytest.raises(UserError, match=r"mtdit\.json"):
        open_checkpoint(saved)
    (folder / "mtdit.json").unlink()
    (folder / "policy_preprocessor.json").write_text("[]")
    with pytest.raises(UserError, match="no normalizer statistics"):
        open_checkpoint(saved)
    (folder / "policy_preprocessor.json").write_text('{"steps": []}')
    with pytest.raises(UserError, match="no normalizer statistics"):
        open_checkpoint(saved)


def test_statistics_that_are_not_there(saved: Path) -> None:
    checkpoint = open_checkpoint(saved)
    without = replace(checkpoint, dataset_stats={k: v for k, v in checkpoint.dataset_stats.items() if k != "action"})
    with pytest.raises(UserError, match="'action'"):
        _ = without.action_stats
