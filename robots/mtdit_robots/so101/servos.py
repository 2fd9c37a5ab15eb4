"""Operations on the six servos of one SO-101, follower or leader: check, read, write, release.

Every write is read back. Units are left to `joints`, the order of connecting to `arm` and `leader`.
Source of the order of writes: LeRobot `feetech.py` (disable_torque, read_calibration,
write_calibration).
"""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Mapping, Sequence

from mtdit_robots.bus.feetech import Bus, BusError
from mtdit_robots.bus.sts3215 import MODEL_NUMBER
from mtdit_robots.errors import UserError
from mtdit_robots.so101.calibration import (
    Calibration,
    JointCalibration,
    not_compared,
    servo_differences,
)
from mtdit_robots.so101.joints import IDS, JOINTS

SERVOS = tuple(IDS.values())
JOINT_BY_ID = {servo: joint for joint, servo in IDS.items()}

# of the servos' position loop, as LeRobot's follower sets them at every connect
GAINS = {"P_Coefficient": 16, "I_Coefficient": 0, "D_Coefficient": 32}
LISTED = 3  # differences that a message lists

_MULTI_TURN = 0x10  # Phase bit; when it is 0, Present_Position stays in 0..4095
_CALIBRATED = {
    "range_min": "Min_Position_Limit",
    "range_max": "Max_Position_Limit",
    "homing_offset": "Homing_Offset",
}
_RELEASE_TRIES = 5  # the bus asks a servo that was silent before only once per call


def handshake(bus: Bus) -> None:
    """Check that all six servos answer, are STS3215 and run the same firmware; else UserError."""
    silent = [servo for servo in SERVOS if not answers(bus, servo)]
    if len(silent) == len(SERVOS):
        raise UserError(
            f"no servo answers on {bus.port}: switch on the arm's power, "
            "and check that this is its port"
        )
    if silent:
        raise UserError(
            f"{named(silent)} on {bus.port} does not answer: check its cables and its id"
        )
    models = read(bus, "Model_Number")
    foreign = [servo for servo in SERVOS if models[servo] != MODEL_NUMBER]
    if foreign:
        numbers = ", ".join(str(models[servo]) for servo in foreign)
        raise UserError(
            f"{named(foreign)} is not an STS3215 (model {numbers}, not {MODEL_NUMBER}): replace it"
        )
    major, minor = read(bus, "Firmware_Major_Version"), read(bus, "Firmware_Minor_Version")
    versions = {servo: f"{major[servo]}.{minor[servo]}" for servo in SERVOS}
    if len(set(versions.values())) > 1:
        listed = ", ".join(f"{JOINT_BY_ID[servo]} {version}" for servo, version in versions.items())
        raise UserError(
            f"the servos run different firmware ({listed}): update them with Feetech's FD software"
        )


def answers(bus: Bus, servo: int) -> bool:
    """Whether the servo answers a ping, with or without error bits."""
    try:
        bus.ping(servo)
    except BusError:
        return False
    return True


def read(bus: Bus, name: str, servos: Collection[int] = SERVOS) -> dict[int, int]:
    """One register of all these servos: id -> value. BusError names those that do not answer."""
    values = bus.sync_read(name, servos)
    _check_all(bus, servos, values)
    return values


def read_many(
    bus: Bus, names: Sequence[str], servos: Collection[int] = SERVOS
) -> dict[int, tuple[int, ...]]:
    """Several registers of all these servos in one exchange: id -> values, in the order of `names`.

    BusError names those that do not answer.
    """
    values = bus.sync_read_many(names, servos)
    _check_all(bus, servos, values)
    return values


def ensure(bus: Bus, name: str, values: Mapping[int, int]) -> None:
    """Write the registers that differ. EEPROM wears out, and most connects change nothing.

    Raises as `write`.
    """
    held = read(bus, name, values.keys())
    write(bus, name, {servo: value for servo, value in values.items() if held[servo] != value})


