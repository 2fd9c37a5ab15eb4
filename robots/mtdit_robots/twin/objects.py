"""The things on the twin's table: cube, bowl, and a cabinet with a drawer."""

from __future__ import annotations

import math
import xml.etree.ElementTree as ET
from collections.abc import Sequence

from mtdit_robots.twin.arm_figures import (
    STEEL,
    Rgb,
)
from mtdit_robots.twin.mjcf import add_element, numbers, rgba

CUBE_HALF_M = 0.015
BOWL_BASE_M, BOWL_RIM_M, BOWL_HEIGHT_M = 0.034, 0.054, 0.034
DRAWER_TRAVEL_M = 0.09

CABINET: Rgb = (0.42, 0.29, 0.20)
DRAWER: Rgb = (0.80, 0.64, 0.43)
RED: Rgb = (0.86, 0.10, 0.09)
BLUE: Rgb = (0.16, 0.42, 0.82)


def add_cube(world: ET.Element) -> None:
    body = add_element(world, "body", name="cube", pos=numbers((0.2, 0, CUBE_HALF_M)))
    add_element(body, "freejoint")
    grip = {"friction": "0.9 0.005 0.0005", "condim": "4", "solref": "0.008 1"}
    _add_thing(body, "box", (CUBE_HALF_M,) * 3, (0, 0, 0), RED, mass=0.025, **grip)


def add_bowl(world: ET.Element, sides: int = 12, wall_m: float = 0.003) -> None:
    """A disc and a ring of boxes leaning outwards."""
    body = add_element(world, "body", name="bowl", pos="0.2 0.1 0.001")
    add_element(body, "freejoint")
    _add_thing(body, "cylinder", (BOWL_BASE_M + 0.002, 0.002), (0, 0, 0.002), BLUE, mass=0.02)
    lean = math.atan2(BOWL_RIM_M - BOWL_BASE_M, BOWL_HEIGHT_M)
    middle = (BOWL_BASE_M + BOWL_RIM_M) / 2
    size = (
        wall_m / 2,
        BOWL_RIM_M * math.tan(math.pi / sides) + 0.001,
        BOWL_HEIGHT_M / 2 / math.cos(lean),
    )
    for k in range(sides):
        turn = 2 * math.pi * k / sides
        pos = (middle * math.cos(turn), middle * math.sin(turn), BOWL_HEIGHT_M / 2)
        _add_thing(body, "box", size, pos, BLUE, mass=0.005, euler=numbers((0, lean, turn)))


def add_cabinet(world: ET.Element) -> None:
    """A box with one drawer, open on the robot's side (local -x). Its origin is below the middle of
    the drawer's front.
    """
    depth, half_width, half_height, board = 0.12, 0.065, 0.035, 0.003
    body = add_element(world, "body", name="cabinet", pos="0.275 0.12 0")
    x, z = depth / 2 + 0.004, half_height + 0.007
    outer = half_width + 0.006
    floor_or_top, side = (depth / 2, outer, board), (depth / 2, board, half_height + 0.004)
    _add_thing(body, "box", floor_or_top, (x, 0, board), CABINET)
    _add_thing(body, "box", floor_or_top, (x, 0, 2 * half_height + 0.011), CABINET)
    _add_thing(body, "box", side, (x, half_width + 0.005, z), CABINET)
    _add_thing(body, "box", side, (x, -half_width - 0.005, z), CABINET)
    _add_thing(body, "box", (board, outer, half_height + 0.004), (depth + 0.001, 0, z), CABINET)
    _add_drawer(body, depth, half_width, half_height)


def _add_drawer(cabinet: ET.Element, depth: float, half_width: float, half_height: float) -> None:
    body = add_element(cabinet, "body", name="drawer", pos="0 0 0.007")
    slide = {"type": "slide", "axis": "-1 0 0", "range": numbers((0, DRAWER_TRAVEL_M))}
    add_element(
        body, "joint", name="drawer", damping="2", frictionloss="0.4", armature="0.05", **slide
    )
    inner, long, mid = half_width - 0.004, depth / 2 - 0.008, depth / 2 - 0.006
    _add_thing(
        body,
        "box",
        (0.004, half_width, half_height - 0.001),
        (0, 0, half_height),
        DRAWER,
        mass=0.05,
    )
    _add_thing(body, "box", (long, inner, 0.002), (mid, 0, 0.004), DRAWER, mass=0.04)
    for y in (inner, -inner):
        _add_thing(
            body,
            "box",
            (long, 0.002, 0.7 * half_height),
            (mid, y, 0.8 * half_height),
            DRAWER,
            mass=0.02,
        )
    _add_thing(
        body,
        "box",
        (0.002, inner, 0.7 * half_height),
        (depth - 0.014, 0, 0.8 * half_height),
        DRAWER,
        mass=0.02,
    )
    _add_handle(body, height=half_height)


def _add_handle(
    drawer: ET.Element, height: float, stand_off: float = 0.040, half_length: float = 0.030
) -> None:
    ends = [(-stand_off, side * half_length, height) for side in (-1, 1)]
    bar = {
        "fromto": numbers((*ends[0], *ends[1])),
        "friction": "1 0.01 0.001",
        "condim": "4",
        "mass": "0.01",
    }
    add_element(drawer, "geom", of="thing", type="capsule", size="0.005", rgba=rgba(STEEL), **bar)
    for end in ends:
        post = {"fromto": numbers((*end, 0, *end[1:])), "mass": "0.003"}
        add_element(
            drawer, "geom", of="thing", type="capsule", size="0.004", rgba=rgba(STEEL), **post
        )
    add_element(
        drawer,
        "site",
        name="handle",
        pos=numbers((-stand_off, 0, height)),
        size="0.002",
        rgba="0 0 0 0",
    )


def _add_thing(
    body: ET.Element,
    kind: str,
    size: Sequence[float],
    pos: Sequence[float],
    rgb: Rgb,
    mass: float = 0.0,
    **more: str,
) -> None:
    """A geom that collides with everything; lengths in metres. By default its mass follows from
    MuJoCo's density.
    """
    weight = {"mass": repr(mass)} if mass else {}
    place = {"size": numbers(size), "pos": numbers(pos), "rgba": rgba(rgb)}
    add_element(body, "geom", of="thing", type=kind, **place, **weight, **more)
