"""Task text -> CLIP token ids, from the bundle's tokenizer.json.

The ids equal those of Hugging Face's CLIPTokenizer with padding="max_length" and truncation, as
LeRobot calls it. Nothing is read from the network.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mtdit_robots.errors import UserError
from mtdit_robots.extras import missing

# 49406 and 49407 in OpenAI's vocabulary; END is also the padding
START, END = "<|startoftext|>", "<|endoftext|>"


@dataclass(frozen=True)
class Tokens:
    """Calling it turns a text into ids (1, length) int64: start, the text, end, and end again as
    padding.
    """

    tokenizer: Any  # tokenizers.Tokenizer
    start: int
    end: int
    length: int

    def __call__(self, text: str) -> NDArray[np.int64]:
        pieces = self.tokenizer.encode(text.lower(), add_special_tokens=False).ids
        pieces = pieces[: self.length - 2]
        ids = [self.start, *pieces] + [self.end] * (self.length - 1 - len(pieces))
        return np.array([ids], np.int64)

    def unread(self, text: str) -> str:
        """The end of a text that has more tokens than `length`; "" if all of it is read."""
        # the places of the pieces count characters of the text before it is brought into one form
        places = self.tokenizer.encode(text, add_special_tokens=False).offsets
        return text[places[self.length - 2][0] :] if len(places) > self.length - 2 else ""


def load_tokens(path: Path, length: int = 77) -> Tokens:
    """Read a tokenizer.json. UserError when the tokenizers package or the file is missing, or when
    the file is not the tokenizer of a CLIP.
    """
    try:
        from tokenizers import Tokenizer
    except ImportError as error:
        needed = "a task that is not in the bundle needs tokenizers"
        raise missing("tokenizers", needed) from error
    if not path.is_file():
        raise UserError(
            f"{path} is missing: re-run `mtdit export`, or use a task the policy was trained on"
        )
    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # the package raises a bare Exception for every kind of bad file
        raise UserError(
            f"{path} is not a tokenizer file ({error}): re-run `mtdit export`"
        ) from error
    tokenizer.no_padding()
    tokenizer.no_truncation()
    start, end = tokenizer.token_to_id(START), tokenizer.token_to_id(END)
    if start is None or end is None:
        raise UserError(
            f"{path} is not a CLIP tokenizer (it has no {START} or {END}): re-run `mtdit export`"
        )
    return Tokens(tokenizer, start, end, length)
