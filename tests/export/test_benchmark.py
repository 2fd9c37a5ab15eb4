"""The latency benchmark runs, and ends with the line others read."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).parents[2] / "benchmarks/chunk_latency.py"


def test_tiny_run_ends_with_its_figures(tmp_path: Path) -> None:
    table = tmp_path / "results/table.md"
    command = [sys.executable, str(SCRIPT), "--size", "tiny", "--repeats", "2", "--threads", "1", "--out", str(table)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-3000:]
    result = json.loads(done.stdout.splitlines()[-1])
    for ratio in ("ratio_vs_lerobot_ddim10", "ratio_vs_lerobot_default", "denoiser_ratio"):
        assert result[ratio] > 0
    assert result["repeats"] == 2
    assert {"cpu", "threads"} <= set(result["hardware"])
    assert {"torch", "lerobot", "onnxruntime"} <= set(result["versions"])
    assert len(result["median_ms"]) == 6
    assert "| ours, denoiser alone |" in table.read_text()
