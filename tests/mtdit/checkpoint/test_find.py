"""Checkpoints are found by run, checkpoint or folder; the last run."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from mtdit.checkpoint.find import find_last_checkpoint, last_run
from mtdit.checkpoint.names import PRETRAINED
from mtdit.checkpoint.read import open_checkpoint
from mtdit_robots.errors import UserError


def test_found_by_run_checkpoint_or_folder(saved: Path) -> None:
    run = saved.parent.parent
    for path in (run, run / "checkpoints", run / "checkpoints/last", saved, saved / PRETRAINED):
        assert open_checkpoint(path).folder.resolve() == (saved / PRETRAINED).resolve(), path
    (run / "checkpoints/last").unlink()
    assert find_last_checkpoint(run) == saved


def test_the_last_run_is_the_one_that_saved_last(saved: Path, tmp_path: Path) -> None:
    outputs = tmp_path / "outputs"
    with pytest.raises(UserError, match="run `mtdit train` first"):
        last_run(outputs)
    runs = [
        outputs / name
        for name in ("train", "demo/train", "train/2026-08-03/12-00-00_multi_task_dit")
    ]
    for i, run in enumerate(runs):
        folder = run / "checkpoints/000007/pretrained_model"
        folder.mkdir(parents=True)
        shutil.copyfile(saved / PRETRAINED / "config.json", folder / "config.json")
        os.utime(folder / "config.json", (1000 + i, 1000 + i))
        assert last_run(outputs) == run
    os.utime(runs[0] / "checkpoints/000007/pretrained_model/config.json", (2000, 2000))
    assert last_run(outputs) == runs[0]
