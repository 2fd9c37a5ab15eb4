"""A chain of six virtual servos that hold the example calibration and jump to their goals, served
from a thread.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field

import pytest
from repository import EXAMPLE

from mtdit_robots.bus.packets import SYNC_WRITE, WRITE, Packet
from mtdit_robots.so101.calibration import Calibration, load
from mtdit_robots.so101.joints import IDS
from mtdit_robots.twin.bus import VirtualBus
from mtdit_robots.twin.registers import ServoRegisters


def flash(servo: ServoRegisters, **registers: int) -> None:
    """Put values into a servo's EEPROM so that they last, and switch it off and on."""
    for name, value in registers.items():
        servo.set(name, value)
    servo.write(55, b"\0")
    for address in range(40):
        servo.write(address, servo.read(address, 1))
    servo.power_cycle()


def calibrated_servos(calibration: Calibration) -> dict[int, ServoRegisters]:
    servos = {servo: ServoRegisters(servo) for servo in IDS.values()}
    for joint in calibration.values():
        flash(
            servos[joint.id],
            Homing_Offset=joint.homing_offset,
            Min_Position_Limit=joint.range_min,
            Max_Position_Limit=joint.range_max,
        )
        servos[joint.id].set_present(2047 + joint.homing_offset)
    return servos


@dataclass
class Chain:
    """Servos, the bus they hang on, and what the client sent."""

    servos: dict[int, ServoRegisters]
    log: list[Packet] = field(default_factory=list)
    n_goals: int = 0
    n_reads: int = 0
    bus: VirtualBus = field(init=False)

    def __post_init__(self) -> None:
        self.bus = VirtualBus(self.servos, self._on_goal, self._before_read, log=self.log)

    @property
    def port(self) -> str:
        return self.bus.path

    def writes(self, address: int) -> list[tuple[int, Packet]]:
        """(index in the log, request) of every write that starts at `address`."""
        found = [
            (n, frame) for n, frame in enumerate(self.log) if frame.code in (WRITE, SYNC_WRITE)
        ]
        return [(n, frame) for n, frame in found if frame.data[0] == address]

    def _on_goal(self) -> None:
        self.n_goals += 1
        for servo in self.servos.values():
            if servo.torque_enabled:
                servo.set_present(servo.goal_actual_ticks)

    def _before_read(self) -> None:
        self.n_reads += 1


class Waving(Chain):
    """A leader that somebody waves: it stands somewhere else whenever it is read."""

    swing_ticks = 250

    def _before_read(self) -> None:
        super()._before_read()
        for n, servo in self.servos.items():
            swing = (
                self.swing_ticks * math.sin(self.n_reads / 25 + n) if n != IDS["gripper"] else 400
            )
            servo.set_present(2047 + servo.get("Homing_Offset") + swing)


@pytest.fixture
def calibration() -> Calibration:
    return load(EXAMPLE)


@pytest.fixture
def chain(calibration: Calibration) -> Iterator[Chain]:
    """Six servos with the example calibration in EEPROM, at mid-range, torque off."""
    made = Chain(calibrated_servos(calibration))
    with made.bus.serve_in_thread():
        yield made


@pytest.fixture
def leader(calibration: Calibration) -> Iterator[Chain]:
    """Six servos of a leader arm that is being waved about."""
    made = Waving(calibrated_servos(calibration))
    with made.bus.serve_in_thread():
        yield made


@pytest.fixture
def factory_chain() -> Iterator[Chain]:
    """Six servos as they leave the factory, ids already set."""
    made = Chain({servo: ServoRegisters(servo) for servo in IDS.values()})
    with made.bus.serve_in_thread():
        yield made
