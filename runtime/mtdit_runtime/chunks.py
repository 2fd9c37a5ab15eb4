"""The action queue: which chunk's which row is this tick's action, and when the next chunk is asked
for.

Knows ticks, chunks and one worker thread. Refuses to know joints' limits, sleeping and the robot.
Time is counted in ticks consumed: a tick in which nothing could be executed is consumed too, so
rows and the world never drift apart.

The executed part of a chunk, rows [n_obs-1 : n_obs-1+n_action_steps], belongs to the tick of its
observation and the ticks after it. Without prefetch this is LeRobot's `select_action`. With
prefetch k the next chunk is asked for while k actions remain, computed meanwhile, and takes over
exactly k ticks later at its row k: which actions are executed does not depend on how long computing
took, as long as it took less than k ticks.

When it takes longer and the queue must not wait (real time), the old chunk goes on into the rows
behind its executed part: they are the policy's own plan, and following it is smoother than a dead
stop in mid-motion. They are few, at most as many as were executed; after them the last action is
held. A late chunk takes over at the row of its own tick. One that was asked for while the arm held
still has missed nothing and begins at its first row.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from mtdit_robots.errors import UserError
from mtdit_robots.robot import Frame, Positions
from mtdit_runtime.ledger import Ledger
from mtdit_runtime.policy import Chunk, Policy

log = logging.getLogger(__name__)

T = TypeVar("T")

NONE = -1  # no chunk, no row
INLINE_SHARE = (
    0.25  # of a tick: a chunk that fast is computed within the tick, from the newest observation
)
HEADROOM = 1.25  # over the measured latency


def auto_prefetch(latency_s: float, fps: float, n_action_steps: int) -> int:
    """Ticks to ask ahead for a chunk that takes `latency_s`; 0 where it fits into a fraction of its
    tick.

    At most half of the executed part: one worker that needs longer than that falls behind whatever
    is chosen.
    """
    if latency_s * fps <= INLINE_SHARE:
        return 0
    return min(math.ceil(latency_s * fps * HEADROOM), n_action_steps // 2)


@dataclass(frozen=True)
class _Plan:
    """A chunk laid over ticks: row i belongs to tick start + i."""

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
    from_rest: bool  # the arm holds from the request to the answer
    answer: Future[Chunk]


class ChunkQueue:
    """Turns a Policy into one action per tick.

    prefetch_ticks: 0 computes a chunk in the tick that needs it. wait: at the tick a chunk is due,
    wait for it (lock-step) instead of going on without it (real time). The same worker computes
    everything, in order.

    After a step, `chunk` and `row` say what was executed (NONE: held) and `requested` which chunk
    was asked for.
    """

    def __init__(self, policy: Policy, prefetch_ticks: int = 0, wait: bool = True) -> None:
        if not 0 <= prefetch_ticks <= policy.n_action_steps // 2:
            raise UserError(
                f"prefetch {prefetch_ticks}: the policy executes {policy.n_action_steps} actions per chunk, "
                f"choose 0 to {policy.n_action_steps // 2}"
            )
        self.policy, self.prefetch_ticks, self.wait = policy, prefetch_ticks, wait
        self.ledger = Ledger()
        self.adopted = self.stalls = self.continued = self.discarded = self.seams = 0
        self.seam_jump = np.zeros(
            len(policy.joints)
        )  # (J,) largest |new chunk - old chunk| at the same tick
        self._worker = ThreadPoolExecutor(1, "chunk") if prefetch_ticks else None
        self._plan: _Plan | None = None
        self._request: _Request | None = None
        self._ahead: Future[None] | None = None
        self._held: Positions | None = (
            None  # what to hold: the last action, at first the pose found
        )
        self._begin()

    def reset(self, task: str, seed: int) -> None:
        """Start over on `task`. Counters and ledger go on: they belong to the queue's whole life."""
        waiting = [self._ahead, self._request.answer if self._request else None]
        self._begin()  # first, or a chunk that failed would be raised by every reset to come
        for future in waiting:
            if future is not None:
                future.result()
        self.policy.reset(task, seed)

    def step(self, positions: Positions, frames: Mapping[str, Frame]) -> Positions:
        """Observe, and return this tick's action (J,). Raises whatever computing a chunk raised."""
        self.policy.observe(positions, frames)
        if self._held is None:
            self._held = positions.copy()
        self.requested = NONE
        self._take_answer()
        if self._request is None and self._remaining() <= self.prefetch_ticks:
            self._ask()
            self._take_answer()
        self._held = self._action(self._held)
        self._tick += 1
        return self._held.copy()

    def prepare(self) -> None:
        """Use the slack after a command: if the next tick asks for a chunk, encode now what is
        known of it.
        """
        if self._request is None and self._remaining() <= self.prefetch_ticks:
            self._ahead = self._submit(self.policy.prepare())

    def close(self) -> None:
        """End the worker; a chunk nobody will execute is still waited for. Safe to call twice."""
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
        self.chunk = self.row = self.requested = NONE

    def _remaining(self) -> int:
        """Actions of the executed part that are left, this tick's included."""
        plan = self._plan
        return 0 if plan is None else plan.start + self.policy.n_action_steps - self._tick

    def _ask(self) -> None:
        compute = self.policy.request()
        from_rest = self._plan is None or not self._plan.holds(self._tick)
        due = self._tick + max(0, self._remaining())
        answer = self._submit(lambda: self._timed(compute))
        self.requested = self._asked
        self._request = _Request(self._asked, self._tick, due, from_rest, answer)
        self._asked += 1

    def _submit(self, job: Callable[[], T]) -> Future[T]:
        if self._worker is not None:
            return self._worker.submit(job)
        done: Future[T] = Future()
        done.set_result(job())
        return done

    def _timed(self, compute: Callable[[], Chunk]) -> Chunk:
        with self.ledger.time("chunk"):
            return compute()

    def _take_answer(self) -> None:
        """Adopt the chunk that was asked for if it is due, and there or worth waiting for."""
        if self._ahead is not None and self._ahead.done():
            self._ahead.result()  # raises what encoding ahead raised
            self._ahead = None
        request = self._request
        if request is None or self._tick < request.due or not (self.wait or request.answer.done()):
            return
        self._request = None
        plan = self._lay_out(request)
        if not plan.holds(self._tick):
            self.discarded += 1
            return
        self._measure_seam(plan)
        self._plan = plan
        self.adopted += 1

    def _lay_out(self, request: _Request) -> _Plan:
        first = self.policy.n_obs_steps - 1
        actions = request.answer.result()[
            first : first + 2 * self.policy.n_action_steps
        ]  # executed, continuation
        return _Plan(request.number, self._tick if request.from_rest else request.tick, actions)

    def _measure_seam(self, new: _Plan) -> None:
        old = self._plan
        if old is not None:
            continuation = old.actions[min(self._tick - old.start, len(old.actions) - 1)]
            jump = np.abs(new.actions[self._tick - new.start] - continuation)
            np.fmax(
                self.seam_jump, jump, out=self.seam_jump
            )  # not NaN: that is the guards' business, and no JSON
            self.seams += 1

    def _action(self, held: Positions) -> Positions:
        plan = self._plan
        if plan is None or not plan.holds(self._tick):
            self.stalls += (
                plan is not None
            )  # before the first chunk the arm stands where it was found
            self.chunk = self.row = NONE
            return held
        self.chunk, self.row = plan.number, self._tick - plan.start
        self.continued += self.row >= self.policy.n_action_steps
        return plan.actions[self.row]
