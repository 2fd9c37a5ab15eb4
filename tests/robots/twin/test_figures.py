"""The model against the official arm's figures, and the closed-form kinematics against it."""

from __future__ import annotations

import numpy as np
import pytest

from mtdit_robots.so101.joints import JOINTS
from mtdit_robots.twin import kinematics
from mtdit_robots.twin.arm_figures import RANGES_RAD
from mtdit_robots.twin.kinematics import ToolPose, reachable, solve, tool_pose
from mtdit_robots.twin.world import World

# Joint limits in degrees from mid-range, from TheRobotStudio's SO101 "new calibration" model.
NOMINAL_LIMITS = {
    "shoulder_pan": (-110.0, 110.0),
    "shoulder_lift": (-100.0, 100.0),
    "elbow_flex": (-96.8, 96.8),
    "wrist_flex": (-95.0, 95.0),
    "wrist_roll": (-157.2, 162.8),
}


def place(world: World, angles_rad: np.ndarray) -> None:
    world.servos.hold_still(angles_rad)
    world._mujoco.mj_forward(world.model, world.data)


def test_joints_are_the_drivers_and_their_ranges_its_limits() -> None:
    assert tuple(RANGES_RAD) == JOINTS
    assert tuple(NOMINAL_LIMITS) == JOINTS[:-1]
    for joint, limits in NOMINAL_LIMITS.items():
        assert np.degrees(RANGES_RAD[joint]) == pytest.approx(limits, abs=0.1)


def test_link_lengths_and_tool_point_at_zero(world: World) -> None:
    place(world, np.zeros(6))
    data = world.data
    shoulder, elbow, wrist = (data.body(name).xpos for name in ("upper_arm", "lower_arm", "wrist"))
    assert shoulder[2] == pytest.approx(0.1166, abs=1e-6)
    assert np.linalg.norm(elbow - shoulder) == pytest.approx(0.1160, abs=1e-4)
    assert np.linalg.norm(wrist - elbow) == pytest.approx(0.1350, abs=1e-4)
    # TheRobotStudio so101_new_calib.xml: gripperframe at zero pose
    assert data.site("gripperframe").xpos == pytest.approx([0.3913, 0.0002, 0.2265], abs=5e-4)


def test_total_mass(world: World) -> None:
    arm = [
        world.model.body(name).id
        for name in ("base", "shoulder", "upper_arm", "lower_arm", "wrist", "gripper", "jaw")
    ]
    assert world.model.body_mass[arm].sum() == pytest.approx(0.632, abs=1e-3)


def test_jaw_gap_closes_and_opens(world: World) -> None:
    """15.8 mm between the pads at zero, nearly touching at -10 degrees."""
    gaps = []
    for grip in (0.0, -0.17):
        place(world, np.array([0, 0, 0, 0, 0, grip]))
        pads = np.flatnonzero(world.model.geom_condim == 4)
        fixed, moving = (
            [g for g in pads if world.model.body(world.model.geom_bodyid[g]).name == body]
            for body in ("gripper", "jaw")
        )
        gaps.append(min(_distance(world, a, b) for a in fixed for b in moving))
    assert gaps[0] == pytest.approx(0.0158, abs=0.002)
    assert -0.002 < gaps[1] < 0.005


def _pads(world: World, body: str) -> np.ndarray:
    gripping = (world.model.geom_bodyid == world.model.body(body).id) & (
        world.model.geom_condim == 4
    )
    return np.flatnonzero(gripping)


def _distance(world: World, a: int, b: int) -> float:
    return float(world._mujoco.mj_geomDistance(world.model, world.data, int(a), int(b), 0.1, None))


def test_closed_form_agrees_with_the_model(world: World) -> None:
    rng = np.random.default_rng(7)
    low, high = np.array(list(RANGES_RAD.values())).T
    for _ in range(300):
        angles = rng.uniform(low, high)
        place(world, angles)
        assert np.linalg.norm(tool_pose(angles).position - world.data.site("tcp").xpos) < 4e-4
    assert (
        pytest.approx(0.4076, abs=1e-3)
        == kinematics.UPPER_M + kinematics.FORE_M + kinematics.TOOL_M
    )


def test_solve_inverts_tool_pose() -> None:
    rng = np.random.default_rng(11)
    solved = 0
    for _ in range(500):
        radius, bearing = rng.uniform(0.10, 0.25), rng.uniform(-1.2, 1.2)
        position = np.array(
            [0.0388 + radius * np.cos(bearing), radius * np.sin(bearing), rng.uniform(0.01, 0.09)]
        )
        pose = ToolPose(position, np.radians(rng.uniform(60, 89)), rng.uniform(-1, 1))
        if not reachable(pose):
            continue
        solved += 1
        back = tool_pose(solve(pose))
        assert back.position == pytest.approx(position, abs=1e-6)
        assert back.pitch_rad == pytest.approx(pose.pitch_rad, abs=1e-6)
        assert back.yaw_rad == pytest.approx(pose.yaw_rad, abs=1e-6)
    assert solved > 200


def test_out_of_reach_is_said_and_answered_with_a_stretched_arm() -> None:
    far = ToolPose(np.array([0.60, 0.0, 0.05]), 0.5, 0.0)
    assert not reachable(far)
    assert np.isfinite(solve(far)).all()
