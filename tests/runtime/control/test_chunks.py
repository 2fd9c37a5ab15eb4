"""The queue: LeRobot's order without prefetch, determinism with it, and what happens when a chunk
is late.
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any

import numpy as np
import pytest

from mtdit_robots.errors import UserError
from mtdit_runtime.control.chunks import LEAST_TIMEOUT_S, ChunkQueue, auto_prefetch
from mtdit_runtime.control.safety import Stop
from mtdit_runtime.timings import Timings
from mtdit_runtime.worker import START_S

N_OBS, N_ACT = 2, 6


class CountingPolicy:
    """Row r of the chunk asked for at tick t (of its executed part) is t + r, plus 1000 per chunk:
    1000n + t + r.
    """

    joints, cameras, n_obs_steps, n_action_steps, fps = ("a", "b"), (), N_OBS, N_ACT, 30
    timings = Timings()

    def __init__(
        self, horizon: int = 12, compute: Callable[[int], None] = lambda number: None
    ) -> None:
        self.horizon, self.compute = horizon, compute

    def reset(self, task: str, seed: int) -> None:
        self.tick, self.asked = -1, 0

    def observe(self, positions: Any, frames: Mapping[str, Any]) -> None:
        self.tick += 1

    def request(self, noise: Any = None, committed: Any = None) -> Callable[[], Any]:
        tick, number = self.tick, self.asked
        self.asked += 1

        def compute() -> Any:
            self.compute(number)
            rows = 1000.0 * number + tick + np.arange(self.horizon) - (N_OBS - 1)
            return np.stack([rows, -rows], axis=1)

        return compute

    def prepare(self) -> Callable[[], None]:
        return lambda: None

    def chunk(self, noise: Any = None, committed: Any = None) -> Any:
        return self.request(noise)()


def play(
    queue: ChunkQueue, ticks: int, after: Callable[[int], None] = lambda tick: None
) -> list[float | None]:
    """The first joint's actions; None: no action yet."""
    out = []
    for tick in range(ticks):
        positions = queue.step(np.array([-1.0, 1.0]), {}).positions
        out.append(None if positions is None else float(positions[0]))
        after(tick)
    return out


def wait_for_the_worker(queue: ChunkQueue) -> None:
    for _ in range(100_000):
        if not queue.is_computing:
            return
        time.sleep(1e-4)
    raise AssertionError("no chunk in 10 s")


def expected_prefetch(k: int, ticks: int) -> list[float]:
    """Chunk n > 0 is asked for k ticks before it takes over; every chunk runs out at its row
    N_ACT.
    """
    out: list[float] = []
    number, asked_at = 0, 0
    while len(out) < ticks:
        end = asked_at + N_ACT
        out += [1000.0 * number + tick for tick in range(len(out), end)]
        number, asked_at = number + 1, end - k
    return out[:ticks]


@pytest.mark.parametrize("k", [0, 1, 2, 3])
@pytest.mark.parametrize("seed", [0, 1])
def test_prefetch_does_not_depend_on_how_long_computing_took(k: int, seed: int) -> None:
    dice = random.Random(seed)  # seed in the test's id
    policy = CountingPolicy(compute=lambda number: time.sleep(dice.random() * 3e-3))
    queue = ChunkQueue(policy, k)
    queue.reset("task", 0)
    assert play(queue, 40) == expected_prefetch(k, 40)
    queue.close()
    assert (queue.stalls, queue.continued, queue.discarded) == (0, 0, 0)


def test_real_time_equals_lock_step_while_chunks_are_in_time() -> None:
    queue = ChunkQueue(CountingPolicy(), 2, wait=False)
    queue.reset("task", 0)
    out = play(queue, 1)
    while out[-1] is None:  # no action until the first chunk is there
        out += play(queue, 1)
    held = out.count(None)
    out += play(queue, 30, after=lambda tick: wait_for_the_worker(queue))
    queue.close()
    assert out[:held] == [None] * held
    out = out[held:]
    first = [x for x in out if x is not None and x < 1000]
    assert first == [
        float(i) for i in range(len(first))
    ]  # from its first row, however long the wait was
    assert out[len(first)] == 1000 + held + N_ACT  # from then on each action belongs to its tick
    assert queue.stalls == queue.continued == 0


