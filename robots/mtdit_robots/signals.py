"""Handle the signals that end a program: SIGINT (Ctrl-C), SIGTERM, and SIGHUP (terminal lost)."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

ENDING_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@contextmanager
def handled_by(handler: Callable[[int, FrameType | None], Any]) -> Iterator[None]:
    """Within the block, `handler` receives the ending signals. Signals ignored by `nohup` stay
    ignored.

    Only the main thread can set handlers; in other threads nothing changes.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    ends = [
        s for s in ENDING_SIGNALS if s is signal.SIGINT or signal.getsignal(s) is not signal.SIG_IGN
    ]
    before = {s: signal.signal(s, handler) for s in ends}
    try:
        yield
    finally:
        for number, earlier in before.items():
            signal.signal(number, earlier)


@contextmanager
def signals_deferred() -> Iterator[None]:
    """Ignore the ending signals within the block. Used while the torque is switched off: pressing
    Ctrl-C several times must not leave half of the servos with torque on.
    """
    with handled_by(lambda _signal, _frame: None):
        yield


class InterruptCounter:
    """Counts signals: the first ends the run, the second the return to the start pose.

    The third raises KeyboardInterrupt wherever the program is.
    """

    count = 0

    def note(self, _signal: int, _frame: FrameType | None) -> None:
        self.count += 1
        if self.count > 2:
            raise KeyboardInterrupt


@contextmanager
def counted_interrupts() -> Iterator[InterruptCounter]:
    """Count the signals that end a run, instead of being killed by them."""
    interrupts = InterruptCounter()
    with handled_by(interrupts.note):
        yield interrupts


@contextmanager
def graceful_exit() -> Iterator[None]:
    """Let SIGTERM and SIGHUP raise KeyboardInterrupt as Ctrl-C does, so that `finally` blocks run.

    Without it a killed program would leave the arm with torque on.
    """
    with handled_by(signal.default_int_handler):
        yield
