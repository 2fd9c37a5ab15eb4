"""One run of a bundle on a robot: check, open, warm up, connect, run, release, report.

The caller finds the robot and reads the options. All messages are printed before the arm has torque
or after the run, none during the loop.
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
from mtdit_robots.signals import graceful_exit
from mtdit_runtime.bundle.bundle import Bundle, open_bundle
from mtdit_runtime.bundle.manifest import Manifest
from mtdit_runtime.control.chunks import ChunkQueue, auto_prefetch
from mtdit_runtime.control.clock import Clock, LockstepClock, RealClock, check_lockstep
from mtdit_runtime.control.loop import LoopConfig, run
from mtdit_runtime.control.report import RunReport, Tick
from mtdit_runtime.control.safety import Limits, Safety, SafetyConfig
from mtdit_runtime.engines.choose import choose_engines
from mtdit_runtime.engines.engine import Engines
from mtdit_runtime.policy.bundle_policy import BundlePolicy
from mtdit_runtime.policy.policy import check_robot
from mtdit_runtime.recording.film import Film, check_film
from mtdit_runtime.recording.run_log import Recorder
from mtdit_runtime.text import printable

WARM_UPS = 5


@dataclass(frozen=True)
class RunOptions:
    """What to run and how. The robot is not connected yet: the run connects it and closes it.

    say: called with each message for the user. overview: called per tick, for the video.
    """

    bundle: Path
    task: str
    robot: Robot
    backend: str = "auto"
    duration_s: float | None = None  # None: until success or Ctrl-C
    seed: int = 0
    prefetch_ticks: int | None = None  # None: chosen from the measured latency
    lockstep: bool = False  # use the twin's lock-step clock
    new_task: bool = False  # allow an instruction that is not in the training data
    # Seconds for the return to the start pose; 0: the arm stays where it is and loses torque there.
    home_s: float = 3.0
    safety: SafetyConfig = field(default_factory=SafetyConfig)
    success: Callable[[], bool] | None = None
    log: Path | None = None
    log_frames_mb: float = 0
    video: Path | None = None
    overview: Callable[[], Mapping[str, Frame]] | None = None  # name -> (H, W, 3) uint8 RGB
    say: Callable[[str], None] = print


def run_policy(options: RunOptions) -> RunReport:
    """Run the policy of a bundle on a robot until the run ends; the robot is released in any case.

    Raises UserError for what the user must fix: bundle, task, backend, joints, cameras or port.
    """
    with graceful_exit(), ExitStack() as after_release, closing(options.robot) as robot:
        bundle = open_bundle(options.bundle)
        check_task(bundle.manifest, options.task, options.new_task)
        if options.video is not None:
            check_film(options.video)
        if options.lockstep:
            check_lockstep(bundle.manifest.fps)
        engines = choose_engines(bundle, options.backend)
        say_engines(engines, options.say)
        policy = BundlePolicy(bundle, engines)
        check_robot(policy, robot.joints, robot.cameras)
        queue = ChunkQueue(policy, _prefetch(bundle, engines, options), wait=options.lockstep)
        # After the arm is released: closing the queue may have to wait for a chunk.
        after_release.callback(queue.close)
        queue.reset(options.task, options.seed)
        robot.connect()
        return _drive(bundle.manifest, queue, options)


def check_task(manifest: Manifest, task: str, allow_new: bool) -> None:
    """Raise UserError if the policy was not trained on `task`, unless `allow_new`.

    The message names the most similar instruction of the training data.
    """
    if task in manifest.tasks or allow_new:
        return
    near = difflib.get_close_matches(task, manifest.tasks, n=1, cutoff=0.4)
    known = printable(", ".join(map(repr, manifest.tasks)) or "none", 1000)
    hint = f"did you mean {near[0]!r}?" if near else f"its tasks are {known}"
    raise UserError(
        f"{printable(manifest.name)} was not trained on {task!r}: {hint} (--new-task runs it anyway)"
    )


def say_engines(engines: Engines, say: Callable[[str], None]) -> None:
    """Print each engine, and why this backend was chosen."""
    for engine in engines.per_chunk:
        say(engine.describe())
    say(f"backend {engines.reason}")


def warm_up_s(bundle: Bundle, engines: Engines) -> float:
    """Compute a few chunks from blank observations: seconds of the slowest, except the first."""
    m = bundle.manifest
    policy = BundlePolicy(bundle, engines)  # a second policy on the same engines
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
        f"a chunk takes {latency_s * 1e3:.0f} ms: requested {ticks} ticks ahead, at {m.fps} Hz"
    )
    if not options.lockstep and latency_s * m.fps > m.n_action_steps / 2:
        options.say(
            "this computer is too slow for the policy, the arm will pause: "
            "export with fewer denoising steps"
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
    on_tick = _on_tick(recorder, film, options)
    options.say(f"running {printable(m.name)}: {options.task!r} (Ctrl-C to stop)")
    try:
        return run(options.robot, queue, safety, config, clock, options.success, on_tick)
    finally:
        if recorder is not None and options.log is not None:
            options.say(f"log: {recorder.save(options.log)}")
        if film is not None:
            film.close()
            dropped = f" ({film.dropped} frames dropped)" if film.dropped else ""
            options.say(f"video: {options.video}{dropped}")


def _on_tick(
    recorder: Recorder | None, film: Film | None, options: RunOptions
) -> Callable[[Tick], None] | None:
    if recorder is None and film is None:
        return None

    def record(tick: Tick) -> None:
        if recorder is not None:
            recorder(tick)
        if film is not None:
            more = options.overview() if options.overview else {}
            film.add({**more, **tick.observation.frames}, f"{tick.time_s:5.1f} s  {options.task}")

    return record
