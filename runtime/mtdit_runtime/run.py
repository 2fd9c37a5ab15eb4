"""One run of a bundle on a robot: check, open, warm up, connect, run, release, report.

Every message comes before the arm has torque or after the run, none during the loop.
"""

from __future__ import annotations

import difflib
import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

from mtdit_robots.errors import UserError
from mtdit_robots.robot import Frame, Robot
from mtdit_robots.signals import graceful_exit
from mtdit_robots.units import ARM_UNITS, check_arm_units
from mtdit_runtime.bundle.bundle import Bundle, as_bundle
from mtdit_runtime.bundle.manifest import Manifest
from mtdit_runtime.control.chunks import ChunkQueue, auto_prefetch, chunk_timeout_s
from mtdit_runtime.control.clock import Clock, LockstepClock, RealClock, check_lockstep
from mtdit_runtime.control.heartbeat import BeatingClock, Running, heartbeat
from mtdit_runtime.control.loop import LoopConfig, run_loop
from mtdit_runtime.control.report import RunReport, Tick
from mtdit_runtime.control.safety import Limits, Safety, SafetyConfig
from mtdit_runtime.control.start import TrainedRange
from mtdit_runtime.instructions import same_task, typed
from mtdit_runtime.memory import peak_memory_mb
from mtdit_runtime.policy.bundle_policy import BundlePolicy
from mtdit_runtime.policy.by_name import check_cameras, on_robot
from mtdit_runtime.policy.task_words import task_notes
from mtdit_runtime.policy.warm_up import WarmEngines, start_engines
from mtdit_runtime.recording.film import Film, check_film
from mtdit_runtime.recording.run_log import Recorder
from mtdit_runtime.text import printable
from mtdit_runtime.units import Judged, settled

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class RunOptions:
    """How to run a bundle. backend: "onnx" (CPU), "cuda", "tensorrt", or "auto", the fastest of
    them that works on this computer.
    """

    backend: str = "auto"
    duration_s: float | None = None  # None: until success or Ctrl-C
    seed: int = 0
    prefetch_ticks: int | None = None  # None: chosen from the measured latency
    # Seconds after which a chunk hangs and the run ends; None: 10 times the latency measured before
    # the run, at least 3.
    chunk_timeout: float | None = None
    lockstep: bool = False  # use the twin's lock-step clock
    # Unit of the body joints, "degrees" or "normalized"; None: as the bundle says. A real arm needs
    # it for a bundle that does not say it.
    units: str | None = None
    new_task: bool = False  # allow an instruction that is not in the training data
    # Seconds for the return to the start pose; 0: the arm stays where it is and loses torque there.
    home_s: float = 3.0
    safety: SafetyConfig = field(default_factory=SafetyConfig)
    log: Path | str | None = None  # record every tick to this .npz file
    log_frames_mb: float = 0  # megabytes of camera frames in the log
    video: Path | str | None = None  # film the run to this .mp4 file


def run(
    bundle: Bundle | Path | str,
    robot: Robot,
    task: str,
    options: RunOptions = RunOptions(),
    *,
    success: Callable[[], bool] | None = None,
    overview: Callable[[], Mapping[str, Frame]] | None = None,
    say: Callable[[str], None] | None = None,
    warm: Callable[[], WarmEngines] | None = None,
) -> RunReport:
    """Run the policy of a bundle on a robot until the run ends, with limits on range and speed.

    bundle: its folder, or an opened one. robot: an `So101Arm`, `twin.robot()`, or another `Robot`.
    It is not connected yet; the run connects it, and closes it whatever happens. task: one of the
    instructions in the training data. success: called once per tick; three times True in a row end
    the run. overview: called once per tick, name -> (H, W, 3) uint8 RGB: more pictures for the
    video. say: called with each message for the user. warm: what `start_engines` returned before
    the cameras were opened, which takes seconds too.

    UserError for what the user must fix: bundle, task, unit, backend, joints, cameras or port, and
    for a real arm that starts far outside the poses seen in training. TimeoutError when the policy
    hangs before the arm has torque. What goes wrong later ends the run and is the `reason` of the
    report.

        with mtdit.Twin(clock="lockstep") as twin:
            options = mtdit.RunOptions(duration_s=10, lockstep=True)
            report = mtdit.run("policy.mtdit", twin.robot(), "open the drawer", options)
    """
    tell = say or log.info
    with graceful_exit(), ExitStack() as after_release, closing(robot):
        opened = as_bundle(bundle)
        warm = warm or start_engines(opened, options.backend)
        task = check_task(opened.manifest, task, options.new_task)
        if options.video is not None:
            check_film(Path(options.video))
        if options.lockstep:
            check_lockstep(opened.manifest.fps, robot)
        per_degree = robot.use_units(run_units(opened.manifest, options.units, robot.is_real))
        ready = warm()
        engines, latency_s = ready.engines, ready.latency_s
        for engine in engines.per_chunk:
            tell(engine.describe())
        tell(f"backend {engines.reason}")
        for line in task_notes(opened, task):
            tell(line)
        policy = on_robot(BundlePolicy(opened, engines), robot.joints)
        check_cameras(policy, robot.cameras)
        prefetch_ticks = _prefetch(opened.manifest, latency_s, options, say)
        timeout_s = options.chunk_timeout or chunk_timeout_s(latency_s)
        queue = ChunkQueue(policy, prefetch_ticks, options.lockstep, timeout_s)
        # After the arm is released: closing the queue may have to wait for a chunk.
        after_release.callback(queue.close)
        queue.reset(task, options.seed)
        robot.connect()
        tell(f"running {printable(opened.manifest.name)}: {task!r} (Ctrl-C to stop)")
        # Also after the arm is released: a disk may keep the files waiting.
        recorded = _recorded(opened.manifest, robot.joints, task, options, overview, tell)
        on_tick = after_release.enter_context(recorded)
        trained = TrainedRange.of(opened, robot.joints, per_degree) if robot.is_real else None
        moved = opened.manifest.joints
        limits = Limits.by_name(robot.joints, moved, policy.fps, options.safety, per_degree)
        safety = Safety(robot.joints, limits, options.safety, trained)
        with heartbeat(Running(opened.manifest.name, task), tell) as beat:
            report = _loop(opened.manifest, robot, queue, safety, options, success, on_tick, beat)
            return replace(report, peak_memory_mb=round(peak_memory_mb(), 1))


