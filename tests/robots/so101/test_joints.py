"""Unit conversions: golden numbers, and LeRobot's own arithmetic as the oracle."""

from __future__ import annotations

import numpy as np
import pytest
from lerobot.motors import Motor, MotorCalibration, MotorNormMode
from lerobot.motors.feetech import FeetechMotorsBus

from mtdit_robots.so101.joints import (
    IDS,
    JOINTS,
    Ranges,
    degrees_from_ticks,
    percent_from_ticks,
    signed_percent_from_ticks,
    ticks_from_degrees,
    ticks_from_percent,
    ticks_from_signed_percent,
)


def one(value: int) -> np.ndarray:
    return np.array([value])


def test_golden_degrees() -> None:
    low, high = one(800), one(3301)
    np.testing.assert_allclose(degrees_from_ticks([2047], low, high), [-0.3076923], atol=1e-7)
    np.testing.assert_allclose(degrees_from_ticks([100], low, high), [-171.4725275], atol=1e-7)
    assert [int(ticks_from_degrees([d], low, high)[0]) for d in (10, -10, -300)] == [
        2164,
        1936,
        -1362,
    ]


def test_golden_signed_percent() -> None:
    low, high, reverse = one(800), one(3300), np.array([True])
    np.testing.assert_allclose(signed_percent_from_ticks([2047], low, high, reverse), [0.24])
    assert ticks_from_signed_percent([10], low, high, reverse) == [1925]


def test_golden_percent() -> None:
    low, high, reverse = one(2000), one(3400), np.array([True])
    np.testing.assert_allclose(
        percent_from_ticks([2047], low, high, reverse), [96.642857], atol=1e-6
    )
    assert ticks_from_percent([10], low, high, reverse) == [3260]


@pytest.mark.parametrize("use_degrees", [True, False])
@pytest.mark.parametrize("seed", range(5))
def test_conversions_equal_lerobots_to_the_last_bit(use_degrees: bool, seed: int) -> None:
    print("seed", seed)
    chance = np.random.default_rng(seed)
    ranges, theirs = random_arm(chance, use_degrees)
    for ticks in chance.integers(-3000, 7000, (40, 6)):
        expected = theirs._normalize(dict(zip(IDS.values(), map(int, ticks), strict=True)))
        assert ranges.positions(ticks).tolist() == list(expected.values())
    for positions in chance.uniform(-250, 250, (40, 6)):
        expected = theirs._unnormalize(dict(zip(IDS.values(), map(float, positions), strict=True)))
        assert ranges.ticks(positions).tolist() == list(expected.values())


def random_arm(chance: np.random.Generator, use_degrees: bool) -> tuple[Ranges, FeetechMotorsBus]:
    low, high, reverse = (
        chance.integers(0, 1500, 6),
        chance.integers(2500, 4096, 6),
        chance.random(6) < 0.5,
    )
    body = MotorNormMode.DEGREES if use_degrees else MotorNormMode.RANGE_M100_100
    modes = [body] * 5 + [MotorNormMode.RANGE_0_100]
    bus = FeetechMotorsBus(
        port="/dev/null",
        motors={
            joint: Motor(IDS[joint], "sts3215", mode)
            for joint, mode in zip(JOINTS, modes, strict=True)
        },
        calibration={
            joint: MotorCalibration(IDS[joint], int(reverse[n]), 0, int(low[n]), int(high[n]))
            for n, joint in enumerate(JOINTS)
        },
    )
    return Ranges(low, high, reverse, use_degrees), bus


def test_bounds_are_the_positions_of_the_range_ends() -> None:
    ranges = Ranges(np.full(6, 1000), np.full(6, 3000), np.array([False] * 5 + [True]))
    lowest, highest = ranges.bounds()
    np.testing.assert_allclose(lowest, [-87.912088] * 5 + [0])
    np.testing.assert_allclose(highest, [87.912088] * 5 + [100])


def test_a_degree_has_its_number_of_units_in_either_mode() -> None:
    low, high, reverse = np.arange(900, 1500, 100), np.arange(3100, 2500, -100), np.zeros(6, bool)
    assert Ranges(low, high, reverse).per_degree().tolist() == [1.0] * 6
    scale = Ranges(low, high, reverse, use_degrees=False).per_degree()
    middle = (low + high) // 2
    degrees, units = (Ranges(low, high, reverse, mode).positions(middle + 100)
                      - Ranges(low, high, reverse, mode).positions(middle)
                      for mode in (True, False))  # fmt: skip
    np.testing.assert_allclose(units[:5], degrees[:5] * scale[:5])
    assert scale[5] == 1.0


def test_an_empty_range_is_refused() -> None:
    with pytest.raises(ValueError, match=r"shoulder_pan: range 3000\.\.3000 is empty"):
        Ranges(np.full(6, 3000), np.full(6, 3000), np.zeros(6, dtype=bool))


def test_every_joint_has_an_id() -> None:
    assert tuple(IDS) == JOINTS
