"""Calibration files that are not of an SO-101, or not of today's LeRobot: what they are.

Their numbers mean something else: before LeRobot 0.2 zero was elsewhere and signs could differ, and
other arms have other servos. So none is converted, and no other name for a joint makes one pass.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

OLD_LISTS = ("motor_names", "start_pos", "end_pos", "calib_mode")
OLD_PREFIX = "main_"
AGAIN = "its zeros and signs differ, so renaming does not help; run `mtdit calibrate` again"


def other_calibration(content: Mapping[str, object], joints: Sequence[str]) -> str | None:
    """What a calibration is if it is not one of these joints; None if it may be a damaged one."""
    if any(name in content for name in OLD_LISTS):
        return f"it has the lists of a LeRobot before 0.2 ({', '.join(content)}): {AGAIN}"
    if any(name.startswith(OLD_PREFIX) for name in content):
        first = next(name for name in content if name.startswith(OLD_PREFIX))
        return f"it has a name of a LeRobot before 0.2, {first!r}: {AGAIN}"
    more = [name for name in content if name not in joints]
    if more and len(more) + len(joints) == len(content):
        return (
            f"it has {len(content)} motors, and an SO-101 has {len(joints)}: {more[0]!r} is not "
            "one of its joints; run `mtdit calibrate` for this arm"
        )
    if len(more) >= len(joints):
        return (
            f"it is of another arm, with the motors {', '.join(content)}; an SO-101 has "
            f"{', '.join(joints)}: run `mtdit calibrate` for this arm"
        )
    return None
