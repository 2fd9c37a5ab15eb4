"""Statistics: written and read, and LeRobot's numerics."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from mtdit_runtime.normalize import Stats, load_stats, save_stats


@pytest.mark.parametrize("mode", ["MIN_MAX", "MEAN_STD", "IDENTITY"])
def test_stats_come_back(tmp_path: Path, mode: str) -> None:
    stats = Stats(mode, np.array([1.0, 2.0], np.float32), np.array([3.0, 2.0], np.float32))
    save_stats(tmp_path / "stats.safetensors", {"action": stats})
    loaded = load_stats(tmp_path / "stats.safetensors")["action"]
    assert loaded.mode == mode
    x = np.array([[2.5, 2.0], [-7.0, 2.0]])
    np.testing.assert_array_equal(loaded.normalize(x), stats.normalize(x))
    np.testing.assert_allclose(loaded.unnormalize(loaded.normalize(x)), x, atol=1e-5)


def test_min_max_numerics_are_lerobots() -> None:
    """Source: LeRobot normalize_processor.py. A dimension that never moved: its value is -1,
    anything else explodes.
    """
    stats = Stats("MIN_MAX", np.array([0.0, 5.0], np.float32), np.array([10.0, 5.0], np.float32))
    np.testing.assert_allclose(
        stats.normalize([[2.5, 5.0], [20.0, 5.001]]), [[-0.5, -1.0], [3.0, 2.0e5]], rtol=2e-3
    )
    np.testing.assert_allclose(stats.unnormalize([[1.0, 1.0]]), [[10.0, 5.0]])
