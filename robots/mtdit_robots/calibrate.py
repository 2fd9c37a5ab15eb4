"""Calibrating an SO-101, leader or follower: centre, sweep, write; and checking a calibration that
exists.

Knows LeRobot's procedure step by step, which travel an SO-101 has, and what a bad sweep looks like.
Refuses to know terminals: whoever asks the person to move the arm calls `centre`, `sample`,
`finish`. Torque is off from the first step to the last. Source: LeRobot `so_follower.py`
(calibrate), `motors_bus.py` (set_half_turn_homings).
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

from mtdit_robots import calibration as calibrations
from mtdit_robots import servos
from mtdit_robots.calibration import MAX_HOMING_OFFSET, MAX_TICK, Calibration, JointCalibration
from mtdit_robots.errors import UserError
from mtdit_robots.feetech import Bus, BusError, open_bus
from mtdit_robots.signals import undisturbed
from mtdit_robots.so101 import IDS, JOINTS
from mtdit_robots.sts3215 import TICKS_PER_TURN

CENTRE_TICKS = 2047  # what LeRobot makes the centre pose read: int(4095 / 2)
FULL_TURN = "wrist_roll"  # not swept: LeRobot gives it 0..4095
SWEPT = tuple(joint for joint in JOINTS if joint != FULL_TURN)
MIN_SHARE, MAX_SHARE = (
    0.6,
    1.4,
)  # of the nominal travel; less: not moved to its stops, more: the horn has slipped

# Degrees between the end stops: TheRobotStudio SO101 "new calibration" model. Assembled arms differ
# by some 15 %.
NOMINAL_TRAVEL_DEG = {
    "shoulder_pan": 220.0,
    "shoulder_lift": 200.0,
    "elbow_flex": 193.6,
    "wrist_flex": 190.0,
    "gripper": 110.0,
}

_DEG = 360 / TICKS_PER_TURN
_MULTI_TURN = 0x10  # Phase bit: cleared, Present_Position stays in 0..4095
_CENTRED_TICKS = 50  # 4 degrees: a limp joint creeps that much between two packets
_OUTSIDE_TICKS = 100  # 9 degrees beyond the range: more than a stop gives way


class PoseError(UserError):
    """The arm stands or was moved in a way that gives no calibration. It may be moved, and the step
    tried again.
    """


@dataclass
class Sweep:
    """Extremes of each joint while a person moves it. All in ticks with the homing offset applied,
    by joint name.
    """

    low: dict[str, int] = field(default_factory=dict)
    high: dict[str, int] = field(default_factory=dict)
    now: dict[str, int] = field(default_factory=dict)
    wrapped: set[str] = field(
        default_factory=set
    )  # jumped by more than half a turn: crossed the encoder's seam

    def add(self, ticks: Mapping[str, int]) -> None:
        """Take in one reading of all joints."""
        for joint, tick in ticks.items():
            if joint != FULL_TURN and abs(tick - self.now.get(joint, tick)) > TICKS_PER_TURN // 2:
                self.wrapped.add(joint)
            self.now[joint] = tick
            self.low[joint] = min(tick, self.low.get(joint, tick))
            self.high[joint] = max(tick, self.high.get(joint, tick))

    def span_deg(self, joint: str) -> float:
        """How far the joint was moved."""
        return (self.high[joint] - self.low[joint]) * _DEG if self.now else 0.0

    def enough(self, joint: str, min_share: float = MIN_SHARE) -> bool:
        """Whether the joint has shown its travel."""
        return joint == FULL_TURN or self.problem(joint, min_share) is None

    def problem(self, joint: str, min_share: float = MIN_SHARE) -> str | None:
        """What is wrong with this joint's sweep and what to do about it; None when nothing is."""
        span, wanted = self.span_deg(joint), min_share * NOMINAL_TRAVEL_DEG[joint]
        if joint in self.wrapped:
            return (
                f"{joint} crossed the seam of its encoder: put it in the middle of its travel and centre again; "
                "if it stays so, its horn sits half a turn off on the servo"
            )
        if span < wanted:
            return f"{joint} moved {span:.0f} degrees, an SO-101 has {NOMINAL_TRAVEL_DEG[joint]:.0f}: move it stop to stop"
        return None

    def problems(self, min_share: float = MIN_SHARE) -> list[str]:
        """One line per joint that has not been swept well."""
        return [problem for joint in SWEPT if (problem := self.problem(joint, min_share))]


