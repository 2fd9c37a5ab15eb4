"""Giving a servo its id and rate, one servo on the wire at a time.

Knows the order of an SO-101's servos, when a servo may be written to, and how to prove that it
took. Refuses to write when no servo answers or more than one does. Source: LeRobot `so_follower.py`
(setup_motors), `motors_bus.py` (setup_motor); the gears of the leader: LeRobot
`docs/source/so101.mdx`.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import replace

from mtdit_robots.errors import UserError
from mtdit_robots.feetech import Bus, BusError
from mtdit_robots.ports import BAUDS, BROADCAST_WAIT_S, Servo, scan
from mtdit_robots.so101 import IDS, JOINTS
from mtdit_robots.sts3215 import BAUD_CODES, MODEL_NUMBER

ORDER = tuple(reversed(JOINTS))  # gripper first, as LeRobot asks: it hangs at the end of the chain
BAUD = 1_000_000

_LEADER_GEARS = {"shoulder_pan": "1/191", "shoulder_lift": "1/345", "elbow_flex": "1/191"}


def gear(joint: str, leader: bool) -> str:
    """The gear the joint's servo must have; a leader's are mixed and look alike."""
    return _LEADER_GEARS.get(joint, "1/147") if leader else "1/345"


def find_servos(
    port: str, on_baud: Callable[[int], None] = lambda baud: None, wait_s: float = BROADCAST_WAIT_S
) -> list[Servo]:
    """Every servo on the wire, whatever its id and rate. wait_s: how long to listen at each rate.

    UserError when the port does not open or two servos talk at once.
    """
    found = []
    for baud in BAUDS:
        on_baud(baud)
        found.extend(scan(port, baud, wait_s))
    return found


def only_servo(port: str, found: list[Servo]) -> Servo:
    """The one servo that may be written to. UserError when there is none, more than one, or no
    STS3215.
    """
    if not found:
        raise UserError(
            f"no servo answers on {port} at any rate: check its cable, and switch the power on"
        )
    if len(found) > 1:
        listed = ", ".join(f"id {servo.id} at {servo.baud} baud" for servo in found)
        raise UserError(
            f"{len(found)} servos answer on {port} ({listed}), nothing is changed: connect one alone"
        )
    if found[0].model != MODEL_NUMBER:
        raise UserError(
            f"servo {found[0].id} is no STS3215 (model {found[0].model}, not {MODEL_NUMBER}): replace it"
        )
    return found[0]


def complete(found: list[Servo]) -> bool:
    """Whether a whole arm hangs there, every servo as it should be: nothing is left to do."""
    return [(servo.id, servo.baud) for servo in found] == [(servo, BAUD) for servo in IDS.values()]


def is_set_up(servo: Servo, joint: str) -> bool:
    """Whether the servo has this joint's id and the arm's rate already."""
    return (servo.id, servo.baud) == (IDS[joint], BAUD)


def set_up(port: str, servo: Servo, joint: str, timeout_s: float = 0.05) -> Servo:
    """Give the only servo on the wire the joint's id and 1 Mbit/s, lasting; returns it as it now
    is.

    Torque goes off first and stays off. UserError when it does not answer under its new id and rate
    afterwards.
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
            f"{joint}: {error} after its id and rate were written: switch the power off and on, and run this again; "
            "a servo that has taken them is recognised"
        ) from error
    return target


def _make_writable(bus: Bus, servo: Servo, joint: str) -> None:
    try:
        bus.write(servo.id, "Torque_Enable", 0)
        bus.write(servo.id, "Lock", 0)
    except BusError as error:
        raise UserError(
            f"{joint}: {error}, its id and rate are as they were: check its cable, try again"
        ) from error


def _write_both(bus: Bus, servo: Servo, target: Servo) -> None:
    """Rate last: it takes effect at once, and the reply to it may come at either rate."""
    if servo.id != target.id:
        with contextlib.suppress(
            BusError
        ):  # the reply may carry the old id or the new one; `_prove` tells
            bus.write(servo.id, "ID", target.id)
    if servo.baud != target.baud:
        with contextlib.suppress(BusError):
            bus.write(target.id, "Baud_Rate", BAUD_CODES[target.baud])


def _prove(bus: Bus, target: Servo) -> None:
    """Under its new id and rate it answers, holds both, and locks."""
    bus.ping(target.id)
    for name, value in {"ID": target.id, "Baud_Rate": BAUD_CODES[target.baud]}.items():
        held = bus.read(target.id, name)
        if held != value:
            raise BusError(f"servo {target.id} on {bus.port} holds {name} {held}, not {value}")
    bus.write(target.id, "Lock", 1)
