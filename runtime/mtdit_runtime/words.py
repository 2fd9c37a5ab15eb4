"""Words that came out of a file, made fit for a terminal.

Knows which characters steer a terminal or hide in a line. Refuses to know what the words are about.
"""

from __future__ import annotations

import unicodedata

CUT = "..."


def plain(words: object, most: int = 200) -> str:
    """One line without escape sequences: what is not visible is written as Python would, what is
    too long is cut.
    """
    text = str(words)
    shown = "".join(
        c if is_visible(c) else c.encode("unicode_escape").decode() for c in text[: most + 1]
    )
    return shown if len(shown) <= most else shown[: most - len(CUT)] + CUT


def steers(character: str) -> bool:
    """Controls, line breaks, halves of surrogate pairs. Not so the joiners that Persian words and
    emoji are made of.
    """
    return unicodedata.category(character) in ("Cc", "Cs", "Zl", "Zp")


def is_visible(character: str) -> bool:
    """Not so: controls, line breaks, marks that turn the direction of writing, halves of surrogate
    pairs.
    """
    kind = unicodedata.category(character)
    return not kind.startswith("C") and kind not in ("Zl", "Zp")
