"""What the commands work on: virtual servos and exported bundles."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from driven_arms import film, words
from exported import bundle, checkpoint, half_bundle, recording, workshop
from hand_moved_arm import arm
from servo_chain import calibration, chain, factory_chain, leader

__all__ = [
    "arm",
    "bundle",
    "calibration",
    "chain",
    "checkpoint",
    "factory_chain",
    "film",
    "half_bundle",
    "leader",
    "recording",
    "words",
    "workshop",
]


@pytest.fixture
def copy(bundle: Path, tmp_path: Path) -> Path:
    """A bundle that may be spoilt."""
    return Path(shutil.copytree(bundle, tmp_path / "copy.mtdit"))
