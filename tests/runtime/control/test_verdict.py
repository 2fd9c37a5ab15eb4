"""The verdict: each threshold from both sides, and what is nobody's fault."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from mtdit_runtime.bundle.manifest import Joint
from mtdit_runtime.control import verdict as v
from mtdit_runtime.control.report import RunReport
from mtdit_runtime.control.safety import Limits, SafetyConfig
from mtdit_runtime.control.verdict import NORMAL, verdict

FPS = 30
JOINTS = (Joint("lift", "degrees", -50.0, 50.0, 60.0), Joint("grip", "percent", 0.0, 100.0, 0.0))
TRAINED = Limits.of(JOINTS, FPS, SafetyConfig())
NOTHING = {guard: {"lift": 0, "grip": 0} for guard in ("not finite", "range", "speed")}
QUIET = RunReport(
    reason="duration",
    detail="",
    ticks=1000,
    duration_s=1000 / FPS,
    late_ticks=0,
    dropped_periods=0,
    max_overrun_ms=0.0,
    stages={},
    stale_ticks=0,
    bus_errors=0,
    servo_errors={},
    seam_jump={"lift": 0.0, "grip": 0.0},
    interventions=NOTHING,
    exit_errors=(),
)


def limited(guard: str, lift: int = 0, grip: int = 0) -> dict[str, Any]:
    return {"interventions": {**NOTHING, guard: {"lift": lift, "grip": grip}}}


def seam(lift: float = 0.0, grip: float = 0.0) -> dict[str, Any]:
    return {"seam_jump": {"lift": lift, "grip": grip}}


# The last normal value and the first abnormal one; what is said of that; the end of its remedy.
SPEED = "the speed guard changed lift in 201 of 1000 ticks, 20% (normal: up to 20%)"
RANGE = "the range guard changed grip in 51 of 1000 ticks, 5% (normal: up to 5%)"
NAN = "1 actions of grip were not finite numbers"
SEAM = "a new chunk differed from the one before by 31 at lift, 0.5 s of the demonstrations'"
STILL = "by 11 at grip, 0.5 s of the demonstrations'"  # a joint that hardly moved: 20 units/s
STALL = "no chunk was ready in 51 of 1000 ticks, 5% (normal: up to 5%)"
LATE = "the tick was late in 101 of 1000 ticks, 10% (normal: up to 10%)"
STALE = "the camera frames were stale in 51 of 1000 ticks, 5% (normal: up to 5%)"
LOST = "the bus failed in 11 of 1000 ticks, 1% (normal: up to 1%)"
THRESHOLDS = {
    "speed": (limited("speed", lift=200), limited("speed", lift=201), SPEED, v.POLICY),
    "range": (limited("range", grip=50), limited("range", grip=51), RANGE, v.POLICY),
    "not finite": ({}, limited("not finite", grip=1), NAN, v.POLICY),
    "seam": (seam(lift=30.0), seam(lift=30.6), SEAM, v.POLICY),
    "seam of a still joint": (seam(grip=10.0), seam(grip=10.6), STILL, v.POLICY),
    "stalled": ({"stalled_ticks": 50}, {"stalled_ticks": 51}, STALL, v.SLOW),
    "late": ({"late_ticks": 100}, {"late_ticks": 101}, LATE, v.BUSY),
    "stale": ({"stale_ticks": 50}, {"stale_ticks": 51}, STALE, v.CAMERAS),
    "lost": ({"bus_errors": 10, "ticks": 990}, {"bus_errors": 11, "ticks": 989}, LOST, v.SERVOS),
    "reason": ({"reason": "success"}, {"reason": "blocked"}, "it ended with `blocked`", ""),
    "exit": ({}, {"exit_errors": ("hold: gone",)}, "an error after the end (hold: gone)", ""),
}


@pytest.mark.parametrize("name", THRESHOLDS)
def test_each_threshold_from_both_sides(name: str) -> None:
    last_normal, first_abnormal, what, remedy = THRESHOLDS[name]
    assert verdict(replace(QUIET, **last_normal), TRAINED) == NORMAL
    said = verdict(replace(QUIET, **first_abnormal), TRAINED)
    assert said.startswith("abnormal: ")
    assert what in said
    assert said.endswith(remedy)
    assert "; " not in said, "one finding"


def test_all_findings_are_one_line_and_a_remedy_is_said_once() -> None:
    worst = {**limited("speed", lift=1000), **seam(lift=100.0), "late_ticks": 500}
    said = verdict(replace(QUIET, **worst, exit_errors=("hold:\ngone",)), TRAINED)
    assert said.count("; ") == 3
    assert (said.count(v.POLICY), said.count(v.BUSY), said.count("\n")) == (1, 1, 0)


def test_a_short_run_is_judged_as_a_part_of_a_hundred_ticks() -> None:
    """One lost tick of ten is no sick bus; a speed guard that is active all the time shows."""
    assert verdict(replace(QUIET, ticks=9, bus_errors=1), TRAINED) == NORMAL
    assert verdict(replace(QUIET, ticks=20, **limited("speed", lift=20)), TRAINED) == NORMAL
    said = verdict(replace(QUIET, ticks=25, **limited("speed", lift=25)), TRAINED)
    assert "in 25 of 25 ticks, 100%" in said
    assert verdict(replace(QUIET, ticks=0), TRAINED) == NORMAL


def test_a_joint_that_a_person_capped_is_not_the_policys_fault() -> None:
    """60 units/s is below the 90 that the demonstrations allow lift, not below the 20 of grip."""
    capped = Limits.of(JOINTS, FPS, SafetyConfig(max_speed=60.0))
    assert capped.capped.tolist() == [True, False]
    assert verdict(replace(QUIET, **limited("speed", lift=900)), capped) == NORMAL
    assert "changed grip" in verdict(replace(QUIET, **limited("speed", 900, 300)), capped)
    assert SEAM in verdict(replace(QUIET, **seam(lift=30.6)), capped), "seams are still judged"
    assert not Limits.of(JOINTS, FPS, SafetyConfig(max_speed=90.0)).capped.any()


@pytest.mark.parametrize("per_degree", [1.0, 0.5])
def test_the_fastest_motion_is_in_the_joints_unit(per_degree: float) -> None:
    limits = Limits.of(JOINTS, FPS, SafetyConfig(), per_degree)
    np.testing.assert_allclose(limits.fastest, [60.0, 20.0 * per_degree])


def test_without_demonstrations_only_numbers_and_the_machine_are_judged() -> None:
    """A person may lead an arm into its limits; a loop that is late is late."""
    led = replace(QUIET, seam_jump={}, interventions={**NOTHING, "range": {"lift": 900, "grip": 0}})
    assert verdict(led, Limits.none(2)) == NORMAL
    assert LATE in verdict(replace(led, late_ticks=101), Limits.none(2))
    assert NAN in verdict(replace(QUIET, **limited("not finite", grip=1)), Limits.none(2))
