"""Which unit the positions of an arm are in, judged from the numbers: neither LeRobot's datasets
nor its checkpoints say it.

Evidence, strongest first. Normalized states are clamped to -100..100, so one beyond is in degrees.
A servo's position is a whole number of ticks: states in degrees lie on a grid of half ticks,
normalized ones on a grid of 200 / (ticks of the joint's range). Normalized states that meet a
joint's end are exactly 100. Body joints that all stay within +-pi are radians. Anything else is
unknown, and a person must say it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mtdit_robots.errors import UserError
from mtdit_robots.units import (
    DEGREES,
    GRIPPER,
    NORMALIZED,
    RADIANS,
    UNKNOWN,
    check_arm_units,
)

TURN = 360.0  # degrees; no joint of an arm leaves one turn
END = 100.0  # of the normalized range
STATE_SLACK, ACTION_SLACK = 0.01, 10.0  # beyond END: states are clamped, a policy's actions are not
RADIAN_END = 1.05 * math.pi
MAX_TICK = 4095  # LeRobot's degrees divide by it
GRID_ERROR = 0.01  # of a step; float32 rounds to less than a fiftieth of that
FEWEST, MOST = 20, 100  # different values from which a grid is judged
NARROWEST = 100  # ticks, of a calibrated range

Rows = NDArray[np.floating]  # (N, D)


@dataclass(frozen=True)
class Judged:
    """The unit of an arm's body joints, and why. is_certain: the dataset itself says it, or no
    other unit has such numbers.
    """

    units: str  # degrees | normalized | radians | unknown
    reason: str
    is_certain: bool = False


NOT_SAID = Judged(UNKNOWN, "nobody has said it")


@dataclass(frozen=True)
class Vector:
    """The states or the actions of a dataset: names of the dimensions, and (N, D) numbers."""

    what: str
    joints: Sequence[str]
    rows: Rows

    def columns(self) -> Iterator[tuple[str, NDArray[np.float64]]]:
        """(joint, its different values) of each body joint."""
        for joint, column in zip(self.joints, np.asarray(self.rows).T, strict=True):
            if joint != GRIPPER:
                yield joint, np.unique(column).astype(np.float64)

    def farthest(self) -> tuple[float, str]:
        """The body joints' value that is farthest from 0, and its joint."""
        ends = [(max(v[0], v[-1], key=abs), joint) for joint, v in self.columns()]
        return max(ends, key=lambda end: abs(end[0]), default=(0.0, ""))


def vectors(
    state_joints: Sequence[str], state: Rows, joints: Sequence[str], action: Rows
) -> tuple[Vector, Vector]:
    """State and action for `judge`, each under its own names. A state may hold more than the
    positions of joints that are commanded (speeds, currents): those numbers are left out.
    """
    places = [i for i, joint in enumerate(state_joints) if joint in joints]
    positions = np.asarray(state)[:, places]
    return (
        Vector("state", [state_joints[i] for i in places], positions),
        Vector("action", joints, action),
    )


def judge(state: Vector, action: Vector) -> Judged:
    """The unit that the numbers show; `unknown` if they could be either."""
    impossible = _beyond(state, action, TURN, TURN)
    if impossible:
        return Judged(UNKNOWN, f"{impossible}, more than a turn: raw servo ticks?")
    beyond = _beyond(state, action, END + STATE_SLACK, END + ACTION_SLACK)
    if beyond:
        return Judged(DEGREES, beyond, is_certain=True)
    columns = dict(state.columns())
    if _on_degree_grid(list(columns.values())):
        return Judged(DEGREES, "every state is a whole servo tick in degrees", is_certain=True)
    if _on_normalized_grid(list(columns.values())):
        reason = "every state is a whole servo tick of a range -100 to 100"
        return Judged(NORMALIZED, reason, is_certain=True)
    largest = max(abs(vector.farthest()[0]) for vector in (state, action))
    if largest <= RADIAN_END and any(len(values) > 1 for values in columns.values()):
        return Judged(RADIANS, f"every body joint stays within +-{largest:.2f}")
    value, joint = state.farthest()
    if abs(value) >= END - 1e-4:
        return Judged(NORMALIZED, f"state {joint} reaches {value:.0f}, and none goes beyond")
    return Judged(UNKNOWN, f"all states lie within +-{abs(value):.1f}, which may be either")


def _beyond(state: Vector, action: Vector, state_end: float, action_end: float) -> str | None:
    for vector, end in ((state, state_end), (action, action_end)):
        value, joint = vector.farthest()
        if abs(value) > end:
            return f"{vector.what} {joint} reaches {value:.1f}"
    return None


def _on_degree_grid(columns: Sequence[NDArray[np.float64]]) -> bool:
    """Whether all values are half ticks in degrees: (ticks - middle of the range) * 360 / 4095."""
    values = np.concatenate([_some(column) for column in columns] or [np.zeros(0)])
    return len(values) >= FEWEST and _are_whole(values * (2 * MAX_TICK / 360))


def _on_normalized_grid(columns: Sequence[NDArray[np.float64]]) -> bool:
    """Whether each joint that moved has a range of ticks that makes all its values whole ticks."""
    moved = [_some(column) for column in columns if len(column) >= FEWEST]
    spans = np.arange(NARROWEST, MAX_TICK + 1)[:, None]
    return bool(moved) and all(
        not _are_rounded(values) and _are_whole((values + END) / (2 * END) * spans, any_row=True)
        for values in moved
    )


def _some(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """At most MOST of the values, evenly chosen."""
    return values[:: max(1, -(-len(values) // MOST))]


def _are_whole(numbers: NDArray[np.float64], any_row: bool = False) -> bool:
    near = np.abs(numbers - np.round(numbers)) < GRID_ERROR
    return bool(near.all(axis=-1).any() if any_row else near.all())


def _are_rounded(values: NDArray[np.float64]) -> bool:
    """Whether they have three decimals at most: such numbers lie on many grids and prove none."""
    return bool(np.allclose(values, np.round(values, 3), rtol=0, atol=1e-5))


def settled(judged: Judged, said: str | None, source: str) -> str:
    """The unit to use: what a person said, else what is known. UserError when the two cannot both
    be right. source: what `judged` is about, for the message.
    """
    if said is None or said == judged.units:
        return judged.units
    check_arm_units(said)
    if judged.is_certain:
        raise UserError(
            f"{source} is in {judged.units} ({judged.reason}), not {said}: leave --units out"
        )
    return said


def advice(judged: Judged) -> list[str]:
    """A line for a person about positions that are not in degrees; none if they are."""
    if judged.units == DEGREES:
        return []
    if judged.units == NORMALIZED:
        return [
            f"positions are in -100..100, LeRobot's use_degrees=false ({judged.reason}): the "
            "bundle says so, and `mtdit run` converts by the arm's calibration; "
            "if they are degrees, add --units degrees"
        ]
    if judged.units == RADIANS:
        return [
            f"positions look like radians ({judged.reason}), which `mtdit run` refuses on an arm: "
            "convert state and action to degrees (gripper to 0..100) and train again, "
            "or add --units degrees if they are not radians"
        ]
    return [
        f"the unit of the positions is unknown ({judged.reason}): add --units degrees, or --units "
        "normalized for LeRobot's use_degrees=false (-100..100); "
        "without it `mtdit run` refuses the bundle on an arm"
    ]