class Calibrator:
    """One calibration over an open bus, as a context manager; `centre`, then `sample` many times,
    then `finish`.

    Entering greets the six servos and takes their torque away; it stays off. Leaving before
    `finish` has succeeded gives the servos back the calibration they had. Either way the EEPROM is
    locked, and `say` is told how the arm is left. min_share: the part of its nominal travel each
    joint must show.
    """

    def __init__(
        self, bus: Bus, min_share: float = MIN_SHARE, say: Callable[[str], None] = print
    ) -> None:
        self._bus, self._min_share, self._say = bus, min_share, say
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
            phases = servos.read(bus, "Phase")
            servos.ensure(
                bus, "Phase", {servo: phase & ~_MULTI_TURN for servo, phase in phases.items()}
            )
            servos.ensure(bus, "Operating_Mode", dict.fromkeys(servos.SERVOS, 0))
        except BaseException:
            self._leave()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._leave()

    def positions(self) -> dict[str, int]:
        """Joint -> Present_Position in ticks. BusError naming silent servos."""
        present = servos.read(self._bus, "Present_Position")
        return {joint: present[servo] for joint, servo in IDS.items()}

    def centre(self) -> dict[str, int]:
        """Make the present pose read 2047 on every joint; returns the homing offsets, and starts
        the sweep afresh.

        PoseError for a joint whose offset the servo cannot hold, or that was moved meanwhile.
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
                    f"{joint} reads {tick} after centring, not {CENTRE_TICKS}: keep it still, centre again"
                )
        self.sweep = Sweep()
        self.sweep.add(now)
        self._offsets = offsets
        return dict(offsets)

    def sample(self) -> Sweep:
        """Read all joints once into the sweep. BusError naming silent servos."""
        self.sweep.add(self.positions())
        return self.sweep

    def finish(self, save: Callable[[Calibration], None]) -> dict[str, JointCalibration]:
        """Write the swept ranges to the servos, `save` them, and return them.

        PoseError names every joint that was not swept well; nothing is written then, and the sweep
        may go on. When `save` fails, leaving gives the servos their former calibration back.
        """
        if not self._offsets:
            raise PoseError(
                "the arm has not been centred: put every joint in the middle of its travel, centre, sweep"
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

    def _leave(self) -> None:
        """Former calibration back unless done, torque off, locked; every step is tried whatever the
        others do.
        """
        with undisturbed():
            kept = self._done or self._restored()
            _leave_limp(self._bus, self._say)
        if not kept:
            self._say(
                "their former calibration could not be given back: calibrate again, or --import this arm's file"
            )
        elif not self._done:
            self._say("the servos hold the calibration they had before")

    def _restored(self) -> bool:
        try:
            if servos.read_calibration(self._bus) != self._former:
                servos.write_calibration(self._bus, self._former)
        except (OSError, UserError):
            return False
        return True


def write(bus: Bus, calibration: Calibration, say: Callable[[str], None] = print) -> None:
    """Write a calibration to the servos, read it back, lock; torque is off from then on, and `say`
    is told so.

    UserError and BusError as `servos.write_calibration`; what was written until then stays.
    """
    servos.handshake(bus)
    try:
        servos.write_calibration(bus, calibration)
    finally:
        with undisturbed():
            _leave_limp(bus, say)


def _leave_limp(bus: Bus, say: Callable[[str], None]) -> None:
    energised = servos.release(bus)
    with contextlib.suppress(OSError, UserError):
        servos.lock(bus)
    say(
        f"{', '.join(energised)} did not confirm torque off: cut the arm's power"
        if energised
        else "torque is off"
    )


def homing_offsets(ticks: Mapping[str, int]) -> dict[str, int]:
    """Offsets that make these encoder ticks read 2047. PoseError for one beyond the register's
    +-2047.
    """
    offsets = {joint: tick - CENTRE_TICKS for joint, tick in ticks.items()}
    for joint, offset in offsets.items():
        if abs(offset) > MAX_HOMING_OFFSET:
            raise PoseError(
                f"{joint} stands at encoder tick {ticks[joint]}, which needs an offset of {offset}, and the servo "
                f"holds +-{MAX_HOMING_OFFSET}: turn it by a degree or more, centre again"
            )
    return offsets


@dataclass(frozen=True)
class Finding:
    """What `inspect` found on one joint. status: ok, warn or fail; remedy is empty when there is
    nothing to do.
    """

    joint: str
    status: str
    finding: str
    remedy: str = ""


def inspect(bus: Bus, file: Calibration | None = None) -> list[Finding]:
    """Compare the servos' EEPROM with `file`, with where the joints stand, and with an SO-101's
    travel.

    Reads only: an arm that holds a pose keeps holding it. One finding per joint. UserError and
    BusError as `handshake`.
    """
    servos.handshake(bus)
    held = servos.read_calibration(bus)
    present = servos.read(bus, "Present_Position")
    return [
        judge(joint, held[joint], present[IDS[joint]], file[joint] if file else None)
        for joint in JOINTS
    ]


def judge(
    joint: str, held: JointCalibration, present: int, file: JointCalibration | None = None
) -> Finding:
    """The gravest thing about one joint: held against file, then the position, then the travel."""
    wrong = _mismatch(held, file) if file else ""
    if wrong:
        return Finding(
            joint,
            "fail",
            wrong,
            "pass this arm's own file, or write this one to the servos with --import",
        )
    span = f"{held.range_min}..{held.range_max}"
    if held.range_max <= held.range_min:
        return Finding(
            joint, "fail", f"range {span} is empty", "calibrate, or --import this arm's file"
        )
    if not held.range_min - _OUTSIDE_TICKS <= present <= held.range_max + _OUTSIDE_TICKS:
        return Finding(
            joint,
            "fail",
            f"stands at {present}, outside {span}",
            "move it inside by hand, or calibrate again",
        )
    return _judge_travel(joint, held, f"{span}, stands at {present}")


def _mismatch(held: JointCalibration, file: JointCalibration) -> str:
    keys = ("homing_offset", "range_min", "range_max")
    wrong = [
        f"{key} {getattr(held, key)}, file {getattr(file, key)}"
        for key in keys
        if getattr(held, key) != getattr(file, key)
    ]
    return f"servo holds {'; '.join(wrong)}" if wrong else ""


def _judge_travel(joint: str, held: JointCalibration, finding: str) -> Finding:
    span = (held.range_max - held.range_min) * _DEG
    finding = f"{span:.0f} degrees, {finding}"
    if joint == FULL_TURN:
        if (held.range_min, held.range_max) == (0, MAX_TICK):
            return Finding(joint, "ok", finding)
        return Finding(
            joint,
            "warn",
            f"{finding}; LeRobot gives it 0..{MAX_TICK} since 0.4.3",
            "its zero differs: keep it only for old policies",
        )
    nominal = NOMINAL_TRAVEL_DEG[joint]
    if span > MAX_SHARE * nominal:
        return Finding(
            joint,
            "warn",
            f"{finding}; an SO-101 has {nominal:.0f}",
            "check its horn, calibrate again",
        )
    if span < MIN_SHARE * nominal:
        return Finding(
            joint,
            "warn",
            f"{finding}; an SO-101 has {nominal:.0f}",
            "calibrate again, stop to stop",
        )
    return Finding(joint, "ok", finding)


@contextlib.contextmanager
def opened(port: str, timeout_s: float = 0.05, bus: str = "own") -> Iterator[Bus]:
    """An open bus that is patient, as LeRobot is while calibrating: a person shakes the cables.

    bus: "own" or "sdk". UserError for a port that does not open, and for servos that fall silent
    inside the block.
    """
    try:
        with open_bus(bus, port, timeout_s=timeout_s, retries=5) as opened_bus:
            yield opened_bus
    except BusError as error:
        raise UserError(
            f"{error}: check the arm's cables and power supply, then try again"
        ) from error
