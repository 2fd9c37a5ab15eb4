"""The control loop: observe, act, wait for the next deadline; and why the run ended.

Knows ticks, deadlines, signals and errors in a row. Refuses to know how actions are made
(`chunks`), what is safe (`safety`), and how a robot is opened: whoever connected it closes it.
Deadlines are absolute: a late tick is counted, the periods it swallowed are dropped, and the next
tick starts on the grid again. Nothing is printed meanwhile.
"""

from __future__ import annotations

import gc
import math
import signal
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from types import FrameType
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from mtdit_robots.errors import UserError
from mtdit_robots.robot import Frame, Observation, Positions, Robot
from mtdit_robots.signals import handled_by
from mtdit_robots.twin.scene import TICK_S
from mtdit_runtime.ledger import Ledger
from mtdit_runtime.safety import Safety, Stop

if TYPE_CHECKING:
    from rich.table import Table

REASONS = (
    "duration", "success", "interrupted", "stale camera", "bus", "leader", "policy error", "blocked", "recording"
)  # fmt: skip
GOOD_REASONS = ("duration", "success", "interrupted")
UNSAFE_TO_MOVE = ("bus", "blocked")  # no ride home after these
LOCKSTEP_FPS = round(1 / TICK_S)


class Clock(Protocol):
    def now_s(self) -> float: ...

    def wait_until(self, time_s: float) -> None: ...


class Driver(Protocol):
    """Whose actions they are: joints in order, and the cameras without which it cannot act."""

    @property
    def joints(self) -> tuple[str, ...]: ...

    @property
    def cameras(self) -> tuple[str, ...]: ...


class Source(Protocol):
    """What says the next action: a policy's `ChunkQueue`, a person's leader arm, a recorded
    episode.
    """

    ledger: Ledger
    chunk: int
    row: int
    requested: int
    adopted: int  # 0: nothing to act on yet
    prefetch_ticks: int
    stalls: int
    continued: int
    discarded: int

    @property
    def seam_jump(self) -> Positions: ...

    @property
    def policy(self) -> Driver: ...

    def step(self, positions: Positions, frames: Mapping[str, Frame]) -> Positions: ...

    def prepare(self) -> None: ...


class RealClock:
    """The machine's monotonic clock."""

    def now_s(self) -> float:
        return time.monotonic()

    def wait_until(self, time_s: float) -> None:
        time.sleep(max(0.0, time_s - time.monotonic()))


class LockstepClock:
    """Time that passes only by waiting: for a twin that advances one tick per command."""

    def __init__(self) -> None:
        self._now_s = 0.0

    def now_s(self) -> float:
        return self._now_s

    def wait_until(self, time_s: float) -> None:
        self._now_s = max(self._now_s, time_s)


def check_lockstep(fps: float) -> None:
    """Raises UserError for another rate than the twin's: in lock-step the arm would move at the
    wrong speed.
    """
    if fps != LOCKSTEP_FPS:
        raise UserError(
            f"a lock-step tick of the twin is 1/{LOCKSTEP_FPS} s, this runs at {fps:g} Hz: "
            f"use --clock real (an evaluation needs a policy of {LOCKSTEP_FPS} Hz)"
        )


@dataclass(frozen=True)
class LoopConfig:
    fps: float
    duration_s: float | None = None  # None: until success or Ctrl-C
    success_ticks: int = 3  # success must last, a cube rolling through the goal is none
    max_bus_errors: int = (
        10  # failed ticks in a row: 0.3 s of a cable that is out, 0.8 s of a servo that is silent
    )
    home_s: float = 0.0  # at the end move back to the start pose within about this time; 0: stay


@dataclass(frozen=True)
class Tick:
    """What happened in one tick, for recorders and videos."""

    index: int
    time_s: float  # since the first tick
    observation: Observation
    wanted: (
        Positions  # (J,) the policy's action; while held because frames are stale, the held command
    )
    sent: Positions  # (J,) what the robot accepted
    chunk: int  # number of the chunk executed, -1: held
    row: int  # row of its executed part, -1: held
    requested: int  # number of the chunk asked for in this tick, -1: none
    fresh: bool  # False: frames were stale, the policy was not asked
    work_s: float  # from the tick's start to the command


