"""Closed-loop success on the twin, in lock-step, for anything that is a Policy.

Knows episodes, seeds and the confidence of a rate. Refuses to know what computes the policy: a
checkpoint and a bundle meet exactly the same scenes with the same noise.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from statistics import NormalDist
from typing import Any, Protocol

from mtdit_robots.errors import UserError
from mtdit_robots.robot import Robot
from mtdit_runtime.bundle import Joint
from mtdit_runtime.chunks import ChunkQueue
from mtdit_runtime.loop import LockstepClock, LoopConfig, RunReport, Tick, check_lockstep, run
from mtdit_runtime.policy import Policy, check_robot
from mtdit_runtime.safety import Limits, Safety, SafetyConfig

FIRST_SEED = (
    1_000_000  # demonstrations use small seeds: no scene of an evaluation was ever trained on
)
SEED_STRIDE = 10_000  # most episodes of one evaluation


class TwinLike(Protocol):
    """What an evaluation needs of the twin, `mtdit_robots.twin.client.Twin` in lock-step."""

    def robot(self) -> Robot: ...

    def reset(self, task: str, seed: int) -> None: ...

    def success(self) -> bool: ...


@dataclass(frozen=True)
class Episode:
    seed: int
    success: bool
    duration_s: float  # simulated
    reason: str
    detail: str


@dataclass(frozen=True)
class EvalReport:
    """A success rate with its 95 % Wilson interval, and every episode behind it."""

    task: str  # whose success was measured
    instruction: str  # what the policy was told
    successes: int
    episodes: int
    rate: float
    low: float
    high: float
    mean_success_s: float | None  # simulated time of the successful ones
    wall_s: float
    each: tuple[Episode, ...]

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    def __str__(self) -> str:
        told = "" if self.instruction == self.task else f" (told: {self.instruction!r})"
        interval = f"{self.low:.0%} to {self.high:.0%}"
        return f"{self.task!r}{told}: {self.successes}/{self.episodes} = {self.rate:.0%}, 95 % interval {interval}"


def wilson_interval(successes: int, n: int, confidence: float = 0.95) -> tuple[float, float]:
    """Score interval of a rate. Source: Wilson 1927, JASA 22:209; good for small n and rates near 0
    or 1.
    """
    if not 0 <= successes <= n or n < 1:
        raise ValueError(f"{successes} successes of {n}")
    z = NormalDist().inv_cdf(0.5 + confidence / 2)
    rate, z2 = successes / n, z * z
    centre = (rate + z2 / (2 * n)) / (1 + z2 / n)
    half = z / (1 + z2 / n) * math.sqrt(rate * (1 - rate) / n + z2 / (4 * n * n))
    return (0.0 if successes == 0 else centre - half), (1.0 if successes == n else centre + half)


def episode_seed(seed: int, episode: int) -> int:
    """The scene and noise of an episode: the same for every policy, never one of a demonstration."""
    return FIRST_SEED + SEED_STRIDE * seed + episode


def evaluate(
    policy: Policy,
    twin: TwinLike,
    task: str,
    episodes: int,
    seed: int = 0,
    max_s: float = 15.0,
    instruction: str | None = None,
    prefetch_ticks: int = 0,
    joints: Sequence[Joint] | None = None,
    success_ticks: int = 3,
    on_episode: Callable[[Episode, int], None] | None = None,
    on_tick: Callable[[Tick], None] | None = None,
) -> EvalReport:
    """Run `episodes` scenes of `task`; one ends at success held for `success_ticks`, or after
    `max_s` simulated.

    instruction: what the policy is told, if not the task: following another instruction must not
    succeed. joints: limits to keep, as on a robot; None measures the policy as it is.
    on_episode(episode, index) after each. Raises UserError: bad counts, a rate that is not the
    twin's, a twin that lacks a joint or camera, an unknown task. OSError: the twin died.
    """
    if not 1 <= episodes <= SEED_STRIDE:
        raise UserError(f"--episodes {episodes}: choose 1 to {SEED_STRIDE}")
    check_lockstep(policy.fps)
    began = time.monotonic()
    robot = twin.robot()
    check_robot(policy, robot.joints, robot.cameras)
    robot.connect()
    each: list[Episode] = []
    try:
        for index in range(episodes):
            twin.reset(task, episode_seed(seed, index))
            queue = ChunkQueue(policy, prefetch_ticks)
            queue.reset(instruction or task, episode_seed(seed, index))
            config = LoopConfig(policy.fps, duration_s=max_s, success_ticks=success_ticks)
            report = _episode(robot, queue, _safety(policy, joints), config, twin.success, on_tick)
            each.append(_outcome(report, episode_seed(seed, index)))
            if on_episode is not None:
                on_episode(each[-1], index)
            if report.reason == "interrupted":
                raise KeyboardInterrupt
    finally:
        robot.close()
    return _report(task, instruction or task, each, time.monotonic() - began)


def _episode(
    robot: Robot,
    queue: ChunkQueue,
    safety: Safety,
    config: LoopConfig,
    success: Callable[[], bool],
    on_tick: Callable[[Tick], None] | None,
) -> RunReport:
    try:
        return run(robot, queue, safety, config, LockstepClock(), success, on_tick)
    finally:
        queue.close()


def _safety(policy: Policy, joints: Sequence[Joint] | None) -> Safety:
    config = SafetyConfig(
        ramp_s=0.0, stale_hold_s=math.inf
    )  # lock-step frames are always this tick's
    limits = (
        Limits.none(len(policy.joints)) if joints is None else Limits.of(joints, policy.fps, config)
    )
    return Safety(policy.joints, limits, config)


def _outcome(report: RunReport, seed: int) -> Episode:
    """A failing bus or policy says nothing about the success rate: it ends the evaluation."""
    if report.reason == "bus":
        raise OSError(
            f"the twin stopped answering in the episode with seed {seed}: {report.detail}"
        )
    if report.reason == "policy error":
        raise UserError(
            f"the policy failed in the episode with seed {seed}: {report.detail}: check the export"
        )
    return Episode(
        seed, report.reason == "success", report.duration_s, report.reason, report.detail
    )


def _report(task: str, instruction: str, each: Sequence[Episode], wall_s: float) -> EvalReport:
    times_s = [episode.duration_s for episode in each if episode.success]
    low, high = wilson_interval(len(times_s), len(each))
    mean_s = sum(times_s) / len(times_s) if times_s else None
    rate = len(times_s) / len(each)
    return EvalReport(
        task, instruction, len(times_s), len(each), rate, low, high, mean_s, wall_s, tuple(each)
    )
