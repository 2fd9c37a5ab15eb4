"""Random start positions of arm, cabinet, cube and bowl, from one distribution for all tasks.

A layout leaves the free space that every task needs. It does not depend on the task, except for the
opening of the drawer, so an image of the start does not reveal the instruction.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mtdit_robots.twin.kinematics import PAN_X_M

# Rest pose: turned to the right and folded, so that the top camera sees the whole table. The jitter
# is one sigma.
REST_RAD = np.array([1.2, -1.2, 1.0, 1.1, 0.0, 0.2])
REST_JITTER_RAD = np.array([0.10, 0.04, 0.04, 0.04, 0.06, 0.04])

CUBE_ROOM_M = 0.024  # radius
BOWL_ROOM_M = 0.056
PUSH_ROOM_M = 0.10  # free space on either side of the cube
FINGERS_ROOM_M = 0.035  # half the width of the fingers that push the cube
JAW_ROOM_M = 0.045  # space that the open jaw needs around the cube
HAND_ROOM_M = 0.045  # the gripper's body, which passes over the bowl but not over the cabinet
DRAWER_SWEEP_M = 0.15  # in front of the closed drawer


@dataclass(frozen=True)
class Layout:
    """A start, in metres and radians. cabinet, cube, bowl: (x, y, yaw). drawer_m: how far the
    drawer is open. arm_rad: (6,) joint angles.
    """

    cabinet: tuple[float, float, float]
    cube: tuple[float, float, float]
    bowl: tuple[float, float, float]
    drawer_m: float
    arm_rad: NDArray[np.float64]


def draw_layout(seed: int, drawer_range_m: tuple[float, float]) -> Layout:
    """The layout for a seed. drawer_range_m: lowest and highest opening, which the task decides."""
    rng = np.random.default_rng(seed)
    while True:
        cabinet = (rng.uniform(0.265, 0.285), rng.uniform(0.105, 0.145), rng.uniform(0.10, 0.45))
        cube = (
            rng.uniform(0.14, 0.21),
            rng.uniform(-0.12, 0.0),
            rng.uniform(-math.pi / 4, math.pi / 4),
        )
        reach, bearing = rng.uniform(0.15, 0.26), rng.uniform(-0.85, -0.1)
        bowl = (PAN_X_M + reach * math.cos(bearing), reach * math.sin(bearing), 0.0)
        if _free(cabinet, cube, bowl):
            break
    arm_rad = REST_RAD + REST_JITTER_RAD * rng.standard_normal(6).clip(-2, 2)
    low, high = drawer_range_m
    return Layout(cabinet, cube, bowl, low + (high - low) * rng.uniform(), arm_rad)


def _free(
    cabinet: tuple[float, float, float],
    cube: tuple[float, float, float],
    bowl: tuple[float, float, float],
) -> bool:
    """Whether cube and bowl are clear of the drawer's path and of each other, and the cube can be
    pushed both ways.
    """
    ends = [(cube[0], cube[1] + side * PUSH_ROOM_M) for side in (-1, 0, 1)]
    bowl_off_the_push = abs(bowl[0] - cube[0]) > BOWL_ROOM_M + FINGERS_ROOM_M or (
        abs(bowl[1] - cube[1]) > BOWL_ROOM_M + PUSH_ROOM_M
    )
    return (
        bowl_off_the_push
        and math.dist(bowl[:2], cube[:2]) > BOWL_ROOM_M + CUBE_ROOM_M + JAW_ROOM_M
        and _clear(cabinet, cube, CUBE_ROOM_M, front_m=DRAWER_SWEEP_M)
        and _clear(cabinet, bowl, BOWL_ROOM_M, front_m=DRAWER_SWEEP_M)
        and all(_clear(cabinet, end, HAND_ROOM_M, front_m=0.05) for end in ends)
    )


def _clear(
    cabinet: tuple[float, float, float], point: tuple[float, ...], room_m: float, front_m: float
) -> bool:
    """Whether a disc of radius `room_m` at `point` is clear of the cabinet and of `front_m` metres
    in front of it.
    """
    dx, dy, (c, s) = (
        point[0] - cabinet[0],
        point[1] - cabinet[1],
        (math.cos(cabinet[2]), math.sin(cabinet[2])),
    )
    along, across = dx * c + dy * s, dy * c - dx * s
    return not (-front_m - room_m < along < 0.13 + room_m and abs(across) < 0.075 + room_m)
