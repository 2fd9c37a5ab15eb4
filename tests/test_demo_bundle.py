"""The committed bundle of `make demo` is small, sound, and does its task."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from command_line import mtdit as command

import mtdit
from mtdit_runtime.bundle.bundle import open_bundle
from mtdit_runtime.verify.verify import verify

DEMO = Path(__file__).parent / "data/demo.mtdit"


def test_it_is_small_and_of_the_present_schema() -> None:
    assert sum(file.stat().st_size for file in DEMO.rglob("*") if file.is_file()) <= 12e6
    assert open_bundle(DEMO).manifest.joints[0].unit == "degrees"


def test_it_passes_its_own_checks_here() -> None:
    assert verify(DEMO).ok


def test_it_opens_the_drawer(tmp_path: Path) -> None:
    """It did so in 30 of 30 scenes; a policy that fails in two of five is another policy."""
    report = tmp_path / "eval.json"
    words = ("--robot", "twin", "--bundle", DEMO, "--task", "open the drawer", "--episodes", "5")
    done = command("eval", *words, "--json", report)
    assert done.returncode == 0, done.stderr
    read = json.loads(report.read_text())
    assert read["successes"] >= 4
    assert read["verdict"] == "normal"


@pytest.mark.parametrize("safety", [mtdit.SafetyConfig(), mtdit.SafetyConfig(max_speed=60)])
def test_its_runs_are_normal_also_when_a_person_caps_the_speed(safety: mtdit.SafetyConfig) -> None:
    options = mtdit.RunOptions("onnx", duration_s=8.0, lockstep=True, home_s=0, safety=safety)
    with mtdit.Twin(clock="lockstep") as twin:
        twin.reset("open the drawer", seed=100_000)
        report = mtdit.run(DEMO, twin.robot(), "open the drawer", options, success=twin.success)
    assert (report.reason, report.verdict) == ("success", "normal")
