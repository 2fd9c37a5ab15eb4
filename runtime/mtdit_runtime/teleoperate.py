"""Teleoperation: a follower arm follows a leader arm, through the guards of `safety`.

The follower starts where it is and moves to the leader's pose on a ramp; at the end it can return
to its start pose. `drive` also serves `replay`. Keys and the screen belong to the command line,
recording to `record`.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from mtdit_robots.errors import UserError
from mtdit_robots.robot import Frame, Positions
from mtdit_robots.signals import graceful_exit
from mtdit_robots.so101 import calibration as calibrations
from mtdit_robots.so101.arm import So101Arm
from mtdit_robots.so101.calibration import Calibration
from mtdit_robots.so101.joints import JOINTS
from mtdit_robots.so101.leader import So101Leader
from mtdit_robots.units import DEGREES, GRIPPER, NORMALIZED, check_arm_units
from mtdit_runtime.control.clock import Clock, LockstepClock, RealClock, check_lockstep
from mtdit_runtime.control.loop import Action, ActionSource, LoopConfig, run_loop
from mtdit_runtime.control.report import RunReport, Tick
from mtdit_runtime.control.safety import Limits, Safety, SafetyConfig, Stop
from mtdit_runtime.joint_order import Named, permutation
from mtdit_runtime.timings import Timings

log = logging.getLogger(__name__)

OnTick = Callable[[Tick], None]
Say = Callable[[str], None]

# Degrees or percent per second: a little more than the servo can do, so only glitches are limited.
MAX_SPEED = 300.0
MAX_SILENT_TICKS = 10  # ticks in a row without an answer of the leader: a third of a second

# A person watches the arm and may press on things on purpose: the guards tolerate more than they do
# for a policy.
BY_HAND = SafetyConfig(ramp_s=2.0, tracking_error=40.0, tracking_end_s=2.0)


class Leader(Protocol):
    """What tells a follower where to go: an arm that a person moves, or a program."""

    @property
    def joints(self) -> tuple[str, ...]:
        """Joint names: the follower's, in the order of `read`."""
        ...

    def connect(self) -> None:
        """Called once, before the follower has torque."""

    def read(self) -> Positions:
        """Where the follower should be, (J,) in the unit of the options, gripper 0..100. Called at
        every tick; OSError when there is no answer.
        """
        ...

    def close(self) -> None:
        """Called in the end, after the follower has been released; more than once does no harm."""


class LeaderSource(ActionSource):
    """The leader's positions, in the order of the follower's `joints`. lost: ticks in which the
    leader did not answer. UserError with both lists when the leader has other joints.

    Without an answer the last positions are held, up to MAX_SILENT_TICKS; then Stop("leader") ends
    the run, and the follower can still return to its start pose.
    """

    def __init__(
        self, leader: Leader, joints: tuple[str, ...], cameras: tuple[str, ...] = ()
    ) -> None:
        self.cameras, self.lost = cameras, 0
        self._leader, self._silent = leader, 0
        follower, leading = Named("the follower", joints), Named("the leader", tuple(leader.joints))
        self._order = permutation(follower, leading, "use a leader of the same kind of arm")
        self._last: Positions | None = None
        self._timings = Timings()

    def step(self, positions: Positions, frames: Mapping[str, Frame]) -> Action:
        try:
            with self._timings.time("leader"):
                self._last, self._silent = self._leader.read()[self._order], 0
        except OSError as error:
            self.lost, self._silent = self.lost + 1, self._silent + 1
            if self._silent >= MAX_SILENT_TICKS:
                raise Stop("leader", f"{error}: check its cable and power supply") from error
        return Action(self._last)

    def stats(self) -> dict[str, Any]:
        return {"stages": self._timings.summary()}


def arm_limits(
    calibration: Calibration, fps: float, max_speed: float = MAX_SPEED, units: str = DEGREES
) -> Limits:
    """The limits of a follower without a policy: its calibrated ranges in `units`, and a speed in
    degrees per second.
    """
    ranges = calibrations.ranges(calibration, units != NORMALIZED)
    low, high = ranges.bounds()
    scale = ranges.per_degree()
    tracked = np.array([joint != GRIPPER for joint in JOINTS])
    return Limits(low, high, max_speed / fps * scale, tracked, scale)


@dataclass(frozen=True)
class DriveOptions:
    """How to drive an arm without a policy. lockstep: use the twin's lock-step clock."""

    fps: int = 30
    duration_s: float | None = None
    lockstep: bool = False
    max_speed: float = MAX_SPEED  # degrees or percent per second, in either unit of the arms
    # Seconds for the return to the start pose; 0: the arm stays where it is and loses torque there.
    home_s: float = 3.0
    safety: SafetyConfig = field(default_factory=lambda: BY_HAND)
    # Unit of the body joints, "degrees" or "normalized"; None: that of the recording, or degrees
    units: str | None = None


