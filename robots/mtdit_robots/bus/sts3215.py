"""The Feetech STS3215's registers with their access rights and units, baud codes and error bits.

Also encodes and decodes register values. Sources: Feetech STS/SMS memory table; register names are
those of LeRobot's `motors/feetech/tables.py`.
"""

from __future__ import annotations

from dataclasses import dataclass

MODEL_NUMBER = 777
TICKS_PER_TURN = 4096
REGISTER_FILE_SIZE = 87  # addresses 0..86

BAUD_CODES = {
    1_000_000: 0,
    500_000: 1,
    250_000: 2,
    128_000: 3,
    115_200: 4,
    57_600: 5,
    38_400: 6,
    19_200: 7,
}

ERROR_BITS = {1: "voltage", 2: "angle sensor", 4: "overheat", 8: "over-current", 32: "overload"}


@dataclass(frozen=True)
class Register:
    """One register, little-endian, in EEPROM or SRAM. Sign-magnitude when `sign_bit` is given."""

    name: str
    address: int
    width: int  # bytes
    unit: str = ""
    sign_bit: int | None = None
    writable: bool = True
    eeprom: bool = False


def _eeprom(
    name: str,
    address: int,
    width: int,
    unit: str = "",
    sign_bit: int | None = None,
    writable: bool = True,
) -> Register:
    return Register(name, address, width, unit, sign_bit, writable, eeprom=True)


def _read_only(
    name: str, address: int, width: int, unit: str = "", sign_bit: int | None = None
) -> Register:
    return Register(name, address, width, unit, sign_bit, writable=False)


_TABLE = (
    _eeprom("Firmware_Major_Version", 0, 1, writable=False),
    _eeprom("Firmware_Minor_Version", 1, 1, writable=False),
    _eeprom("Model_Number", 3, 2, writable=False),
    _eeprom("ID", 5, 1),
    _eeprom("Baud_Rate", 6, 1, "code, see BAUD_CODES"),
    _eeprom("Return_Delay_Time", 7, 1, "2 us"),
    _eeprom("Response_Status_Level", 8, 1, "0: only ping and read are answered, 1: all"),
    _eeprom("Min_Position_Limit", 9, 2, "tick"),
    _eeprom("Max_Position_Limit", 11, 2, "tick"),
    _eeprom("Max_Temperature_Limit", 13, 1, "degC"),
    _eeprom("Max_Voltage_Limit", 14, 1, "0.1 V"),
    _eeprom("Min_Voltage_Limit", 15, 1, "0.1 V"),
    _eeprom("Max_Torque_Limit", 16, 2, "0.1 %"),
    _eeprom("Phase", 18, 1, "bits; 0x10: position runs beyond one turn"),
    _eeprom("Unloading_Condition", 19, 1, "bits as ERROR_BITS"),
    _eeprom("LED_Alarm_Condition", 20, 1, "bits as ERROR_BITS"),
    _eeprom("P_Coefficient", 21, 1),
    _eeprom("D_Coefficient", 22, 1),
    _eeprom("I_Coefficient", 23, 1),
    _eeprom("Minimum_Startup_Force", 24, 2, "0.1 %"),
    _eeprom("CW_Dead_Zone", 26, 1, "tick"),
    _eeprom("CCW_Dead_Zone", 27, 1, "tick"),
    _eeprom("Protection_Current", 28, 2, "6.5 mA"),
    _eeprom("Angular_Resolution", 30, 1),
    _eeprom("Homing_Offset", 31, 2, "tick; Present = Actual - Homing_Offset", sign_bit=11),
    _eeprom("Operating_Mode", 33, 1, "0 position, 1 velocity, 2 PWM, 3 step"),
    _eeprom("Protective_Torque", 34, 1, "%"),
    _eeprom("Protection_Time", 35, 1, "10 ms"),
    _eeprom("Overload_Torque", 36, 1, "%"),
    _eeprom("Velocity_closed_loop_P_proportional_coefficient", 37, 1),
    _eeprom("Over_Current_Protection_Time", 38, 1, "10 ms"),
    _eeprom("Velocity_closed_loop_I_integral_coefficient", 39, 1),
    Register("Torque_Enable", 40, 1),
    Register("Acceleration", 41, 1, "100 tick/s^2, 0: no limit"),
    Register("Goal_Position", 42, 2, "tick", sign_bit=15),
    Register("Goal_Time", 44, 2, "ms"),
    Register("Goal_Velocity", 46, 2, "tick/s, 0: no limit", sign_bit=15),
    Register("Torque_Limit", 48, 2, "0.1 %"),
    Register("Lock", 55, 1, "1: EEPROM writes are lost at power-off"),
    _read_only("Present_Position", 56, 2, "tick", sign_bit=15),
    _read_only("Present_Velocity", 58, 2, "tick/s", sign_bit=15),
    _read_only("Present_Load", 60, 2, "0.1 %", sign_bit=10),
    _read_only("Present_Voltage", 62, 1, "0.1 V"),
    _read_only("Present_Temperature", 63, 1, "degC"),
    _read_only("Status", 65, 1, "bits as ERROR_BITS"),
    _read_only("Moving", 66, 1),
    _read_only("Present_Current", 69, 2, "6.5 mA"),
    _read_only("Goal_Position_2", 71, 2, "tick"),
    _eeprom("Moving_Velocity", 80, 1),
    _eeprom("Moving_Velocity_Threshold", 80, 1),
    _eeprom("DTs", 81, 1, "ms"),
    _eeprom("Velocity_Unit_factor", 82, 1),
    _eeprom("Hts", 83, 1, "ns; firmware >= 2.54"),
    _eeprom("Maximum_Velocity_Limit", 84, 1),
    _eeprom("Maximum_Acceleration", 85, 1, "100 tick/s^2"),
    _eeprom("Acceleration_Multiplier", 86, 1),
)

REGISTERS: dict[str, Register] = {register.name: register for register in _TABLE}


def encode(register: Register, value: int) -> bytes:
    """`value` in the register's bytes. ValueError when it does not fit (Homing_Offset: +-2047)."""
    bits = 8 * register.width if register.sign_bit is None else register.sign_bit
    if abs(value) >= 1 << bits or (value < 0 and register.sign_bit is None):
        low = 0 if register.sign_bit is None else 1 - (1 << bits)
        raise ValueError(f"{register.name} must be {low}..{(1 << bits) - 1}, not {value}")
    sign = 1 << bits if value < 0 else 0
    return (abs(value) | sign).to_bytes(register.width, "little")


def decode(register: Register, data: bytes) -> int:
    """The value in the register's bytes; the inverse of `encode`."""
    raw = int.from_bytes(data[: register.width], "little")
    if register.sign_bit is None:
        return raw
    magnitude = raw & ((1 << register.sign_bit) - 1)
    return -magnitude if raw >> register.sign_bit & 1 else magnitude


def error_words(bits: int) -> tuple[str, ...]:
    """The names of the error bits set in a status byte. A bit that the datasheet does not name is
    returned as, for example, "bit 0x40".
    """
    return tuple(ERROR_BITS.get(1 << n, f"bit {1 << n:#04x}") for n in range(8) if bits >> n & 1)
