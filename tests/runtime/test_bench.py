"""The figures of `mtdit bench`: what they are made of, not how large they are."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from mtdit_robots.errors import UserError
from mtdit_runtime.bench import bench, machine_speed, report
from mtdit_runtime.bundle.bundle import open_bundle
from mtdit_runtime.bundle.manifest import write_manifest
from mtdit_runtime.jetson import power_mode

FLOPS, BYTES = 3_000_000, 2_000_000


def counted(folder: Path) -> Path:
    """The bundle, with a cost on its denoiser."""
    manifest = open_bundle(folder).manifest
    denoiser = replace(manifest.graphs["denoiser"], flops=FLOPS, weight_bytes=BYTES)
    write_manifest(folder, replace(manifest, graphs={**manifest.graphs, "denoiser": denoiser}))
    return folder


def test_stages_percentiles_and_the_parts_of_a_cold_start(bundle_folder: Path) -> None:
    result = bench(counted(bundle_folder), "onnx", repeats=6)
    assert list(result["stages"]) == ["vision", "history", "denoiser", "tick"]
    for figures in result["stages"].values():
        assert 0 < figures["p50_ms"] <= figures["p95_ms"] <= figures["p99_ms"]
        assert figures["b_over_a"] > 0
    assert result["stages"]["tick"]["p50_ms"] >= result["stages"]["denoiser"]["p50_ms"]
    assert sum(result["cold_ms"].values()) == pytest.approx(result["cold_start_ms"], abs=0.2)
    assert result["peak_memory_mb"] > 10
    assert json.loads(json.dumps(result)) == result


def test_rates_are_costs_over_the_median(bundle_folder: Path) -> None:
    result = bench(counted(bundle_folder), "onnx", repeats=4)
    denoiser, machine = result["stages"]["denoiser"], result["machine"]
    seconds = denoiser["p50_ms"] / 1e3
    assert denoiser["gflops"] == pytest.approx(FLOPS / 1e9 / seconds, abs=0.01)
    assert denoiser["gb_per_s"] == pytest.approx(BYTES / 1e9 / seconds, abs=0.01)
    bound_s = max(FLOPS / 1e9 / machine["gflops"], BYTES / 1e9 / machine["gb_per_s"])
    assert denoiser["of_bound"] == pytest.approx(bound_s / seconds, abs=0.01)
    assert "gflops" not in result["stages"]["vision"]  # whose cost nobody counted
    assert "gflops" not in result["stages"]["tick"]


def test_the_report_has_a_cell_for_every_column_and_names_the_machine(bundle_folder: Path) -> None:
    result = bench(counted(bundle_folder), "onnx", repeats=4)
    columns, rows, lines = report(
        {**result, "machine": {**result["machine"], "power": "mode 2 (15W)"}}
    )
    assert [len(row) for row in rows] == [len(columns)] * 4
    assert [row[0] for row in rows] == ["vision", "history", "denoiser", "tick"]
    text = "\n".join(lines)
    assert "cold start" in text
    assert "GFLOP/s" in text
    assert "power mode 2 (15W)" in text


def test_the_probe_finds_positive_rates() -> None:
    speed = machine_speed()
    assert speed["gflops"] > 0.1
    assert speed["gb_per_s"] > 0.1


def test_power_mode_is_a_jetsons(tmp_path: Path) -> None:
    assert power_mode(tmp_path) is None
    for name, text in {
        "etc/nv_tegra_release": "# R36 (release), REVISION: 4.3\n",
        "etc/nvpmodel.conf": "< POWER_MODEL ID=0 NAME=MAXN >\n< POWER_MODEL ID=1 NAME=15W >\n",
        "var/lib/nvpmodel/status": "pmode:0001\n",
    }.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    assert power_mode(tmp_path) == "mode 1 (15W)"


def test_one_repeat_cannot_be_halved(bundle_folder: Path) -> None:
    with pytest.raises(UserError, match="repeats must be at least 2, got 1"):
        bench(bundle_folder, "onnx", repeats=1)
