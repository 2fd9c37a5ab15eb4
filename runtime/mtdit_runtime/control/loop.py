"""The control loop: observe, act, wait for the next deadline, and report why the run ended.

Actions come from `chunks`, limits from `safety`; the caller connects the robot and closes it.
Deadlines are absolute: a late tick is counted, the periods that it overran are dropped, and the
next tick starts on the grid again. The loop prints nothing while it runs.
"""

from __future__ import annotations

import gc
import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np

from mtdit_robots.errors import UserError
from mtdit_robots.robot import Frame, Positions, Robot
from mtdit_robots.signals import InterruptCounter, counted_interrupts
from mtdit_runtime.control.clock import Clock
from mtdit_runtime.control.report import RunReport, Tick
from mtdit_runtime.control.safety import Safety, Stop
from mtdit_runtime.control.verdict import verdict
from mtdit_runtime.timings import Timings

UNSAFE_TO_MOVE = ("bus", "blocked")  # after these the arm does not return to its start pose


NONE = -1  # no chunk, no row


@dataclass(frozen=True)
class Action:
    """The action of one tick, and where it comes from.

    positions: (J,) degrees, gripper 0..100; None: there is no action yet and the arm holds its
    pose. chunk: number of the chunk that it belongs to; row: its row in the executed part of that
    chunk; requested: number of the chunk that was requested in this tick. Each may be NONE.
    """

    positions: Positions | None
    chunk: int = NONE
    row: int = NONE
    requested: int = NONE


class ActionSource(Protocol):
    """What gives the actions: a policy's `ChunkQueue`, a leader arm or a recorded episode.

    A subclass must implement `step`; the rest has defaults. cameras: while a frame of one of these
    is stale, the arm holds its pose and `step` is not called.
    """

    cameras: tuple[str, ...] = ()

    def step(self, positions: Positions, frames: Mapping[str, Frame]) -> Action:
        """The action of this tick. positions: (J,) measured; frames: camera -> (H, W, 3)."""
        ...

    def prepare(self) -> None:
        """Use the time after a command to work ahead."""
        return None

    def stats(self) -> dict[str, Any]:
        """The fields of `RunReport` that only the source knows: chunks, seam_jump ..., and in
        "stages" its timings.
        """
        return {}


@dataclass(frozen=True)
class LoopConfig:
    fps: float
    duration_s: float | None = None  # None: until success or Ctrl-C
    success_ticks: int = 3  # ticks in a row: a cube that only rolls through the goal does not count
    # Failed ticks in a row: 0.3 s with an unplugged cable, 0.8 s with one silent servo.
    max_bus_errors: int = 10
    home_s: float = 0.0  # seconds for the return to the start pose at the end; 0: stay


def run_loop(
    robot: Robot,
    source: ActionSource,
    safety: Safety,
    config: LoopConfig,
    clock: Clock,
    success: Callable[[], bool] | None = None,
    on_tick: Callable[[Tick], None] | None = None,
) -> RunReport:
    """Drive a connected robot until the run ends; then it holds its pose, or returns to the start.

    A queue must have been reset to its task. success: called once per tick. on_tick: called after
    the command was sent. Raises UserError for what the user must fix (for example the size of a
    camera); every other failure of robot, policy or `on_tick` ends the run and is in the report.
    """
    with counted_interrupts() as interrupts, _quiet_memory():
        loop = _Loop(robot, source, safety, config, clock, success, on_tick, interrupts)
        try:
            end = loop.until_stopped()
        finally:
            loop.rest()
        if interrupts.count < 2:
            loop.return_to_start(end.reason)
        return loop.report(end)


@contextmanager
def _quiet_memory() -> Iterator[None]:
    """Exclude all objects that exist now from garbage collection: a full pass outlasts a tick.

    A caller that has frozen most objects itself keeps them frozen. Python freezes a few hundred.
    """
    ours = gc.get_freeze_count() < len(gc.get_objects())
    gc.collect()
    if ours:
        gc.freeze()
    try:
        yield
    finally:
        if ours:
            gc.unfreeze()


