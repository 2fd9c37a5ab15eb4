"""One thread that computes for another, which waits for it only so long.

The thread is a daemon: a computation that hangs in an engine keeps neither the caller nor the end
of the process waiting. (An executor's threads are joined when the interpreter ends.)
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, wait
from dataclasses import dataclass
from queue import SimpleQueue
from typing import Any, Generic, TypeVar

T = TypeVar("T")

CLOSE_S = 1.0  # the longest wait for a computation when its result is no longer wanted
# For what comes before a robot moves: a first inference may load libraries and compile kernels.
START_S = 120.0


@dataclass(frozen=True)
class Job(Generic[T]):
    """A computation that was given to a worker. due_s: `time.monotonic()` by which it must be done;
    limit_s: how long it was given.
    """

    answer: Future[T]
    due_s: float
    limit_s: float

    @property
    def overdue(self) -> bool:
        return not self.answer.done() and time.monotonic() > self.due_s

    def result(self) -> T:
        """Wait for the result, and return it. Raises what the computation raised, and TimeoutError
        when it is overdue.
        """
        wait([self.answer], max(0.0, self.due_s - time.monotonic()))
        if not self.answer.done():
            raise TimeoutError(f"not finished after {self.limit_s:g} s")
        return self.answer.result()


class Worker:
    """Computes jobs in the order in which they were given. The thread begins with the first one."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._todo: SimpleQueue[tuple[Callable[[], Any], Future[Any]] | None] = SimpleQueue()
        self._thread: threading.Thread | None = None
        self._closed = False

    def submit(self, job: Callable[[], T], limit_s: float) -> Job[T]:
        """Have it computed, within limit_s seconds from now."""
        answer: Future[T] = Future()
        if self._thread is None:
            self._thread = threading.Thread(target=self._work, name=self._name, daemon=True)
            self._thread.start()
        self._todo.put((job, answer))
        return Job(answer, time.monotonic() + limit_s, limit_s)

    def close(self) -> bool:
        """End the thread, and drop jobs that have not begun. False: it still computes after CLOSE_S
        seconds, and is left to itself. Safe to call twice.
        """
        self._closed = True
        if self._thread is None:
            return True
        self._todo.put(None)
        self._thread.join(CLOSE_S)
        return not self._thread.is_alive()

    def _work(self) -> None:
        while (item := self._todo.get()) is not None:
            job, answer = item
            if self._closed:
                answer.cancel()
                continue
            try:
                answer.set_result(job())
            except BaseException as error:
                answer.set_exception(error)


def within(limit_s: float, what: str, job: Callable[[], T]) -> T:
    """The result of a job that gets limit_s seconds. TimeoutError that names `what` when it takes
    longer; otherwise raises what the job raised.
    """
    return begin(limit_s, what, job)()


def begin(limit_s: float, what: str, job: Callable[[], T]) -> Callable[[], T]:
    """Begins a job; the function that is returned waits for its result, see `within`."""
    worker = Worker(what)
    begun = worker.submit(job, limit_s)

    def finish() -> T:
        try:
            return begun.result()
        except TimeoutError as error:
            raise TimeoutError(
                f"{what}: {error}: the backend hangs or this computer is far too slow; "
                "try --backend onnx"
            ) from error
        finally:
            worker.close()

    return finish
