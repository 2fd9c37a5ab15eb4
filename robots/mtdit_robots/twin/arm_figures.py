"""The SO-101's dimensions: links, inertias, joint ranges, and primitive shapes for its parts.

Only numbers; `scene` turns them into MJCF.

Every frame is aligned with the world (x forward, y left, z up) when all joints are zero ("new
calibration": each joint at mid-range). Kinematics and inertias are those of
TheRobotStudio/SO-ARM100 `Simulation/SO101/so101_new_calib.xml`; the shapes are our own primitives,
fitted to that arm's outline. Lengths in the tables are in millimetres.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

Vec3 = tuple[float, float, float]
Rgb = tuple[float, float, float]

PRINTED: Rgb = (0.97, 0.72, 0.12)
SERVO: Rgb = (0.13, 0.13, 0.15)
STEEL: Rgb = (0.78, 0.79, 0.82)


@dataclass(frozen=True)
class Shape:
    """One primitive. role: look (visual only), solid (collides with the world), pad (the gripping
    face of a finger).
    """

    kind: str  # box | cylinder | capsule
    size_mm: Sequence[float]  # MuJoCo half sizes
    pos_mm: Vec3
    rgb: Rgb = PRINTED
    role: str = "solid"
    euler: Vec3 = (0.0, 0.0, 0.0)


@dataclass(frozen=True)
class Link:
    """One body of the arm's chain, attached to the previous one by `joint`. Inertia is about the
    centre of mass.
    """

    name: str
    pos_mm: Vec3  # in the parent's frame
    mass_kg: float
    com_mm: Vec3
    inertia: tuple[float, float, float, float, float, float]  # xx yy zz xy xz yz, 1e-6 kg m^2
    shapes: Sequence[Shape]
    joint: str | None = None
    axis: Vec3 = (0.0, 0.0, 1.0)
    range_rad: tuple[float, float] = (0.0, 0.0)
    roll_rad: float = 0.0  # frame rotation about the parent's x


SIDE = 18.28  # y of the arm's plane in the frames that lie to one side of it
ACROSS: Vec3 = (math.pi / 2, 0.0, 0.0)  # euler angles that turn a cylinder's axis to y

# In the gripper frame; the camera looks forward, tilted inwards
WRIST_CAMERA_MM: Vec3 = (45.0, 55.0, 0.0)
WRIST_CAMERA_TILT_RAD = 0.57
GRIPPER_ROLL_RAD = 0.0486795
TCP_MM: Vec3 = (95.5, 0.0, -0.2)  # between the faces of the closed fingers
GRIPPERFRAME_MM: Vec3 = (98.13, -0.22, -7.9)  # official tool point, inner face of the fixed jaw

ARM: tuple[Link, ...] = (
    Link(
        "base", (0, 0, 0), 0.147, (13.72, -0.05, 33.48),
        (114.7, 136.1, 130.4, -0.46, 4.97, 0.10),
        shapes=(
            Shape("box", (43.5, 55, 6), (21, 0, 6), role="look"),
            Shape("box", (36, 27, 25), (12, 0, 36), role="look"),
            Shape("box", (22.7, 12.4, 19.8), (26.3, 0, 44.1), SERVO, "look"),
            Shape("box", (2, 21, 14), (-25, 0, 34), SERVO, "look"),
        ),
    ),
    Link(
        "shoulder", (38.84, 0, 62.40), 0.100, (30.76, -0.02, 25.27),
        (83.8, 81.0, 24.0, -0.08, -1.16, -0.15),
        joint="shoulder_pan", axis=(0, 0, -1), range_rad=(-1.91986, 1.91986),
        shapes=(
            Shape("cylinder", (24, 4), (0, 0, 4), STEEL, "look"),
            Shape("box", (24, 24, 10), (12, 0, 16), role="look"),
            Shape("box", (12.4, 19.8, 22.7), (30.4, 0, 41.7), SERVO, "look"),
            Shape("box", (16, 26.5, 14), (31.5, 0, 24), role="look"),
        ),
    ),
    Link(
        "upper_arm", (30.40, -SIDE, 54.20), 0.103, (8.38, 18.41, 89.85),
        (147.3, 142.5, 40.8, -0.01, -19.8, 0.04),
        joint="shoulder_lift", axis=(0, 1, 0), range_rad=(-1.74533, 1.74533),
        shapes=(
            Shape("cylinder", (15, 25), (0, SIDE, 0), euler=ACROSS),
            Shape("cylinder", (9, 27), (0, SIDE, 0), STEEL, "look", ACROSS),
            Shape("box", (12, 24, 50), (2, SIDE, 58)),
            Shape("box", (22.7, 19.8, 12.4), (15.5, SIDE, 112.6), SERVO, "look"),
        ),
    ),
    Link(
        "lower_arm", (28.00, 0, 112.57), 0.104, (98.07, 18.28, 3.24),
        (28.7, 145.3, 159.8, -1.26, -7.41, -0.05),
        joint="elbow_flex", axis=(0, 1, 0), range_rad=(-1.69, 1.69),
        shapes=(
            Shape("cylinder", (15, 25), (0, SIDE, 0), euler=ACROSS),
            Shape("cylinder", (9, 27), (0, SIDE, 0), STEEL, "look", ACROSS),
            Shape("box", (50, 24, 11), (58, SIDE, 0)),
            Shape("box", (22.7, 19.8, 12.4), (118, SIDE, 5.2), SERVO, "look"),
        ),
    ),
    Link(
        "wrist", (134.90, 0, 5.20), 0.079, (38.61, 28.12, 0.10),
        (25.4, 21.0, 36.8, -3.64, 0.02, 0.05),
        joint="wrist_flex", axis=(0, 1, 0), range_rad=(-1.65806, 1.65806),
        shapes=(
            Shape("cylinder", (13, 23), (0, SIDE, 0), euler=ACROSS),
            Shape("cylinder", (8, 26), (0, SIDE, 0), STEEL, "look", ACROSS),
            Shape("box", (22, 22, 12), (32, SIDE, 0)),
            Shape("box", (15, 22.5, 12.6), (40, SIDE, 0), SERVO, "look"),
        ),
    ),
    Link(
        "gripper", (61.10, 18.10, 0), 0.087, (25.19, 0.25, 0.21),
        (34.5, 43.4, 27.5, 0.05, 5.74, -0.34),
        joint="wrist_roll", axis=(-1, 0, 0), range_rad=(-2.74385, 2.84121),
        roll_rad=GRIPPER_ROLL_RAD,
        shapes=(
            Shape("box", (18.5, 23, 30), (20.5, 0, -2.5)),
            Shape("cylinder", (17, 3), (1, 0, 0), STEEL, "look", (0, math.pi / 2, 0)),
            Shape("box", (12.4, 19.8, 22.7), (24, 4.5, 10.5), SERVO, "look"),
            Shape("box", (12, 11.5, 9), (47, 0, -24.3)),
            Shape("box", (12, 9.5, 7.5), (66, 0, -20.5)),
            Shape("box", (8, 8.5, 6), (81, 0, -16.5)),
            Shape("box", (12.5, 6.2, 3.3), (92, 0, -11.2), role="pad"),
            Shape("box", (10, 8, 1.5), (70, 0, -13.1), role="pad"),
            Shape("box", (6, 14, 14), (38, 59.5, 0), SERVO, "look", (0, 0, -WRIST_CAMERA_TILT_RAD)),
            Shape("box", (3, 19, 12), (30, 40, 0), role="look"),
        ),
    ),
    Link(
        "jaw", (23.40, 18.80, 20.20), 0.012, (30.02, -19.28, -1.57),
        (1.89, 5.29, 6.61, -0.11, 0.32, 0.01),
        joint="gripper", axis=(0, -1, 0), range_rad=(-0.17453, 1.74533),
        shapes=(
            Shape("box", (16, 20, 9), (8, -18.9, 0)),
            Shape("box", (16, 9.5, 6.8), (38, -18.9, -1.2)),
            Shape("box", (10, 7.5, 5.5), (60, -18.9, -3.5)),
            Shape("box", (10, 6, 3), (72, -18.9, -9.3), role="pad"),
            Shape("box", (12, 8, 1.5), (50, -18.9, -8.8), role="pad"),
        ),
    ),
)  # fmt: skip

RANGES_RAD: dict[str, tuple[float, float]] = {
    link.joint: link.range_rad for link in ARM if link.joint
}