@dataclass(frozen=True)
class RunReport:
    """How a run went. Durations per stage are {count, p50_ms, p95_ms, max_ms}."""

    reason: str
    detail: str
    ticks: int
    duration_s: float
    late_ticks: int
    dropped_periods: int
    max_overrun_ms: float
    stages: dict[
        str, dict[str, float]
    ]  # observe, policy, command, tick; chunk, and the policy's own stages
    chunks: int
    prefetch_ticks: int
    stalled_ticks: int  # held because no chunk was there
    continued_ticks: int  # ran on behind the executed part because a chunk was late
    discarded_chunks: int
    stale_ticks: int
    bus_errors: int  # ticks lost to them
    servo_errors: dict[
        str, dict[str, int]
    ]  # joint -> error -> packets, of robots that count them; mended by retries
    seam_jump: dict[str, float]  # joint -> largest difference between chunks at a seam, degrees
    interventions: dict[str, dict[str, int]]  # guard -> joint -> ticks
    exit_errors: tuple[str, ...]

    @property
    def ok(self) -> bool:
        return self.reason in GOOD_REASONS

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def run(
    robot: Robot,
    queue: Source,
    safety: Safety,
    config: LoopConfig,
    clock: Clock,
    success: Callable[[], bool] | None = None,
    on_tick: Callable[[Tick], None] | None = None,
) -> RunReport:
    """Drive a connected robot until something ends the run; afterwards it holds its pose, at home
    if asked.

    The queue must have been reset to its task. Raises UserError for what the user must mend (a
    camera's size); every other failure of robot, policy or `on_tick` ends the run and stands in the
    report.
    """
    with _interrupts() as interrupts, _quiet_memory():
        loop = _Loop(robot, queue, safety, config, clock, success, on_tick, interrupts)
        try:
            end = loop.until_stopped()
        finally:
            loop.rest()
        if interrupts.count < 2:
            loop.go_home(end.reason)
        return loop.report(end)


class _Interrupts:
    """Signals so far: one ends the run, a second one the ride home, a third one whatever hangs."""

    count = 0

    def note(self, _signal: int, _frame: FrameType | None) -> None:
        self.count += 1
        if self.count > 2:
            raise KeyboardInterrupt


@contextmanager
def _interrupts() -> Iterator[_Interrupts]:
    """Count the signals that end a run instead of dying of them."""
    interrupts = _Interrupts()
    with handled_by(interrupts.note):
        yield interrupts


@contextmanager
def dying_in_order() -> Iterator[None]:
    """SIGTERM and a lost terminal raise KeyboardInterrupt, as Ctrl-C does: else no `finally` would
    release the arm.
    """
    with handled_by(signal.default_int_handler):
        yield


@contextmanager
def _quiet_memory() -> Iterator[None]:
    """Keep the garbage collector from walking everything that was loaded before: that takes longer
    than a tick.
    """
    gc.collect()
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


