"""Way-points of the expert: tool poses with times."""

from __future__ import annotations

from dataclasses import dataclass

from mtdit_robots.twin.kinematics import ToolPose


@dataclass(frozen=True)
class Waypoint:
    """Be at `pose` with the jaw at `grip_rad`, `seconds` after the previous way-point.

    The path is straight, or with `swing` an arc about the pan axis that stays clear of the base.
    """

    pose: ToolPose
    grip_rad: float
    seconds: float
    swing: bool = False


Plan = list[Waypoint]
