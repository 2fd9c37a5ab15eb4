"""A checkpoint that may be damaged, and what exporting it then says."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from mtdit_export.export import export
from mtdit_export.options import ExportOptions
from mtdit_robots.errors import UserError

STATE, ACTION, TOP = "observation.state", "action", "observation.images.top"
NAN, INF = float("nan"), float("inf")
HUGE = 10**400
NORMALIZER = "policy_preprocessor_step_4_normalizer_processor.safetensors"
UNNORMALIZER = "policy_postprocessor_step_0_unnormalizer_processor.safetensors"
WEIGHTS = "model.safetensors"
FILES = ("config.json", "mtdit.json", "policy_preprocessor.json", "clip/config.json")


@pytest.fixture
def copy(checkpoint: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(checkpoint, tmp_path / "pretrained_model"))


def refusal(folder: Path, **options: Any) -> str:
    """What the user reads: one line, before the first stage is told, and nothing is left behind."""
    lines, out = list[str](), folder.parent / "p.mtdit"
    with pytest.raises(UserError) as caught:
        export(folder, out, ExportOptions(steps=1, **options), say=lines.append)
    said = str(caught.value)
    assert "\n" not in said
    assert len(said) < 1200
    assert not lines
    assert not out.exists()
    return said


def edit_json(path: Path, change: Callable[[Any], Any]) -> None:
    """`change` returns the new content, or changes the old one in place."""
    raw = json.loads(path.read_text())
    changed = change(raw)
    path.write_text(json.dumps(raw if changed is None else changed))


def edit_tensors(path: Path, change: Callable[[dict[str, torch.Tensor]], Any]) -> None:
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path)


@pytest.fixture
def lerobots(copy: Path) -> Path:
    """Without the facts that only `mtdit train` writes."""
    (copy / "mtdit.json").unlink()
    return copy
