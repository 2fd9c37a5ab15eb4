"""The twin's world as MJCF text for `MjModel.from_xml_string`, generated from `arm_figures`.

Contains the arm, furniture, objects, lights and cameras, and the settings of contacts and images.
Placement at the start of an episode is left to `world`.

World frame: origin on the table under the arm's base, x forward, y to the robot's left, z up;
metres.
"""

from __future__ import annotations

import math
import xml.etree.ElementTree as ET
from collections.abc import Sequence

from mtdit_robots.twin.arm_figures import (
    ARM,
    GRIPPERFRAME_MM,
    RANGES_RAD,
    STEEL,
    TCP_MM,
    WRIST_CAMERA_MM,
    WRIST_CAMERA_TILT_RAD,
    Link,
    Rgb,
    Shape,
    Vec3,
)
from mtdit_robots.twin.servo_model import COULOMB_NM, DAMPING_NMS, ROTOR_INERTIA_KGM2, STALL_NM

TICK_S = 1 / 30  # one control period
SUBSTEPS = 8  # physics steps per tick
SUBSTEP_S = TICK_S / SUBSTEPS  # 1/240 s

LARGEST_PICTURE = (960, 1280)  # height, width

CUBE_HALF_M = 0.015
BOWL_BASE_M, BOWL_RIM_M, BOWL_HEIGHT_M = 0.034, 0.054, 0.034
DRAWER_TRAVEL_M = 0.09

CABINET: Rgb = (0.42, 0.29, 0.20)
DRAWER: Rgb = (0.80, 0.64, 0.43)
RED: Rgb = (0.86, 0.10, 0.09)
BLUE: Rgb = (0.16, 0.42, 0.82)


def build_mjcf(*, fine: bool = False) -> str:
    """The whole scene as MJCF.

    fine=False is for the images that policies see: no shadow, no multisampling, coarse cylinders (7
    to 10 times faster on a software rasteriser). fine=True is for people. Bodies and geoms are the
    same in the same order, so the state of one model can be copied to the other.
    """
    root = ET.Element("mujoco", model="mtdit_so101_twin")
    _add(root, "compiler", angle="radian", autolimits="true", eulerseq="XYZ")
    contact = {"cone": "elliptic", "impratio": "10"}
    _add(
        root,
        "option",
        timestep=repr(SUBSTEP_S),
        integrator="implicitfast",
        solver="Newton",
        **contact,
    )
    _add_visual(root, fine)
    _add_defaults(root)
    _add_assets(root, fine)
    world = _add(root, "worldbody")
    _add_surroundings(world, fine)
    _add_arm(world)
    _add_cube(world)
    _add_bowl(world)
    _add_cabinet(world)
    _add_servos(root)
    return ET.tostring(root, encoding="unicode")


def _add_visual(root: ET.Element, fine: bool) -> None:
    visual = _add(root, "visual")
    _add(visual, "global", offwidth=str(LARGEST_PICTURE[1]), offheight=str(LARGEST_PICTURE[0]))
    stacks = (
        {"numslices": "32", "numstacks": "16"} if fine else {"numslices": "12", "numstacks": "6"}
    )
    _add(
        visual,
        "quality",
        offsamples="8" if fine else "0",
        shadowsize="4096" if fine else "256",
        **stacks,
    )
    _add(visual, "map", znear="0.01", zfar="50")
    soft = {"ambient": "0.40 0.40 0.40", "diffuse": "0.22 0.22 0.22", "specular": "0.1 0.1 0.1"}
    _add(visual, "headlight", active="1", **soft)
    _add(root, "statistic", center="0.2 0 0.1", extent="0.6")