def write(bus: Bus, name: str, values: Mapping[int, int]) -> None:
    """Write one register of these servos and read it back.

    UserError when a servo did not keep the value.
    """
    for servo, value in values.items():
        bus.write(servo, name, value)
    held = read(bus, name, values.keys())
    wrong = [servo for servo in values if held[servo] != values[servo]]
    if wrong:
        raise UserError(
            f"{named(wrong)} did not keep {name} = {values[wrong[0]]} (reads {held[wrong[0]]}): "
            "switch the arm off and on, then try again"
        )


def unlock(bus: Bus) -> None:
    """Torque off and EEPROM unlocked. Raises as `ensure`."""
    ensure(bus, "Torque_Enable", dict.fromkeys(SERVOS, 0))
    ensure(bus, "Lock", dict.fromkeys(SERVOS, 0))


def lock(bus: Bus) -> None:
    """Lock the EEPROM: values written from now on are lost at power-off."""
    ensure(bus, "Lock", dict.fromkeys(SERVOS, 1))


def read_one_turn(bus: Bus) -> None:
    """Make every servo report its position within one turn, 0..4095. Raises as `ensure`."""
    phases = read(bus, "Phase")
    ensure(bus, "Phase", {servo: phase & ~_MULTI_TURN for servo, phase in phases.items()})


def release(bus: Bus) -> tuple[str, ...]:
    """Torque off on every servo that answers; returns the joints that did not confirm it.

    One packet releases all servos at once, then each one is asked to confirm, so one that fails
    does not keep the torque of the others on.
    """
    with contextlib.suppress(OSError):
        bus.sync_write("Torque_Enable", dict.fromkeys(SERVOS, 0))
    return tuple(joint for joint, servo in IDS.items() if not _released(bus, servo))


def read_calibration(bus: Bus) -> dict[str, JointCalibration]:
    """The calibration the EEPROM holds. Servos do not store drive_mode; it is 0, as in LeRobot."""
    held = {field: read(bus, register) for field, register in _CALIBRATED.items()}
    return {
        joint: JointCalibration(
            servo, 0, **{field: values[servo] for field, values in held.items()}
        )
        for joint, servo in IDS.items()
    }


def check_calibration(bus: Bus, calibration: Calibration, leader: bool = False) -> None:
    """UserError unless the servos hold the same values as the calibration: with the file of another
    arm, this one would move to wrong positions.
    """
    wrong = servo_differences(calibration, read_calibration(bus))
    if wrong:
        more = [f"and {len(wrong) - LISTED} more"] if len(wrong) > LISTED else []
        raise UserError(
            f"the servos do not hold this calibration ({'; '.join(wrong[:LISTED] + more)}): "
            "pass the file made with this arm, or write this one to the servos: "
            f"mtdit calibrate --port {bus.port}{' --leader' if leader else ''} --import FILE; "
            f"{not_compared(calibration)}"
        )


def write_calibration(bus: Bus, calibration: Calibration) -> None:
    """Torque off, unlock, write all three registers of all servos, read back, lock.

    Values that already read right are written too: one that was written while the EEPROM was locked
    reads right and is lost at power-off. Raises as `write`.
    """
    unlock(bus)
    for field, register in _CALIBRATED.items():
        write(bus, register, {IDS[joint]: getattr(calibration[joint], field) for joint in JOINTS})
    lock(bus)


def named(servos: Sequence[int]) -> str:
    """ "gripper (servo 6)", for messages."""
    return ", ".join(f"{JOINT_BY_ID[servo]} (servo {servo})" for servo in servos)


def _check_all(bus: Bus, servos: Collection[int], values: Collection[int]) -> None:
    silent = [servo for servo in servos if servo not in values]
    if silent:
        raise BusError(f"{named(silent)} on {bus.port} does not answer")


def _released(bus: Bus, servo: int) -> bool:
    for _ in range(_RELEASE_TRIES):
        with contextlib.suppress(BusError):
            bus.write(servo, "Torque_Enable", 0)
            return True
    return False
