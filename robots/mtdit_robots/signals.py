"""The signals that end a program, and stretches of time in which they mean something else.

Knows Ctrl-C, a supervisor's SIGTERM and a lost terminal's SIGHUP. Refuses to know what is being
ended.
"""

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
    """Only the main thread may handle signals; elsewhere nothing changes. What `nohup` ignores
    stays ignored.
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
    """Pass those signals over while an arm is let go: who hits Ctrl-C three times must not keep
    half of it stiff.
    """
    with handled_by(lambda _signal, _frame: None):
        yield