def _add_defaults(root: ET.Element) -> None:
    """Default classes. Contacts: the arm (1) collides with the world (2) but not with itself;
    things of the world collide with each other.
    """
    default = _add(root, "default")
    servo = {
        "damping": f"{DAMPING_NMS:.4f}",
        "frictionloss": repr(COULOMB_NM),
        "armature": repr(ROTOR_INERTIA_KGM2),
    }
    _add(_add(default, "default", of="sts3215"), "joint", **servo)
    geoms = {
        "look": {"contype": "0", "conaffinity": "0", "mass": "0"},
        "solid": {"contype": "1", "conaffinity": "2", "mass": "0", "friction": "0.6"},
        "pad": {
            "contype": "1", "conaffinity": "2", "mass": "0", "friction": "1.2 0.01 0.002",
            "condim": "4", "priority": "1", "solref": "0.008 1", "solimp": "0.95 0.99 0.001",
        },
        "thing": {"contype": "2", "conaffinity": "3"},
    }  # fmt: skip
    for name, attributes in geoms.items():
        _add(_add(default, "default", of=name), "geom", **attributes)


def _add_assets(root: ET.Element, fine: bool) -> None:
    asset = _add(root, "asset")
    grain = {
        "mark": "random",
        "random": "0.05",
        "rgb1": "0.90 0.88 0.84",
        "markrgb": "0.86 0.84 0.80",
    }
    _add(
        asset,
        "texture",
        name="grain",
        type="2d",
        builtin="flat",
        width="128",
        height="128",
        **grain,
    )
    _add(asset, "material", name="table", texture="grain", texrepeat="20 20", reflectance="0")
    if fine:
        sky = {"rgb1": "0.93 0.95 0.97", "rgb2": "0.70 0.76 0.82", "width": "64", "height": "384"}
        _add(asset, "texture", name="sky", type="skybox", builtin="gradient", **sky)


def _add_surroundings(world: ET.Element, fine: bool) -> None:
    light = {"directional": "true", "diffuse": "0.45 0.45 0.45", "specular": "0.1 0.1 0.1"}
    _add(
        world,
        "light",
        pos="0.1 -0.4 1.2",
        dir="0.22 0.42 -1",
        castshadow="true" if fine else "false",
        **light,
    )
    table = {"size": "4 4 0.02", "pos": "0.25 0 -0.02", "material": "table", "friction": "0.8"}
    _add(world, "geom", of="thing", name="table", type="box", **table)
    _add(world, "camera", name="top", pos="0.22 0 0.62", xyaxes="0 -1 0 1 0 0", fovy="46")
    _add_looking_camera(
        world, "overview", eye=(-0.09, -0.56, 0.40), at=(0.155, 0.0, 0.075), fovy_deg=34
    )


def _add_looking_camera(
    parent: ET.Element, name: str, eye: Vec3, at: Vec3, fovy_deg: float
) -> None:
    forward = [a - e for a, e in zip(at, eye, strict=True)]
    right = (forward[1], -forward[0], 0.0)  # forward x up
    up = (-forward[2] * forward[0], -forward[2] * forward[1], forward[0] ** 2 + forward[1] ** 2)
    _add(
        parent,
        "camera",
        name=name,
        pos=_numbers(eye),
        xyaxes=_numbers((*right, *up)),
        fovy=repr(fovy_deg),
    )


def _add_arm(world: ET.Element) -> None:
    parent = world
    for link in ARM:
        parent = _add_link(parent, link)
        if link.name == "gripper":
            _add_tool_points(parent)


def _add_tool_points(gripper: ET.Element) -> None:
    s, c = math.sin(WRIST_CAMERA_TILT_RAD), math.cos(WRIST_CAMERA_TILT_RAD)
    look = {"xyaxes": _numbers((-s, -c, 0, 0, 0, 1)), "fovy": "65"}
    _add(gripper, "camera", name="wrist", pos=_metres(WRIST_CAMERA_MM), **look)
    for name, place_mm in (("tcp", TCP_MM), ("gripperframe", GRIPPERFRAME_MM)):
        _add(gripper, "site", name=name, pos=_metres(place_mm), size="0.002", rgba="0 0 0 0")


