"""The servo model's figures, and how settings in the registers change what the arm does."""

from __future__ import annotations

import numpy as np
import pytest

from mtdit_robots.so101 import calibration as calibrations
from mtdit_robots.so101.joints import IDS, JOINTS
from mtdit_robots.twin import chain, servo_model
from mtdit_robots.twin.arm_figures import RANGES_RAD
from mtdit_robots.twin.scene import SUBSTEP_S
from mtdit_robots.twin.tasks import find_task
from mtdit_robots.twin.world import World

LIFT = JOINTS.index("shoulder_lift")


def place(world: World, angles_rad: np.ndarray) -> None:
    world.reset(find_task("open the drawer"), 0)
    world.servos.hold_still(angles_rad)
    world._mujoco.mj_forward(world.model, world.data)
    world.report()
    world.command(world.positions())


def settle(world: World, ticks: int = 60) -> None:
    for _ in range(ticks):
        world.step_tick()


def test_identified_figures() -> None:
    assert servo_model.stiffness_nm_rad(16) == pytest.approx(8.9, abs=0.05)
    assert servo_model.stiffness_nm_rad(32) == pytest.approx(17.8, abs=0.1)
    assert pytest.approx(3.25, abs=0.01) == servo_model.STALL_NM
    assert pytest.approx(0.608, abs=0.001) == servo_model.DAMPING_NMS
    assert pytest.approx(5.2, abs=0.02) == servo_model.SLEW_RAD_S


def test_a_step_of_30_degrees_takes_a_real_servos_time(world: World) -> None:
    """t90 of the pan joint: about 150 ms at P = 16."""
    place(world, np.array([0.0, -1.2, 1.0, 1.1, 0.0, 0.2]))
    goal = world.positions()
    goal[0] += 30
    world.command(goal)
    world.carry_out()
    start, steps = world.servos.angles_rad[0], 0
    while np.degrees(world.servos.angles_rad[0] - start) < 27 and steps < 240:
        world.step_substep()
        steps += 1
    assert 0.10 < steps * SUBSTEP_S < 0.25


def test_the_stretched_arm_sags_and_twice_the_gain_halves_it(world: World) -> None:
    stretched = np.array([0.0, 1.3, -1.2, 0.0, 0.0, 0.0])
    sags = []
    for gain in (16, 32):
        place(world, stretched)
        for servo in world.registers.values():
            servo.set("P_Coefficient", gain)
        settle(world)
        sags.append(np.degrees(world.servos.angles_rad[LIFT] - stretched[LIFT]))
    world.energise()
    assert 3 < sags[0] < 7
    assert sags[1] == pytest.approx(sags[0] / 2, rel=0.25)


def test_without_torque_the_arm_falls_and_holds_again_where_it_is(world: World) -> None:
    raised = np.array([0.0, 0.5, -0.5, 0.5, 0.0, 0.0])
    place(world, raised)
    for servo in world.registers.values():
        servo.set("Torque_Enable", 0)
    settle(world, 20)
    fallen = world.servos.angles_rad
    assert np.degrees(np.abs(fallen - raised)).max() > 5
    world.command(world.positions())
    world.energise()
    settle(world, 20)
    assert np.degrees(np.abs(world.servos.angles_rad - fallen)).max() < 12  # sag, no jump back


def test_the_torque_limit_bounds_the_force(world: World) -> None:
    place(world, np.array([0.0, -1.2, 1.0, 1.1, 0.0, 0.2]))
    world.registers[IDS["shoulder_pan"]].set("Torque_Limit", 100)
    goal = world.positions()
    goal[0] -= 60
    world.command(goal)
    world.step_tick()
    assert abs(world.servos.torques_nm[0]) == pytest.approx(0.1 * servo_model.STALL_NM, rel=1e-6)
    world.registers[IDS["shoulder_pan"]].set("Torque_Limit", 1000)


def test_load_current_and_temperature_are_reported(world: World) -> None:
    place(world, np.array([0.0, 1.3, -1.2, 0.0, 0.0, 0.0]))
    settle(world, 90)
    lift = world.registers[IDS["shoulder_lift"]]
    assert abs(lift.get("Present_Load")) > 100
    assert lift.get("Present_Current") > 0
    assert lift.get("Present_Voltage") == 74
    assert world.servos.temperature_c[LIFT] > servo_model.ROOM_C


def test_calibrated_degrees_are_joint_angles(world: World) -> None:
    rng = np.random.default_rng(3)
    low, high = np.array(list(RANGES_RAD.values())).T
    for _ in range(50):
        angles = rng.uniform(low, high)
        place(world, angles)
        positions = world.positions()
        assert positions[:5] == pytest.approx(np.degrees(angles[:5]), abs=0.13)
        opened = 100 * (angles[5] - low[5]) / (high[5] - low[5])
        assert positions[5] == pytest.approx(opened, abs=0.2)
        assert world.positions_of(angles)[:5] == pytest.approx(np.degrees(angles[:5]), abs=0.085)


def test_the_calibration_is_one_lerobot_could_have_made() -> None:
    calibration = chain.twin_calibration()
    calibrations.check(calibration)
    roll = calibration["wrist_roll"]
    assert (roll.range_min, roll.range_max) == (0, 4095)
    assert calibration["gripper"].homing_offset > 400  # not all alike: offsets are really used


def test_the_servos_keep_their_calibration_over_a_power_cycle() -> None:
    registers = chain.twin_registers()
    for joint, values in chain.twin_calibration().items():
        servo = registers[IDS[joint]]
        servo.power_cycle()
        assert servo.get("Homing_Offset") == values.homing_offset
        assert (servo.get("Min_Position_Limit"), servo.get("Max_Position_Limit")) == (
            values.range_min,
            values.range_max,
        )
