"""The latency benchmark runs, and ends with the line others read."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from repository import ROOT

UNCOMPILED = {**os.environ, "TORCH_COMPILE_DISABLE": "1"}  # a minute per test otherwise
FOLDER = ROOT / "benchmarks"
RATIOS = (
    "denoiser_ratio_vs_eager",
    "denoiser_ratio_vs_plain_onnx",
    "ratio_vs_lerobot_ddim10",
    "ratio_vs_lerobot_ddim10_int8",
    "ratio_vs_lerobot_default",
    "denoiser_fraction_of_matmul_rate",
)


def test_tiny_run_ends_with_its_figures(tmp_path: Path) -> None:
    table = tmp_path / "results/table.md"
    options = ["--size", "tiny", "--repeats", "2", "--threads", "1", "--out", str(table)]
    command = [sys.executable, str(FOLDER / "chunk_latency.py"), *options]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, env=UNCOMPILED)
    assert done.returncode == 0, done.stderr[-3000:]
    result = json.loads(done.stdout.splitlines()[-1])
    assert all(result[ratio] > 0 for ratio in RATIOS)
    assert result["repeats"] == 2
    assert {"cpu", "threads"} <= set(result["hardware"])
    assert {"torch", "lerobot", "onnxruntime"} <= set(result["versions"])
    ms = result["median_ms"]
    assert len(ms) == 13
    ratio = ms["LeRobot, DDIM 10"] / ms["ours, one new frame per camera"]
    assert abs(result["ratio_vs_lerobot_ddim10"] / ratio - 1) < 0.05  # the figures are rounded
    assert result["gflop"]["denoiser"] > 0
    assert "| ours, denoiser alone |" in table.read_text()


REHEARSAL = """
import json, sys, tempfile
from pathlib import Path
import torch
from chunk_contestants import SIZES, make_checkpoint
from chunk_gpu import compare, markdown
torch.set_num_threads(1)
with tempfile.TemporaryDirectory() as scratch:
    result = compare(
        make_checkpoint(Path(scratch), SIZES["tiny"]), SIZES["tiny"], repeats=2, device="cpu"
    )
assert "times the bound" in markdown(result)
print(json.dumps(result))
"""


def test_the_gpus_part_is_rehearsed_on_the_cpu() -> None:
    command = [sys.executable, "-c", REHEARSAL]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=600, cwd=FOLDER, env=UNCOMPILED
    )
    assert done.returncode == 0, done.stderr[-3000:]
    result = json.loads(done.stdout.splitlines()[-1])
    assert len(result["gpu_ms"]) == 6
    assert all(times > 0 for times in result["gpu_over_bound"].values())
