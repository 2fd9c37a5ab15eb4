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
def undisturbed() -> Iterator[None]:
    """Ignore the ending signals within the block. Used while the torque is switched off: pressing
    Ctrl-C several times must not leave half of the servos with torque on.
    """
    with handled_by(lambda _signal, _frame: None):
        yield
