"""A run that goes on: exact, with its own options, and from a checkpoint that is whole."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path

import pytest
import small_recording
import torch
from full_disk import disk
from small_run import Watcher, config_for, run

from mtdit.checkpoint.names import CONFIG, LIVE, PRETRAINED, TRAIN_CONFIG, TRAINING_STATE
from mtdit.checkpoint.tensors import read_tensors
from mtdit.training.checkpoints import output_dir_lock
from mtdit.training.config import TrainConfig
from mtdit.training.metrics import LOG
from mtdit.training.run import resumed_config, train
from mtdit_robots.errors import UserError


def test_resume_is_exact(frames: Path, clip_folder: Path, tmp_path: Path) -> None:
    """Losses, weights and averages of a run that stopped half-way equal those of one that did not.
    Dropout is on.
    """
    policy = {"dropout": 0.2}
    whole = config_for(frames, tmp_path / "whole", clip_folder, policy=policy, noise_samples=2)
    straight, losses = run(whole)
    halves = replace(whole, output_dir=tmp_path / "halves")
    _, first = run(replace(halves, steps=6, max_minutes=None, save_every=3))
    for name in ("000006", "last"):
        link = tmp_path / "halves/checkpoints" / name
        link.unlink() if link.is_symlink() else link.rename(tmp_path / name)
    resumed, second = run(replace(halves, resume=True))
    assert first == losses
    assert second == losses[3:]
    for file in (f"{PRETRAINED}/model.safetensors", f"{TRAINING_STATE}/{LIVE}"):
        expected, found = read_tensors(straight / file), read_tensors(resumed / file)
        assert all(torch.equal(found[k], v) for k, v in expected.items()), file
    logged = [
        json.loads(line)["step"] for line in (tmp_path / "halves" / LOG).read_text().splitlines()
    ]
    assert logged == [1, 2, 3, 4, 5, 6]


def test_the_best_is_remembered_when_a_run_goes_on(
    frames: Path, clip_folder: Path, tmp_path: Path
) -> None:
    """And it outlives pruning, however long ago it was."""
    options = {"val_split": 0.3, "val_every": 1, "save_every": 1, "keep_checkpoints": 2}
    config = config_for(frames, tmp_path, clip_folder, steps=2, **options)
    run(config)
    state = tmp_path / "checkpoints/000002" / TRAINING_STATE / "training_step.json"
    state.write_text(
        json.dumps({**json.loads(state.read_text()), "best": {"step": 1, "loss": 1e-9}})
    )
    watcher = Watcher()
    train(replace(config, resume=True, steps=5), watcher)
    assert [v.best for v in watcher.validations] == [False] * 3, "nothing is better than 1e-9"
    kept = sorted(p.name for p in (tmp_path / "checkpoints").iterdir())
    assert kept == ["000001", "000004", "000005", "best", "last"]
    assert os.readlink(tmp_path / "checkpoints/best") == "000001"
    assert os.readlink(tmp_path / "checkpoints/last") == "000005"


def test_a_full_disk_leaves_the_checkpoint_before(
    frames: Path, clip_folder: Path, tmp_path: Path
) -> None:
    config = config_for(frames, tmp_path, clip_folder, steps=6, save_every=2)
    with (
        disk(200_000) as fill,
        pytest.raises(UserError, match=r"cannot write .*000004.*the previous checkpoint is intact"),
    ):
        train(config, Watcher(lambda step: fill() if step == 3 else None))
    assert sorted(p.name for p in (tmp_path / "checkpoints").iterdir()) == ["000002", "last"]
    _, losses = run(replace(config, resume=True))
    assert len(losses) == 4, "and it can be gone on from"


def test_resuming_takes_the_runs_own_options(
    frames: Path, clip_folder: Path, tmp_path: Path
) -> None:
    """Who types only --dataset, --out and --resume gets the run that was interrupted, not the
    defaults.
    """
    began = config_for(
        frames, tmp_path / "run", clip_folder, steps=2, noise_samples=3, random_brightness=0.05
    )
    run(began)
    bare = TrainConfig(str(frames), tmp_path / "run", resume=True, steps=5)
    assert resumed_config(bare, ["steps"]) == replace(began, resume=True, steps=5)
    assert resumed_config(bare, []).steps == 2


def test_a_run_can_be_resumed_from_another_folder(
    frames: Path, clip_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever was given as a relative path is kept as an absolute one; the cache of the frames is
    found again.
    """
    monkeypatch.chdir(frames.parent)
    clip = {
        "vision_encoder_name": os.path.relpath(clip_folder),
        "text_encoder_name": os.path.relpath(clip_folder),
    }
    options = {"steps": 1, "cache_dir": Path("elsewhere"), "policy": clip}
    run(config_for(Path(frames.name), tmp_path / "run", clip_folder, **options))
    kept = json.loads((tmp_path / "run/checkpoints/last" / PRETRAINED / TRAIN_CONFIG).read_text())
    assert kept["dataset"] == str(frames)
    again = resumed_config(TrainConfig(str(frames), tmp_path / "run", resume=True), [])
    assert again.cache_dir == frames.parent / "elsewhere"
    kept_clip = again.policy["vision_encoder_name"]
    assert os.path.isabs(kept_clip)
    assert Path(kept_clip).samefile(clip_folder)


