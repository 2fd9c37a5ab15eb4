"""One run of a bundle on a robot, from the folder on disk to the report.

Knows the order: check, open, warm up, connect, run, release. Refuses to know how the robot is found
and how options were typed. What is about to happen is said before the arm has torque; during the
loop nothing is.
"""

from __future__ import annotations

import difflib
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack, closing
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from mtdit_robots.errors import UserError
from mtdit_robots.robot import Frame, Robot
from mtdit_runtime.bundle import Bundle, Manifest, open_bundle
from mtdit_runtime.chunks import ChunkQueue, auto_prefetch
from mtdit_runtime.engine import Engines, choose_engines
from mtdit_runtime.loop import (
    Clock,
    LockstepClock,
    LoopConfig,
    RealClock,
    RunReport,
    Tick,
    check_lockstep,
    dying_in_order,
    run,
)
from mtdit_runtime.policy import BundlePolicy, check_robot
from mtdit_runtime.record import Recorder
from mtdit_runtime.safety import Limits, Safety, SafetyConfig
from mtdit_runtime.video import Film
from mtdit_runtime.words import plain

WARM_UPS = 5


@dataclass(frozen=True)
class RunOptions:
    """bundle, task, robot: what runs what. The robot is not connected yet; the run connects and
    closes it.
    """

    bundle: Path
    task: str
    robot: Robot
    backend: str = "auto"
    duration_s: float | None = None  # None: until success or Ctrl-C
    seed: int = 0
    prefetch_ticks: int | None = None  # None: measured
    lockstep: bool = False  # the twin's lock-step clock
    new_task: bool = False  # allow an instruction that training has not seen
    home_s: float = 3.0  # ride back to the start pose; 0: stay, then lose torque there
    safety: SafetyConfig = field(default_factory=SafetyConfig)
    success: Callable[[], bool] | None = None
    log: Path | None = None
    log_frames_mb: float = 0
    video: Path | None = None
    overview: Callable[[], Mapping[str, Frame]] | None = None  # more pictures for the video
    say: Callable[[str], None] = print


def run_policy(options: RunOptions) -> RunReport:
    """Run a bundle's policy on a robot until it ends, and release the robot whatever happens.

    Raises UserError for whatever the user must mend: bundle, task, backend, joints, cameras, port.
    """
    with dying_in_order(), ExitStack() as after_release, closing(options.robot) as robot:
        bundle = open_bundle(options.bundle)
        check_task(bundle.manifest, options.task, options.new_task)
        if options.lockstep:
            check_lockstep(bundle.manifest.fps)
        engines = choose_engines(bundle, options.backend)
        say_engines(engines, options.say)
        policy = BundlePolicy(bundle, engines)
        check_robot(policy, robot.joints, robot.cameras)
        queue = ChunkQueue(policy, _prefetch(bundle, engines, options), wait=options.lockstep)
        after_release.callback(queue.close)  # it may wait for a chunk; the arm must not
        queue.reset(options.task, options.seed)
        robot.connect()
        return _drive(bundle.manifest, queue, options)


def check_task(manifest: Manifest, task: str, allow_new: bool) -> None:
    """Raises UserError for an instruction that training has not seen, with the nearest one, unless
    new ones may be.
    """
    if task in manifest.tasks or allow_new:
        return
    near = difflib.get_close_matches(task, manifest.tasks, n=1, cutoff=0.4)
    known = plain(", ".join(map(repr, manifest.tasks)) or "no task", 1000)
    hint = f"did you mean {near[0]!r}?" if near else f"it knows {known}"
    raise UserError(
        f"{plain(manifest.name)} was not trained on {task!r}: {hint} (--new-task tries it all the same)"
    )


def say_engines(engines: Engines, say: Callable[[str], None]) -> None:
    for engine in engines.per_chunk:
        say(engine.describe())
    say(f"backend {engines.reason}")


def warm_up_s(bundle: Bundle, engines: Engines) -> float:
    """Run a few chunks on blank observations; the slowest one's seconds, the first left out."""
    m = bundle.manifest
    policy = BundlePolicy(
        bundle, engines
    )  # its own counters and history; the engines are the run's
    frames = {c.name: np.zeros((c.height, c.width, 3), np.uint8) for c in m.cameras}
    noise = np.zeros((m.horizon, len(m.joints)), np.float32)
    policy.reset(m.tasks[0] if m.tasks else "", seed=0)
    durations_s = []
    for _ in range(WARM_UPS + 1):
        policy.prepare()()
        policy.observe(np.array([joint.low for joint in m.joints]), frames)
        began = time.perf_counter()
        policy.chunk(noise)
        durations_s.append(time.perf_counter() - began)
    return max(durations_s[1:])


def _prefetch(bundle: Bundle, engines: Engines, options: RunOptions) -> int:
    m = bundle.manifest
    latency_s = warm_up_s(bundle, engines)
    chosen = auto_prefetch(latency_s, m.fps, m.n_action_steps)
    ticks = chosen if options.prefetch_ticks is None else options.prefetch_ticks
    options.say(
        f"a chunk takes {latency_s * 1e3:.0f} ms: asked for {ticks} ticks ahead, at {m.fps} Hz"
    )
    if not options.lockstep and latency_s * m.fps > m.n_action_steps / 2:
        options.say(
            "this computer is too slow for the policy: expect the arm to pause (fewer denoising steps help)"
        )
    return ticks


def _drive(m: Manifest, queue: ChunkQueue, options: RunOptions) -> RunReport:
    joints = queue.policy.joints
    safety = Safety(joints, Limits.of(m.joints, m.fps, options.safety), options.safety)
    config = LoopConfig(m.fps, duration_s=options.duration_s, home_s=options.home_s)
    clock: Clock = LockstepClock() if options.lockstep else RealClock()
    recorder = (
        Recorder(joints, options.task, options.seed, options.log_frames_mb) if options.log else None
    )
    film = Film(options.video, m.fps, wait=options.lockstep) if options.video else None
    watch = _watchers(recorder, film, options)
    options.say(f"running {plain(m.name)}: {options.task!r}, Ctrl-C ends it")
    try:
        return run(options.robot, queue, safety, config, clock, options.success, watch)
    finally:
        _save(recorder, film, options)


def _watchers(
    recorder: Recorder | None, film: Film | None, options: RunOptions
) -> Callable[[Tick], None] | None:
    if recorder is None and film is None:
        return None

    def watch(tick: Tick) -> None:
        if recorder is not None:
            recorder(tick)
        if film is not None:
            more = options.overview() if options.overview else {}
            film.add({**more, **tick.observation.frames}, f"{tick.time_s:5.1f} s  {options.task}")

    return watch


def _save(recorder: Recorder | None, film: Film | None, options: RunOptions) -> None:
    if recorder is not None and options.log is not None:
        options.say(f"log: {recorder.save(options.log)}")
    if film is not None:
        film.close()
        options.say(
            f"video: {options.video}"
            + (f" ({film.dropped} pictures dropped)" if film.dropped else "")
        )
