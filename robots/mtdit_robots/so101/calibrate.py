"""Calibrate an SO-101, leader or follower: centre, sweep, write.

The caller talks to the user and calls `centre`, `sample` and `finish`. Torque is off throughout.
Source: LeRobot `so_follower.py` (calibrate), `motors_bus.py` (set_half_turn_homings).
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

from mtdit_robots.bus.feetech import Bus, BusError
from mtdit_robots.bus.open import open_bus
from mtdit_robots.bus.sts3215 import TICKS_PER_TURN
from mtdit_robots.errors import UserError
from mtdit_robots.signals import signals_deferred
from mtdit_robots.so101 import calibration as calibrations
from mtdit_robots.so101 import servos
from mtdit_robots.so101.calibration import (
    MAX_HOMING_OFFSET,
    MAX_TICK,
    Calibration,
    JointCalibration,
)
from mtdit_robots.so101.joints import IDS, JOINTS

log = logging.getLogger(__name__)

CENTRE_TICKS = 2047  # what LeRobot makes the centre pose read: int(4095 / 2)
FULL_TURN = "wrist_roll"  # not swept: LeRobot gives it 0..4095
SWEPT = tuple(joint for joint in JOINTS if joint != FULL_TURN)
# Fractions of the nominal travel. Below: the joint was not moved to its stops. Above: its horn has
# slipped.
MIN_SHARE, MAX_SHARE = 0.6, 1.4

# Degrees between the end stops, from TheRobotStudio's SO101 "new calibration" model. Assembled arms
# differ by about 15 %.
NOMINAL_TRAVEL_DEG = {
    "shoulder_pan": 220.0,
    "shoulder_lift": 200.0,
    "elbow_flex": 193.6,
    "wrist_flex": 190.0,
    "gripper": 110.0,
}

DEG = 360 / TICKS_PER_TURN
_CENTRED_TICKS = 50  # 4 degrees: a limp joint may creep that much between two packets


class PoseError(UserError):
    """The pose or the sweep does not allow a calibration. Move the arm and repeat the step."""


@dataclass
class Sweep:
    """The lowest and highest position of each joint while a person moves it.

    Joint -> ticks with the homing offset applied. `wrapped` holds the joints that jumped by more
    than half a turn, that is, crossed the encoder's wrap-around from 4095 to 0.
    """

    low: dict[str, int] = field(default_factory=dict)
    high: dict[str, int] = field(default_factory=dict)
    now: dict[str, int] = field(default_factory=dict)
    wrapped: set[str] = field(default_factory=set)

    def add(self, ticks: Mapping[str, int]) -> None:
        """Add one reading of all joints."""
        for joint, tick in ticks.items():
            if joint != FULL_TURN and abs(tick - self.now.get(joint, tick)) > TICKS_PER_TURN // 2:
                self.wrapped.add(joint)
            self.now[joint] = tick
            self.low[joint] = min(tick, self.low.get(joint, tick))
            self.high[joint] = max(tick, self.high.get(joint, tick))

    def span_deg(self, joint: str) -> float:
        """How far the joint was moved, in degrees."""
        return (self.high[joint] - self.low[joint]) * DEG if self.now else 0.0

    def enough(self, joint: str, min_share: float = MIN_SHARE) -> bool:
        """Whether the joint has been swept far enough."""
        return joint == FULL_TURN or self.problem(joint, min_share) is None

    def problem(self, joint: str, min_share: float = MIN_SHARE) -> str | None:
        """What is wrong with this joint's sweep and how to fix it; None when it is fine."""
        span, nominal = self.span_deg(joint), NOMINAL_TRAVEL_DEG[joint]
        if joint in self.wrapped:
            return (
                f"{joint} crossed its encoder's wrap-around from 4095 to 0: put it in the middle "
                "of its travel and centre again; if that does not help, its horn is mounted half a "
                "turn off on the servo"
            )
        if span < min_share * nominal:
            return (
                f"{joint} moved only {span:.0f} of {nominal:.0f} degrees: move it from stop to stop"
            )
        return None

    def problems(self, min_share: float = MIN_SHARE) -> list[str]:
        """One line per joint whose sweep is not good."""
        return [problem for joint in SWEPT if (problem := self.problem(joint, min_share))]


