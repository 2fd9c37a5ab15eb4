"""Each guard alone, without a robot."""

from __future__ import annotations

import numpy as np
import pytest

from mtdit_runtime.bundle.manifest import Joint
from mtdit_runtime.control.safety import Limits, Safety, SafetyConfig, Stop

FPS = 30
JOINTS = (Joint("lift", "degrees", -50.0, 50.0, 60.0), Joint("grip", "percent", 0.0, 100.0, 0.0))
CONFIG = SafetyConfig(ramp_s=0.0)
FREE = np.array([0.0, 50.0])


def safety(config: SafetyConfig = CONFIG, joints: tuple[Joint, ...] = JOINTS) -> Safety:
    guard = Safety([j.name for j in joints], Limits.of(joints, FPS, config), config)
    guard.begin(FREE)
    return guard


def far(config: SafetyConfig) -> Safety:
    """Without a speed limit."""
    fast = tuple(Joint(j.name, j.unit, j.low, j.high, 1e6) for j in JOINTS)
    return safety(config, fast)


def test_limits_are_the_training_range_and_speed_with_a_margin() -> None:
    limits = Limits.of(JOINTS, FPS, CONFIG)
    assert limits.low.tolist() == [-60, -10]
    assert limits.high.tolist() == [60, 110]
    np.testing.assert_allclose(
        limits.max_step, [60 * 1.5 / FPS, 20 / FPS]
    )  # a joint that stood still gets min_speed
    assert limits.tracked.tolist() == [True, False]


def test_a_maximum_speed_caps_every_joint_and_raises_none() -> None:
    limits = Limits.of(JOINTS, FPS, SafetyConfig(max_speed=30.0))
    np.testing.assert_allclose(limits.max_step, [30 / FPS, 20 / FPS])


def test_narrow_ranges_get_the_least_margin() -> None:
    limits = Limits.of([Joint("roll", "degrees", 10.0, 11.0, 1.0)], FPS, CONFIG)
    assert (limits.low[0], limits.high[0]) == (5, 16)


def test_range() -> None:
    guard = far(CONFIG)
    assert guard.command(np.array([200.0, -40.0]), FREE, 0.0).tolist() == [60, -10]
    guard.command(np.array([60.0, 0.0]), FREE, 0.1)
    assert guard.interventions["range"].tolist() == [1, 1]


def test_speed_is_limited_from_what_the_robot_accepted() -> None:
    guard = safety()
    first = guard.command(np.array([30.0, 50.0]), FREE, 0.0)
    np.testing.assert_allclose(first, [3.0, 50.0])
    guard.accepted(np.array([2.0, 50.0]))  # the robot cut it short
    np.testing.assert_allclose(guard.command(np.array([30.0, 50.0]), FREE, 0.03), [5.0, 50.0])
    assert guard.interventions["speed"].tolist() == [2, 0]


def test_guards_that_are_not_applied_count_what_they_would_change() -> None:
    """A jump to 80 is cut to 60, at 3 units per tick; uncut, the joint goes there at once."""
    limits = Limits.of(JOINTS, FPS, CONFIG)
    applied, counting = (Safety(["lift", "grip"], limits, CONFIG, applied=a) for a in (True, False))
    wanted = np.array([80.0, 50.0])
    for tick in range(40):
        for guard in (applied, counting):
            if not tick:
                guard.begin(FREE)
            guard.accepted(guard.command(wanted, FREE, tick / FPS))
    assert counting.last.tolist() == wanted.tolist(), "a joint far from its command does not end it"
    for guard in ("range", "speed", "not finite"):
        assert counting.interventions[guard].tolist() == applied.interventions[guard].tolist()
    assert counting.interventions["speed"].tolist() == [19, 0]
    assert counting.interventions["range"].tolist() == [40, 0]


def test_a_start_outside_the_range_is_left_slowly() -> None:
    guard = safety()
    guard.begin(np.array([80.0, 50.0]))
    np.testing.assert_allclose(
        guard.command(np.array([80.0, 50.0]), np.array([80.0, 50.0]), 0.0), [77.0, 50.0]
    )


def test_ramp_goes_from_the_pose_found_to_what_is_wanted() -> None:
    guard = far(SafetyConfig(ramp_s=1.0))
    wanted = np.array([40.0, 50.0])
    got = [guard.command(wanted, FREE, 5.0 + s)[0] for s in (0.0, 0.25, 0.5, 1.0, 2.0)]
    assert got == [0, 10, 20, 40, 40]
    assert not any(n.any() for n in guard.interventions.values())


