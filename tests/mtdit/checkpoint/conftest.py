"""A small checkpoint, for the tests of this folder."""

from __future__ import annotations

from pathlib import Path

import pytest
from small_checkpoint import save_small


@pytest.fixture
def saved(clip_folder: Path, tmp_path: Path) -> Path:
    return save_small(clip_folder, tmp_path / "run")
