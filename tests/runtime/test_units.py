"""What the numbers of a dataset tell about their unit; LeRobot's own conversion made them."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from drawn_calibrations import sound
from lerobot.motors import Motor, MotorCalibration, MotorNormMode
from lerobot.motors.feetech import FeetechMotorsBus

from mtdit_robots.errors import UserError
from mtdit_robots.so101.calibration import JointCalibration, ranges
from mtdit_robots.so101.joints import IDS, JOINTS, Ranges
from mtdit_robots.units import check_arm_units
from mtdit_runtime.units import Judged, Vector, advice, judge, settled, vectors

N = 200
WAVE = np.stack([np.sin(np.arange(N) / 9 + k) for k in range(6)], axis=1)


def recorded(seed: int, use_degrees: bool, reach: float) -> np.ndarray:
    """(N, 6) float32 states as LeRobot reads them from an arm that uses `reach` of its ranges."""
    chance = np.random.default_rng(seed)
    low, high = chance.integers(900, 1100, 6), chance.integers(2900, 3200, 6)
    low[4], high[4] = 0, 4095  # LeRobot's wrist_roll
    body = MotorNormMode.DEGREES if use_degrees else MotorNormMode.RANGE_M100_100
    modes = [body] * 5 + [MotorNormMode.RANGE_0_100]
    bus = FeetechMotorsBus(
        "/dev/null",
        {j: Motor(IDS[j], "sts3215", m) for j, m in zip(JOINTS, modes, strict=True)},
        {
            j: MotorCalibration(IDS[j], int(chance.integers(0, 2)), 0, int(low[n]), int(high[n]))
            for n, j in enumerate(JOINTS)
        },
    )
    ticks = np.round((low + high) / 2 + WAVE * reach * (high - low) / 2).astype(int)
    rows = [list(bus._normalize(dict(zip(IDS.values(), map(int, t), strict=True))).values())
            for t in ticks]  # fmt: skip
    return np.array(rows, np.float32)


def judged(state: np.ndarray, action: np.ndarray | None = None) -> Judged:
    action = state if action is None else action
    return judge(Vector("state", JOINTS, state), Vector("action", JOINTS, action))


@pytest.mark.parametrize("reach", [0.1, 0.5, 0.9])
@pytest.mark.parametrize("use_degrees", [True, False])
@pytest.mark.parametrize("seed", range(4))
def test_what_lerobot_recorded_is_told_apart(seed: int, use_degrees: bool, reach: float) -> None:
    """Also where all values lie within -100..100: servo ticks leave their grid in the numbers."""
    print("seed", seed)
    found = judged(recorded(seed, use_degrees, reach))
    assert found.units == ("degrees" if use_degrees else "normalized"), found
    assert found.is_certain


def moved(rng: np.random.Generator, arm: Ranges, wave: np.ndarray) -> np.ndarray:
    """(N, 6) float32 states of an arm that moves so, 1 being the end of each range."""
    ticks = np.round((arm.low + arm.high) / 2 + wave * (arm.high - arm.low) / 2)
    return arm.positions(np.clip(ticks + rng.integers(-2, 3, wave.shape), 0, 4095)).astype(
        "float32"
    )


def test_no_recording_of_any_arm_is_taken_for_the_other_unit() -> None:
    """Drawn calibrations of follower and leader; some joints rest, some go to the end, some beyond;
    few rows or many. What cannot be told is unknown.
    """
    print("seed", seed := 14)
    rng, found = np.random.default_rng(seed), Counter[str]()
    for number in range(60):
        use_degrees = bool(number % 2)
        follower, leader = (
            ranges({j: JointCalibration(**values) for j, values in sound(rng).items()}, use_degrees)
            for _ in range(2)
        )
        places = np.arange(rng.choice([5, 30, 200]))[:, None] / rng.uniform(3, 40, 6)
        reach = rng.choice([0.005, 0.05, 0.3, 0.9, 1.3], 6) * (rng.random(6) < 0.8)
        wave = np.sin(places) * reach + rng.uniform(-0.3, 0.3, 6)
        units = judged(moved(rng, follower, wave), moved(rng, leader, wave)).units
        assert units in ("degrees" if use_degrees else "normalized", "unknown"), f"arm {number}"
        found[units] += 1
    assert found["unknown"] < 30, found


def smooth(body: float, gripper: float = 90.0) -> np.ndarray:
    """(N, 6) float32 on no grid."""
    rows = WAVE * body * 0.987
    rows[:, 5] = gripper * (0.5 + 0.4 * WAVE[:, 5])
    return rows.astype(np.float32)


def clamped(body: float) -> np.ndarray:
    return np.clip(smooth(body * 1.05), -body, body)


@pytest.mark.parametrize(
    ("state", "units", "why"),
    [
        (smooth(131.0), "degrees", "state shoulder_pan reaches"),
        (clamped(100.0), "normalized", "reaches -100, and none goes beyond"),
        (smooth(1.6, 1.5), "radians", "within +-1.58"),
        (smooth(3.1), "radians", "within +-3.06"),
        (smooth(60.0), "unknown", "may be either"),
        (np.round(smooth(60.0), 2), "unknown", "may be either"),
        (np.round(smooth(60.0)), "unknown", "may be either"),
        (smooth(60.0).astype(np.float16), "unknown", "may be either"),
        (np.zeros((N, 6), np.float32), "unknown", "may be either"),
        (smooth(2000.0), "unknown", "more than a turn"),
    ],
)
def test_numbers_of_each_kind(state: np.ndarray, units: str, why: str) -> None:
    found = judged(state)
    assert found.units == units, found
    assert why in found.reason, found
    lines = advice(found)
    assert len(lines) == (0 if units == "degrees" else 1)
    assert all("--units degrees" in line for line in lines)


def test_actions_count_as_well() -> None:
    """A leader in degrees goes beyond 100; a policy's normalized action may, by a little."""
    assert judged(smooth(60.0), smooth(131.0)).units == "degrees"
    assert judged(clamped(100.0), smooth(104.0)).units == "normalized"


def test_a_person_may_say_what_numbers_leave_open() -> None:
    open_question, sure = Judged("unknown", "either"), Judged("degrees", "131", is_certain=True)
    assert settled(open_question, "normalized", "set") == "normalized"
    assert settled(Judged("radians", "small"), "degrees", "set") == "degrees"
    assert settled(open_question, None, "set") == "unknown"
    assert settled(sure, "degrees", "set") == "degrees"
    with pytest.raises(UserError, match=r"set is in degrees \(131\), not normalized: leave"):
        settled(sure, "normalized", "set")
    with pytest.raises(UserError, match="units are degrees or normalized, got 'ticks'"):
        settled(open_question, "ticks", "set")


@pytest.mark.parametrize("units", ["unknown", "radians"])
def test_no_arm_moves_in_a_unit_that_nobody_knows(units: str) -> None:
    with pytest.raises(UserError, match=r"add --units degrees.* or --units normalized"):
        check_arm_units(units)


@pytest.mark.parametrize("shift", [0, 3, 6])
def test_a_state_may_hold_more_than_positions(shift: int) -> None:
    """Speeds behind, between or before the positions: each number counts by its name."""
    names = [*JOINTS, *(f"{joint}.vel" for joint in JOINTS)]
    more = np.concatenate([clamped(100.0), smooth(500.0)], axis=1)
    state = names[shift:] + names[:shift], np.roll(more, -shift, axis=1)
    assert judge(*vectors(*state, JOINTS, clamped(100.0))).units == "normalized"
