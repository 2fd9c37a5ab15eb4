"""A terminal with a program in it: keys are sent, the screen is read until it says something; and
commands refused.
"""

from __future__ import annotations

import contextlib
import fcntl
import gc
import os
import pty
import re
import struct
import subprocess
import sys
import termios
import threading
from collections.abc import Callable, Iterator

import pytest
from command_line import mtdit

os.environ.setdefault("OMP_NUM_THREADS", "1")  # of each worker, before anything loads torch
PATIENCE_S = 90.0  # a loaded computer may take long to start an interpreter
_CONTROLS = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]|\r")
# The terminal becomes the session's own, so that Ctrl-C typed into it is a signal. Signals mean
# what they mean at a desk, also when the tests themselves run in the background or under nohup,
# where some are ignored.
_ADOPT = (
    "import fcntl, os, signal, sys, termios; fcntl.ioctl(0, termios.TIOCSCTTY, 0); "
    "[signal.signal(s, signal.SIG_DFL) for s in (signal.SIGHUP, signal.SIGINT)]; "
    "os.execv(sys.argv[1], sys.argv[1:])"
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """A slow test says how long it takes: `@pytest.mark.slow(minutes=6)`."""
    for item in items:
        mark = item.get_closest_marker("slow")
        if mark is not None and (mark.args or set(mark.kwargs) != {"minutes"}):
            raise pytest.UsageError(f"{item.nodeid}: write @pytest.mark.slow(minutes=...)")


def pytest_collection() -> None:
    gc.disable()


def pytest_collection_finish() -> None:
    """The tests share their process with torch, LeRobot and all that these import: searching all
    that for garbage, over and over, would be a seventh of the time.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(5_000, 10, 10)
    gc.enable()


class Terminal:
    """`python ARGUMENTS` in a pseudo-terminal of its own, 160 columns wide."""

    def __init__(self, *arguments: str) -> None:
        self._ours, theirs = pty.openpty()
        fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("4H", 48, 160, 0, 0))
        self._process = subprocess.Popen(
            [sys.executable, "-c", _ADOPT, sys.executable, *arguments],
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            start_new_session=True,
            env=self._environment(),
        )
        os.close(theirs)
        self.screen = ""
        self._seen = 0
        self._ended = False
        self._news = threading.Condition()
        self._reader = threading.Thread(target=self._read_on)
        self._reader.start()

    @staticmethod
    def _environment() -> dict[str, str]:
        """The size is the terminal's own: pytest-xdist sets 80 columns in its workers."""
        kept = {name: v for name, v in os.environ.items() if name not in ("COLUMNS", "LINES")}
        return {**kept, "TERM": "xterm"}

    def send(self, keys: str) -> None:
        os.write(self._ours, keys.encode())

    def kill(self, signal_number: int) -> None:
        self._process.send_signal(signal_number)

    def expect(self, text: str) -> str:
        """Wait until `text` appears after what was expected last; returns everything up to it."""
        with self._news:
            self._news.wait_for(
                lambda: self._ended or text in self.screen[self._seen :], PATIENCE_S
            )
            found = text in self.screen[self._seen :]
            assert found, f"no {text!r} on the screen:\n{self.screen[-2000:]}"
            end = self.screen.index(text, self._seen) + len(text)
            passed, self._seen = self.screen[self._seen : end], end
        return passed

    def exit_code(self) -> int:
        """Wait for the end; whatever is still said is in `screen`."""
        code = self._process.wait(PATIENCE_S)
        self._reader.join(PATIENCE_S)
        return code

    def close(self) -> None:
        if self._process.poll() is None:
            self._process.kill()
        self._process.wait()
        self._reader.join()
        os.close(self._ours)

    def _read_on(self) -> None:
        """As a screen does, all the time: a program that prints must not wait for a test that looks
        elsewhere.
        """
        with contextlib.suppress(OSError):  # EIO: the other end is closed
            while data := os.read(self._ours, 65536):
                with self._news:
                    self.screen += _CONTROLS.sub("", data.decode(errors="replace"))
                    self._news.notify_all()
        with self._news:
            self._ended = True
            self._news.notify_all()


@pytest.fixture
def terminal() -> Iterator[Callable[..., Terminal]]:
    """Starts `python ARGUMENTS` in a terminal; ends it with the test."""
    started: list[Terminal] = []

    def start(*arguments: str) -> Terminal:
        started.append(Terminal(*arguments))
        return started[-1]

    yield start
    for each in started:
        each.close()


@pytest.fixture
def refused() -> Callable[..., str]:
    """The one line `mtdit WORDS` ends with, in this process and without a terminal; exit code 2."""

    def refused(*words: str) -> str:
        done = mtdit(*words)
        assert done.returncode == 2, done.stdout + done.stderr
        (line,) = done.stderr.strip().splitlines()
        return line

    return refused
