"""The action queue: picks the action of each tick and decides when to request the next chunk.

Limits are applied by `safety`, deadlines are kept by `loop`. Time is counted in ticks: a tick in
which nothing could be executed counts too, so a row always belongs to the same moment.

The executed part of a chunk is rows [n_obs-1 : n_obs-1+n_action_steps]; its first row belongs to
the tick of the observation. Without prefetch this is LeRobot's `select_action`. With prefetch k the
next chunk is requested while k actions remain, computed in a thread, and takes over exactly k ticks
later at its row k: which actions are executed does not depend on how long computing took, as long
as it took less than k ticks.

When it takes longer and the queue must not wait (real time), the old chunk continues with the rows
after its executed part: they are the policy's own plan, and following it is smoother than a sudden
stop. At most as many rows are used as were executed; after them the last action is held. A late
chunk takes over at the row of the current tick. A chunk that was requested while the arm held its
pose starts at its first row.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from mtdit_robots.errors import UserError
from mtdit_robots.robot import Frame, Positions
from mtdit_runtime.control.loop import NONE, Action, ActionSource
from mtdit_runtime.policy.policy import Chunk, Policy
from mtdit_runtime.timings import Timings

log = logging.getLogger(__name__)

T = TypeVar("T")

# A chunk that takes less than this part of a tick is computed within the tick that needs it.
INLINE_SHARE = 0.25
HEADROOM = 1.25  # factor on the measured latency


def auto_prefetch(latency_s: float, fps: float, n_action_steps: int) -> int:
    """How many ticks ahead to request a chunk that takes `latency_s`; 0: within its own tick.

    At most half of the executed part: a computer that needs longer falls behind in any case.
    """
    if latency_s * fps <= INLINE_SHARE:
        return 0
    return min(math.ceil(latency_s * fps * HEADROOM), n_action_steps // 2)


@dataclass(frozen=True)
class _Plan:
    """A chunk placed in time: row i belongs to tick start + i."""

    number: int
    start: int
    actions: NDArray[np.float64]  # (executed and continuation, J)

    def holds(self, tick: int) -> bool:
        return 0 <= tick - self.start < len(self.actions)


@dataclass(frozen=True)
class _Request:
    number: int
    tick: int  # of the observation
    due: int
    from_rest: bool  # the arm holds its pose from the request to the answer
    answer: Future[Chunk]


class ChunkQueue(ActionSource):
    """Turns a Policy into one action per tick.

    prefetch_ticks: 0 computes a chunk in the tick that needs it; a larger number computes it that
    many ticks ahead, in one worker thread. wait: in the tick in which a chunk is due, wait for it
    (lock-step) instead of continuing without it (real time). Raises UserError when prefetch_ticks
    is more than half of n_action_steps.

    Until the first chunk has come there is no action; an action whose row is NONE is the last one
    again, because no chunk was available.
    """

    def __init__(self, policy: Policy, prefetch_ticks: int = 0, wait: bool = True) -> None:
        if not 0 <= prefetch_ticks <= policy.n_action_steps // 2:
            raise UserError(
                f"prefetch must be 0 to {policy.n_action_steps // 2} ticks, got {prefetch_ticks} "
                f"(the policy executes {policy.n_action_steps} actions per chunk)"
            )
        self.policy, self.prefetch_ticks, self.wait = policy, prefetch_ticks, wait
        self.cameras = policy.cameras
        self.timings = Timings()
        self.adopted = self.stalls = self.continued = self.discarded = self.seams = 0
        # (J,) largest |new chunk - old chunk| at the same tick
        self.seam_jump = np.zeros(len(policy.joints))
        self._worker = ThreadPoolExecutor(1, "chunk") if prefetch_ticks else None
        self._plan: _Plan | None = None
        self._request: _Request | None = None
        self._ahead: Future[None] | None = None
        self._held: Positions | None = None  # (J,) the last action
        self._begin()

    def reset(self, task: str, seed: int) -> None:
        """Start `task` from the beginning. Counters and durations are kept over resets."""
        waiting = [self._ahead, self._request.answer if self._request else None]
        self._begin()  # first, or the error of a failed chunk would be raised by every later reset
        for future in waiting:
            if future is not None:
                future.result()
        self.policy.reset(task, seed)

    def step(self, positions: Positions, frames: Mapping[str, Frame]) -> Action:
        """Observe and return the action of this tick. Raises what the computation of a chunk
        raised.
        """
        self.policy.observe(positions, frames)
        requested = NONE
        self._take_answer()
        if self._request is None and self._remaining() <= self.prefetch_ticks:
            requested = self._ask()
            self._take_answer()
        chunk, row = self._executed()
        self._tick += 1
        return Action(None if self._held is None else self._held.copy(), chunk, row, requested)

    def prepare(self) -> None:
        """Use the time after a command: if the next tick requests a chunk, compute now what does
        not depend on the observation of that tick.
        """
        if self._request is None and self._remaining() <= self.prefetch_ticks:
            self._ahead = self._submit(self.policy.prepare())

    @property
    def is_computing(self) -> bool:
        """Whether a requested chunk is not finished."""
        return self._request is not None and not self._request.answer.done()

    def stats(self) -> dict[str, Any]:
        return {
            "chunks": self.adopted,
            "prefetch_ticks": self.prefetch_ticks,
            "stalled_ticks": self.stalls,
            "continued_ticks": self.continued,
            "discarded_chunks": self.discarded,
            "seam_jump": dict(zip(self.policy.joints, self.seam_jump.tolist(), strict=True)),
            "stages": self.timings.summary() | self.policy.timings.summary(),
        }

    def close(self) -> None:
        """End the worker thread; waits for a chunk that is being computed. Safe to call twice."""
        if self._worker is not None:
            self._worker.shutdown(wait=True, cancel_futures=True)
        if self._request is not None and not self._request.answer.cancelled():
            error = self._request.answer.exception()
            if error is not None:
                log.warning("the chunk that was being computed at the end failed: %r", error)
        self._request = None

    def _begin(self) -> None:
        self._tick = self._asked = 0
        self._plan = self._request = self._ahead = self._held = None

    def _remaining(self) -> int:
        """Actions of the executed part that are left, including the one of this tick."""
        plan = self._plan
        return 0 if plan is None else plan.start + self.policy.n_action_steps - self._tick

    def _ask(self) -> int:
        """Request the next chunk; its number."""
        compute = self.policy.request()
        from_rest = self._plan is None or not self._plan.holds(self._tick)
        due = self._tick + max(0, self._remaining())
        answer = self._submit(lambda: self._timed(compute))
        self._request = _Request(self._asked, self._tick, due, from_rest, answer)
        self._asked += 1
        return self._request.number

    def _submit(self, job: Callable[[], T]) -> Future[T]:
        if self._worker is not None:
            return self._worker.submit(job)
        done: Future[T] = Future()
        done.set_result(job())
        return done

    def _timed(self, compute: Callable[[], Chunk]) -> Chunk:
        with self.timings.time("chunk"):
            return compute()

    def _take_answer(self) -> None:
        """Switch to the requested chunk if it is due and either finished or to be waited for."""
        if self._ahead is not None and self._ahead.done():
            self._ahead.result()  # raises what `prepare` raised in the thread
            self._ahead = None
        request = self._request
        if request is None or self._tick < request.due or not (self.wait or request.answer.done()):
            return
        self._request = None
        first = self.policy.n_obs_steps - 1
        executed_and_continuation = slice(first, first + 2 * self.policy.n_action_steps)
        actions = request.answer.result()[executed_and_continuation]
        start = self._tick if request.from_rest else request.tick
        plan = _Plan(request.number, start, actions)
        if not plan.holds(self._tick):
            self.discarded += 1
            return
        self._measure_seam(plan)
        self._plan = plan
        self.adopted += 1

    def _measure_seam(self, new: _Plan) -> None:
        old = self._plan
        if old is not None:
            continuation = old.actions[min(self._tick - old.start, len(old.actions) - 1)]
            jump = np.abs(new.actions[self._tick - new.start] - continuation)
            # fmax ignores NaN: `safety` reports those, and JSON cannot hold them
            np.fmax(self.seam_jump, jump, out=self.seam_jump)
            self.seams += 1

    def _executed(self) -> tuple[int, int]:
        """Chunk and row of this tick's action, which becomes `_held`; NONE: it stays the same."""
        plan = self._plan
        if plan is None or not plan.holds(self._tick):
            self.stalls += plan is not None  # waiting for the first chunk is not a stall
            return NONE, NONE
        row = self._tick - plan.start
        self.continued += row >= self.policy.n_action_steps
        self._held = plan.actions[row]
        return plan.number, row
