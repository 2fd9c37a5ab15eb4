"""The twin's six servos as register files: their calibration, and the copying of values between
registers and physics (`Servos`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from mtdit_robots.bus.sts3215 import REGISTERS, encode
from mtdit_robots.so101.calibration import JointCalibration
from mtdit_robots.so101.joints import IDS, JOINTS
from mtdit_robots.twin import servo_model
from mtdit_robots.twin.arm_figures import RANGES_RAD
from mtdit_robots.twin.registers import ServoRegisters
from mtdit_robots.twin.servos import FOLLOWER_P, GRIPPER_TORQUE, Servos

MIDDLE_TICKS = 2047  # what every mid-range pose reads after LeRobot's homing


def twin_calibration() -> dict[str, JointCalibration]:
    """The twin's calibration, as `lerobot-calibrate` would make it: degrees are the model's joint
    angles.

    Two small errors are LeRobot's own: degrees divide by 4095 although the encoder has 4096 ticks,
    so they read 0.024 % too large, and the middle of wrist_roll's full range 0..4095 is half a tick
    (0.04 degrees) off.
    """
    return {joint: _joint_calibration(joint) for joint in JOINTS}


def _joint_calibration(joint: str) -> JointCalibration:
    low_rad, high_rad = RANGES_RAD[joint]
    if joint == "wrist_roll":
        return JointCalibration(IDS[joint], 0, servo_model.CENTRE_TICKS - MIDDLE_TICKS, 0, 4095)
    homing = round(servo_model.ticks_of((low_rad + high_rad) / 2)) - MIDDLE_TICKS
    low, high = (servo_model.ticks_of(angle) - homing for angle in (low_rad, high_rad))
    return JointCalibration(IDS[joint], 0, homing, math.ceil(low), math.floor(high))


def twin_registers() -> dict[int, ServoRegisters]:
    """Servo id -> registers of the six servos after calibration: EEPROM written, torque off, other
    registers at factory values.
    """
    return {IDS[joint]: _calibrated(values) for joint, values in twin_calibration().items()}


def _calibrated(values: JointCalibration) -> ServoRegisters:
    servo = ServoRegisters(values.id)
    _write(servo, "Lock", 0)
    _write(servo, "Homing_Offset", values.homing_offset)
    _write(servo, "Min_Position_Limit", values.range_min)
    _write(servo, "Max_Position_Limit", values.range_max)
    _write(servo, "Lock", 1)
    return servo


def energise(registers: Mapping[int, ServoRegisters]) -> None:
    """Set gains, limits and torque as the driver's `connect()` does. For worlds without a bus."""
    for servo in registers.values():
        servo.set("P_Coefficient", int(FOLLOWER_P))
        servo.set("Torque_Enable", 1)
    registers[IDS["gripper"]].set("Max_Torque_Limit", int(1000 * GRIPPER_TORQUE))


def carry_out(registers: Mapping[int, ServoRegisters], servos: Servos) -> None:
    """Copy goals, gains, torque limits and torque switches from the registers to the physics."""
    chain = list(registers.values())
    servos.goal_rad = servo_model.angle_of(
        np.array([float(servo.goal_actual_ticks) for servo in chain])
    )
    servos.p_coefficient = np.array([float(servo.p_gain) for servo in chain])
    servos.torque_limit = np.array([servo.torque_limit for servo in chain])
    servos.torque_enabled = np.array([servo.torque_enabled for servo in chain])
    servos.apply_settings()


def report(servos: Servos, registers: Mapping[int, ServoRegisters]) -> None:
    """Copy position, velocity, load, temperature, voltage and current from the physics to the
    registers.
    """
    ticks = servo_model.ticks_of(servos.angles_rad)
    velocities = servos.velocities_rad_s * servo_model.TICKS_PER_RAD
    columns = (ticks, velocities, servos.load, servos.temperature_c, servos.currents_a)
    for servo, *row in zip(registers.values(), *columns, strict=True):
        position, velocity, load, temperature, current = (float(value) for value in row)
        servo.set_present(position, velocity, load, temperature, servo_model.SUPPLY_V, current)


def set_goals(registers: Mapping[int, ServoRegisters], goal_ticks: NDArray[np.int64]) -> None:
    """Set goals (6,) in ticks as Present_Position reads them, in joint order, as one SYNC_WRITE
    would.
    """
    for servo, goal in zip(registers.values(), goal_ticks, strict=True):
        servo.set("Goal_Position", int(goal))


def _write(servo: ServoRegisters, name: str, value: int) -> None:
    register = REGISTERS[name]
    servo.write(register.address, encode(register, value))