def test_two_trainings_in_one_folder(frames: Path, clip_folder: Path, tmp_path: Path) -> None:
    config = config_for(frames, tmp_path, clip_folder, steps=1)
    with output_dir_lock(tmp_path), pytest.raises(UserError, match="another training"):
        run(config)
    run(config)


def test_what_resuming_has_to_say(frames: Path, clip_folder: Path, tmp_path: Path) -> None:
    config = config_for(frames, tmp_path, clip_folder, steps=2, policy={"optimizer_betas": [0, 0]})
    run(config)
    watcher = Watcher()
    train(replace(config, resume=True, steps=1, val_split=0.2), watcher)
    told = " ".join(watcher.lines)
    assert "raise --steps to continue" in told
    assert "episodes this run has trained on" in told


def test_what_a_newer_lerobot_left_off_is_said_when_a_training_goes_on(
    frames: Path, clip_folder: Path, tmp_path: Path
) -> None:
    """From --init-from and --resume alike, as by `mtdit export`."""
    config = config_for(frames, tmp_path / "run", clip_folder, steps=1)
    checkpoint, _ = run(config)
    place = checkpoint / PRETRAINED / CONFIG
    place.write_text(json.dumps({**json.loads(place.read_text()), "use_film": False}))
    for more in (
        {"resume": True, "steps": 2},
        {"init_from": checkpoint, "output_dir": tmp_path / "new"},
    ):
        watcher = Watcher()
        train(replace(config, **more), watcher)
        (line,) = [line for line in watcher.lines if "newer LeRobot" in line]
        assert "ignored use_film" in line


def test_nothing_to_resume(frames: Path, clip_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no checkpoint"):
        run(config_for(frames, tmp_path / "new", clip_folder, resume=True))


def test_a_dataset_that_grew(clip_folder: Path, tmp_path: Path) -> None:
    """What the resumed run trains on is said, and the remedies named are ones that help."""
    few, more = small_recording.LENGTHS[:1], small_recording.LENGTHS
    began = small_recording.write(tmp_path / "few", video=False, lengths=few)
    grown = small_recording.write(tmp_path / "grown", video=False, lengths=more)
    options = {"steps": 1, "policy": {"drop_n_last_frames": 0}}
    config = config_for(began, tmp_path / "run", clip_folder, **options)
    run(config)
    watcher = Watcher()
    train(replace(config, dataset=str(grown), resume=True, steps=2), watcher)
    told = "\n".join(watcher.lines)
    assert "3 episodes with 38 frames, before 1 with 12; all of them are trained on" in told
    assert "new tasks since the checkpoint: 'close the drawer'" in told
    assert "a resumed run keeps the statistics that it began with" in told
    assert "delete meta/stats.json" not in told
    again = Watcher()
    train(replace(config, dataset=str(grown), resume=True, steps=3), again)
    assert not [line for line in again.lines if "since the checkpoint" in line]
