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

All computing happens in one worker thread, and each piece has a deadline: one that hangs ends the
run in order instead of stalling it.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from mtdit_robots.errors import UserError
from mtdit_robots.robot import Frame, Positions
from mtdit_runtime.control.loop import NONE, Action, ActionSource
from mtdit_runtime.control.safety import Stop
from mtdit_runtime.policy.policy import Chunk, Policy
from mtdit_runtime.timings import Timings
from mtdit_runtime.worker import START_S, Job, Worker

log = logging.getLogger(__name__)

T = TypeVar("T")

# A chunk that takes less than this part of a tick is computed within the tick that needs it.
INLINE_SHARE = 0.25
HEADROOM = 1.25  # factor on the measured latency
# A chunk that takes longer than both hangs: other programs slow a computer down by less.
LEAST_TIMEOUT_S = 3.0
TIMEOUT_FACTOR = 10.0  # on the 95th percentile of the measured latency


def auto_prefetch(latency_s: float, fps: float, n_action_steps: int) -> int:
    """How many ticks ahead to request a chunk that takes `latency_s`; 0: within its own tick.

    At most half of the executed part: a computer that needs longer falls behind in any case.
    """
    if latency_s * fps <= INLINE_SHARE:
        return 0
    return min(math.ceil(latency_s * fps * HEADROOM), n_action_steps // 2)


def chunk_timeout_s(p95_s: float) -> float:
    """The longest that a chunk may take, from the 95th percentile of what chunks took before."""
    return max(LEAST_TIMEOUT_S, TIMEOUT_FACTOR * p95_s)


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
    job: Job[Chunk]


class ChunkQueue(ActionSource):
    """Turns a Policy into one action per tick.

    prefetch_ticks: 0 computes a chunk in the tick that needs it, which waits for it; a larger
    number computes it that many ticks ahead. wait: in the tick in which a chunk is due, wait for it
    (lock-step) instead of continuing without it (real time). timeout_s: seconds after which a chunk
    hangs; None: from the chunks before it, and START_S for the first. Raises UserError when
    prefetch_ticks is more than half of n_action_steps.

    Until the first chunk has come there is no action; an action whose row is NONE is the last one
    again, because no chunk was available.
    """

    def __init__(
        self,
        policy: Policy,
        prefetch_ticks: int = 0,
        wait: bool = True,
        timeout_s: float | None = None,
    ) -> None:
        if not 0 <= prefetch_ticks <= policy.n_action_steps // 2:
            raise UserError(
                f"prefetch must be 0 to {policy.n_action_steps // 2} ticks, got {prefetch_ticks} "
                f"(the policy executes {policy.n_action_steps} actions per chunk)"
            )
        self.policy, self.prefetch_ticks, self.wait = policy, prefetch_ticks, wait
        self.timeout_s = timeout_s
        self.cameras = policy.cameras
        self.timings = Timings()
        self.adopted = self.stalls = self.continued = self.discarded = self.seams = 0
        # (J,) largest |new chunk - old chunk| at the same tick
        self.seam_jump = np.zeros(len(policy.joints))
        self._worker = Worker("chunk")
        self._plan: _Plan | None = None
        self._request: _Request | None = None
        self._ahead: Job[None] | None = None
        self._held: Positions | None = None  # (J,) the last action
        self._begin()

    def reset(self, task: str, seed: int) -> None:
        """Start `task` from the beginning. Counters and durations are kept over resets.

        Raises what the computation of an earlier chunk raised, and TimeoutError when a chunk or the
        encoding of the task hangs.
        """
        waiting = [self._ahead, self._request.job if self._request else None]
        self._begin()  # first, or the error of a failed chunk would be raised by every later reset
        for job in waiting:
            if job is not None:
                job.result()
        self._worker.submit(lambda: self.policy.reset(task, seed), START_S).result()

    def step(self, positions: Positions, frames: Mapping[str, Frame]) -> Action:
        """Observe and return the action of this tick. Raises what the computation of a chunk
        raised, and Stop("chunk timeout") when one hangs.
        """
        self._check_deadlines()
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
        self._check_deadlines()  # in ticks with stale frames there is no `step`
        if self._ahead is not None and not self._ahead.answer.done():
            return  # another one behind it would only push its deadline away
        if self._request is None and self._remaining() <= self.prefetch_ticks:
            self._ahead = self._submit(self.policy.prepare())

    @property
    def is_computing(self) -> bool:
        """Whether a requested chunk is not finished."""
        return self._request is not None and not self._request.job.answer.done()

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
        """End the worker thread. A chunk that hangs is left behind. Safe to call twice."""
        if not self._worker.close():
            log.warning("a chunk is still being computed: its thread is left behind")
        if self._request is not None and self._request.job.answer.done():
            answer = self._request.job.answer
            error = None if answer.cancelled() else answer.exception()
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
        job = self._submit(lambda: self._timed(compute))
        self._request = _Request(self._asked, self._tick, due, from_rest, job)
        self._asked += 1
        return self._request.number

    def _submit(self, job: Callable[[], T]) -> Job[T]:
        return self._worker.submit(job, self._limit_s())

    def _limit_s(self) -> float:
        if self.timeout_s is not None:
            return self.timeout_s
        p95_s = self.timings.percentile("chunk", 95)
        return START_S if p95_s is None else chunk_timeout_s(p95_s)

    def _check_deadlines(self) -> None:
        for job in (self._ahead, self._request.job if self._request else None):
            if job is not None and job.overdue:
                raise self._hangs(job.limit_s)

    def _hangs(self, limit_s: float) -> Stop:
        return Stop(
            "chunk timeout",
            f"a chunk was not finished {limit_s:.1f} s after it was requested: the backend hangs "
            "(mtdit bench times it, --backend chooses another), or this computer is too slow for "
            "the limit (--chunk-timeout)",
        )

    def _chunk_of(self, job: Job[Chunk]) -> Chunk:
        try:
            return job.result()
        except TimeoutError:
            if job.answer.done():
                raise
            raise self._hangs(job.limit_s) from None

    def _timed(self, compute: Callable[[], Chunk]) -> Chunk:
        with self.timings.time("chunk"):
            return compute()

    def _take_answer(self) -> None:
        """Switch to the requested chunk if it is due and either finished or to be waited for."""
        if self._ahead is not None and self._ahead.answer.done():
            self._ahead.answer.result()  # raises what `prepare` raised in the thread
            self._ahead = None
        request = self._request
        if request is None or self._tick < request.due:
            return
        waits = self.wait or not self.prefetch_ticks
        if not (waits or request.job.answer.done()):
            return
        self._request = None
        first = self.policy.n_obs_steps - 1
        executed_and_continuation = slice(first, first + 2 * self.policy.n_action_steps)
        actions = self._chunk_of(request.job)[executed_and_continuation]
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