class _Loop:
    def __init__(
        self,
        robot: Robot,
        queue: Source,
        safety: Safety,
        config: LoopConfig,
        clock: Clock,
        success: Callable[[], bool] | None,
        on_tick: Callable[[Tick], None] | None,
        interrupts: _Interrupts,
    ) -> None:
        self.robot, self.queue, self.safety, self.config, self.clock = (
            robot,
            queue,
            safety,
            config,
            clock,
        )
        self.success, self.on_tick, self.interrupts = success, on_tick, interrupts
        self.period_s = 1 / config.fps
        self.ledger = Ledger()
        self.home: Positions | None = None  # the pose found
        self.ticks = self.late = self.dropped = self.bus_errors = self.bus_errors_in_row = (
            self.successes
        ) = 0
        self.max_overrun_s = 0.0
        self.exit_errors: list[str] = []
        self.start_s = self.end_s = self.deadline_s = clock.now_s()

    def until_stopped(self) -> Stop:
        try:
            while True:
                self._check_end()
                began = time.perf_counter()
                tick = self._try_tick()
                if tick is not None:
                    self._after(tick)
                self.ledger.add("tick", time.perf_counter() - began)
                self._pace()
        except Stop as stop:
            self.end_s = self.clock.now_s()
            return stop

    def _check_end(self) -> None:
        if self.interrupts.count:
            raise Stop("interrupted")
        duration_s = self.config.duration_s
        if (
            duration_s is not None
            and self.clock.now_s() - self.start_s >= duration_s - self.period_s / 2
        ):
            raise Stop("duration")

    def _try_tick(self) -> Tick | None:
        """None after an error of the bus: the servos keep their last goal, one bad packet is no
        reason to stop.
        """
        try:
            tick = self._tick()
        except OSError as error:
            self._count_bus_error(error)
            return None
        self.bus_errors_in_row = 0
        return tick

    def _count_bus_error(self, error: OSError) -> None:
        self.bus_errors += 1
        self.bus_errors_in_row += 1
        if self.bus_errors_in_row >= self.config.max_bus_errors:
            raise Stop("bus", str(error)) from error

    def _tick(self) -> Tick:
        began = time.perf_counter()
        now_s = self.clock.now_s()
        with self.ledger.time("observe"):
            seen = self.robot.observe()
        if self.home is None:
            self.home = seen.positions.copy()
            self.safety.begin(self.home)
        self._check_success()
        ages_s = {
            name: seen.frame_age_s[name]
            for name in self.queue.policy.cameras
            if name in seen.frame_age_s
        }
        fresh = self.safety.frames_fresh(ages_s, now_s)
        wanted = self._policy_step(seen) if fresh else self.safety.last
        acting = fresh and self.queue.adopted > 0
        command = (
            self.safety.command(wanted, seen.positions, now_s)
            if acting
            else self.safety.hold(seen.positions, now_s)
        )
        with self.ledger.time("command"):
            sent = self.robot.command(command)
        self.safety.accepted(sent)
        work_s = time.perf_counter() - began
        return Tick(
            self.ticks,
            now_s - self.start_s,
            seen,
            wanted,
            sent,
            *self._origin(fresh),
            fresh,
            work_s,
        )

    def _policy_step(self, seen: Observation) -> Positions:
        with self.ledger.time("policy"), _as_stop("policy error", UserError):
            return self.queue.step(seen.positions, seen.frames)

    def _origin(self, fresh: bool) -> tuple[int, int, int]:
        return (self.queue.chunk, self.queue.row, self.queue.requested) if fresh else (-1, -1, -1)

    def _after(self, tick: Tick) -> None:
        """What can wait until the command is out."""
        self.ticks += 1
        with _as_stop("policy error", UserError):
            self.queue.prepare()
        if self.on_tick is not None:
            with _as_stop("recording"):
                self.on_tick(tick)

    def _check_success(self) -> None:
        """Right after observing: by then the twin has carried out the last command, in either
        clock.
        """
        if self.success is not None:
            self.successes = self.successes + 1 if self.success() else 0
            if self.successes >= self.config.success_ticks:
                raise Stop("success")

    def _pace(self) -> None:
        self.deadline_s += self.period_s
        overrun_s = self.clock.now_s() - self.deadline_s
        if overrun_s > 0:
            swallowed = math.ceil(overrun_s / self.period_s)
            self.late += 1
            self.dropped += swallowed
            self.max_overrun_s = max(self.max_overrun_s, overrun_s)
            self.deadline_s += swallowed * self.period_s
        self.clock.wait_until(self.deadline_s)

    def rest(self) -> None:
        try:
            self.robot.hold()
        except OSError as error:
            self.exit_errors.append(f"hold: {error}")

    def go_home(self, reason: str) -> None:
        """Back to the pose found, evenly, no faster than the limits allow, watched for being
        blocked.
        """
        if not self.config.home_s or self.home is None or reason in UNSAFE_TO_MOVE:
            return
        start, interrupts = self.safety.last.copy(), self.interrupts.count
        way = self.home - start
        ticks = math.ceil(
            max(
                self.config.home_s * self.config.fps,
                np.max(np.abs(way) / self.safety.limits.max_step),
            )
        )
        done = 0
        try:
            while done < ticks and self.interrupts.count == interrupts:
                done += self._moved(start + way * ((done + 1) / ticks))
                self.clock.wait_until(self.clock.now_s() + self.period_s)
        except Stop as stop:
            self.exit_errors.append(f"on the way home: {stop}")
            self.rest()

    def _moved(self, goal: Positions) -> bool:
        """One tick of the ride. False after an error of the bus: without torque the arm would drop
        from mid-air.
        """
        try:
            self.safety.check_tracking(self.robot.observe().positions, self.clock.now_s())
            self.safety.accepted(self.robot.command(goal))
        except OSError as error:
            self._count_bus_error(error)
            return False
        self.bus_errors_in_row = 0
        return True

    def report(self, end: Stop) -> RunReport:
        queue, safety, joints = self.queue, self.safety, self.queue.policy.joints
        policy_ledger = getattr(queue.policy, "ledger", None)
        stages = self.ledger.summary() | queue.ledger.summary()
        stages |= policy_ledger.summary() if isinstance(policy_ledger, Ledger) else {}
        return RunReport(
            reason=end.reason,
            detail=end.detail,
            ticks=self.ticks,
            duration_s=self.end_s - self.start_s,
            late_ticks=self.late,
            dropped_periods=self.dropped,
            max_overrun_ms=self.max_overrun_s * 1e3,
            stages=stages,
            chunks=queue.adopted,
            prefetch_ticks=queue.prefetch_ticks,
            stalled_ticks=queue.stalls,
            continued_ticks=queue.continued,
            discarded_chunks=queue.discarded,
            stale_ticks=safety.stale_ticks,
            bus_errors=self.bus_errors,
            servo_errors={
                joint: dict(errors) for joint, errors in getattr(self.robot, "errors", {}).items()
            },
            seam_jump=dict(zip(joints, queue.seam_jump.tolist(), strict=True)),
            interventions={
                g: dict(zip(joints, n.tolist(), strict=True))
                for g, n in safety.interventions.items()
            },
            exit_errors=tuple(self.exit_errors),
        )


