"""Bundles that may be spoilt, for the tests of this folder."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mtdit_runtime.bundle.manifest import MANIFEST


@pytest.fixture
def copy(bundle_folder: Path, tmp_path: Path) -> Path:
    """A bundle that may be spoilt."""
    return Path(shutil.copytree(bundle_folder, tmp_path / "copy.mtdit"))


@pytest.fixture
def edited(copy: Path) -> Callable[[Callable[[Any], Any]], Path]:
    """The copy with its manifest changed."""

    def edit(change: Callable[[Any], Any]) -> Path:
        data = json.loads((copy / MANIFEST).read_text())
        change(data)
        (copy / MANIFEST).write_text(json.dumps(data))
        return copy

    return edit
