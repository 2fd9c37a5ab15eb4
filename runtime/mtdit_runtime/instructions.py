"""Instructions as a person types them and as a policy reads them: one form of Unicode from record
to train to run, and nothing in them that nobody sees.

The form is NFC (a letter with its accent is one character), which CLIP's own tokenizer makes of
every text: the tokens of a stored task in another form stay what they are in LeRobot.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable

from mtdit_robots.errors import UserError
from mtdit_runtime.text import printable

# Control characters, halves of surrogate pairs (bytes that are no text), line separators. The
# invisible characters that Persian, Indian scripts and emoji need are none of these.
_UNTYPED = ("Cc", "Cs", "Zl", "Zp")


def one_form(task: str) -> str:
    """The same instruction with every accented letter as one character (NFC)."""
    return unicodedata.normalize("NFC", task)


def typed(task: str) -> str:
    """An instruction that a person typed, in the one form, without spaces around it. UserError when
    nothing is left, or when it holds control characters.
    """
    plain = one_form(task).strip()
    if not plain:
        raise UserError('the task is empty: describe the demonstration, e.g. "open the drawer"')
    hidden = next((c for c in plain if unicodedata.category(c) in _UNTYPED), None)
    if hidden is not None:
        raise UserError(
            f"the task {printable(plain)!r} contains the control character "
            f"{printable(hidden)}: type it without"
        )
    return plain


def same_task(task: str, tasks: Iterable[str]) -> str | None:
    """The one of `tasks` that reads as `task`, in its own form; None: there is none."""
    wanted = one_form(task)
    return next((known for known in tasks if one_form(known) == wanted), None)
