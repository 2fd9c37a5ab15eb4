"""The loop: deadlines, why it ends, what it survives, and that the robot ends up held."""

from __future__ import annotations

import gc
import os
import signal
import threading
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from mtdit.cli.terminal.tables import report_table
from mtdit_robots.errors import UserError
from mtdit_runtime.bundle.bundle import Bundle
from mtdit_runtime.control.chunks import ChunkQueue
from mtdit_runtime.control.clock import LockstepClock, RealClock
from mtdit_runtime.control.loop import Action, ActionSource, LoopConfig, run_loop
from mtdit_runtime.control.report import RunReport
from mtdit_runtime.control.safety import Limits, Safety, SafetyConfig
from mtdit_runtime.engines.choose import choose_engines
from mtdit_runtime.policy.bundle_policy import BundlePolicy

TASK, FPS = "open the drawer", 30


@pytest.fixture
def drive(policy: BundlePolicy, robot: Any) -> Callable[..., RunReport]:
    """Run the toy policy, or another one, on the scripted robot in lock-step."""

    def drive(
        config: LoopConfig,
        k: int = 0,
        limits: Limits | None = None,
        clock: Any = None,
        policy: BundlePolicy = policy,
        **options: Any,
    ) -> RunReport:
        queue = ChunkQueue(policy, k)
        queue.reset(TASK, seed=0)
        safety = Safety(policy.joints, limits or Limits.none(3), SafetyConfig(ramp_s=0))
        try:
            return run_loop(robot, queue, safety, config, clock or LockstepClock(), **options)
        finally:
            queue.close()

    return drive


@pytest.mark.parametrize("k", [0, 2])
def test_duration(drive: Any, robot: Any, k: int) -> None:
    report = drive(LoopConfig(FPS, duration_s=2.0), k)
    assert (report.reason, report.ok, report.ticks) == ("duration", True, 60)
    assert report.duration_s == pytest.approx(2.0)
    assert len(robot.commands) == 60
    assert robot.holds == 1
    assert report.late_ticks == report.stalled_ticks == report.bus_errors == 0
    assert {"observe", "policy", "command", "tick", "chunk", "vision", "denoiser"} <= set(
        report.stages
    )
    assert report.stages["observe"]["count"] == 60


def test_lock_step_is_deterministic_with_prefetch(
    policy: BundlePolicy, scripted_robot: Any
) -> None:
    runs = []
    for _ in range(2):
        robot = scripted_robot()
        robot.connect()
        queue = ChunkQueue(policy, 3)
        queue.reset(TASK, seed=4)
        config = LoopConfig(FPS, duration_s=2.0)
        run_loop(robot, queue, Safety(policy.joints, Limits.none(3)), config, LockstepClock())
        queue.close()
        runs.append(np.array(robot.commands))
    np.testing.assert_array_equal(*runs)


@pytest.mark.parametrize("by_the_caller", [False, True])
def test_what_is_frozen_in_a_run(drive: Any, by_the_caller: bool) -> None:
    """Nothing that was there before is searched for garbage in a run, and all of it afterwards,
    but for what the caller keeps from it.
    """
    found = gc.get_freeze_count()  # tests/conftest.py freezes what they share
    gc.unfreeze()
    try:
        if by_the_caller:
            gc.freeze()
        frozen: list[int] = []
        config = LoopConfig(FPS, duration_s=0.1)
        drive(config, on_tick=lambda _: frozen.append(gc.get_freeze_count()))
        assert min(frozen) > 10_000
        assert (gc.get_freeze_count() > 10_000) is by_the_caller
    finally:
        if found:
            gc.freeze()


class Hanging:
    """The toy policy; its third chunk never comes until `go` is set."""

    def __init__(self, policy: BundlePolicy) -> None:
        self._policy, self._asked, self.go = policy, 0, threading.Event()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._policy, name)

    def request(self) -> Callable[[], Any]:
        compute = self._policy.request()
        self._asked += 1
        if self._asked < 3:
            return compute
        return lambda: self.go.wait(60) and compute()


@pytest.mark.parametrize("real_time", [False, True])
def test_an_inference_that_hangs_ends_the_run_and_the_arm_goes_home(
    policy: BundlePolicy, robot: Any, real_time: bool
) -> None:
    hanging = Hanging(policy)
    queue = ChunkQueue(hanging, 2, wait=not real_time, timeout_s=0.3)
    queue.reset(TASK, 0)
    limits = replace(Limits.none(3), max_step=np.full(3, 10.0))
    safety = Safety(policy.joints, limits, SafetyConfig(ramp_s=0))
    clock = RealClock() if real_time else LockstepClock()
    report = run_loop(robot, queue, safety, LoopConfig(FPS, home_s=0.5), clock)
    queue.close()
    hanging.go.set()
    assert (report.reason, report.ok) == ("chunk timeout", False)
    assert "--chunk-timeout" in report.detail
    np.testing.assert_allclose(robot.commands[-1], robot.start, atol=1e-9)


