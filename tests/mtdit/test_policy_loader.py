"""`load` of what holds no policy; of bundles and checkpoints see tests/test_python_page.py."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from mtdit.policy_loader import load
from mtdit_robots.errors import UserError


@pytest.mark.parametrize(
    ("source", "backend", "message"),
    [
        ("policy.mtdit", "auto", r"^no bundle at .*policy\.mtdit: run `mtdit export` first$"),
        ("outputs/train", "auto", r"^there is no checkpoint at .*: check the path, or run `mtdit "),
        ("outputs/train", "tensorrt", r"no backend 'tensorrt': use one of auto, cpu, cuda, or exp"),
    ],
)
def test_nothing_there(tmp_path: Path, source: str, backend: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        load(tmp_path / source, backend)


def test_a_folder_without_a_policy(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"^there is no checkpoint in .*: give a run, a checkpoint"):
        load(str(tmp_path))


def test_a_checkpoint_without_torch(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(UserError, match=r"a checkpoint needs torch, .*: pip install .*\[train\]"):
        load(tmp_path)


def test_cuda_that_is_not_there(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(UserError, match=r"torch finds no CUDA GPU on this computer"):
        load(tmp_path, "cuda")