class Calibrator:
    """One calibration over an open bus, as a context manager: `centre`, then `sample` many times,
    then `finish`.

    Entering checks the six servos and switches their torque off; it stays off. Leaving before
    `finish` has succeeded restores the calibration the servos had. In both cases the EEPROM is
    locked, and `say` reports the state of the arm. min_share: the fraction of its nominal travel
    that each joint must be moved.
    """

    def __init__(
        self, bus: Bus, min_share: float = MIN_SHARE, say: Callable[[str], None] | None = None
    ) -> None:
        self._bus, self._min_share, self._say = bus, min_share, say or log.warning
        self._former: Calibration = {}
        self._offsets: dict[str, int] = {}
        self._done = False
        self.sweep = Sweep()

    def __enter__(self) -> Calibrator:
        bus = self._bus
        servos.handshake(bus)
        self._former = servos.read_calibration(bus)
        try:
            servos.unlock(bus)
            servos.read_one_turn(bus)
            servos.ensure(bus, "Operating_Mode", dict.fromkeys(servos.SERVOS, 0))
        except BaseException:
            self._end()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._end()

    def positions(self) -> dict[str, int]:
        """Joint -> Present_Position in ticks. BusError names servos that do not answer."""
        present = servos.read(self._bus, "Present_Position")
        return {joint: present[servo] for joint, servo in IDS.items()}

    def centre(self) -> dict[str, int]:
        """Make the present pose read 2047 on every joint, and start a new sweep. Returns the homing
        offsets in ticks.

        PoseError for a joint whose offset the servo cannot hold, or that moved meanwhile.
        """
        self._offsets = {}
        for name, value in {
            "Homing_Offset": 0,
            "Min_Position_Limit": 0,
            "Max_Position_Limit": MAX_TICK,
        }.items():
            servos.write(self._bus, name, dict.fromkeys(servos.SERVOS, value))
        offsets = homing_offsets(self.positions())
        servos.write(
            self._bus, "Homing_Offset", {IDS[joint]: offset for joint, offset in offsets.items()}
        )
        now = self.positions()
        for joint, tick in now.items():
            if abs(tick - CENTRE_TICKS) > _CENTRED_TICKS:
                raise PoseError(
                    f"{joint} reads {tick} after centring, not {CENTRE_TICKS}: "
                    "keep it still and centre again"
                )
        self.sweep = Sweep()
        self.sweep.add(now)
        self._offsets = offsets
        return dict(offsets)

    def sample(self) -> Sweep:
        """Add one reading of all joints. BusError names servos that do not answer."""
        self.sweep.add(self.positions())
        return self.sweep

    def finish(self, save: Callable[[Calibration], None]) -> dict[str, JointCalibration]:
        """Write the swept ranges to the servos, `save` them, and return them.

        PoseError names every joint whose sweep is not good; nothing is written then, and sweeping
        may continue. When `save` fails, leaving restores the servos' former calibration.
        """
        if not self._offsets:
            raise PoseError(
                "the arm has not been centred: put every joint in the middle of its travel, "
                "centre, then sweep"
            )
        problems = self.sweep.problems(self._min_share)
        if problems:
            raise PoseError("; ".join(problems))
        made = {joint: self._joint(joint) for joint in JOINTS}
        calibrations.check(made)
        servos.write_calibration(self._bus, made)
        save(made)
        self._done = True
        return made

    def _joint(self, joint: str) -> JointCalibration:
        low, high = (
            (0, MAX_TICK) if joint == FULL_TURN else (self.sweep.low[joint], self.sweep.high[joint])
        )
        return JointCalibration(IDS[joint], 0, self._offsets[joint], low, high)

    def _end(self) -> None:
        """Restore the former calibration unless done, torque off, lock. Each step is tried even
        when another one fails.
        """
        with signals_deferred():
            servos_ok = self._done or self._restored()
            _release(self._bus, self._say)
        if not servos_ok:
            self._say(
                "the servos' former calibration could not be restored: calibrate again, "
                "or write this arm's file with --import"
            )
        elif not self._done:
            self._say("the servos still have their former calibration")

    def _restored(self) -> bool:
        try:
            if servos.read_calibration(self._bus) != self._former:
                servos.write_calibration(self._bus, self._former)
        except (OSError, UserError):
            return False
        return True


def write(bus: Bus, calibration: Calibration, say: Callable[[str], None] | None = None) -> None:
    """Write a calibration to the servos, read it back and lock. Torque is off afterwards; `say`
    reports that.

    Raises as `servos.write_calibration`; values written before the error stay written.
    """
    servos.handshake(bus)
    try:
        servos.write_calibration(bus, calibration)
    finally:
        with signals_deferred():
            _release(bus, say or log.warning)


def _release(bus: Bus, say: Callable[[str], None]) -> None:
    energised = servos.release(bus)
    with contextlib.suppress(OSError, UserError):
        servos.lock(bus)
    say(
        f"{', '.join(energised)} did not confirm torque off: cut the arm's power"
        if energised
        else "torque is off"
    )


def homing_offsets(ticks: Mapping[str, int]) -> dict[str, int]:
    """Joint -> the offset that makes its encoder ticks read 2047.

    PoseError for an offset beyond the +-2047 that the register holds.
    """
    offsets = {joint: tick - CENTRE_TICKS for joint, tick in ticks.items()}
    for joint, offset in offsets.items():
        if abs(offset) > MAX_HOMING_OFFSET:
            raise PoseError(
                f"{joint} is at encoder tick {ticks[joint]}, which needs an offset of {offset}, "
                f"but the servo holds at most +-{MAX_HOMING_OFFSET}: "
                "turn it by a degree or more and centre again"
            )
    return offsets


@contextlib.contextmanager
def opened(port: str, timeout_s: float = 0.05, bus: str = "own") -> Iterator[Bus]:
    """An open bus with 5 retries, as in LeRobot's calibration: moving the arm shakes the cables.

    bus: "own" or "sdk". UserError for a port that does not open, and for servos that stop answering
    inside the block.
    """
    try:
        with open_bus(bus, port, timeout_s=timeout_s, retries=5) as opened_bus:
            yield opened_bus
    except BusError as error:
        raise UserError(
            f"{error}: check the arm's cables and power supply, then try again"
        ) from error