def check_task(manifest: Manifest, task: str, allow_new: bool) -> str:
    """The instruction as the policy knows it: one of its tasks, or a new one with `allow_new`.

    UserError if the policy was not trained on it, with the most similar of its tasks; and for a new
    one that cannot be typed.
    """
    known = same_task(task, manifest.tasks)
    if known is not None:
        return known
    if allow_new:
        return typed(task)
    near = difflib.get_close_matches(task, manifest.tasks, n=1, cutoff=0.4)
    shown = printable(", ".join(map(repr, manifest.tasks)) or "none", 1000)
    hint = f"did you mean {near[0]!r}?" if near else f"its tasks are {shown}"
    raise UserError(
        f"{printable(manifest.name)} was not trained on {task!r}: {hint} "
        "(--new-task runs it anyway)"
    )


def run_units(manifest: Manifest, said: str | None, is_real: bool) -> str:
    """The unit in which a robot runs a bundle: as the bundle says, else as a person says. UserError
    when they differ, and for a real arm when nobody says it.
    """
    known = Judged(manifest.units, "its export says so", is_certain=manifest.units in ARM_UNITS)
    units = settled(known, said, printable(manifest.name))
    return check_arm_units(units) if is_real else units


def _prefetch(
    m: Manifest, latency_s: float, options: RunOptions, say: Callable[[str], None] | None
) -> int:
    chosen = auto_prefetch(latency_s, m.fps, m.n_action_steps)
    ticks = chosen if options.prefetch_ticks is None else options.prefetch_ticks
    (say or log.info)(
        f"a chunk takes {latency_s * 1e3:.0f} ms: requested {ticks} ticks ahead, at {m.fps} Hz"
    )
    if not options.lockstep and latency_s * m.fps > m.n_action_steps / 2:
        (say or log.warning)(
            "this computer is too slow for the policy, the arm will pause: "
            "export with fewer denoising steps"
        )
    return ticks


def _loop(
    m: Manifest,
    robot: Robot,
    queue: ChunkQueue,
    safety: Safety,
    options: RunOptions,
    success: Callable[[], bool] | None,
    on_tick: Callable[[Tick], None] | None,
    beat: Callable[[], None],
) -> RunReport:
    config = LoopConfig(m.fps, duration_s=options.duration_s, home_s=options.home_s)
    clock: Clock = LockstepClock() if options.lockstep else RealClock()
    beating = BeatingClock(clock, beat)
    return run_loop(robot, queue, safety, config, beating, success, on_tick)


@contextmanager
def _recorded(
    m: Manifest,
    joints: tuple[str, ...],
    task: str,
    options: RunOptions,
    overview: Callable[[], Mapping[str, Frame]] | None,
    tell: Callable[[str], None],
) -> Iterator[Callable[[Tick], None] | None]:
    """An `on_tick` for log and video, which are written at the end of the block; None: neither."""
    recorder = Recorder(joints, task, options.seed, options.log_frames_mb) if options.log else None
    film = Film(Path(options.video), m.fps, wait=options.lockstep) if options.video else None

    def on_tick(tick: Tick) -> None:
        if recorder is not None:
            recorder(tick)
        if film is not None:
            more = overview() if overview else {}
            film.add({**more, **tick.observation.frames}, f"{tick.time_s:5.1f} s  {task}")

    try:
        yield None if recorder is None and film is None else on_tick
    finally:
        if recorder is not None and options.log is not None:
            tell(f"log: {recorder.save(Path(options.log))}")
        if film is not None:
            film.close()
            dropped = f" ({film.dropped} frames dropped)" if film.dropped else ""
            tell(f"video: {options.video}{dropped}")
