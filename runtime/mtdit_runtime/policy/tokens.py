"""Task text -> CLIP token ids, from the bundle's tokenizer.json.

The ids equal those of Hugging Face's CLIPTokenizer with padding="max_length" and truncation, as
LeRobot calls it. Nothing is read from the network. Byte-pair encoding is a few lines, and the
package `tokenizers` would bring the Hub's client and its network stack to the robot computer.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mtdit_robots.errors import UserError
from mtdit_robots.extras import missing
from mtdit_runtime.files import read_json

# 49406 and 49407 in OpenAI's vocabulary; END is also the padding and what unknown bytes become
START, END = "<|startoftext|>", "<|endoftext|>"
WORD_END = "</w>"  # the last piece of a word ends with it in the vocabulary
_AGAIN = "re-run `mtdit export`"
# How the tokenizers of CLIP prepare a text, and cut words once more (GPT-2's rule)
_NORMALIZERS = ["NFC", "Replace", "Lowercase"]
_BYTE_LEVEL = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+"


@dataclass(frozen=True)
class Tokens:
    """Calling it turns a text into ids (1, length) int64: start, the text, end, and end again as
    padding.
    """

    vocabulary: Mapping[str, int]
    ranks: Mapping[tuple[str, str], int]  # which pair is joined first
    specials: Any  # regex.Pattern: START and END in a text
    words: Any  # regex.Pattern: the words of a text
    parts: Any  # regex.Pattern: the parts of a word
    length: int

    def __call__(self, text: str) -> NDArray[np.int64]:
        found = [self._id(piece) for _, pieces in self._words(_nfc(text)) for piece in pieces]
        found = found[: self.length - 2]
        end = self.vocabulary[END]
        ids = [self.vocabulary[START], *found] + [end] * (self.length - 1 - len(found))
        return np.array([ids], np.int64)

    def unread(self, text: str) -> str:
        """The end of a text that has more tokens than `length`; "" if all of it is read."""
        text, left = _nfc(text), self.length - 2
        for place, pieces in self._words(text):
            if len(pieces) > left:
                read = sum(len(piece.removesuffix(WORD_END)) for piece in pieces[:left])
                # a character of which only some bytes are read is not read
                while read >= (size := len(text[place].lower().encode())):
                    read, place = read - size, place + 1
                return text[place:]
            left -= len(pieces)
        return ""

    def _words(self, text: str) -> Iterator[tuple[int, list[str]]]:
        """The words of a text of form NFC: where each begins, and its pieces."""
        began = 0
        for special in self.specials.finditer(text):
            yield from self._ordinary(text, began, special.start())
            yield special.start(), [special[0]]
            began = special.end()
        yield from self._ordinary(text, began, len(text))

    def _ordinary(self, text: str, begin: int, end: int) -> Iterator[tuple[int, list[str]]]:
        """`_words` of a stretch without special tokens."""
        # a letter can have two in lower case, and then the places differ
        lower = [(place, letter) for place in range(begin, end) for letter in text[place].lower()]
        for word in self.words.finditer("".join(letter for _, letter in lower)):
            parts = self.parts.finditer(word[0])
            yield lower[word.start()][0], [p for part in parts for p in self._pieces(part[0])]

    def _pieces(self, word: str) -> list[str]:
        """Byte-pair encoding: joins the pair of the lowest rank until no pair has one."""
        *first, last = (_LETTERS[byte] for byte in word.encode())
        pieces = [*first, last + WORD_END]
        while len(pieces) > 1:
            pairs = list(pairwise(pieces))
            best = min(pairs, key=lambda pair: self.ranks.get(pair, len(self.ranks)))
            if best not in self.ranks:
                break
            at = pairs.index(best)
            pieces[at : at + 2] = ["".join(best)]
        return pieces

    def _id(self, piece: str) -> int:
        return self.vocabulary.get(piece, self.vocabulary[END])


def load_tokens(path: Path, length: int = 77) -> Tokens:
    """Read a tokenizer.json. UserError when the package regex or the file is missing, or when the
    file is not the tokenizer of a CLIP.
    """
    try:
        import regex
    except ImportError as error:
        raise missing("regex", "a task that is not in the bundle needs regex") from error
    if not path.is_file():
        raise UserError(f"{path} is missing: {_AGAIN}, or use a task the policy was trained on")
    content = read_json(path, _AGAIN)
    try:
        vocabulary = content["model"]["vocab"]
        # a pair is a list, or two words in older files
        merges = (pair.split(" ") if isinstance(pair, str) else pair
                  for pair in content["model"]["merges"])  # fmt: skip
        ranks = {(left, right): rank for rank, (left, right) in enumerate(merges)}
        normalizers = [one["type"] for one in content["normalizer"]["normalizers"]]
        pattern = content["pre_tokenizer"]["pretokenizers"][0]["pattern"]["Regex"]
        # \s of `tokenizers` is Unicode's White_Space, that of `regex` has four more
        specials, words, parts = (
            regex.compile(text.replace(r"\s", r"\p{White_Space}"))
            for text in (f"{regex.escape(START)}|{regex.escape(END)}", pattern, _BYTE_LEVEL)
        )
        tokens = Tokens(dict(vocabulary), ranks, specials, words, parts, length)
    except (KeyError, TypeError, ValueError, IndexError, AttributeError, regex.error) as error:
        reason = f"{type(error).__name__}: {error}"
        raise UserError(f"{path} is not a tokenizer file of a CLIP ({reason}): {_AGAIN}") from None
    suffix = content["model"].get("end_of_word_suffix")
    if normalizers != _NORMALIZERS or suffix != WORD_END or not {START, END} <= vocabulary.keys():
        raise UserError(
            f"{path} is not a CLIP tokenizer (it normalises by {', '.join(normalizers)}, ends "
            f"words with {suffix!r}, and has {len(vocabulary)} words): {_AGAIN}"
        )
    return tokens


def _nfc(text: str) -> str:
    return unicodedata.normalize("NFC", text)


def _letters() -> dict[int, str]:
    """GPT-2's printable character for each byte (`bytes_to_unicode` of openai/gpt-2)."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1)]
    printable += range(ord("®"), ord("ÿ") + 1)
    others = [byte for byte in range(256) if byte not in printable]
    return {byte: chr(byte) for byte in printable} | {
        byte: chr(256 + place) for place, byte in enumerate(others)
    }


_LETTERS = _letters()
