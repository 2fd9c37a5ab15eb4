"""The flight recorder: what comes back from disk, and replay of lock-step and of stuttering
real-time runs.
"""

from __future__ import annotations

import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mtdit_robots.errors import UserError
from mtdit_runtime.control.chunks import ChunkQueue
from mtdit_runtime.control.clock import LockstepClock
from mtdit_runtime.control.loop import LoopConfig, run_loop
from mtdit_runtime.control.report import Tick
from mtdit_runtime.control.safety import Limits, Safety
from mtdit_runtime.policy.bundle_policy import BundlePolicy
from mtdit_runtime.recording.run_log import Recorder, load_log, recompute

TASK, FPS, SEED = "open the drawer", 30, 11


class Gated:
    """A policy whose chunks wait for the gate."""

    def __init__(self, policy: BundlePolicy, gate: threading.Event) -> None:
        self.policy, self.gate = policy, gate

    def __getattr__(self, name: str) -> Any:
        return getattr(self.policy, name)

    def request(self) -> Any:
        compute = self.policy.request()
        return lambda: (self.gate.wait(20), compute())[1]


def record(
    policy: BundlePolicy, robot: Any, path: Path, late: range | None = None, **options: Any
) -> tuple[list[Tick], ChunkQueue]:
    """One second of run, k = 2. late: do not wait for chunks, and let none be ready in these
    ticks.
    """
    ticks: list[Tick] = []
    recorder = Recorder(policy.joints, TASK, SEED, **options)
    gate = threading.Event()
    gate.set()
    queue = ChunkQueue(Gated(policy, gate), 2, wait=late is None)
    queue.reset(TASK, SEED)

    def pace(tick: int) -> None:
        assert late is not None
        (gate.clear if tick in late else gate.set)()
        while tick not in late and queue.is_computing:
            time.sleep(1e-4)

    if late is not None:
        robot.on_observe = pace

    def watch(tick: Tick) -> None:
        ticks.append(tick)
        recorder(tick)

    config = LoopConfig(FPS, duration_s=1.0)
    run_loop(
        robot, queue, Safety(policy.joints, Limits.none(3)), config, LockstepClock(), on_tick=watch
    )
    queue.close()
    recorder.save(path)
    return ticks, queue


def test_what_was_written_comes_back(policy: BundlePolicy, robot: Any, tmp_path: Path) -> None:
    ticks, _ = record(policy, robot, tmp_path / "logs/run.npz", frames_mb=1)
    log = load_log(tmp_path / "logs/run.npz")
    assert (log.joints, log.task, log.seed, len(log)) == (policy.joints, TASK, SEED, 30)
    for i, tick in enumerate(ticks):
        np.testing.assert_array_equal(log.columns["positions"][i], tick.observation.positions)
        np.testing.assert_array_equal(log.columns["sent"][i], tick.sent)
        np.testing.assert_array_equal(log.frames["top"][i], tick.observation.frames["top"])
        assert (log.columns["chunk"][i], log.columns["row"][i]) == (tick.chunk, tick.row)
    assert [p.name for p in (tmp_path / "logs").iterdir()] == ["run.npz"]


def test_replay_finds_the_same_actions(policy: BundlePolicy, robot: Any, tmp_path: Path) -> None:
    robot.stale = {7: 0.5, 8: 0.5}
    record(policy, robot, tmp_path / "run.npz", frames_mb=1)
    report = recompute(load_log(tmp_path / "run.npz"), policy)
    assert (report.ticks, report.max_error) == (28, 0.0)


def test_replay_of_a_run_whose_chunks_came_when_they_came(
    policy: BundlePolicy, robot: Any, tmp_path: Path
) -> None:
    ticks, queue = record(policy, robot, tmp_path / "run.npz", late=range(6, 17), frames_mb=1)
    assert queue.continued > 0
    assert queue.stalls > 0
    report = recompute(load_log(tmp_path / "run.npz"), policy)
    assert report.ticks == sum(tick.row >= 0 for tick in ticks)
    assert report.max_error == 0.0


def test_replay_sees_a_difference(policy: BundlePolicy, robot: Any, tmp_path: Path) -> None:
    record(policy, robot, tmp_path / "run.npz", frames_mb=1)
    log = load_log(tmp_path / "run.npz")
    log.columns["wanted"][5, 1] += 2.0
    report = recompute(log, policy)
    assert report.max_error == pytest.approx(2.0)
    assert report.per_joint["lift"] == pytest.approx(2.0)
    assert report.per_joint["pan"] == 0


def test_memory_is_bounded(policy: BundlePolicy, robot: Any, tmp_path: Path) -> None:
    record(policy, robot, tmp_path / "run.npz", frames_mb=144 * 5e-6, max_ticks=20)
    log = load_log(tmp_path / "run.npz")
    assert log.columns["index"].tolist() == list(range(10, 30))  # the last ones
    with pytest.raises(UserError, match="no frames of camera 'top'"):
        recompute(log, policy)


def test_frames_stop_at_their_budget_and_replay_as_far_as_they_go(
    policy: BundlePolicy, robot: Any, tmp_path: Path
) -> None:
    record(policy, robot, tmp_path / "run.npz", frames_mb=144 * 10e-6)
    log = load_log(tmp_path / "run.npz")
    assert len(log.frames["wrist"]) == 10
    assert recompute(log, policy).ticks == 10


def test_other_joints_are_refused(policy: BundlePolicy, robot: Any, tmp_path: Path) -> None:
    record(policy, robot, tmp_path / "run.npz")
    log = load_log(tmp_path / "run.npz")
    object.__setattr__(log, "joints", ("a", "b", "c"))
    with pytest.raises(UserError, match="the log has joints a, b, c"):
        recompute(log, policy)


@pytest.mark.parametrize("content", [None, b"", b"not a zip", b"PK\x03\x04 broken"])
def test_what_is_no_log_says_so(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "run.npz"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError, match=r"run\.npz"):
        load_log(path)


def test_another_array_file_is_no_log(tmp_path: Path) -> None:
    np.savez(tmp_path / "x.npz", a=np.zeros(3))
    with pytest.raises(UserError, match="not a run log"):
        load_log(tmp_path / "x.npz")