def test_success_must_last(drive: Any) -> None:
    answers = iter([False, True, True, False, True, True, True, True])
    report = drive(LoopConfig(FPS, duration_s=9.0, success_ticks=3), success=lambda: next(answers))
    assert (report.reason, report.ticks) == ("success", 6)


def test_ctrl_c_ends_the_run_and_the_handler_is_put_back(drive: Any, robot: Any) -> None:
    before = signal.getsignal(signal.SIGINT)
    robot.on_observe = lambda tick: tick == 10 and os.kill(os.getpid(), signal.SIGINT)
    report = drive(LoopConfig(FPS, duration_s=60.0))
    assert (report.reason, report.ok) == ("interrupted", True)
    assert report.ticks == 11
    assert signal.getsignal(signal.SIGINT) is before


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_supervisor_or_a_lost_terminal_too(
    drive: Any, robot: Any, number: signal.Signals
) -> None:
    before = signal.signal(number, signal.SIG_DFL)  # whoever runs the tests may ignore it
    try:
        robot.on_observe = lambda tick: tick == 3 and os.kill(os.getpid(), number)
        assert drive(LoopConfig(FPS, duration_s=60.0)).reason == "interrupted"
    finally:
        signal.signal(number, before)


def test_nohup_is_respected(drive: Any, robot: Any) -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        robot.on_observe = lambda tick: tick == 3 and os.kill(os.getpid(), signal.SIGHUP)
        assert drive(LoopConfig(FPS, duration_s=0.5)).reason == "duration"
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_third_ctrl_c_leaves_what_hangs(drive: Any, robot: Any) -> None:
    def press(tick: int) -> None:
        for _ in range(3 * (tick == 5)):
            os.kill(os.getpid(), signal.SIGINT)

    robot.on_observe = press
    with pytest.raises(KeyboardInterrupt):
        drive(LoopConfig(FPS))
    assert robot.holds == 1


def test_single_bus_errors_are_survived_and_counted(drive: Any, robot: Any) -> None:
    robot.failing = frozenset({5, 6, 7, 20})
    report = drive(LoopConfig(FPS, duration_s=1.0, max_bus_errors=4))
    assert (report.reason, report.bus_errors) == ("duration", 4)
    assert report.ticks == 30 - 4


def test_bus_errors_in_a_row_end_the_run(drive: Any, robot: Any) -> None:
    robot.failing = frozenset(range(12, 99))
    report = drive(LoopConfig(FPS, duration_s=9.0, max_bus_errors=4, home_s=1.0))
    assert (report.reason, report.ok, report.ticks) == ("bus", False, 12)
    assert report.detail == "no answer in observation 15"
    assert robot.observed == 16  # no ride home on a broken bus
    assert robot.holds == 1


def test_stale_frames_hold_and_the_policy_waits(
    drive: Any, robot: Any, policy: BundlePolicy
) -> None:
    robot.stale = dict.fromkeys(range(10, 14), 0.5)
    ticks: list[Any] = []
    report = drive(LoopConfig(FPS, duration_s=1.0), on_tick=ticks.append)
    assert (report.reason, report.stale_ticks) == ("duration", 4)
    held = robot.commands[9:14]
    assert all((command == held[0]).all() for command in held)
    assert [t.fresh for t in ticks[9:15]] == [True, False, False, False, False, True]
    assert (ticks[9].row, ticks[14].row) == (3, 4)  # it goes on where it was


def test_frames_that_stay_stale_end_the_run(drive: Any, robot: Any) -> None:
    robot.stale = {tick: (tick - 9) / FPS for tick in range(10, 200)}
    report = drive(LoopConfig(FPS, duration_s=9.0))
    assert (report.reason, report.ok) == ("stale camera", False)
    assert "'top' gave no new frame" in report.detail


@pytest.mark.parametrize("k", [0, 2])
def test_a_failing_policy_ends_the_run(drive: Any, robot: Any, bundle: Bundle, k: int) -> None:
    class Broken:
        calls, name = 0, "denoiser"

        def __call__(self, inputs: Any) -> Any:
            self.calls += 1
            if self.calls == 3:
                raise ValueError("engine on fire")
            return engines.denoiser(inputs)

        def describe(self) -> str:
            return "broken"

    engines = choose_engines(bundle, "onnx")
    broken = BundlePolicy(bundle, replace(engines, denoiser=Broken()))
    report = drive(LoopConfig(FPS, duration_s=9.0), k, policy=broken)
    assert (report.reason, report.detail) == ("policy error", "ValueError: engine on fire")
    assert robot.holds == 1


