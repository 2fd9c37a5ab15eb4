"""A scripted expert that moves through a task's way-points at 30 Hz, as a careful person with a
leader arm would.

It moves smoothly from one tool pose to the next and compensates for gravity. Observing, sending the
commands and stepping the world are left to the caller.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

import numpy as np
from numpy.typing import NDArray

from mtdit_robots.timing import TICK_S
from mtdit_robots.twin import servo_model
from mtdit_robots.twin.kinematics import PAN_X_M, ToolPose, azimuth, solve, tool_pose
from mtdit_robots.twin.waypoints import Waypoint

if TYPE_CHECKING:
    from mtdit_robots.twin.world import World

ATTEMPTS = 2  # the first and one retry
INTEGRAL_GAIN = 0.04  # of the tracking error, per tick
INTEGRAL_LIMIT_RAD = 0.20
# Per-tick correlation of the noise: a time constant of 0.15 s, as the servo filters faster noise
# out
NOISE_MEMORY = math.exp(-TICK_S / 0.15)

Vector = NDArray[np.float64]  # (6,)
Mixed = TypeVar("Mixed", float, NDArray[np.float64])


@dataclass(frozen=True)
class Step:
    """One tick's command (6,) in the driver's units (degrees, gripper 0..100).

    action: the expert's action, to be recorded. sent: the same with noise, to be commanded.
    Recording the clean action in states reached by noise teaches a policy to recover (DART, Laskey
    et al. 2017).
    """

    action: Vector
    sent: Vector


def demonstrate(world: World, noise_rad: float = 0.0, seed: int | None = None) -> Iterator[Step]:
    """Yield the commands for the world's task. Send each one and let one tick pass before taking
    the next.

    noise_rad: sigma of the noise on the arm joints. seed: of the noise, by default the world's.
    Ends after the plan, or after a second attempt if the first one failed.
    """
    motion = _Motion(
        world, noise_rad, np.random.default_rng([world.seed if seed is None else seed, 1])
    )
    for _ in range(ATTEMPTS):
        for waypoint in world.task.plan(world):
            yield from motion.move(waypoint)
        if world.success():
            return


class _Motion:
    """The expert's state: the pose reached, the correction of tracking errors, and the noise."""

    def __init__(self, world: World, noise_rad: float, rng: np.random.Generator) -> None:
        self._world, self._noise_rad, self._rng = world, noise_rad, rng
        angles = world.servos.angles_rad
        self._pose, self._grip_rad = tool_pose(angles), float(angles[5])
        self._wanted: Vector = angles
        self._expected: Vector = angles.copy()  # where servos that follow `_wanted` should be now
        self._correction: Vector = np.zeros(6)
        self._noise: Vector = np.zeros(6)

    def move(self, waypoint: Waypoint) -> Iterator[Step]:
        """Minimum-jerk motion from the present pose to the way-point."""
        start, start_grip = self._pose, self._grip_rad
        n_ticks = max(2, round(waypoint.seconds / TICK_S))
        for k in range(1, n_ticks + 1):
            share = _minimum_jerk(k / n_ticks)
            arm = solve(_between(start, waypoint.pose, share, waypoint.swing))
            self._wanted = np.append(arm, _mix(start_grip, waypoint.grip_rad, share))
            yield self._step()
            self._correct_error()
        self._pose, self._grip_rad = waypoint.pose, waypoint.grip_rad

    def _step(self) -> Step:
        goal = self._wanted + self._correction + self._gravity_offset()
        fresh = math.sqrt(1 - NOISE_MEMORY**2) * self._rng.standard_normal(6)
        self._noise = NOISE_MEMORY * self._noise + fresh
        noise = self._noise_rad * self._noise * [1, 1, 1, 1, 1, 0]
        units = self._world.positions_of
        return Step(action=units(goal), sent=units(goal + noise))

    def _gravity_offset(self) -> Vector:
        """How far beyond the wanted angle the goal must be for the servo's stiffness to carry the
        arm's weight.
        """
        return np.append((self._world.gravity_nm(self._wanted) / self._stiffness())[:5], 0.0)

    def _stiffness(self) -> Vector:
        return servo_model.stiffness_nm_rad(1.0) * self._world.servos.p_coefficient

    def _correct_error(self) -> None:
        """Integrate the tracking error that the servos' lag does not explain: friction, contact, a
        wrong weight.
        """
        lag_s = servo_model.DAMPING_NMS / self._stiffness()
        self._expected += (self._wanted - self._expected) * (1 - np.exp(-TICK_S / lag_s))
        error = self._expected - self._world.servos.angles_rad
        error[5] = 0.0
        self._correction = np.clip(
            self._correction + INTEGRAL_GAIN * error, -INTEGRAL_LIMIT_RAD, INTEGRAL_LIMIT_RAD
        )


def _between(start: ToolPose, end: ToolPose, share: float, swing: bool) -> ToolPose:
    return ToolPose(
        _arc(start.position, end.position, share)
        if swing
        else _mix(start.position, end.position, share),
        _mix(start.pitch_rad, end.pitch_rad, share),
        start.yaw_rad + math.remainder(end.yaw_rad - start.yaw_rad, 2 * math.pi) * share,
    )


def _arc(start: NDArray[np.float64], end: NDArray[np.float64], share: float) -> NDArray[np.float64]:
    """Interpolate bearing, radius and height about the pan axis."""
    bearing = _mix(azimuth(start), azimuth(end), share)
    radius = _mix(
        math.hypot(start[0] - PAN_X_M, start[1]), math.hypot(end[0] - PAN_X_M, end[1]), share
    )
    return np.array(
        [
            PAN_X_M + radius * math.cos(bearing),
            radius * math.sin(bearing),
            _mix(start[2], end[2], share),
        ]
    )


def _mix(start: Mixed, end: Mixed, share: float) -> Mixed:
    return start + (end - start) * share


def _minimum_jerk(share: float) -> float:
    return share**3 * (10 - 15 * share + 6 * share**2)
