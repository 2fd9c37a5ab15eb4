"""Success rate of a policy in closed loop on the twin, in lock-step.

Works with any Policy: a checkpoint and a bundle get exactly the same scenes and the same noise.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, replace
from statistics import NormalDist
from typing import Any, Protocol

from mtdit_robots.errors import UserError
from mtdit_robots.robot import Positions, Robot
from mtdit_runtime.bundle.manifest import Joint
from mtdit_runtime.control.chunks import ChunkQueue
from mtdit_runtime.control.clock import LockstepClock, check_lockstep
from mtdit_runtime.control.loop import LoopConfig, run_loop
from mtdit_runtime.control.report import RunReport, Tick
from mtdit_runtime.control.safety import Limits, Safety, SafetyConfig
from mtdit_runtime.control.verdict import verdict
from mtdit_runtime.instructions import typed
from mtdit_runtime.policy.by_name import check_cameras, on_robot
from mtdit_runtime.policy.policy import Policy

FIRST_SEED = 1_000_000  # demonstrations use smaller seeds: no evaluated scene is a training scene
SEED_STRIDE = 10_000  # the most episodes of one evaluation


class TwinLike(Protocol):
    """The part of `mtdit_robots.twin.client.Twin` (in lock-step) that an evaluation uses."""

    def robot(self) -> Robot: ...

    def reset(self, task: str, seed: int) -> None: ...

    def success(self) -> bool: ...


@dataclass(frozen=True)
class EvalEpisode:
    """One evaluated episode."""

    seed: int
    success: bool
    duration_s: float  # simulated
    reason: str
    detail: str


@dataclass(frozen=True)
class EvalReport:
    """A success rate with its 95 % Wilson interval, and the episodes that it comes from."""

    task: str  # the task whose success was measured
    instruction: str  # the instruction given to the policy
    successes: int
    episodes: int
    rate: float
    low: float
    high: float
    mean_success_s: float | None  # mean simulated time of the successful episodes
    wall_s: float
    verdict: str  # on the motion in all episodes together, see `verdict`
    each: tuple[EvalEpisode, ...]

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    def __str__(self) -> str:
        other = f" (instruction: {self.instruction!r})" if self.instruction != self.task else ""
        interval = f"95 % interval {self.low:.0%} to {self.high:.0%}"
        count = f"{self.successes}/{self.episodes} = {self.rate:.0%}"
        return f"{self.task!r}{other}: {count}, {interval}\nverdict: {self.verdict}"


def wilson_interval(successes: int, n: int, confidence: float = 0.95) -> tuple[float, float]:
    """Score interval of a rate; good for small n and for rates near 0 or 1.

    Source: Wilson 1927, JASA 22:209.
    """
    if not 0 <= successes <= n or n < 1:
        raise ValueError(f"{successes} successes of {n}")
    z = NormalDist().inv_cdf(0.5 + confidence / 2)
    rate, z2 = successes / n, z * z
    centre = (rate + z2 / (2 * n)) / (1 + z2 / n)
    half = z / (1 + z2 / n) * math.sqrt(rate * (1 - rate) / n + z2 / (4 * n * n))
    return (0.0 if successes == 0 else centre - half), (1.0 if successes == n else centre + half)


def episode_seed(seed: int, episode: int) -> int:
    """The seed of an episode's scene and noise: the same for all policies, never that of a
    demonstration.
    """
    return FIRST_SEED + SEED_STRIDE * seed + episode


@dataclass(frozen=True)
class EvalOptions:
    """How to evaluate. An episode ends when success has lasted `success_ticks`, or after `max_s`
    of simulated time.
    """

    episodes: int = 50  # each in another scene
    seed: int = 0  # picks the scenes
    max_s: float = 12.0
    # given to the policy instead of the task, as a control: the success rate should then be low
    instruction: str | None = None
    prefetch_ticks: int = 0
    # Seconds after which a chunk hangs; None: 10 times the latency so far, at least 3.
    chunk_timeout: float | None = None
    success_ticks: int = 3
    # apply their limits, as on a robot; None: only count what the policy's own limits would change
    joints: Sequence[Joint] | None = None


def evaluate(
    policy: Policy,
    twin: TwinLike,
    task: str,
    options: EvalOptions = EvalOptions(),
    *,
    on_episode: Callable[[EvalEpisode, int], None] | None = None,
    on_tick: Callable[[Tick], None] | None = None,
) -> EvalReport:
    """Measure how often a policy solves `task` in new scenes of the twin.

    policy: as `mtdit.load` opens it, or another `Policy`. twin: with the clock "lockstep" and the
    policy's image_size and fps. on_episode(episode, index) is called after each episode,
    on_tick after each command. UserError for a bad number of episodes, a policy whose rate is
    not the twin's, a
    missing joint or camera, or an unknown task; OSError if the twin stops answering
    or the policy hangs.

        with mtdit.Twin(clock="lockstep") as twin:
            print(mtdit.evaluate(policy, twin, "open the drawer", mtdit.EvalOptions(episodes=50)))
    """
    if not 1 <= options.episodes <= SEED_STRIDE:
        raise UserError(f"episodes must be 1 to {SEED_STRIDE}, got {options.episodes}")
    began = time.monotonic()
    robot = twin.robot()
    check_lockstep(policy.fps, robot)
    policy = on_robot(policy, robot.joints)
    check_cameras(policy, robot.cameras)
    per_degree = robot.use_units(policy.units)
    robot.connect()
    instruction = task if options.instruction is None else typed(options.instruction)
    config = LoopConfig(policy.fps, options.max_s, success_ticks=options.success_ticks)
    each, runs = list[EvalEpisode](), list[RunReport]()
    try:
        for index in range(options.episodes):
            seed = episode_seed(options.seed, index)
            twin.reset(task, seed)
            safety = _safety(policy, options.joints, per_degree)
            clock = LockstepClock()
            queue = ChunkQueue(policy, options.prefetch_ticks, timeout_s=options.chunk_timeout)
            with closing(queue):
                queue.reset(instruction, seed)
                report = run_loop(robot, queue, safety, config, clock, twin.success, on_tick)
            each.append(_outcome(report, seed))
            runs.append(report)
            if on_episode is not None:
                on_episode(each[-1], index)
            if report.reason == "interrupted":
                raise KeyboardInterrupt
    finally:
        robot.close()
    found = verdict(_together(runs), safety.limits)
    return _report(task, instruction, each, time.monotonic() - began, found)


def _safety(policy: Policy, joints: Sequence[Joint] | None, per_degree: Positions) -> Safety:
    # In lock-step every frame is from the current tick, so none is stale.
    config = SafetyConfig(ramp_s=0.0, stale_hold_s=math.inf)
    moved = policy.demonstrated if joints is None else joints
    limits = Limits.none(len(policy.joints))
    if moved:
        limits = Limits.by_name(policy.joints, moved, policy.fps, config, per_degree)
    return Safety(policy.joints, limits, config, applied=joints is not None)


def _outcome(report: RunReport, seed: int) -> EvalEpisode:
    """The episode's result. A failure of bus or policy is not a failed episode: it is raised."""
    if report.reason == "bus":
        raise OSError(
            f"the twin stopped answering in the episode with seed {seed}: {report.detail}"
        )
    if report.reason == "chunk timeout":
        raise TimeoutError(f"the policy hangs in the episode with seed {seed}: {report.detail}")
    if report.reason == "policy error":
        raise UserError(
            f"the policy failed in the episode with seed {seed} ({report.detail}): check the export"
        )
    return EvalEpisode(
        seed, report.reason == "success", report.duration_s, report.reason, report.detail
    )


def _together(runs: Sequence[RunReport]) -> RunReport:
    """The motion of all runs as that of one: the counts in sum, the largest seams."""
    first = runs[0]
    return replace(
        next((run for run in runs if not run.ok), first),
        ticks=sum(run.ticks for run in runs),
        seam_jump={j: max(run.seam_jump[j] for run in runs) for j in first.seam_jump},
        interventions={
            guard: {j: sum(run.interventions[guard][j] for run in runs) for j in joints}
            for guard, joints in first.interventions.items()
        },
    )


def _report(
    task: str, instruction: str, each: Sequence[EvalEpisode], wall_s: float, found: str
) -> EvalReport:
    times_s = [episode.duration_s for episode in each if episode.success]
    low, high = wilson_interval(len(times_s), len(each))
    mean_s = sum(times_s) / len(times_s) if times_s else None
    rate = len(times_s) / len(each)
    return EvalReport(
        task=task,
        instruction=instruction,
        successes=len(times_s),
        episodes=len(each),
        rate=rate,
        low=low,
        high=high,
        mean_success_s=mean_s,
        wall_s=wall_s,
        verdict=found,
        each=tuple(each),
    )