def test_what_the_user_must_mend_is_raised_with_the_robot_held(drive: Any, robot: Any) -> None:
    robot.cameras = ("top",)
    with pytest.raises(UserError, match="no frame from camera 'wrist'"):
        drive(LoopConfig(FPS, duration_s=1.0))
    assert robot.holds == 1


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (KeyError("recorder"), "KeyError: 'recorder'"),
        (OSError("disk full"), "OSError: disk full"),
        (UserError("no room: make some"), "no room: make some"),
    ],
)
def test_a_failing_observer_ends_the_run_and_the_arm_rides_home(
    drive: Any, robot: Any, error: Exception, told: str
) -> None:
    """Whoever films or records may fail; the arm is sound, and must not drop from where it is."""

    def fail(tick: Any) -> None:
        if tick.index == 9:
            raise error

    report = drive(LoopConfig(FPS, duration_s=9.0, home_s=0.5), on_tick=fail)
    assert (report.reason, report.detail, report.ok) == ("recording", told, False)
    assert report.ticks == 10
    np.testing.assert_allclose(robot.commands[-1], [10.0, -5.0, 20.0], atol=1e-9)


def limits(step: float = 1e3, tracked: bool = False) -> Limits:
    return Limits(np.full(3, -1e3), np.full(3, 1e3), np.full(3, step), np.full(3, tracked))


def test_a_blocked_arm_ends_the_run(drive: Any, robot: Any) -> None:
    robot.follow = 0.0
    robot.start = np.array([80.0, 50.0, 90.0])
    robot.connect()
    report = drive(LoopConfig(FPS, duration_s=9.0, home_s=1.0), limits=limits(tracked=True))
    assert (report.reason, report.ok) == ("blocked", False)
    assert len(robot.commands) == report.ticks  # no ride home either


def test_the_ride_home_is_even_and_ends_at_the_start(drive: Any, robot: Any) -> None:
    report = drive(LoopConfig(FPS, duration_s=1.0, home_s=0.5))
    ride = np.array(robot.commands[report.ticks - 1 :])
    assert len(ride) == 1 + 15
    assert report.duration_s == pytest.approx(1.0)
    np.testing.assert_allclose(ride[-1], robot.commands[0] * 0 + [10.0, -5.0, 20.0], atol=1e-9)
    np.testing.assert_allclose(np.diff(ride, axis=0), np.tile((ride[-1] - ride[0]) / 15, (15, 1)))
    assert report.exit_errors == ()


def test_the_ride_home_keeps_the_speed_limit(drive: Any, robot: Any) -> None:
    report = drive(LoopConfig(FPS, duration_s=1.0, home_s=0.1), limits=limits(step=1.0))
    ride = np.array(robot.commands[report.ticks - 1 :])
    assert np.abs(np.diff(ride, axis=0)).max() <= 1.0 + 1e-9


def test_trouble_on_the_way_home_is_reported_and_held(drive: Any, robot: Any) -> None:
    robot.failing = frozenset(range(33, 99))
    report = drive(LoopConfig(FPS, duration_s=1.0, home_s=0.5))
    assert report.reason == "duration"
    assert report.exit_errors == ("return to the start pose: bus: no answer in observation 42",)
    assert robot.holds == 2


def test_the_ride_home_survives_single_bus_errors(drive: Any, robot: Any) -> None:
    robot.failing = frozenset({33, 34, 37})
    report = drive(LoopConfig(FPS, duration_s=1.0, home_s=0.5))
    assert (report.exit_errors, report.bus_errors) == ((), 3)
    np.testing.assert_allclose(robot.commands[-1], [10.0, -5.0, 20.0], atol=1e-9)


def test_a_second_ctrl_c_ends_the_ride_home(drive: Any, robot: Any) -> None:
    robot.on_observe = lambda tick: tick in (10, 20) and os.kill(os.getpid(), signal.SIGINT)
    report = drive(LoopConfig(FPS, home_s=5.0))
    assert report.reason == "interrupted"
    assert robot.observed == 21


