"""The twin's world as MJCF text for `MjModel.from_xml_string`, generated from `arm_figures`.

Contains the arm, furniture, objects, lights and cameras, and the settings of contacts and images.
Placement at the start of an episode is left to `world`.

World frame: origin on the table under the arm's base, x forward, y to the robot's left, z up;
metres.
"""

from __future__ import annotations

import math
import xml.etree.ElementTree as ET

from mtdit_robots.timing import TICK_HZ, TICK_S, physics_steps
from mtdit_robots.twin.arm_figures import (
    ARM,
    GRIPPERFRAME_MM,
    RANGES_RAD,
    TCP_MM,
    WRIST_CAMERA_MM,
    WRIST_CAMERA_TILT_RAD,
    Link,
    Shape,
    Vec3,
)
from mtdit_robots.twin.mjcf import add_element, metres, numbers, rgba
from mtdit_robots.twin.objects import add_bowl, add_cabinet, add_cube
from mtdit_robots.twin.servo_model import COULOMB_NM, DAMPING_NMS, ROTOR_INERTIA_KGM2, STALL_NM

SUBSTEPS = physics_steps(TICK_HZ)  # 8
SUBSTEP_S = TICK_S / SUBSTEPS  # 1/240 s

LARGEST_PICTURE = (960, 1280)  # height, width


def build_mjcf(*, fine: bool = False) -> str:
    """The whole scene as MJCF.

    fine=False is for the images that policies see: no shadow, no multisampling, coarse cylinders (7
    to 10 times faster on a software rasteriser). fine=True is for people. Bodies and geoms are the
    same in the same order, so the state of one model can be copied to the other.
    """
    root = ET.Element("mujoco", model="mtdit_so101_twin")
    add_element(root, "compiler", angle="radian", autolimits="true", eulerseq="XYZ")
    contact = {"cone": "elliptic", "impratio": "10"}
    add_element(
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
    world = add_element(root, "worldbody")
    _add_surroundings(world, fine)
    _add_arm(world)
    add_cube(world)
    add_bowl(world)
    add_cabinet(world)
    _add_servos(root)
    return ET.tostring(root, encoding="unicode")


def _add_visual(root: ET.Element, fine: bool) -> None:
    visual = add_element(root, "visual")
    add_element(
        visual, "global", offwidth=str(LARGEST_PICTURE[1]), offheight=str(LARGEST_PICTURE[0])
    )
    stacks = (
        {"numslices": "32", "numstacks": "16"} if fine else {"numslices": "12", "numstacks": "6"}
    )
    add_element(
        visual,
        "quality",
        offsamples="8" if fine else "0",
        shadowsize="4096" if fine else "256",
        **stacks,
    )
    add_element(visual, "map", znear="0.01", zfar="50")
    soft = {"ambient": "0.40 0.40 0.40", "diffuse": "0.22 0.22 0.22", "specular": "0.1 0.1 0.1"}
    add_element(visual, "headlight", active="1", **soft)
    add_element(root, "statistic", center="0.2 0 0.1", extent="0.6")


def _add_defaults(root: ET.Element) -> None:
    """Default classes. Contacts: the arm (1) collides with the world (2) but not with itself;
    things of the world collide with each other.
    """
    default = add_element(root, "default")
    servo = {
        "damping": f"{DAMPING_NMS:.4f}",
        "frictionloss": repr(COULOMB_NM),
        "armature": repr(ROTOR_INERTIA_KGM2),
    }
    add_element(add_element(default, "default", of="sts3215"), "joint", **servo)
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
        add_element(add_element(default, "default", of=name), "geom", **attributes)


def _add_assets(root: ET.Element, fine: bool) -> None:
    asset = add_element(root, "asset")
    grain = {
        "mark": "random",
        "random": "0.05",
        "rgb1": "0.90 0.88 0.84",
        "markrgb": "0.86 0.84 0.80",
    }
    add_element(
        asset,
        "texture",
        name="grain",
        type="2d",
        builtin="flat",
        width="128",
        height="128",
        **grain,
    )
    add_element(
        asset, "material", name="table", texture="grain", texrepeat="20 20", reflectance="0"
    )
    if fine:
        sky = {"rgb1": "0.93 0.95 0.97", "rgb2": "0.70 0.76 0.82", "width": "64", "height": "384"}
        add_element(asset, "texture", name="sky", type="skybox", builtin="gradient", **sky)


def _add_surroundings(world: ET.Element, fine: bool) -> None:
    light = {"directional": "true", "diffuse": "0.45 0.45 0.45", "specular": "0.1 0.1 0.1"}
    add_element(
        world,
        "light",
        pos="0.1 -0.4 1.2",
        dir="0.22 0.42 -1",
        castshadow="true" if fine else "false",
        **light,
    )
    table = {"size": "4 4 0.02", "pos": "0.25 0 -0.02", "material": "table", "friction": "0.8"}
    add_element(world, "geom", of="thing", name="table", type="box", **table)
    add_element(world, "camera", name="top", pos="0.22 0 0.62", xyaxes="0 -1 0 1 0 0", fovy="46")
    _add_looking_camera(
        world, "overview", eye=(-0.09, -0.56, 0.40), at=(0.155, 0.0, 0.075), fovy_deg=34
    )


def _add_looking_camera(
    parent: ET.Element, name: str, eye: Vec3, at: Vec3, fovy_deg: float
) -> None:
    forward = [a - e for a, e in zip(at, eye, strict=True)]
    right = (forward[1], -forward[0], 0.0)  # forward x up
    up = (-forward[2] * forward[0], -forward[2] * forward[1], forward[0] ** 2 + forward[1] ** 2)
    add_element(
        parent,
        "camera",
        name=name,
        pos=numbers(eye),
        xyaxes=numbers((*right, *up)),
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
    look = {"xyaxes": numbers((-s, -c, 0, 0, 0, 1)), "fovy": "65"}
    add_element(gripper, "camera", name="wrist", pos=metres(WRIST_CAMERA_MM), **look)
    for name, place_mm in (("tcp", TCP_MM), ("gripperframe", GRIPPERFRAME_MM)):
        add_element(gripper, "site", name=name, pos=metres(place_mm), size="0.002", rgba="0 0 0 0")


def _add_link(parent: ET.Element, link: Link) -> ET.Element:
    place = {"pos": metres(link.pos_mm), "euler": numbers((link.roll_rad, 0, 0))}
    body = add_element(parent, "body", name=link.name, **place)
    inertia = numbers([1e-6 * i for i in link.inertia])
    add_element(
        body, "inertial", pos=metres(link.com_mm), mass=repr(link.mass_kg), fullinertia=inertia
    )
    if link.joint:
        motion = {"axis": numbers(link.axis), "range": numbers(link.range_rad)}
        add_element(body, "joint", of="sts3215", name=link.joint, **motion)
    for shape in link.shapes:
        _add_shape(body, shape)
    return body


def _add_shape(body: ET.Element, shape: Shape) -> None:
    place = {
        "pos": metres(shape.pos_mm),
        "euler": numbers(shape.euler),
        "size": metres(shape.size_mm),
    }
    add_element(body, "geom", of=shape.role, type=shape.kind, rgba=rgba(shape.rgb), **place)


def _add_servos(root: ET.Element) -> None:
    """One position actuator per joint, in joint order. `Servos` sets their gains later."""
    actuator = add_element(root, "actuator")
    force = numbers((-STALL_NM, STALL_NM))
    for joint, span in RANGES_RAD.items():
        limits = {"ctrlrange": numbers(span), "forcerange": force}
        add_element(actuator, "position", name=joint, joint=joint, kp="1", **limits)
