"""The words for the unit of a joint's positions.

LeRobot's SO-101 gives the body joints in degrees (`use_degrees=True`, its default since February
2026) or over the calibrated range (`use_degrees=False`: -100..100, here "normalized"); the gripper
is 0..100 ("percent") in both. Source: LeRobot `so_follower.py`. For a whole arm the word is that of
its body joints.
"""

from __future__ import annotations

from mtdit_robots.errors import UserError

DEGREES, NORMALIZED, PERCENT = "degrees", "normalized", "percent"
RADIANS, UNKNOWN = "radians", "unknown"  # no arm can be driven with these
ARM_UNITS = (DEGREES, NORMALIZED)  # what --units takes
GRIPPER = "gripper"


def joint_unit(joint: str, units: str) -> str:
    """The unit of one joint of an arm whose body joints are in `units`."""
    return PERCENT if joint == GRIPPER and units != RADIANS else units


def check_arm_units(units: str) -> str:
    """The same word, if an arm can be driven with positions in it. UserError says what to do."""
    if units in ARM_UNITS:
        return units
    if units == RADIANS:
        raise UserError(
            "the positions are in radians, which this arm does not take: convert state and action "
            "of the dataset to degrees (gripper to 0..100) and train again, or add --units degrees "
            "or --units normalized if they are no radians (units=... in Python)"
        )
    if units == UNKNOWN:
        raise UserError(
            "the unit of the positions is unknown, and in the wrong one the arm would move by "
            "wrong amounts: add --units degrees, or --units normalized if they were recorded with "
            "LeRobot's use_degrees=false (-100..100), its default until February 2026 "
            "(units=... in Python)"
        )
    raise UserError(f"units are {' or '.join(ARM_UNITS)}, got {units!r}")
