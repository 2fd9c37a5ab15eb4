"""Success rates: the interval, the seeds, what is told and what is measured."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pytest

from mtdit_robots.errors import UserError
from mtdit_runtime.bundle.bundle import Bundle
from mtdit_runtime.evaluate import SEED_STRIDE, EvalOptions, episode_seed, evaluate, wilson_interval
from mtdit_runtime.policy.bundle_policy import BundlePolicy

TASK, OTHER = "open the drawer", "close the drawer"


@dataclass
class ScriptedTwin:
    """A scripted robot that counts as successful while the first joint is above `goal`."""

    arm: Any
    goal: float = 9.0
    resets: list[tuple[str, int]] = field(default_factory=list)

    def robot(self) -> Any:
        return self.arm

    def reset(self, task: str, seed: int) -> None:
        self.resets.append((task, seed))
        self.arm.observed = 0
        self.arm.pose = self.arm.goal = np.random.default_rng(seed).uniform(-20, 20, 3)

    def success(self) -> bool:
        return bool(self.arm.pose[0] > self.goal)


@pytest.fixture
def twin(scripted_robot: Any) -> ScriptedTwin:
    return ScriptedTwin(scripted_robot())


# Newcombe 1998, Statistics in Medicine 17:857, table I, method 3.
@pytest.mark.parametrize(
    ("successes", "n", "low", "high"),
    [
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ],
)
def test_wilson_interval(successes: int, n: int, low: float, high: float) -> None:
    assert wilson_interval(successes, n) == pytest.approx((low, high), abs=5e-5)


def test_wilson_interval_solves_its_equation() -> None:
    for n in (3, 20, 1000):
        for successes in range(1, n, max(1, n // 7)):
            for bound in wilson_interval(successes, n):
                assert abs(successes / n - bound) == pytest.approx(
                    1.959964 * (bound * (1 - bound) / n) ** 0.5, rel=1e-6
                )


@pytest.mark.parametrize(("successes", "n"), [(-1, 3), (4, 3), (0, 0)])
def test_impossible_counts(successes: int, n: int) -> None:
    with pytest.raises(ValueError, match="successes of"):
        wilson_interval(successes, n)


def test_equal_runs_are_equal_and_seeds_are_the_evaluations_own(
    policy: BundlePolicy, twin: ScriptedTwin
) -> None:
    twin.goal = 13.0
    first, second = (
        evaluate(policy, twin, TASK, EvalOptions(6, seed=3, max_s=1.0, success_ticks=1))
        for _ in range(2)
    )
    assert first.each == second.each
    assert 0 < first.successes < 6
    assert [seed for _, seed in twin.resets[:6]] == [episode_seed(3, i) for i in range(6)]
    assert min(seed for _, seed in twin.resets) > 100_000
    assert first.rate == first.successes / 6
    assert (first.low, first.high) == wilson_interval(first.successes, 6)
    assert not twin.arm.connected


def test_prefetch_is_deterministic_too(policy: BundlePolicy, twin: ScriptedTwin) -> None:
    first, second = (
        evaluate(policy, twin, TASK, EvalOptions(3, max_s=1.0, prefetch_ticks=2)) for _ in range(2)
    )
    assert first.each == second.each


def test_a_twin_with_another_order_of_joints_is_evaluated_alike(
    bundle: Bundle, policy: BundlePolicy, scripted_robot: Any
) -> None:
    class Turned(ScriptedTwin):
        def reset(self, task: str, seed: int) -> None:
            super().reset(task, seed)
            usual = ("pan", "lift", "grip")
            self.arm.pose = self.arm.pose[[usual.index(joint) for joint in self.arm.joints]]
            self.arm.goal = self.arm.pose

    def commands(*joints: str) -> list[dict[str, float]]:
        sent: list[Any] = []
        options = EvalOptions(2, max_s=0.5, joints=bundle.manifest.joints)
        twin = Turned(scripted_robot(joints=joints), goal=1e3)
        evaluate(policy, twin, TASK, options, on_tick=lambda tick: sent.append(tick.sent))
        return [dict(zip(joints, row.tolist(), strict=True)) for row in sent]

    wanted, got = commands("pan", "lift", "grip"), commands("grip", "pan", "lift")
    assert len(got) == len(wanted) == 30
    for one, other in zip(got, wanted, strict=True):
        assert one == pytest.approx(other, abs=1e-9)
    with pytest.raises(UserError, match="the policy's action has no 'elbow'"):
        commands("pan", "elbow", "lift")


def test_success_ends_an_episode_early(policy: BundlePolicy, twin: ScriptedTwin) -> None:
    twin.goal = -1e3
    report = evaluate(policy, twin, TASK, EvalOptions(2, max_s=5.0, success_ticks=4))
    assert report.successes == 2
    assert report.mean_success_s == pytest.approx(3 / 30)
    assert "2/2 = 100 %" in str(report).replace("100%", "100 %")


def test_failures_last_their_time(policy: BundlePolicy, twin: ScriptedTwin) -> None:
    twin.goal = 1e3
    report = evaluate(policy, twin, TASK, EvalOptions(2, max_s=0.5))
    assert (report.successes, report.mean_success_s) == (0, None)
    assert [episode.duration_s for episode in report.each] == pytest.approx([0.5, 0.5])


def test_another_instruction_is_told_while_the_task_is_measured(
    policy: BundlePolicy, twin: ScriptedTwin
) -> None:
    told: list[str] = []
    reset = policy.reset
    policy.reset = lambda task, seed: (told.append(task), reset(task, seed))[1]  # type: ignore[method-assign, assignment]
    report = evaluate(policy, twin, TASK, EvalOptions(2, max_s=0.2, instruction=OTHER))
    assert told == [OTHER, OTHER]
    assert {task for task, _ in twin.resets} == {TASK}
    assert (report.task, report.instruction) == (TASK, OTHER)
    assert "instruction: 'close the drawer'" in str(report)


def test_limits_are_kept_if_given(policy: BundlePolicy, bundle: Bundle, twin: ScriptedTwin) -> None:
    evaluate(policy, twin, TASK, EvalOptions(1, max_s=0.5, joints=bundle.manifest.joints))
    steps = np.abs(np.diff(np.array(twin.arm.commands), axis=0))
    assert steps.max() <= 300 * 1.5 / 30 + 1e-9


def test_without_limits_it_says_what_a_robot_would_limit(
    policy: BundlePolicy, twin: ScriptedTwin
) -> None:
    """The toy jumps by 50 degrees per tick, five times as fast as its demonstrations."""
    wild = evaluate(policy, twin, TASK, EvalOptions(2, max_s=2.0))
    sent = np.array(twin.arm.commands)
    assert np.abs(np.diff(sent, axis=0)).max() > 300 * 1.5 / 30, "nothing is limited"
    assert wild.verdict.startswith("abnormal: the speed guard changed ")
    assert " of 120 ticks, " in wild.verdict, "of both episodes"
    assert str(wild).splitlines()[1] == f"verdict: {wild.verdict}"
    policy.demonstrated = tuple(replace(joint, max_speed=3e3) for joint in policy.demonstrated)
    twin.arm.commands.clear()
    fast = evaluate(policy, twin, TASK, EvalOptions(2, max_s=2.0))
    assert (fast.verdict, fast.each) == ("normal", wild.each)
    assert np.array_equal(sent, np.array(twin.arm.commands))
    policy.demonstrated = ()
    assert evaluate(policy, twin, TASK, EvalOptions(1, max_s=0.2)).verdict == "normal"


def test_episodes_are_reported_as_they_end(policy: BundlePolicy, twin: ScriptedTwin) -> None:
    seen: list[tuple[int, int]] = []
    evaluate(
        policy,
        twin,
        TASK,
        EvalOptions(3, max_s=0.1),
        on_episode=lambda episode, index: seen.append((episode.seed, index)),
    )
    assert seen == [(episode_seed(0, i), i) for i in range(3)]


def test_a_dead_twin_is_no_failure_of_the_policy(policy: BundlePolicy, twin: ScriptedTwin) -> None:
    twin.arm.failing = frozenset(range(5, 1000))
    with pytest.raises(OSError, match="the twin stopped answering"):
        evaluate(policy, twin, TASK, EvalOptions(2))
    assert not twin.arm.connected


def test_a_policy_that_hangs_ends_the_evaluation(policy: BundlePolicy, twin: ScriptedTwin) -> None:
    go = threading.Event()
    policy.request = lambda: lambda: go.wait(60)  # type: ignore[assignment, method-assign]
    options = EvalOptions(2, chunk_timeout=0.1)
    with pytest.raises(TimeoutError, match="hangs in the episode with seed 1000000: a chunk was"):
        evaluate(policy, twin, TASK, options)
    go.set()
    assert not twin.arm.connected


@pytest.mark.parametrize("episodes", [0, SEED_STRIDE + 1])
def test_impossible_numbers_of_episodes(
    policy: BundlePolicy, twin: ScriptedTwin, episodes: int
) -> None:
    with pytest.raises(UserError, match=rf"^episodes must be 1 to {SEED_STRIDE}, got {episodes}$"):
        evaluate(policy, twin, TASK, EvalOptions(episodes))


def test_another_rate_than_the_twins(policy: BundlePolicy, twin: ScriptedTwin) -> None:
    policy.fps = 50
    with pytest.raises(UserError, match="runs at 50 Hz"):
        evaluate(policy, twin, TASK, EvalOptions(1))
    assert not twin.arm.connected


def test_a_twin_without_the_camera(policy: BundlePolicy, twin: ScriptedTwin) -> None:
    twin.arm.cameras = ("top",)
    with pytest.raises(UserError, match="needs camera 'wrist'"):
        evaluate(policy, twin, TASK, EvalOptions(1))


def test_report_is_json(policy: BundlePolicy, twin: ScriptedTwin) -> None:
    import json

    data = json.loads(json.dumps(evaluate(policy, twin, TASK, EvalOptions(2, max_s=0.1)).to_dict()))
    assert data["episodes"] == len(data["each"]) == 2