def drive(
    robot: So101Arm,
    source: ActionSource,
    options: DriveOptions,
    *,
    on_tick: OnTick | None = None,
    say: Say | None = None,
) -> RunReport:
    """Connect the robot, drive it until the run ends, and release it in any case.

    Raises UserError for what the user must fix; every other failure is the reason in the report.
    """
    if options.lockstep:
        check_lockstep(options.fps, robot)
    clock: Clock = LockstepClock() if options.lockstep else RealClock()
    units = DEGREES if options.units is None else options.units
    if robot.is_real:
        check_arm_units(units)
    robot.use_units(units)
    limits = arm_limits(robot.calibration, options.fps, options.max_speed, units)
    safety = Safety(robot.joints, limits, options.safety)
    config = LoopConfig(options.fps, options.duration_s, home_s=options.home_s)
    with graceful_exit(), closing(robot):
        (say or log.info)(
            "keep clear: torque goes on and the arm moves to its first pose within "
            f"{options.safety.ramp_s:g} s (Ctrl-C to stop)"
        )
        robot.connect()
        return run_loop(robot, source, safety, config, clock, on_tick=on_tick)


def teleoperate(
    robot: So101Arm,
    leader: Leader,
    options: DriveOptions = DriveOptions(),
    *,
    cameras: tuple[str, ...] = (),
    on_tick: OnTick | None = None,
    say: Say | None = None,
) -> RunReport:
    """Let a leader drive the robot. Neither is connected yet; both are closed in the end.

    cameras: while one of these has no fresh frame, the arm holds its pose. on_tick: called after
    each command. say: called with each message for the user. UserError for what the user must fix;
    every other failure is the reason in the report.
    """
    with graceful_exit(), closing(robot), closing(leader):
        _check_leader(leader, DEGREES if options.units is None else options.units)
        source = LeaderSource(leader, robot.joints, cameras)
        leader.connect()  # first: an error of the leader shows before the follower has torque
        report = drive(robot, source, options, on_tick=on_tick, say=say)
    if source.lost:
        (say or log.warning)(f"the leader did not answer in {source.lost} ticks: check its cable")
    return report


def _check_leader(leader: Leader, units: str) -> None:
    """UserError for a leader arm that reads in another unit: the follower would move by wrong
    amounts. A program gives its positions in `units`.
    """
    if isinstance(leader, So101Leader) and leader.units != units:
        raise UserError(
            f"the leader reads in {leader.units}, but the follower takes {units}: make it with "
            f"So101Leader(..., use_degrees={units == DEGREES})"
        )


class Rate:
    """Ticks per second over the last `keep` ticks."""

    def __init__(self, keep: int = 30) -> None:
        self._times_s: deque[float] = deque(maxlen=keep)

    def note(self, time_s: float) -> None:
        self._times_s.append(time_s)

    @property
    def hz(self) -> float:
        times_s = list(self._times_s)
        span_s = times_s[-1] - times_s[0] if len(times_s) > 1 else 0.0
        return (len(times_s) - 1) / span_s if span_s > 0 else 0.0


class LiveStatus:
    """An `on_tick` that keeps the live values for the screen, which another thread may read."""

    def __init__(self, joints: tuple[str, ...]) -> None:
        self.headline = "driving"  # what is going on, in a line
        self._joints, self._rate = joints, Rate()
        self._tick: Tick | None = None

    def __call__(self, tick: Tick, headline: str = "driving") -> None:
        self._rate.note(tick.time_s)
        self._tick, self.headline = tick, headline

    def rows(self) -> list[tuple[str, str, str, str]]:
        """Per joint: (joint, leader position, command to the follower, measured position)."""
        tick = self._tick
        if tick is None:
            return []
        columns = (tick.wanted, tick.sent, tick.observation.positions)
        numbers = zip(*([f"{value:.1f}" for value in column] for column in columns), strict=True)
        return [(joint, *row) for joint, row in zip(self._joints, numbers, strict=True)]

    def line(self) -> str:
        """Loop rate, work per tick, and the age of every camera's frame."""
        tick = self._tick
        if tick is None:
            return "connecting"
        ages_s = tick.observation.frame_age_s.items()
        ages = [f"{name} {age_s * 1e3:.0f} ms old" for name, age_s in ages_s]
        return "  ".join([f"{self._rate.hz:.1f} Hz", f"{tick.work_s * 1e3:.1f} ms per tick", *ages])
