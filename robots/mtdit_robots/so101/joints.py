"""The SO-101's joints, servo ids, and the conversion of ticks to units and back.

Source: LeRobot `motors_bus.py`, `_normalize` and `_unnormalize`: degrees divide by 4095, `int()`
truncates toward zero, and a round trip may lose one tick. The order of operations is LeRobot's too,
so results are equal to the last bit.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

JOINTS = ("shoulder_pan", "shoulder_lift", "elbow_flex", "wrist_flex", "wrist_roll", "gripper")
IDS = {joint: number for number, joint in enumerate(JOINTS, start=1)}

MAX_TICK = 4095
_IS_GRIPPER = np.array([joint == "gripper" for joint in JOINTS])

Ticks = NDArray[np.int64]
Values = NDArray[np.float64]
Flags = NDArray[np.bool_]


def degrees_from_ticks(ticks: ArrayLike, low: Ticks, high: Ticks) -> Values:
    """Degrees from the middle of the range. Not clamped; the drive mode is not used."""
    return (_values(ticks) - (low + high) / 2) * 360 / MAX_TICK


def ticks_from_degrees(degrees: ArrayLike, low: Ticks, high: Ticks) -> Ticks:
    """Ticks, not clamped: they may lie outside the range and be negative."""
    return _truncated(_values(degrees) * MAX_TICK / 360 + (low + high) / 2)


def signed_percent_from_ticks(ticks: ArrayLike, low: Ticks, high: Ticks, reverse: Flags) -> Values:
    """-100..100 over the range; ticks are clamped to the range."""
    percent = (np.clip(_values(ticks), low, high) - low) / (high - low) * 200 - 100
    return np.where(reverse, -percent, percent)


def ticks_from_signed_percent(percent: ArrayLike, low: Ticks, high: Ticks, reverse: Flags) -> Ticks:
    """Ticks for -100..100; percent are clamped to that."""
    values = _values(percent)
    bounded = np.clip(np.where(reverse, -values, values), -100.0, 100.0)
    return _truncated((bounded + 100) / 200 * (high - low) + low)


def percent_from_ticks(ticks: ArrayLike, low: Ticks, high: Ticks, reverse: Flags) -> Values:
    """0..100 over the range; ticks are clamped to the range."""
    percent = (np.clip(_values(ticks), low, high) - low) / (high - low) * 100
    return np.where(reverse, 100 - percent, percent)


def ticks_from_percent(percent: ArrayLike, low: Ticks, high: Ticks, reverse: Flags) -> Ticks:
    """Ticks for 0..100; percent are clamped to that."""
    values = _values(percent)
    bounded = np.clip(np.where(reverse, 100 - values, values), 0.0, 100.0)
    return _truncated(bounded / 100 * (high - low) + low)


def _values(numbers: ArrayLike) -> Values:
    return np.asarray(numbers, dtype=np.float64)


def _truncated(ticks: Values) -> Ticks:
    return np.trunc(ticks).astype(np.int64)


@dataclass(frozen=True)
class Ranges:
    """The calibrated ranges of the six joints, as arrays in joint order.

    low, high: (6,) ticks. reverse: (6,) bool, LeRobot's drive_mode. use_degrees: body joints in
    degrees, else -100..100, as in LeRobot. The gripper is always 0..100.
    """

    low: Ticks
    high: Ticks
    reverse: Flags
    use_degrees: bool = True

    def __post_init__(self) -> None:
        for joint, low, high in zip(JOINTS, self.low, self.high, strict=True):
            if low >= high:
                raise ValueError(f"{joint}: range {low}..{high} is empty")

    def bounds(self) -> Values:
        """(2, 6): the lowest and the highest position of each joint."""
        return np.sort([self.positions(self.low), self.positions(self.high)], axis=0)

    def per_degree(self) -> Values:
        """(6,): how many units a degree is, so that a limit in degrees holds in either unit. The
        gripper's limits are in percent in both.
        """
        body = np.ones(len(JOINTS)) if self.use_degrees else self._percent_per_degree()
        return np.where(_IS_GRIPPER, 1.0, body)

    def _percent_per_degree(self) -> Values:
        return 200 / ((self.high - self.low) * 360 / MAX_TICK)

    def positions(self, ticks: ArrayLike) -> Values:
        """Positions (..., 6) for raw ticks (..., 6)."""
        if self.use_degrees:
            body = degrees_from_ticks(ticks, self.low, self.high)
        else:
            body = signed_percent_from_ticks(ticks, self.low, self.high, self.reverse)
        return np.where(
            _IS_GRIPPER, percent_from_ticks(ticks, self.low, self.high, self.reverse), body
        )

    def ticks(self, positions: ArrayLike) -> Ticks:
        """Raw ticks (..., 6) for positions (..., 6). Body joints in degrees are not clamped."""
        if self.use_degrees:
            body = ticks_from_degrees(positions, self.low, self.high)
        else:
            body = ticks_from_signed_percent(positions, self.low, self.high, self.reverse)
        return np.where(
            _IS_GRIPPER, ticks_from_percent(positions, self.low, self.high, self.reverse), body
        )