class LateOnce:
    """Computing chunk 1 blocks until told; the test decides by how many ticks it is late."""

    def __init__(self, number: int = 1) -> None:
        self.number, self.go = number, threading.Event()

    def __call__(self, number: int) -> None:
        if number == self.number:
            assert self.go.wait(timeout=20)


def late(horizon: int, late_ticks: int, ticks: int = 24) -> tuple[list[float], ChunkQueue]:
    """Chunk 1, asked for at tick 4 and due at tick 6, arrives `late_ticks` later."""
    gate = LateOnce()
    queue = ChunkQueue(CountingPolicy(horizon, gate), 2, wait=True)
    queue.reset("task", 0)
    out = play(queue, 5)
    queue.wait = False
    out += play(queue, 1 + late_ticks)
    assert queue.is_computing
    gate.go.set()
    queue.wait = True
    out += play(queue, ticks - len(out))
    queue.close()
    return out, queue


def test_late_chunk_old_one_goes_on_then_alignment_is_kept() -> None:
    out, queue = late(horizon=12, late_ticks=2)
    assert out[:8] == [0, 1, 2, 3, 4, 5, 6, 7]  # rows 6 and 7 lie behind the executed part
    assert out[8:10] == [1008, 1009]  # asked for at tick 4: row 4 belongs to tick 8
    assert (queue.continued, queue.stalls, queue.discarded) == (2, 0, 0)
    assert queue.seam_jump.tolist() == [1000, 1000]


def test_late_chunk_without_rows_left_holds_and_counts() -> None:
    out, queue = late(horizon=7, late_ticks=3)
    assert out[:9] == [0, 1, 2, 3, 4, 5, 5, 5, 5]
    assert out[9] == 1009  # the held ticks are skipped too
    assert (queue.continued, queue.stalls) == (0, 3)


def test_a_chunk_of_which_nothing_is_left_is_discarded_and_asked_for_anew() -> None:
    out, queue = late(horizon=7, late_ticks=6)  # its last row belonged to tick 9
    assert out[5:12] == [5.0] * 7
    assert queue.discarded == 1
    assert out[12] == 2012  # asked for at rest: begins at its first row
    assert queue.stalls == 6


def test_continuation_is_never_longer_than_the_executed_part() -> None:
    out, queue = late(horizon=40, late_ticks=5)
    assert out[:11] == [float(i) for i in range(11)]
    _, queue = late(horizon=40, late_ticks=8)
    assert (queue.continued, queue.stalls) == (6, 2)


def test_a_chunk_asked_for_at_rest_begins_at_its_first_row() -> None:
    gate = LateOnce(0)
    queue = ChunkQueue(CountingPolicy(compute=gate), 2, wait=False)
    queue.reset("task", 0)
    assert play(queue, 4) == [None] * 4
    assert queue.stalls == 0
    assert queue.is_computing
    gate.go.set()
    wait_for_the_worker(queue)
    assert play(queue, 3) == [0, 1, 2]
    queue.close()


@pytest.mark.parametrize("k", [0, 2])
def test_what_the_worker_raises_comes_out_of_step(k: int) -> None:
    def fail(number: int) -> None:
        if number == 1:
            raise ZeroDivisionError("in the worker")

    queue = ChunkQueue(CountingPolicy(compute=fail), k)
    queue.reset("task", 0)
    with pytest.raises(ZeroDivisionError, match="in the worker"):
        play(queue, 20)
    queue.close()


def test_a_failure_is_raised_once_and_a_later_reset_begins_anew() -> None:
    def fail(number: int) -> None:
        if number == 1:
            raise ZeroDivisionError

    queue = ChunkQueue(CountingPolicy(compute=fail), 2)
    queue.reset("task", 0)
    with pytest.raises(ZeroDivisionError):
        play(queue, 20)
    with suppress(ZeroDivisionError):
        queue.reset("task", 0)
    queue.reset("task", 0)
    assert play(queue, 2) == [0, 1]
    queue.close()


def test_what_encoding_ahead_raises_comes_out_too() -> None:
    class Failing(CountingPolicy):
        def prepare(self) -> Callable[[], None]:
            return lambda: [][1]

    queue = ChunkQueue(Failing(), 2)
    queue.reset("task", 0)
    with pytest.raises(IndexError):
        play(queue, 20, after=lambda tick: queue.prepare())
    queue.close()