def _add_link(parent: ET.Element, link: Link) -> ET.Element:
    place = {"pos": _metres(link.pos_mm), "euler": _numbers((link.roll_rad, 0, 0))}
    body = _add(parent, "body", name=link.name, **place)
    inertia = _numbers([1e-6 * i for i in link.inertia])
    _add(body, "inertial", pos=_metres(link.com_mm), mass=repr(link.mass_kg), fullinertia=inertia)
    if link.joint:
        motion = {"axis": _numbers(link.axis), "range": _numbers(link.range_rad)}
        _add(body, "joint", of="sts3215", name=link.joint, **motion)
    for shape in link.shapes:
        _add_shape(body, shape)
    return body


def _add_shape(body: ET.Element, shape: Shape) -> None:
    place = {
        "pos": _metres(shape.pos_mm),
        "euler": _numbers(shape.euler),
        "size": _metres(shape.size_mm),
    }
    _add(body, "geom", of=shape.role, type=shape.kind, rgba=_rgba(shape.rgb), **place)


def _add_cube(world: ET.Element) -> None:
    body = _add(world, "body", name="cube", pos=_numbers((0.2, 0, CUBE_HALF_M)))
    _add(body, "freejoint")
    grip = {"friction": "0.9 0.005 0.0005", "condim": "4", "solref": "0.008 1"}
    _add_thing(body, "box", (CUBE_HALF_M,) * 3, (0, 0, 0), RED, mass=0.025, **grip)


def _add_bowl(world: ET.Element, sides: int = 12, wall_m: float = 0.003) -> None:
    """A disc and a ring of boxes leaning outwards."""
    body = _add(world, "body", name="bowl", pos="0.2 0.1 0.001")
    _add(body, "freejoint")
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
        _add_thing(body, "box", size, pos, BLUE, mass=0.005, euler=_numbers((0, lean, turn)))


def _add_cabinet(world: ET.Element) -> None:
    """A box with one drawer, open on the robot's side (local -x). Its origin is below the middle of
    the drawer's front.
    """
    depth, half_width, half_height, board = 0.12, 0.065, 0.035, 0.003
    body = _add(world, "body", name="cabinet", pos="0.275 0.12 0")
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
    body = _add(cabinet, "body", name="drawer", pos="0 0 0.007")
    slide = {"type": "slide", "axis": "-1 0 0", "range": _numbers((0, DRAWER_TRAVEL_M))}
    _add(body, "joint", name="drawer", damping="2", frictionloss="0.4", armature="0.05", **slide)
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
        "fromto": _numbers((*ends[0], *ends[1])),
        "friction": "1 0.01 0.001",
        "condim": "4",
        "mass": "0.01",
    }
    _add(drawer, "geom", of="thing", type="capsule", size="0.005", rgba=_rgba(STEEL), **bar)
    for end in ends:
        post = {"fromto": _numbers((*end, 0, *end[1:])), "mass": "0.003"}
        _add(drawer, "geom", of="thing", type="capsule", size="0.004", rgba=_rgba(STEEL), **post)
    _add(
        drawer,
        "site",
        name="handle",
        pos=_numbers((-stand_off, 0, height)),
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
    place = {"size": _numbers(size), "pos": _numbers(pos), "rgba": _rgba(rgb)}
    _add(body, "geom", of="thing", type=kind, **place, **weight, **more)


def _add_servos(root: ET.Element) -> None:
    """One position actuator per joint, in joint order. `Servos` sets their gains later."""
    actuator = _add(root, "actuator")
    force = _numbers((-STALL_NM, STALL_NM))
    for joint, span in RANGES_RAD.items():
        limits = {"ctrlrange": _numbers(span), "forcerange": force}
        _add(actuator, "position", name=joint, joint=joint, kp="1", **limits)


def _add(parent: ET.Element, tag: str, of: str = "", **attributes: str) -> ET.Element:
    """A child element; `of` is its MJCF default class."""
    return ET.SubElement(parent, tag, {"class": of, **attributes} if of else attributes)


def _numbers(values: Sequence[float]) -> str:
    return " ".join(f"{v:.8g}" for v in values)


def _metres(values_mm: Sequence[float]) -> str:
    return _numbers([v / 1000 for v in values_mm])


def _rgba(rgb: Rgb) -> str:
    return _numbers((*rgb, 1))
