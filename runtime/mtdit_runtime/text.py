"""Text for a person: safe to print, one line of an error."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence

CUT = "..."


def printable(words: object, most: int = 200) -> str:
    """One printable line: invisible characters are escaped as in a Python literal, and a text of
    more than `most` characters is cut.
    """
    text = str(words)
    shown = "".join(
        c if is_visible(c) else c.encode("unicode_escape").decode() for c in text[: most + 1]
    )
    return shown if len(shown) <= most else shown[: most - len(CUT)] + CUT


def is_visible(character: str) -> bool:
    """False for control characters, line breaks, marks of writing direction and halves of surrogate
    pairs.
    """
    kind = unicodedata.category(character)
    return not kind.startswith("C") and kind not in ("Zl", "Zp")


def first_line(error: BaseException, most: int = 160, lines: int = 1) -> str:
    """The first line of an error's message, or the first `lines` joined, without blank ones and cut
    to `most` characters; the error's type when it has no message.
    """
    found = [line.strip() for line in str(error).splitlines() if line.strip()]
    return " ".join(found[:lines])[:most] or type(error).__name__


def numbers_text(numbers: Sequence[int]) -> str:
    """Ascending numbers in words: "0 to 3, 5"."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    return ", ".join(f"{r[0]} to {r[-1]}" if len(r) > 1 else str(r[0]) for r in runs) or "none"
