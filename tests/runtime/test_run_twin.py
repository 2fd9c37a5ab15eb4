"""The runtime on the real twin: its own driver, bus and cameras, in both clocks."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import pytest

from mtdit_robots.so101.joints import JOINTS
from mtdit_robots.twin.client import Twin
from mtdit_runtime.control.chunks import ChunkQueue
from mtdit_runtime.control.clock import RealClock
from mtdit_runtime.control.loop import LoopConfig, run_loop
from mtdit_runtime.control.report import Tick
from mtdit_runtime.control.safety import Limits, Safety
from mtdit_runtime.evaluate import EvalOptions, evaluate
from mtdit_runtime.policy.policy import Policy

TASK = "open the drawer"


class Wandering(Policy):
    """Chunks that drift by the noise and by what the cameras show."""

    joints, cameras = tuple(JOINTS), ("top", "wrist")
    n_obs_steps, n_action_steps, horizon, fps = 2, 8, 16, 30

    def reset(self, task: str, seed: int) -> None:
        self.rng = np.random.default_rng(seed)

    def observe(self, positions: Any, frames: Mapping[str, Any]) -> None:
        self.positions, self.light = (
            positions,
            sum(float(frame.mean()) for frame in frames.values()),
        )

    def request(self, noise: Any = None, committed: Any = None) -> Callable[[], Any]:
        drift = 10 * self.rng.normal(size=len(JOINTS)) + self.light / 100
        chunk = self.positions + np.linspace(0, 1, self.horizon)[:, None] * drift
        return lambda: chunk

    def prepare(self) -> Callable[[], None]:
        return lambda: None

    def chunk(self, noise: Any = None, committed: Any = None) -> Any:
        return self.request()()


@pytest.fixture(scope="module")
def lockstep() -> Iterator[Twin]:
    with Twin(clock="lockstep") as twin:
        yield twin


@pytest.mark.parametrize("prefetch", [0, 3])
def test_equal_evaluations_see_equal_bytes(lockstep: Twin, prefetch: int) -> None:
    def digest() -> tuple[str, Any]:
        seen = hashlib.sha256()

        def watch(tick: Tick) -> None:
            for array in (tick.observation.positions, *tick.observation.frames.values(), tick.sent):
                seen.update(array.tobytes())

        report = evaluate(
            Wandering(),
            lockstep,
            TASK,
            EvalOptions(2, max_s=1.0, prefetch_ticks=prefetch),
            on_tick=watch,
        )
        return seen.hexdigest(), report.each

    assert digest() == digest()


def test_real_time_run_ends_at_home() -> None:
    with Twin(clock="real") as twin:
        twin.reset(TASK, 5)
        robot = twin.robot()
        robot.connect()
        queue = ChunkQueue(Wandering(), 2, wait=False)
        queue.reset(TASK, 0)
        start = robot.observe().positions
        config = LoopConfig(30, duration_s=1.5, home_s=1.0)
        report = run_loop(
            robot, queue, Safety(JOINTS, Limits.none(6)), config, RealClock(), twin.success
        )
        end = robot.observe().positions
        robot.close()
        queue.close()
    assert report.reason == "duration"
    assert report.exit_errors == ()
    assert report.chunks >= 2
    np.testing.assert_allclose(end, start, atol=8)  # the servo sags and lags


@pytest.mark.parametrize("fps", [15, 50])
def test_a_policy_of_another_rate_is_evaluated_at_its_own(fps: int) -> None:
    """A tick is 1/fps of simulated time, whatever the physics needs: servos move as far per second
    as at 30 Hz.
    """
    travelled = {}
    for rate in (30, fps):
        policy = Wandering()
        policy.fps = rate
        with Twin(clock="lockstep", fps=rate) as twin:
            report = evaluate(policy, twin, TASK, EvalOptions(1, max_s=1.0))
            travelled[rate] = twin.status()["tick"]
        assert report.each[0].duration_s == pytest.approx(1.0, abs=1 / rate)
    assert travelled[fps] == pytest.approx(travelled[30] * fps / 30, abs=2)
