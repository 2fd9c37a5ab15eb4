"""The committed bundle of `make demo` is small, sound, and does its task."""

from __future__ import annotations

import json
from pathlib import Path

from command_line import mtdit

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
    done = mtdit("eval", *words, "--json", report)
    assert done.returncode == 0, done.stderr
    assert json.loads(report.read_text())["successes"] >= 4
