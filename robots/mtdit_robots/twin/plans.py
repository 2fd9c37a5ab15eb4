"""Plans for the tasks as way-points of the tool, computed once from the present state of the world.

`expert` turns the way-points into joint commands.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from mtdit_robots.twin.kinematics import ToolPose, azimuth, reachable
from mtdit_robots.twin.objects import CUBE_HALF_M
from mtdit_robots.twin.waypoints import Plan, Waypoint
from mtdit_robots.twin.world import World

# Straight down first: the top camera then sees most; a tilted tool reaches farther
PITCHES_RAD = np.radians(range(90, 40, -5))
SHUT_RAD = -0.14  # a goal beyond the closed jaw, so that the torque limit sets the grip force
FIXED_FACE_M = 0.0079  # from the tool centre to the fixed jaw's inner face
Point = NDArray[np.float64]


def open_drawer(world: World) -> Plan:
    """Put the jaws around the handle, close, pull, let go."""
    inwards = _direction(world.yaw("cabinet"))
    grip = world.handle() - 0.004 * inwards + _up(-0.006)
    pull = max(0.0, 0.088 - world.drawer_m())
    out = grip - pull * inwards
    open_rad, yaw = 0.16, world.yaw("cabinet")
    pitch = _pitch([grip, grip + _up(0.05), out, out + _up(0.03)])
    return [
        Waypoint(ToolPose(grip + _up(0.05), pitch, yaw), open_rad, 1.2, swing=True),
        Waypoint(ToolPose(grip, pitch, yaw), open_rad, 0.5),
        Waypoint(ToolPose(grip, pitch, yaw), SHUT_RAD, 0.3),
        Waypoint(ToolPose(out, pitch, yaw), SHUT_RAD, 1.1),
        Waypoint(ToolPose(out, pitch, yaw), open_rad, 0.3),
        Waypoint(ToolPose(out + _up(0.05), pitch, yaw), open_rad, 0.5),
    ]


def close_drawer(world: World) -> Plan:
    """Put the closed fingers in front of the handle and push the drawer shut."""
    inwards, yaw = _direction(world.yaw("cabinet")), world.yaw("cabinet")
    touch = world.handle() + _up(-0.008)
    before = touch - 0.035 * inwards
    home = touch + (world.drawer_m() - 0.010) * inwards
    pitch = _pitch([before, before + _up(0.055), home])
    return [
        Waypoint(ToolPose(before + _up(0.055), pitch, yaw), 0.0, 1.2, swing=True),
        Waypoint(ToolPose(before, pitch, yaw), 0.0, 0.4),
        Waypoint(ToolPose(home, pitch, yaw), 0.0, 1.1),
        Waypoint(ToolPose(home, pitch, yaw), 0.0, 0.3),
        Waypoint(ToolPose(home - 0.05 * inwards + _up(0.03), pitch, yaw), 0.0, 0.5),
    ]


def push_cube(world: World, side: int) -> Plan:
    """Put the fingers beside the cube and push it sideways with both of them. side: +1 left, -1
    right.
    """
    cube = world.position("cube")
    sweep = np.array([0.0, float(side), 0.0])
    height = _up(0.016 - cube[2])
    beside = cube - (CUBE_HALF_M + 0.032) * sweep + height
    travel = 0.075 - side * (cube[1] - world.start["cube"][1])
    end = cube + (max(travel, 0.0) - CUBE_HALF_M - 0.008) * sweep + height
    pitch = _pitch([beside, beside + _up(0.05), end, end + _up(0.04)])
    # One finger behind the other: two contacts keep the cube from turning
    grip_rad, yaw = 0.02, 0.0
    return [
        Waypoint(ToolPose(beside + _up(0.05), pitch, yaw), grip_rad, 1.2, swing=True),
        Waypoint(ToolPose(beside, pitch, yaw), grip_rad, 0.5),
        Waypoint(ToolPose(end, pitch, yaw), grip_rad, 1.2),
        Waypoint(ToolPose(end - 0.015 * sweep + _up(0.04), pitch, yaw), grip_rad, 0.5),
    ]


def put_cube_in_bowl(world: World) -> Plan:
    """Grasp the cube at the pair of faces that needs the least roll, carry it over the bowl, let
    go.
    """
    cube, bowl = world.position("cube"), world.position("bowl")
    yaw = _nearest_face(world.yaw("cube"), azimuth(cube))
    # The fixed finger comes down 5 mm away from the cube, so the cube is that much closer to the
    # moving finger.
    grasp = np.array([cube[0], cube[1], 0.014]) - (CUBE_HALF_M - FIXED_FACE_M + 0.005) * _direction(
        yaw
    )
    above, over, into = grasp + _up(0.045), bowl + _up(0.095), bowl + _up(0.075)
    open_rad, pitch, carry = 0.42, _pitch([grasp, above]), _pitch([over, into])
    drop_yaw = azimuth(bowl)
    return [
        Waypoint(ToolPose(above, pitch, yaw), open_rad, 1.2, swing=True),
        Waypoint(ToolPose(grasp, pitch, yaw), open_rad, 0.5),
        Waypoint(ToolPose(grasp, pitch, yaw), SHUT_RAD, 0.4),
        Waypoint(ToolPose(above, pitch, yaw), SHUT_RAD, 0.5),
        Waypoint(ToolPose(over, carry, drop_yaw), SHUT_RAD, 1.0, swing=True),
        Waypoint(ToolPose(into, carry, drop_yaw), SHUT_RAD, 0.3),
        Waypoint(ToolPose(into, carry, drop_yaw), open_rad, 0.3),
        Waypoint(ToolPose(over, carry, drop_yaw), open_rad, 0.4),
    ]


def _pitch(points: Sequence[Point]) -> float:
    """The steepest pitch at which all points are in reach; the flattest one if there is none."""
    for pitch in PITCHES_RAD:
        if all(reachable(ToolPose(point, pitch, azimuth(point))) for point in points):
            return float(pitch)
    return float(PITCHES_RAD[-1])


def _nearest_face(cube_yaw: float, bearing: float) -> float:
    """The yaw of the cube's face that needs the least wrist roll."""
    quarter = math.pi / 2
    return cube_yaw + quarter * round((bearing - cube_yaw) / quarter)


def _direction(yaw: float) -> Point:
    return np.array([math.cos(yaw), math.sin(yaw), 0.0])


def _up(metres: float) -> Point:
    return np.array([0.0, 0.0, metres])
