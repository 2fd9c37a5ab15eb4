"""Forward and inverse kinematics of the arm in closed form.

The two sideways offsets of the arm (18.28 and 18.10 mm) cancel to 0.2 mm, so the tool moves in a
plane through the pan axis: shoulder_pan turns the plane, shoulder_lift and elbow_flex are a planar
two-link arm, wrist_flex sets the pitch and wrist_roll the direction of the jaw. Link lengths come
from `arm_figures`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mtdit_robots.twin.arm_figures import ARM, GRIPPER_ROLL_RAD, RANGES_RAD, TCP_MM

_POS_M = {link.name: np.array(link.pos_mm) / 1000 for link in ARM}
PAN_X_M = float(_POS_M["shoulder"][0])
SHOULDER_R_M = float(_POS_M["upper_arm"][0])  # from the pan axis
SHOULDER_Z_M = float(_POS_M["shoulder"][2] + _POS_M["upper_arm"][2])
UPPER_M = math.hypot(_POS_M["lower_arm"][0], _POS_M["lower_arm"][2])
FORE_M = math.hypot(_POS_M["wrist"][0], _POS_M["wrist"][2])
# Elevations of the two links when the joints are zero
UPPER_RISE_RAD = math.atan2(_POS_M["lower_arm"][2], _POS_M["lower_arm"][0])
FORE_RISE_RAD = math.atan2(_POS_M["wrist"][2], _POS_M["wrist"][0])
TOOL_M = float(_POS_M["gripper"][0]) + TCP_MM[0] / 1000  # wrist_flex axis to the tool centre

LIMIT_MARGIN_RAD = 0.02
_LOW, _HIGH = np.array(list(RANGES_RAD.values()))[:5].T


@dataclass(frozen=True)
class ToolPose:
    """position: (3,) m, the tool centre. pitch_rad: 0 is forward, pi/2 straight down. yaw_rad:
    world direction from the fixed jaw to the moving one, seen from above.
    """

    position: NDArray[np.float64]
    pitch_rad: float
    yaw_rad: float


def azimuth(position: NDArray[np.float64]) -> float:
    """Direction of a point from the pan axis, in radians, positive to the left."""
    return math.atan2(position[1], position[0] - PAN_X_M)


def solve(pose: ToolPose) -> NDArray[np.float64]:
    """Joint angles (5,) in radians for a tool pose, elbow up.

    For a pose out of reach the arm is stretched towards it. Joint limits are not applied.
    """
    r, z = math.hypot(pose.position[0] - PAN_X_M, pose.position[1]), pose.position[2]
    wrist_r = r - TOOL_M * math.cos(pose.pitch_rad) - SHOULDER_R_M
    wrist_z = z + TOOL_M * math.sin(pose.pitch_rad) - SHOULDER_Z_M
    span = min(
        max(math.hypot(wrist_r, wrist_z), UPPER_M - FORE_M + 1e-3, 0.02), UPPER_M + FORE_M - 1e-6
    )
    inner = math.acos(_unit((UPPER_M**2 + span**2 - FORE_M**2) / (2 * UPPER_M * span)))
    upper = math.atan2(wrist_z, wrist_r) + inner
    outer = math.acos(_unit((UPPER_M**2 + FORE_M**2 - span**2) / (2 * UPPER_M * FORE_M)))
    fore = upper - (math.pi - outer)
    lift = UPPER_RISE_RAD - upper
    elbow = FORE_RISE_RAD - fore - lift
    pan = azimuth(pose.position)
    return np.array([-pan, lift, elbow, pose.pitch_rad - lift - elbow, _roll(pose, pan)])


def reachable(pose: ToolPose) -> bool:
    """Whether the pose is in reach with every joint inside its range."""
    angles = solve(pose)
    inside = (angles > _LOW + LIMIT_MARGIN_RAD).all() and (angles < _HIGH - LIMIT_MARGIN_RAD).all()
    return bool(inside and np.allclose(tool_pose(angles).position, pose.position, atol=1e-4))


def tool_pose(angles: NDArray[np.float64]) -> ToolPose:
    """The tool pose for joint angles (5,) or (6,); the inverse of `solve`."""
    pan, lift, elbow, flex, roll = angles[:5]
    upper, fore, pitch = UPPER_RISE_RAD - lift, FORE_RISE_RAD - lift - elbow, lift + elbow + flex
    r = (
        SHOULDER_R_M
        + UPPER_M * math.cos(upper)
        + FORE_M * math.cos(fore)
        + TOOL_M * math.cos(pitch)
    )
    z = (
        SHOULDER_Z_M
        + UPPER_M * math.sin(upper)
        + FORE_M * math.sin(fore)
        - TOOL_M * math.sin(pitch)
    )
    turn = roll - GRIPPER_ROLL_RAD
    yaw = -pan + math.atan2(math.sin(turn) * math.sin(pitch), math.cos(turn))
    return ToolPose(
        np.array([PAN_X_M + r * math.cos(-pan), r * math.sin(-pan), z]), float(pitch), float(yaw)
    )


def _roll(pose: ToolPose, pan: float) -> float:
    """The wrist roll that turns the direction of the jaw, seen from above, to the pose's yaw."""
    off = pose.yaw_rad - pan
    return math.atan2(math.sin(off), math.sin(pose.pitch_rad) * math.cos(off)) + GRIPPER_ROLL_RAD


def _unit(cosine: float) -> float:
    return min(1.0, max(-1.0, cosine))
