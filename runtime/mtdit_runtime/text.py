"""Makes text from a file safe to print: control and invisible characters are escaped, length is
limited.
"""

from __future__ import annotations

import unicodedata

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


def is_control(character: str) -> bool:
    """Whether it is a control character, a line break or half of a surrogate pair. Joiners, as in
    Persian words and emoji, are none of these.
    """
    return unicodedata.category(character) in ("Cc", "Cs", "Zl", "Zp")


def is_visible(character: str) -> bool:
    """False for control characters, line breaks, marks of writing direction and halves of surrogate
    pairs.
    """
    kind = unicodedata.category(character)
    return not kind.startswith("C") and kind not in ("Zl", "Zp")
