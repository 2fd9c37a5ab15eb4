"""`--units` on the command line: a recording or bundle whose unit nobody knows, and a real arm."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
from command_line import mtdit
from driven_arms import Refused, Words, assert_limp

from mtdit_robots.so101.calibration import Calibration, ranges
from mtdit_robots.so101.joints import JOINTS
from mtdit_runtime.bundle.manifest import MANIFEST
from mtdit_runtime.recording.dataset_layout import RECORDER, DatasetLayout
from mtdit_runtime.recording.dataset_writer import DatasetWriter

N = 20


@pytest.fixture
def unnamed(tmp_path: Path) -> Path:
    """A recording within -30..30 that does not say its unit."""
    writer = DatasetWriter(tmp_path / "set", DatasetLayout(30, JOINTS, {}), wait=True)
    episode = writer.begin("wave")
    for i in range(N):
        row = np.sin(i / 9 + np.arange(6)) * [20, 29.1, 20, 20, 20, 0] + [0, 0, 0, 0, 0, 50]
        episode.add(row, row, {})
    writer.save_episode(episode)
    writer.close()
    (tmp_path / "set" / RECORDER).unlink()
    return tmp_path / "set"


def test_a_recording_is_replayed_in_the_unit_that_is_said(
    words: Words, calibration: Calibration, unnamed: Path, refused: Refused
) -> None:
    command = ("replay", "--dataset", str(unnamed), *words.arm(), "--bus-timeout", "2")
    message = refused(*command)
    assert "unit of the positions is unknown" in message
    assert "--units normalized" in message
    assert_limp(words.follower)
    for units in ("degrees", "normalized"):
        done = mtdit(*command, "--home-seconds", "0", "--units", units)
        assert done.returncode == 0, done.stdout + done.stderr
        last = np.sin((N - 1) / 9 + np.arange(6)) * [20, 29.1, 20, 20, 20, 0]
        last[5] = 50
        goals = ranges(calibration, units == "degrees").ticks(last)
        held = [servo.get("Goal_Position") for servo in words.follower.servos.values()]
        np.testing.assert_allclose(held, goals, atol=1)
        assert_limp(words.follower)


def test_a_bundle_of_schema_3_needs_a_unit_on_an_arm(
    words: Words, copy: Path, refused: Refused
) -> None:
    data = json.loads((copy / MANIFEST).read_text())
    data |= {"schema_version": 3, "digest": ""}
    data["digest"] = hashlib.sha256(json.dumps(data, sort_keys=True).encode()).hexdigest()
    (copy / MANIFEST).write_text(json.dumps(data))
    command = ("run", "--bundle", str(copy), "--task", "open the drawer", *words.arm())
    assert "--units degrees" in refused(*command)
    assert "needs camera" in refused(*command, "--units", "degrees")  # what comes after
    assert "degrees" in refused(*command, "--units", "ticks")
    assert_limp(words.follower)
