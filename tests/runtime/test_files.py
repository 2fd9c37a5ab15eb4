"""Files are read strictly, and a lock excludes every other process."""

from __future__ import annotations

from pathlib import Path

import pytest

from mtdit_robots.errors import UserError
from mtdit_runtime.files import locked


@pytest.mark.parametrize("name", ["file", "."])
def test_a_lock_is_held_by_one(tmp_path: Path, name: str) -> None:
    again = pytest.raises(UserError, match="busy")
    with locked(tmp_path / name, "busy"), again, locked(tmp_path / name, "busy"):
        pass
    with locked(tmp_path / name, "busy"):
        pass


def test_a_lock_in_a_folder_that_was_removed_is_busy(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="busy"), locked(tmp_path / "gone/lock", "busy"):
        pass
