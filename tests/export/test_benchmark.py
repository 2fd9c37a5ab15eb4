"""The latency benchmark runs, and ends with the line others read."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import chunk_latency
import pytest
import torch
import torch._dynamo
from chunk_contestants import SIZES, make_checkpoint
from chunk_gpu import compare, markdown

RATIOS = (
    "denoiser_ratio_vs_eager",
    "denoiser_ratio_vs_plain_onnx",
    "ratio_vs_lerobot_ddim10",
    "ratio_vs_lerobot_ddim10_int8",
    "ratio_vs_lerobot_default",
    "denoiser_fraction_of_matmul_rate",
)
# torch.compile imports what torch itself has deprecated
pytestmark = pytest.mark.filterwarnings("ignore:.torch.jit.script_method:DeprecationWarning")


@pytest.fixture(autouse=True)
def _uncompiled() -> Iterator[None]:
    """torch.compile would take a minute per test."""
    with torch._dynamo.config.patch(disable=True):
        yield


def test_tiny_run_ends_with_its_figures(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    table = tmp_path / "results/table.md"
    options = ["--size", "tiny", "--repeats", "2", "--threads", "1", "--out", str(table)]
    monkeypatch.setattr(sys, "argv", ["chunk_latency.py", *options])
    chunk_latency.main()
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
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


def test_the_gpus_part_is_rehearsed_on_the_cpu(tmp_path: Path) -> None:
    torch.set_num_threads(1)
    checkpoint = make_checkpoint(tmp_path, SIZES["tiny"])
    result = compare(checkpoint, SIZES["tiny"], repeats=2, device="cpu")
    assert "times the bound" in markdown(result)
    assert len(json.loads(json.dumps(result))["gpu_ms"]) == 6
    assert all(times > 0 for times in result["gpu_over_bound"].values())