def test_not_finite_actions_hold_then_end_the_run() -> None:
    guard = far(CONFIG)
    guard.accepted(guard.command(np.array([10.0, 50.0]), FREE, 0.0))
    for now_s in (0.1, 0.5):
        assert guard.command(np.array([np.nan, 20.0]), FREE, now_s).tolist() == [10, 50]
    assert guard.command(np.array([12.0, 50.0]), FREE, 0.6).tolist() == [12, 50]
    guard.command(np.array([np.inf, 20.0]), FREE, 0.7)
    with pytest.raises(Stop, match="policy error: the action of lift is not a finite number"):
        guard.command(np.array([np.nan, np.nan]), FREE, 1.3)
    assert guard.interventions["not finite"].tolist() == [4, 1]


def test_stale_frames_hold_then_end_the_run() -> None:
    guard = safety()
    assert guard.frames_fresh({"top": 0.05, "wrist": 0.1}, 0.0)
    assert not guard.frames_fresh({"top": 0.05, "wrist": 0.3}, 0.2)
    assert not guard.frames_fresh({"top": 0.05, "wrist": 1.9}, 1.8)
    assert guard.frames_fresh({"top": 0.05, "wrist": 0.02}, 1.9)
    assert not guard.frames_fresh({"top": 0.25, "wrist": 0.02}, 2.0)
    with pytest.raises(Stop, match=r"stale camera: 'top' gave no new frame for 2\.5 s"):
        guard.frames_fresh({"top": 2.5, "wrist": 0.02}, 2.1)
    assert guard.stale_ticks == 4


def test_frames_that_are_always_a_little_old_end_the_run_too() -> None:
    guard = safety()
    with pytest.raises(Stop, match="stale camera"):
        any(guard.frames_fresh({"top": 0.3}, tick / FPS) for tick in range(200))


def test_without_cameras_nothing_is_stale() -> None:
    assert safety().frames_fresh({}, 0.0)


def test_a_joint_that_does_not_follow_is_blocked() -> None:
    guard = far(CONFIG)
    wanted = np.array([40.0, 100.0])
    for now_s in (0.0, 0.1):
        guard.accepted(guard.command(wanted, FREE, now_s))
    guard.command(wanted, FREE, 0.9)
    with pytest.raises(Stop, match="blocked: lift is at 0 but was commanded to 40"):
        guard.command(wanted, FREE, 1.2)


def test_a_joint_that_catches_up_is_not_blocked() -> None:
    guard = far(CONFIG)
    wanted = np.array([40.0, 50.0])
    for tick in range(100):
        measured = np.array([30.0 if tick % 20 == 19 else 5.0, 50.0])
        guard.accepted(guard.command(wanted, measured, tick / FPS))
    assert guard.last.tolist() == wanted.tolist()


def test_a_gripper_closed_on_something_is_not_blocked() -> None:
    guard = far(CONFIG)
    for tick in range(100):
        guard.accepted(guard.command(np.array([0.0, 0.0]), np.array([0.0, 60.0]), tick / FPS))
    assert guard.last.tolist() == [0, 0]


def test_holding_repeats_the_last_command_and_still_watches() -> None:
    guard = far(CONFIG)
    guard.accepted(guard.command(np.array([40.0, 50.0]), FREE, 0.0))
    assert guard.hold(np.array([38.0, 50.0]), 0.1).tolist() == [40, 50]
    guard.hold(FREE, 0.2)
    with pytest.raises(Stop, match="blocked"):
        guard.hold(FREE, 1.5)


def test_no_limits_change_nothing() -> None:
    guard = Safety(["lift", "grip"], Limits.none(2), CONFIG)
    wanted = np.array([1e4, -1e4])
    for now_s in (0.0, 10.0):
        assert guard.command(wanted, FREE, now_s).tolist() == wanted.tolist()
        guard.accepted(wanted)


@pytest.mark.parametrize("seed", range(5))
def test_whatever_is_wanted_commands_stay_within_limits(seed: int) -> None:
    rng = np.random.default_rng(seed)  # seed in the test's id
    guard = safety(SafetyConfig(ramp_s=0.3, not_finite_end_s=1e9, tracking_end_s=1e9))
    limits, last = guard.limits, FREE
    for tick in range(200):
        wanted = (
            rng.choice([np.nan, np.inf, -np.inf, 1e9, 0.0, 1.0], size=2) * rng.normal(size=2) * 100
        )
        sent = guard.command(wanted, FREE, tick / FPS)
        assert np.all(np.isfinite(sent))
        assert np.all((sent >= limits.low) & (sent <= limits.high))
        assert np.all(np.abs(sent - last) <= limits.max_step + 1e-9)
        guard.accepted(sent)
        last = sent
