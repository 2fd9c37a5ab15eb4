"""Give each servo of an SO-101 its id and baud rate, with one servo connected at a time.

Nothing is written unless exactly one servo answers. Source: LeRobot `so_follower.py`
(setup_motors), `motors_bus.py` (setup_motor); the gears of the leader: LeRobot
`docs/source/so101.mdx`.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import replace

from mtdit_robots.bus.feetech import Bus, BusError
from mtdit_robots.bus.sts3215 import BAUD_CODES, MODEL_NUMBER
from mtdit_robots.errors import UserError
from mtdit_robots.so101.joints import IDS, JOINTS
from mtdit_robots.so101.ports import BAUDS, BROADCAST_WAIT_S, Servo, scan

ORDER = tuple(reversed(JOINTS))  # gripper first, as in LeRobot: it is the last one in the chain
BAUD = 1_000_000

_LEADER_GEARS = {"shoulder_pan": "1/191", "shoulder_lift": "1/345", "elbow_flex": "1/191"}


def gear(joint: str, leader: bool) -> str:
    """The gear ratio the joint's servo must have. A leader has three kinds that look alike."""
    return _LEADER_GEARS.get(joint, "1/147") if leader else "1/345"


def find_servos(
    port: str, on_baud: Callable[[int], None] = lambda baud: None, wait_s: float = BROADCAST_WAIT_S
) -> list[Servo]:
    """Every connected servo, at any id and baud rate. wait_s: how long to listen at each rate.

    UserError when the port does not open, and when two servos answer at once.
    """
    found = []
    for baud in BAUDS:
        on_baud(baud)
        found.extend(scan(port, baud, wait_s))
    return found


def only_servo(port: str, found: list[Servo]) -> Servo:
    """The one servo that may be written to.

    UserError when there is none or more than one, and when it is not an STS3215.
    """
    if not found:
        raise UserError(
            f"no servo answers on {port} at any baud rate: check its cable and switch on its power"
        )
    if len(found) > 1:
        listed = ", ".join(f"id {servo.id} at {servo.baud} baud" for servo in found)
        raise UserError(
            f"{len(found)} servos answer on {port} ({listed}), nothing was changed: "
            "connect only one servo"
        )
    if found[0].model != MODEL_NUMBER:
        raise UserError(
            f"servo {found[0].id} is not an STS3215 "
            f"(model {found[0].model}, not {MODEL_NUMBER}): replace it"
        )
    return found[0]


def complete(found: list[Servo]) -> bool:
    """Whether a whole arm is connected and every servo has its id and baud rate already."""
    return [(servo.id, servo.baud) for servo in found] == [(servo, BAUD) for servo in IDS.values()]


def is_set_up(servo: Servo, joint: str) -> bool:
    """Whether the servo already has this joint's id and the arm's baud rate."""
    return (servo.id, servo.baud) == (IDS[joint], BAUD)


def set_up(port: str, servo: Servo, joint: str, timeout_s: float = 0.05) -> Servo:
    """Write the joint's id and 1 Mbit/s to the EEPROM of the only connected servo; returns its new
    state.

    Torque is switched off first and stays off. UserError when the servo does not answer under its
    new id and rate afterwards.
    """
    target = replace(servo, id=IDS[joint], baud=BAUD)
    try:
        with Bus(port, servo.baud, timeout_s, retries=5) as bus:
            _make_writable(bus, servo, joint)
            _write_both(bus, servo, target)
        with Bus(port, BAUD, timeout_s, retries=5) as bus:
            _prove(bus, target)
    except BusError as error:
        raise UserError(
            f"{joint}: {error} after its id and baud rate were written: switch the power off and "
            "on, and run this command again; it recognises a servo that has them already"
        ) from error
    return target


def _make_writable(bus: Bus, servo: Servo, joint: str) -> None:
    try:
        bus.write(servo.id, "Torque_Enable", 0)
        bus.write(servo.id, "Lock", 0)
    except BusError as error:
        raise UserError(
            f"{joint}: {error}, its id and baud rate are unchanged: check its cable and try again"
        ) from error


def _write_both(bus: Bus, servo: Servo, target: Servo) -> None:
    """Write the id, then the baud rate, which takes effect at once. The reply may carry the old or
    the new id and arrive at the old or the new rate, so a missing reply is ignored here; `_prove`
    checks the result.
    """
    if servo.id != target.id:
        with contextlib.suppress(BusError):
            bus.write(servo.id, "ID", target.id)
    if servo.baud != target.baud:
        with contextlib.suppress(BusError):
            bus.write(target.id, "Baud_Rate", BAUD_CODES[target.baud])


def _prove(bus: Bus, target: Servo) -> None:
    """Check that the servo answers with its new id and rate and holds both; lock the EEPROM."""
    bus.ping(target.id)
    for name, value in {"ID": target.id, "Baud_Rate": BAUD_CODES[target.baud]}.items():
        held = bus.read(target.id, name)
        if held != value:
            raise BusError(f"servo {target.id} on {bus.port} holds {name} {held}, not {value}")
    bus.write(target.id, "Lock", 1)
