"""The worker: nobody waits for it without limit, not even the end of the process."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from concurrent.futures import CancelledError

import pytest

from mtdit_runtime.worker import CLOSE_S, Worker, within


def test_results_and_errors_come_back_in_order() -> None:
    worker = Worker("test")
    jobs = [worker.submit(lambda n=n: 10 // n, 20.0) for n in (5, 0, 2)]  # type: ignore[misc]
    assert jobs[0].result() == 2
    with pytest.raises(ZeroDivisionError):
        jobs[1].result()
    assert jobs[2].result() == 5
    assert worker.close()
    assert worker.close()


def test_what_hangs_is_overdue_and_left_behind() -> None:
    go = threading.Event()
    worker = Worker("test")
    job = worker.submit(go.wait, 0.05)
    dropped = worker.submit(go.wait, 0.05)
    with pytest.raises(TimeoutError, match=r"not finished after 0\.05 s"):
        job.result()
    assert job.overdue
    began = time.monotonic()
    assert not worker.close()
    assert time.monotonic() - began < CLOSE_S + 0.5
    go.set()
    assert job.answer.result(timeout=20)
    with pytest.raises(CancelledError):  # it was never begun
        dropped.answer.result(timeout=20)


def test_what_comes_before_a_run_is_named() -> None:
    go = threading.Event()
    with pytest.raises(TimeoutError, match=r"the first chunks: not finished after 0\.05 s: the"):
        within(0.05, "the first chunks", go.wait)
    go.set()
    assert within(20.0, "a number", lambda: 7) == 7


def test_the_exit_code_survives_a_call_that_never_leaves_c() -> None:
    program = (
        "import ctypes, sys; from mtdit_runtime.worker import Worker; "
        "w = Worker('stuck'); w.submit(lambda: ctypes.CDLL(None).sleep(1000), 0.1); "
        "w.close(); sys.exit(1)"
    )
    began = time.monotonic()
    assert subprocess.run([sys.executable, "-c", program], timeout=60).returncode == 1
    assert time.monotonic() - began < 30