def test_a_failure_nobody_waited_for_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    started = threading.Event()

    def fail(number: int) -> None:
        if number == 1:
            started.set()
            raise ZeroDivisionError("too late to matter")

    queue = ChunkQueue(CountingPolicy(compute=fail), 2)
    queue.reset("task", 0)
    play(queue, 5)
    assert started.wait(timeout=20)
    queue.close()
    queue.close()
    assert "too late to matter" in caplog.text


def test_seam_compares_both_chunks_at_the_same_tick() -> None:
    queue = ChunkQueue(CountingPolicy(), 0)
    queue.reset("task", 0)
    play(queue, 13)
    assert queue.seams == 2
    assert queue.seam_jump.tolist() == [1000, 1000]


def test_reset_starts_over() -> None:
    queue = ChunkQueue(CountingPolicy(), 2)
    for _ in range(2):
        queue.reset("task", 0)
        assert play(queue, 9)[:7] == [0, 1, 2, 3, 4, 5, 1006]
    queue.close()


def test_actions_are_the_callers() -> None:
    queue = ChunkQueue(CountingPolicy(), 0)
    queue.reset("task", 0)
    positions = queue.step(np.zeros(2), {}).positions
    assert positions is not None
    positions[:] = 99
    assert play(queue, 1) == [1.0]


@pytest.mark.parametrize("k", [-1, 4])
def test_impossible_prefetch_is_refused(k: int) -> None:
    with pytest.raises(UserError, match=rf"^prefetch must be 0 to 3 ticks, got {k} "):
        ChunkQueue(CountingPolicy(), k)


@pytest.mark.parametrize(
    ("latency_s", "ticks"),
    [(0.0, 0), (0.008, 0), (0.02, 1), (0.05, 2), (0.117, 5), (0.3, 12), (5.0, 12)],
)
def test_auto_prefetch(latency_s: float, ticks: int) -> None:
    assert auto_prefetch(latency_s, fps=30, n_action_steps=24) == ticks


def test_a_chunk_of_nonsense_leaves_no_nan_in_the_report() -> None:
    policy = CountingPolicy()
    request = policy.request

    def broken(noise: Any = None) -> Callable[[], Any]:
        compute = request(noise)
        return (lambda: compute() * np.nan) if policy.asked == 2 else compute

    policy.request = broken  # type: ignore[method-assign]
    queue = ChunkQueue(policy, 0)
    queue.reset("", 0)
    play(queue, 3 * N_ACT)
    assert np.isfinite(queue.seam_jump).all()


@pytest.mark.parametrize("wait", [True, False])
@pytest.mark.parametrize(("k", "number"), [(0, 0), (2, 0), (0, 1), (2, 1)])
def test_a_chunk_that_hangs_ends_the_run(k: int, number: int, wait: bool) -> None:
    """The first one and a later one, in lock-step and in real time."""
    gate = LateOnce(number)
    queue = ChunkQueue(CountingPolicy(compute=gate), k, wait, timeout_s=0.1)
    queue.reset("task", 0)
    began = time.monotonic()
    with pytest.raises(Stop, match=r"not finished 0\.1 s after .*--chunk-timeout") as stop:
        play(queue, 10_000, after=lambda tick: time.sleep(1e-3))
    assert stop.value.reason == "chunk timeout"
    queue.close()
    assert time.monotonic() - began < 5
    gate.go.set()


def for_ever(call: Callable[[], None]) -> None:
    while True:
        call()
        time.sleep(1e-3)


def test_working_ahead_that_hangs_ends_the_run_too() -> None:
    go = threading.Event()

    class Hanging(CountingPolicy):
        def prepare(self) -> Callable[[], None]:
            return lambda: go.wait(20) and None

    queue = ChunkQueue(Hanging(), 2, wait=False, timeout_s=0.5)
    queue.reset("task", 0)
    began = time.monotonic()
    with pytest.raises(Stop, match="chunk timeout"):
        for_ever(queue.prepare)  # frames are stale: nothing else is called
    assert time.monotonic() - began < 5
    queue.close()
    go.set()


def test_the_limit_comes_from_the_chunks_before() -> None:
    queue = ChunkQueue(CountingPolicy(), 0)
    assert queue._limit_s() == START_S
    queue.timings.add("chunk", 0.1)
    assert queue._limit_s() == LEAST_TIMEOUT_S
    queue.timings.add("chunk", 2.0)
    assert queue._limit_s() == pytest.approx(10 * (0.1 + 0.95 * 1.9))