class _Loop:
    def __init__(
        self,
        robot: Robot,
        source: ActionSource,
        safety: Safety,
        config: LoopConfig,
        clock: Clock,
        success: Callable[[], bool] | None,
        on_tick: Callable[[Tick], None] | None,
        interrupts: InterruptCounter,
    ) -> None:
        self.robot, self.source, self.safety = robot, source, safety
        self.config, self.clock = config, clock
        self.success, self.on_tick, self.interrupts = success, on_tick, interrupts
        self.period_s = 1 / config.fps
        self.timings = Timings()
        self.start_pose: Positions | None = None  # (J,) where the arm was found
        self.ticks = self.late = self.dropped = self.successes = 0
        self.bus_errors = self.bus_errors_in_row = 0
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
                    self._after_command(tick)
                self.timings.add("tick", time.perf_counter() - began)
                self._pace()
        except Stop as stop:
            self.end_s = self.clock.now_s()
            return stop

    def _check_end(self) -> None:
        if self.interrupts.count:
            raise Stop("interrupted")
        duration_s, elapsed_s = self.config.duration_s, self.clock.now_s() - self.start_s
        if duration_s is not None and elapsed_s >= duration_s - self.period_s / 2:
            raise Stop("duration")

    def _try_tick(self) -> Tick | None:
        """One tick; None after a bus error. The servos keep their last goal meanwhile."""
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
        source, safety = self.source, self.safety
        with self.timings.time("observe"):
            observation = self.robot.observe()
        if self.start_pose is None:
            safety.check_start(observation.positions)  # before the first command
            self.start_pose = observation.positions.copy()
            safety.begin(self.start_pose)
        self._check_success()
        ages_s = observation.frame_age_s
        fresh = safety.frames_fresh({c: ages_s[c] for c in source.cameras if c in ages_s}, now_s)
        action = Action(None)
        if fresh:
            with self.timings.time("policy"), _as_stop("policy error", UserError):
                action = source.step(observation.positions, observation.frames)
        if action.positions is None:
            wanted, command = safety.last, safety.hold(observation.positions, now_s)
        else:
            wanted = action.positions
            command = safety.command(wanted, observation.positions, now_s)
        with self.timings.time("command"):
            sent = self.robot.command(command)
        safety.accepted(sent)
        time_s, work_s = now_s - self.start_s, time.perf_counter() - began
        origin = action.chunk, action.row, action.requested
        return Tick(self.ticks, time_s, observation, wanted, sent, *origin, fresh, work_s)

    def _after_command(self, tick: Tick) -> None:
        """The work of a tick that can wait until the command has been sent."""
        self.ticks += 1
        with _as_stop("policy error", UserError):
            self.source.prepare()
        if self.on_tick is not None:
            with _as_stop("recording"):
                self.on_tick(tick)

    def _check_success(self) -> None:
        """Called right after observing: by then the twin has executed the last command."""
        if self.success is not None:
            self.successes = self.successes + 1 if self.success() else 0
            if self.successes >= self.config.success_ticks:
                raise Stop("success")

    def _pace(self) -> None:
        self.deadline_s += self.period_s
        overrun_s = self.clock.now_s() - self.deadline_s
        if overrun_s > 0:
            n_missed = math.ceil(overrun_s / self.period_s)
            self.late += 1
            self.dropped += n_missed
            self.max_overrun_s = max(self.max_overrun_s, overrun_s)
            self.deadline_s += n_missed * self.period_s
        self.clock.wait_until(self.deadline_s)

    def rest(self) -> None:
        try:
            self.robot.hold()
        except OSError as error:
            self.exit_errors.append(f"hold: {error}")

    def return_to_start(self, reason: str) -> None:
        """Move to the start pose in a straight line in joint space, within the speed limits.

        A blocked joint, too many bus errors or a signal ends the movement.
        """
        if not self.config.home_s or self.start_pose is None or reason in UNSAFE_TO_MOVE:
            return
        here, interrupts = self.safety.last.copy(), self.interrupts.count
        path = self.start_pose - here
        fewest_ticks = np.max(np.abs(path) / self.safety.limits.max_step)
        ticks = math.ceil(max(self.config.home_s * self.config.fps, fewest_ticks))
        done = 0
        try:
            while done < ticks and self.interrupts.count == interrupts:
                done += self._move_to(here + path * ((done + 1) / ticks))
                self.clock.wait_until(self.clock.now_s() + self.period_s)
        except Stop as stop:
            self.exit_errors.append(f"return to the start pose: {stop}")
            self.rest()

    def _move_to(self, goal: Positions) -> bool:
        """One tick of the return. False after a bus error: the tick is repeated, because ending the
        run here would take the torque away in mid-air.
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
        safety, from_source = self.safety, self.source.stats()
        stages = self.timings.summary() | from_source.pop("stages", {})
        report = RunReport(
            reason=end.reason,
            detail=end.detail,
            ticks=self.ticks,
            duration_s=self.end_s - self.start_s,
            late_ticks=self.late,
            dropped_periods=self.dropped,
            max_overrun_ms=self.max_overrun_s * 1e3,
            stages=stages,
            **from_source,
            stale_ticks=safety.stale_ticks,
            bus_errors=self.bus_errors,
            servo_errors={joint: dict(errors) for joint, errors in self.robot.errors.items()},
            interventions={
                g: dict(zip(safety.joints, n.tolist(), strict=True))
                for g, n in safety.interventions.items()
            },
            exit_errors=tuple(self.exit_errors),
        )
        return replace(report, verdict=verdict(report, safety.limits))


@contextmanager
def _as_stop(reason: str, passes: type[Exception] = Stop) -> Iterator[None]:
    """Turn any exception in the block into a Stop: the run ends normally and reports the exception.

    passes: an exception type that is not turned into a Stop.
    """
    try:
        yield
    except (Stop, passes):
        raise
    except UserError as error:
        raise Stop(reason, str(error)) from error
    except Exception as error:
        raise Stop(reason, f"{type(error).__name__}: {error}") from error
