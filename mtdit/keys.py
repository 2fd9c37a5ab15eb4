"""Single keys from the terminal, while something else goes on.

Knows the terminal's character mode and the few keys our commands use. Refuses to know what they
mean. Ctrl-C stays what it is everywhere: KeyboardInterrupt. Source of the sequences: XTerm control
sequences (CSI and SS3 cursor keys).
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
    """Keys typed at standard input. Use it as a context manager: leaving it gives the terminal back
    as it was.

    flags: what to pass on the command line where there is no terminal, for the message. UserError
    in that case.
    """

    def __init__(self, flags: str) -> None:
        if not sys.stdin.isatty():
            raise UserError(
                f"this asks questions, and there is no terminal to answer in: add {flags}"
            )
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
        with contextlib.suppress(termios.error):  # the terminal was closed meanwhile
            termios.tcsetattr(self._fd, termios.TCSADRAIN, self._before)

    def get(self, timeout_s: float | None = None) -> str | None:
        """The next key: "enter", "left", "escape", "space" ... or the character, in lower case.
        None after the timeout.

        KeyboardInterrupt when the terminal is gone: nobody is left to answer.
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
    """The names of the keys in what one read returned; unknown control sequences give nothing."""
    while text:
        length = _length(text)
        key, text = text[:length], text[length:]
        if length == 1:
            yield _NAMES.get(key, key.lower())
        elif key in _SEQUENCES:
            yield _SEQUENCES[key]


def _length(text: str) -> int:
    """Characters of the first key in `text`: a control sequence ends with its first letter or
    tilde.
    """
    if text[:2] not in ("\x1b[", "\x1bO"):
        return 1
    ends = (n for n in range(2, len(text)) if text[n].isalpha() or text[n] == "~")
    return next(ends, len(text) - 1) + 1