@contextmanager
def _as_stop(reason: str, ends: type[Exception] = Stop) -> Iterator[None]:
    """Whatever is raised in the block ends the run in order, ride home and all, and is named in the
    report.

    ends: what passes as it is.
    """
    try:
        yield
    except (Stop, ends):
        raise
    except UserError as error:
        raise Stop(reason, str(error)) from error
    except Exception as error:
        raise Stop(reason, f"{type(error).__name__}: {error}") from error


def report_table(report: RunReport) -> Table:
    """The report for people."""
    from rich.table import Table

    table = Table(
        title=f"{report.reason}{': ' if report.detail else ''}{report.detail}", show_header=False
    )
    for name, text in _report_rows(report):
        table.add_row(name, text)
    return table


def _report_rows(report: RunReport) -> Iterator[tuple[str, str]]:
    yield "ran", f"{report.duration_s:.1f} s, {report.ticks} ticks"
    yield "late", f"{report.late_ticks} ticks, at most {report.max_overrun_ms:.1f} ms"
    for stage, d in report.stages.items():
        yield (
            stage,
            f"p50 {d['p50_ms']:.1f}  p95 {d['p95_ms']:.1f}  max {d['max_ms']:.1f} ms  (x{d['count']})",
        )
    yield "chunks", f"{report.chunks}, asked for {report.prefetch_ticks} ticks ahead"
    held = f"{report.continued_ticks} ticks ran on, {report.stalled_ticks} held, {report.discarded_chunks} discarded"
    yield "late chunks", held
    yield "largest seam", _largest(report.seam_jump)
    for guard, joints in report.interventions.items():
        touched = ", ".join(f"{joint} x{n}" for joint, n in joints.items() if n)
        yield f"limited: {guard}", touched or "never"
    yield "stale frames", f"{report.stale_ticks} ticks held"
    servos = [
        f"{joint} {error} x{n}"
        for joint, errors in report.servo_errors.items()
        for error, n in errors.items()
    ]
    yield "bus errors", "; ".join([f"{report.bus_errors} ticks lost", *servos])
    for error in report.exit_errors:
        yield "at the end", error


def _largest(jump: dict[str, float]) -> str:
    joint = max(jump, key=jump.__getitem__)
    return f"{jump[joint]:.2f} at {joint}"
