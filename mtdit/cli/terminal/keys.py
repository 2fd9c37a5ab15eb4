"""Read single keys from the terminal while something else runs.

Ctrl-C still raises KeyboardInterrupt. Source of the key sequences: XTerm control sequences (CSI and
SS3 cursor keys).
"""

from __future__ import annotations

import contextlib
import os
import select
import sys
import termios
import tty
from collections.abc import Iterator
from types import TracebackType

from mtdit_robots.errors import UserError

_SEQUENCES = {"\x1b[A": "up", "\x1b[B": "down", "\x1b[C": "right", "\x1b[D": "left"}
_SEQUENCES |= {sequence.replace("[", "O"): name for sequence, name in _SEQUENCES.items()}
_NAMES = {"\r": "enter", "\n": "enter", " ": "space", "\x1b": "escape", "\x7f": "backspace"}


class Keys:
    """Keys typed at standard input. A context manager: it restores the terminal's mode at the end.

    UserError if there is no terminal. flags: the options that the message suggests in that case.
    """

    def __init__(self, flags: str) -> None:
        if not sys.stdin.isatty():
            raise UserError(f"this command needs a terminal; to run without one add {flags}")
        self._fd = sys.stdin.fileno()
        self._waiting: list[str] = []

    def __enter__(self) -> Keys:
        self._before = termios.tcgetattr(self._fd)
        tty.setcbreak(self._fd)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        with contextlib.suppress(termios.error):  # the terminal has been closed
            termios.tcsetattr(self._fd, termios.TCSADRAIN, self._before)

    def get(self, timeout_s: float | None = None) -> str | None:
        """The next key: "enter", "left", "escape", "space" ..., or the character in lower case.
        None after `timeout_s` seconds. KeyboardInterrupt if the terminal was closed.
        """
        if not self._waiting and select.select([self._fd], [], [], timeout_s)[0]:
            self._waiting.extend(split(self._read()))
        return self._waiting.pop(0) if self._waiting else None

    def wait(self, *wanted: str) -> str:
        """The next key that is one of `wanted`; others are ignored."""
        while (key := self.get()) not in wanted:
            pass
        return str(key)

    def _read(self) -> str:
        try:
            data = os.read(self._fd, 256)
        except OSError:
            data = b""
        if not data:
            raise KeyboardInterrupt
        return data.decode(errors="replace")


def split(text: str) -> Iterator[str]:
    """The names of the keys in the text of one read; unknown control sequences are left out."""
    while text:
        length = _length(text)
        key, text = text[:length], text[length:]
        if length == 1:
            yield _NAMES.get(key, key.lower())
        elif key in _SEQUENCES:
            yield _SEQUENCES[key]


def _length(text: str) -> int:
    """Number of characters of the first key in `text`. A control sequence ends with its first
    letter or tilde.
    """
    if text[:2] not in ("\x1b[", "\x1bO"):
        return 1
    ends = (n for n in range(2, len(text)) if text[n].isalpha() or text[n] == "~")
    return next(ends, len(text) - 1) + 1
