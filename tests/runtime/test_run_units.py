"""The unit of a bundle on its way to an arm, and a start far from all demonstrations."""

from __future__ import annotations

import hashlib
import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mtdit_robots.errors import UserError
from mtdit_robots.features import STATE
from mtdit_runtime.bundle.bundle import open_bundle
from mtdit_runtime.bundle.manifest import MANIFEST, STATS, write_manifest
from mtdit_runtime.normalize import Stats, load_stats, save_stats
from mtdit_runtime.run import RunOptions, run

TASK = "open the drawer"
OPTIONS = RunOptions(backend="onnx", lockstep=True, duration_s=0.5, home_s=0)


@pytest.fixture
def copy(bundle_folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(bundle_folder, tmp_path / "copy.mtdit"))


def as_schema_3(folder: Path) -> Path:
    data = json.loads((folder / MANIFEST).read_text())
    data |= {"schema_version": 3, "digest": ""}
    data["digest"] = hashlib.sha256(json.dumps(data, sort_keys=True).encode()).hexdigest()
    (folder / MANIFEST).write_text(json.dumps(data))
    return folder


def in_units(folder: Path, units: str) -> Path:
    m = open_bundle(folder).manifest
    joints = [j if j.unit == "percent" else replace(j, unit=units) for j in m.joints]
    write_manifest(folder, replace(m, joints=tuple(joints)))
    return folder


def refused(folder: Path, robot: Any, match: str, options: RunOptions = OPTIONS) -> None:
    """Before the arm has torque or a command."""
    with pytest.raises(UserError, match=match):
        run(folder, robot, TASK, options)
    assert robot.commands == []
    assert not robot.connected


def test_a_bundle_without_a_unit_is_refused_on_an_arm_until_it_is_said(
    copy: Path, scripted_robot: Any
) -> None:
    folder = as_schema_3(copy)
    refused(folder, scripted_robot(), r"unit of the positions is unknown.*--units degrees")
    for units in ("degrees", "normalized"):
        robot = scripted_robot()
        assert run(folder, robot, TASK, replace(OPTIONS, units=units)).reason == "duration"
        assert robot.units == units


def test_in_the_twin_it_runs(copy: Path, scripted_robot: Any) -> None:
    robot = scripted_robot(is_real=False)
    assert run(as_schema_3(copy), robot, TASK, OPTIONS).reason == "duration"
    assert robot.commands


def test_radians_are_refused_on_an_arm_until_another_unit_is_said(
    copy: Path, scripted_robot: Any
) -> None:
    folder = in_units(copy, "radians")
    refused(folder, scripted_robot(), r"in radians.*convert state and action.*--units degrees")
    assert run(folder, scripted_robot(), TASK, replace(OPTIONS, units="degrees")).ok


def test_the_bundle_picks_the_mode_of_the_arm(copy: Path, scripted_robot: Any) -> None:
    robot = scripted_robot()
    run(in_units(copy, "normalized"), robot, TASK, OPTIONS)
    assert robot.units == "normalized"


def test_nobody_contradicts_what_a_bundle_knows(copy: Path, scripted_robot: Any) -> None:
    options = replace(OPTIONS, units="normalized")
    refused(copy, scripted_robot(), "toy is in degrees .*, not normalized: leave --units", options)


@pytest.mark.parametrize("value", [151.0, -151.0])
def test_a_start_far_outside_the_demonstrations_is_refused(
    bundle_folder: Path, scripted_robot: Any, value: float
) -> None:
    """lift was -60..60 in training; 60 more is allowed."""
    robot = scripted_robot(start=np.array([10.0, value, 20.0]))
    refused(bundle_folder, robot, rf"lift is at {value}, .*between -60\.0 and 60\.0: move the arm")


@pytest.mark.parametrize("lift", [110.0, -110.0, 60.0, 0.0])
def test_a_start_that_rests_outside_is_not(
    bundle_folder: Path, scripted_robot: Any, lift: float
) -> None:
    robot = scripted_robot(start=np.array([10.0, lift, 20.0]))
    assert run(bundle_folder, robot, TASK, OPTIONS).reason == "duration"


@pytest.mark.parametrize(
    ("mode", "low", "high"),
    [("MEAN_STD", 0.0, 20.0), ("IDENTITY", 0.0, 0.0)],
    ids=["three deviations", "the actions' range"],
)
def test_every_kind_of_statistics_has_a_range(
    copy: Path, scripted_robot: Any, mode: str, low: float, high: float
) -> None:
    stats = load_stats(copy / STATS)
    ends = (np.full(3, value, np.float32) for value in (low, high))
    save_stats(copy / STATS, {**stats, STATE: Stats(mode, *ends)})
    write_manifest(copy, open_bundle(copy, check_files=False).manifest)
    robot = scripted_robot(start=np.array([10.0, 151.0, 20.0]))
    refused(copy, robot, r"lift is at 151\.0, .*between -60\.0 and 60\.0")
    assert run(copy, scripted_robot(), TASK, OPTIONS).ok


def test_limits_in_degrees_hold_in_another_unit(copy: Path, scripted_robot: Any) -> None:
    """At most 30 degrees per second where a degree is half a unit: 0.5 units in a tick."""

    class Halved(scripted_robot):  # type: ignore[misc]
        def use_units(self, units: str) -> Any:
            super().use_units(units)
            return np.array([0.5, 0.5, 1.0])

    robot = Halved()
    safety = replace(OPTIONS.safety, max_speed=30.0, ramp_s=0.0)
    run(in_units(copy, "normalized"), robot, TASK, replace(OPTIONS, safety=safety))
    steps = np.abs(np.diff([robot.start, *robot.commands], axis=0)).max(axis=0)
    np.testing.assert_allclose(steps, [0.5, 0.5, 1.0], atol=1e-9)
