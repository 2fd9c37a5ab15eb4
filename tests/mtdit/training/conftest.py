"""What the tests of this folder train on."""

from __future__ import annotations

from pathlib import Path

import pytest
from small_cache import write_cache


@pytest.fixture(scope="session")
def frames(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The frame cache written by hand. Not to be written to."""
    return write_cache(tmp_path_factory.mktemp("cache") / "frames")
