"""What the tests of this folder read."""

from __future__ import annotations

from pathlib import Path

import pytest
from small_recording import write


@pytest.fixture(scope="session", params=[True, False], ids=["video", "images"])
def recorded(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, bool]:
    """The small dataset, and whether its pictures are video. Not to be written to."""
    return write(tmp_path_factory.mktemp("recorded") / "set", video=request.param), request.param
