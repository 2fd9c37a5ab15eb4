"""The physical model of one STS3215: identified constants, and formulas from registers to torque.

Source: Rhoban/bam `feetech_sts3215_7_4V/m1` (pendulum bench and oscilloscope). The firmware drives
the motor with a duty cycle proportional to the position error, so a position-controlled STS3215 is
a spring of stiffness kt/R * V * P * DUTY_PER_RAD with the motor's back-EMF as its damper. It sags
under load as the real one does.
"""

from __future__ import annotations

import math
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

Values = TypeVar("Values", float, NDArray[np.float64])

TORQUE_PER_AMPERE = 1.2116  # kt, N m / A at the output shaft, and V s / rad
RESISTANCE_OHM = 2.676
VISCOUS_NMS = 0.0591
COULOMB_NM = 0.0524
ROTOR_INERTIA_KGM2 = 0.0284  # reflected through the 1/345 gear
DUTY_PER_RAD = 0.166  # per unit of P_Coefficient
MAX_DUTY = 0.97
SLEW_RAD_S = 3400 * 2 * math.pi / 4096  # the firmware's speed limit of its set-point: 5.2 rad/s
SUPPLY_V = 7.4

DAMPING_NMS = TORQUE_PER_AMPERE**2 / RESISTANCE_OHM + VISCOUS_NMS
STALL_NM = MAX_DUTY * TORQUE_PER_AMPERE / RESISTANCE_OHM * SUPPLY_V  # 3.25

TICKS_PER_RAD = 4096 / (2 * math.pi)
CENTRE_TICKS = 2048  # the actual position that reads as joint angle zero

# Thermal model: copper loss heats a body of this capacity, which loses heat to the room. Plausible
# values, not identified ones.
ROOM_C = 25.0
HEAT_CAPACITY_J_K = 35.0
LEAK_W_K = 0.12


def stiffness_nm_rad(p_coefficient: float, supply_v: float = SUPPLY_V) -> float:
    """Torque per radian of position error, N m/rad: 8.9 at P = 16 (LeRobot's), 17.8 at P = 32."""
    return TORQUE_PER_AMPERE / RESISTANCE_OHM * supply_v * p_coefficient * DUTY_PER_RAD


def ticks_of(angle_rad: Values) -> Values:
    """Joint angle to actual encoder ticks, not rounded."""
    return CENTRE_TICKS + angle_rad * TICKS_PER_RAD


def angle_of(actual_ticks: Values) -> Values:
    """Actual encoder ticks to joint angle in radians."""
    return (actual_ticks - CENTRE_TICKS) / TICKS_PER_RAD


def current_a(torque_nm: Values, velocity_rad_s: Values) -> Values:
    """Winding current in ampere. torque_nm: the stall torque at the applied duty cycle; back-EMF
    reduces the current.
    """
    return torque_nm / TORQUE_PER_AMPERE - TORQUE_PER_AMPERE * velocity_rad_s / RESISTANCE_OHM


def warmed_c(temperature_c: Values, current_amperes: Values, seconds: float) -> Values:
    """Temperature after `seconds` of copper loss at that current."""
    gain_w = RESISTANCE_OHM * current_amperes**2 - LEAK_W_K * (temperature_c - ROOM_C)
    return temperature_c + gain_w / HEAT_CAPACITY_J_K * seconds
