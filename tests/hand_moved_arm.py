"""An arm of virtual servos that a test moves as a hand would."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest

from mtdit_robots.so101.calibration import JointCalibration
from mtdit_robots.so101.joints import IDS, JOINTS
from mtdit_robots.twin.bus import VirtualBus
from mtdit_robots.twin.registers import ServoRegisters

CENTRE = dict(zip(JOINTS, (1900, 3100, 1010, 2047, 3000, 2222), strict=True))
REACH = dict(zip(JOINTS, (1250, 1130, 1100, 1077, 0, 700), strict=True))
CALIBRATED = ("Homing_Offset", "Min_Position_Limit", "Max_Position_Limit")
CTRL_C, ENTER, ESCAPE = "\x03", "\r", "\x1b"
PATIENT_S = 60.0
QUICKLY = ("--bus-timeout", "0.3")  # a virtual servo answers at once, whatever its id

Start = Callable[..., Any]
Refused = Callable[..., str]


@dataclass
class Arm:
    """Servos on a virtual bus, moved by the test as a hand would."""

    servos: dict[int, ServoRegisters]
    n_reads: int = 0
    bus: VirtualBus = field(init=False)

    def __post_init__(self) -> None:
        self.bus = VirtualBus(self.servos, before_read=self._count)

    def _count(self) -> None:
        self.n_reads += 1

    @property
    def port(self) -> str:
        return self.bus.path

    def pose(self, ticks: dict[str, int]) -> None:
        for joint, tick in ticks.items():
            self.servos[IDS[joint]].set_present(tick)

    def sweep(self, *joints: str) -> None:
        """From stop to stop, as fast as the client looks."""
        for joint in joints:
            for part in (-0.5, -1, -0.5, 0, 0.5, 1, 0):
                self.pose({joint: CENTRE[joint] + round(part * REACH[joint])})
                self.await_reads(2)

    def await_reads(self, n_reads: int) -> None:
        before, deadline = self.n_reads, time.monotonic() + PATIENT_S
        while self.n_reads < before + n_reads:
            assert time.monotonic() < deadline, "nobody reads"
            time.sleep(0.005)

    def holds(self) -> dict[str, tuple[int, ...]]:
        """The calibration after a power cycle."""
        for servo in self.servos.values():
            servo.power_cycle()
        return {
            joint: tuple(self.servos[n].get(name) for name in CALIBRATED)
            for joint, n in IDS.items()
        }

    def is_limp_and_locked(self) -> bool:
        return all(
            not servo.torque_enabled and servo.get("Lock") == 1 for servo in self.servos.values()
        )


def values(calibration: dict[str, JointCalibration]) -> dict[str, tuple[int, ...]]:
    return {joint: (c.homing_offset, c.range_min, c.range_max) for joint, c in calibration.items()}


WANTED = {
    joint: (
        CENTRE[joint] - 2047,
        *((0, 4095) if joint == "wrist_roll" else (2047 - REACH[joint], 2047 + REACH[joint])),
    )
    for joint in JOINTS
}


@pytest.fixture
def arm() -> Iterator[Arm]:
    """Six servos as they leave the factory, ids set, holding a pose."""
    made = Arm({n: ServoRegisters(n) for n in IDS.values()})
    made.pose(CENTRE)
    for servo in made.servos.values():
        servo.set("Torque_Enable", 1)
    with made.bus.serve_in_thread():
        yield made
