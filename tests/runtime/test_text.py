"""What a file says never steers the terminal it is shown in."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mtdit_runtime.text import printable


@pytest.mark.parametrize(
    "words", ["open the drawer", "öffne die Schublade", "引き出しを開ける", "a\u3000b", "50 % 🙂"]
)
def test_ordinary_words_stay_as_they_are(words: str) -> None:
    assert printable(words) == words


@pytest.mark.parametrize(
    ("words", "shown"),
    [
        ("a\x1b[2Jb", "a\\x1b[2Jb"),
        ("a\nb\r\tc", "a\\nb\\r\\tc"),
        ("\x9b2J", "\\x9b2J"),
        ("\u202egnp", "\\u202egnp"),
        ("\ud800", "\\ud800"),
        ("a\u2028b", "a\\u2028b"),
        (10**60, "1" + 49 * "0" + "..."),
    ],
)
def test_what_steers_a_terminal_is_written_out(words: object, shown: str) -> None:
    assert printable(words, most=53) == shown


@given(words=st.text(st.characters(exclude_categories=())), most=st.integers(3, 100))
def test_any_words_fit_in_a_line(words: str, most: int) -> None:
    shown = printable(words, most)
    assert len(shown) <= most
    assert len(shown.splitlines()) <= 1
    shown.encode()
