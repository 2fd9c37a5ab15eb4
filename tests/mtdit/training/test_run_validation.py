"""The loss of held-out episodes, and the best checkpoint."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from small_run import Watcher, config_for, run

from mtdit.checkpoint.names import LIVE, PRETRAINED, TRAINING_STATE, WEIGHTS
from mtdit.checkpoint.read import open_checkpoint
from mtdit.checkpoint.tensors import read_tensors
from mtdit.training.distributed import init_distributed
from mtdit.training.metrics import LOG
from mtdit.training.reporters import Silent
from mtdit.training.run import prepare, train
from mtdit_robots.errors import UserError


def test_held_out_loss_is_that_of_the_weights_in_use(
    frames: Path, clip_folder: Path, tmp_path: Path
) -> None:
    """Dropout is on in training and off here; masking too must weigh every batch by its samples."""
    policy = {"dropout": 0.2, "do_mask_loss_for_padding": True}
    config = config_for(
        frames, tmp_path, clip_folder, policy=policy, val_split=0.3, val_every=2, noise_samples=2
    )
    watcher = Watcher()
    train(config, watcher)
    assert [v.step for v in watcher.validations] == [2, 4, 6]
    lines = [json.loads(line) for line in (tmp_path / LOG).read_text().splitlines()]
    assert [line["val_loss"] for line in lines if "val_loss" in line] == [
        v.loss for v in watcher.validations
    ]

    best = min(watcher.validations, key=lambda v: v.loss)
    assert best == [v for v in watcher.validations if v.best][-1]
    assert os.readlink(tmp_path / "checkpoints/best") == f"{best.step:06d}"
    acting = open_checkpoint(tmp_path / "checkpoints/best").policy()
    loader = replace(
        prepare(config, init_distributed(torch.device("cpu"), "no"), Silent()).loader,
        options=replace(config, batch_size=65_536),
    )
    with torch.no_grad():
        (everything,) = loader.validation()
        assert best.loss == pytest.approx(float(acting.loss(everything, 2)), abs=1e-6)


def test_validation_changes_nothing(frames: Path, clip_folder: Path, tmp_path: Path) -> None:
    often = config_for(
        frames,
        tmp_path / "often",
        clip_folder,
        steps=3,
        val_split=0.3,
        val_every=1,
        policy={"dropout": 0.2},
    )
    seldom = replace(often, output_dir=tmp_path / "seldom", val_every=100)
    (a, losses), (b, same) = run(often), run(seldom)
    assert losses == same
    for file in (f"{PRETRAINED}/{WEIGHTS}", f"{TRAINING_STATE}/{LIVE}"):
        one, other = read_tensors(a / file), read_tensors(b / file)
        assert all(torch.equal(other[k], v) for k, v in one.items()), file


def test_no_episodes_held_out_no_best(frames: Path, clip_folder: Path, tmp_path: Path) -> None:
    run(config_for(frames, tmp_path, clip_folder, steps=2, val_every=1))
    assert sorted(p.name for p in (tmp_path / "checkpoints").iterdir()) == ["000002", "last"]


def test_held_out_episodes_that_no_window_fits(
    frames: Path, clip_folder: Path, tmp_path: Path
) -> None:
    """The longest held-out episode has 26 frames; one of 31 is left to train on."""
    options = {"val_split": 0.3, "policy": {"drop_n_last_frames": 28}}
    with pytest.raises(UserError, match="held-out episode is shorter"):
        run(config_for(frames, tmp_path, clip_folder, **options))