def test_a_second_ctrl_c_before_the_return_to_the_start_pose_prevents_it(
    drive: Any, robot: Any
) -> None:
    def press(tick: int) -> None:
        for _ in range(2 * (tick == 10)):
            os.kill(os.getpid(), signal.SIGINT)

    robot.on_observe = press
    report = drive(LoopConfig(FPS, home_s=5.0))
    assert (report.reason, report.ticks) == ("interrupted", 11)
    assert robot.observed == len(robot.commands) == 11
    assert robot.holds == 1


class SlowClock:
    """Time in which chosen work takes longer than its tick."""

    def __init__(self) -> None:
        self.time_s, self.waits = 0.0, []

    def now_s(self) -> float:
        return self.time_s

    def wait_until(self, time_s: float) -> None:
        self.waits.append(round(time_s * FPS, 6))
        self.time_s = max(self.time_s, time_s)


def test_late_ticks_are_counted_and_the_grid_is_kept(drive: Any, robot: Any) -> None:
    clock = SlowClock()

    def work(tick: int) -> None:
        clock.time_s += 2.5 / FPS if tick == 4 else 0.5 / FPS

    robot.on_observe = work
    report = drive(LoopConfig(FPS, duration_s=10 / FPS), clock=clock)
    assert clock.waits == [1, 2, 3, 4, 7, 8, 9, 10]
    assert (report.late_ticks, report.dropped_periods) == (1, 2)
    assert report.max_overrun_ms == pytest.approx(1500 / FPS)


def test_real_clock_keeps_the_rate(drive: Any) -> None:
    report = drive(LoopConfig(FPS, duration_s=0.3), clock=RealClock())
    assert report.ticks + report.dropped_periods >= 8
    assert report.ticks <= 9
    assert report.duration_s >= 0.28


class Pointing(ActionSource):
    """Always the same pose, from the fourth tick on."""

    def __init__(self) -> None:
        self.steps = 0

    def step(self, positions: Any, frames: Any) -> Action:
        self.steps += 1
        return Action(None if self.steps < 4 else np.array([20.0, 0.0, 50.0]))


def test_a_source_needs_one_method_and_without_an_action_the_arm_holds(robot: Any) -> None:
    robot.stale = {2: 9.0}  # it needs no camera
    safety, ticks = Safety(robot.joints, Limits.none(3), SafetyConfig(ramp_s=0)), list[Any]()
    config = LoopConfig(FPS, duration_s=0.2)
    report = run_loop(robot, Pointing(), safety, config, LockstepClock(), None, ticks.append)
    assert (report.reason, report.ticks, report.chunks) == ("duration", 6, 0)
    np.testing.assert_array_equal(robot.commands[:3], [robot.start] * 3)
    np.testing.assert_array_equal(robot.commands[3:], [[20.0, 0.0, 50.0]] * 3)
    assert {(t.chunk, t.row, t.requested) for t in ticks} == {(-1, -1, -1)}
    assert report.to_dict()["seam_jump"] == {}


def test_a_source_prepares_once_per_tick_after_the_command(robot: Any) -> None:
    class Preparing(Pointing):
        def prepare(self) -> None:
            commands_sent.append(len(robot.commands))

    commands_sent: list[int] = []  # at each call of `prepare`
    source, safety = Preparing(), Safety(robot.joints, Limits.none(3))
    run_loop(robot, source, safety, LoopConfig(FPS, duration_s=0.2), LockstepClock())
    assert commands_sent == [1, 2, 3, 4, 5, 6]


def test_servo_errors_of_robots_that_count_them(drive: Any, robot: Any) -> None:
    robot.errors = {"lift": Counter({"no answer": 2})}
    assert drive(LoopConfig(FPS, duration_s=0.2)).servo_errors == {"lift": {"no answer": 2}}


def test_report_reads_well_and_is_json(drive: Any) -> None:
    import json

    from rich.console import Console

    report = drive(LoopConfig(FPS, duration_s=0.5), 2, limits=limits(step=0.5))
    data = json.loads(json.dumps(report.to_dict()))
    assert data["interventions"]["speed"]["pan"] > 0
    console = Console(record=True, width=120)
    console.print(report_table(report))
    text = console.export_text()
    assert "0.5 s, 15 ticks" in text
    assert "limited: speed" in text
    assert data["verdict"] == report.verdict == "normal", "a toy's limits are no demonstrations'"
    assert text.rstrip().splitlines()[-1].rstrip() == "verdict: normal"


def test_the_report_says_what_was_abnormal(drive: Any, robot: Any) -> None:
    robot.failing = frozenset(range(12, 99))
    report = drive(LoopConfig(FPS, duration_s=9.0, max_bus_errors=4))
    assert report.verdict.startswith("abnormal: it ended with `bus`; the bus failed in 4 of 16")
