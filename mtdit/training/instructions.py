"""Whether a policy can tell the instructions of a dataset apart: which look like one task, and
which are one to CLIP, that reads only so many tokens.
"""

from __future__ import annotations

import difflib
import re
import unicodedata
from collections.abc import Iterator, Sequence
from typing import Any

from torch import Tensor

from mtdit.policies.multi_task_dit.clip_lookup import unread
from mtdit_runtime.instructions import one_form
from mtdit_runtime.text import printable

SHOWN = 60  # characters of an instruction in a line
SHORTEST_TYPO = 4  # letters; in shorter words one letter makes another word: cup, cap
TYPO = 0.8  # share of the letters that two spellings of one word have in common
ARTICLES = ("a", "an", "the")
NUMBERS = """one two three four five six seven eight nine ten eleven twelve thirteen fourteen
fifteen sixteen seventeen eighteen nineteen twenty thirty forty fifty sixty seventy eighty ninety
hundred first second third fourth fifth sixth seventh eighth ninth tenth eleventh twelfth"""
COLOURS = """red green blue yellow orange purple violet pink brown black white grey gray cyan
magenta beige gold golden silver turquoise"""
SIDES = """left right top bottom upper lower front back inner outer inside outside north south
east west"""
# Words of these lists differ on purpose, however near they are: seven and seventh.
ON_PURPOSE = frozenset((*NUMBERS.split(), *COLOURS.split(), *SIDES.split()))
# Written without spaces, or with a sign for each syllable: every sign is compared as a word.
SIGN_SCRIPTS = ("CJK", "HIRAGANA", "KATAKANA", "HANGUL", "THAI", "LAO", "KHMER", "MYANMAR",
                "TIBETAN", "BOPOMOFO", "YI")  # fmt: skip


# --- what CLIP reads


def token_lines(tokenizer: Any, tasks: Sequence[str], ids: Tensor, length: int) -> Iterator[str]:
    """A line for instructions that CLIP reads in part only, and for those that are thereby one.

    ids: (len(tasks), L) the tokens of each task, as the policy gets them; at most `length`.
    """
    same: dict[tuple[int, ...], list[str]] = {}
    ends = {task: unread(tokenizer, task, length) for task in tasks}
    for task, tokens in zip(tasks, ids.tolist(), strict=True):
        if ends[task]:
            same.setdefault(tuple(tokens), []).append(task)
    for first, *others in same.values():
        cut = ", ".join(_end(ends[task]) for task in (first, *others[:3]))
        if others:
            yield (
                f"{len(others) + 1} tasks that begin with {_short(first)} are the same {length} "
                f"tokens, all that CLIP reads, so the policy cannot tell them apart: {cut} are not "
                "read; say first what differs, or shorten them"
            )
        else:
            yield (
                f"the task {_short(first)} is longer than the {length} tokens that CLIP reads: "
                f"{cut} is not read; say first what matters, or shorten it"
            )


def _short(task: str) -> str:
    return repr(printable(task, SHOWN))


def _end(text: str) -> str:
    """The end of a text, where two that begin alike differ."""
    return repr(printable(text if len(text) <= SHOWN else "..." + text[3 - SHOWN :], SHOWN))


# --- what looks like one task


def alike(a: str, b: str) -> bool:
    """Whether two instructions differ only in case, punctuation, articles, plurals or typos.

    Words are compared, not sentences. Numbers, colours and directions differ on purpose.
    """
    first, second = _words(a), _words(b)
    same = len(first) == len(second)
    return same and all(x == y or _close(x, y) for x, y in zip(first, second, strict=True))


def _close(a: str, b: str) -> bool:
    """Whether two words are one word: a plural, or a typo."""
    if {a, b} <= ON_PURPOSE or any(c.isnumeric() for c in a + b):
        return False
    if min(len(a), len(b)) < 2 or _is_sign(a[0]) or _is_sign(b[0]):
        return False
    plural = a.removesuffix("es").removesuffix("s") == b.removesuffix("es").removesuffix("s")
    return plural or (
        min(len(a), len(b)) >= SHORTEST_TYPO and difflib.SequenceMatcher(None, a, b).ratio() >= TYPO
    )


def _words(task: str) -> list[str]:
    """The words of an instruction without articles; an "a" at the end is a name, as in "bowl A"."""
    text = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", one_form(task))  # blockA, blockB
    text = re.sub(r"-(?=\d)", "\N{MINUS SIGN}", text)
    words = "".join(_spaced(c) for c in text.casefold()).split()
    return [w for i, w in enumerate(words) if w not in ARTICLES or i == len(words) - 1]


def _spaced(character: str) -> str:
    """A character of a word as it is (accents and vowel signs are part of it), a sign of a script
    without spaces and a symbol as a word each, everything else as a space.
    """
    kind = unicodedata.category(character)[0]
    if kind == "S" or (kind == "L" and _is_sign(character)):
        return f" {character}"
    return character if kind in "LMN" else " "


def _is_sign(character: str) -> bool:
    return unicodedata.name(character, "").startswith(SIGN_SCRIPTS)
