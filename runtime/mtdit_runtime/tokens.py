"""Task text -> CLIP token ids, from the bundle's tokenizer.json.

Knows CLIP's start, end and padding convention. Refuses to know text encoders and the network. The
ids equal those of Hugging Face's CLIPTokenizer with padding="max_length" and truncation, as LeRobot
calls it.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mtdit_robots.errors import UserError

START, END = (
    "<|startoftext|>",
    "<|endoftext|>",
)  # 49406 and 49407 in OpenAI's vocabulary; END also pads


@dataclass(frozen=True)
class Tokens:
    """Calling it turns a text into (1, length) int64: start, the text's pieces, end, and end again
    as padding.
    """

    tokenizer: Any  # tokenizers.Tokenizer
    start: int
    end: int
    length: int

    def __call__(self, text: str) -> NDArray[np.int64]:
        pieces = self.tokenizer.encode(text.lower(), add_special_tokens=False).ids[
            : self.length - 2
        ]
        ids = [self.start, *pieces] + [self.end] * (self.length - 1 - len(pieces))
        return np.array([ids], np.int64)


def load_tokens(path: Path, length: int = 77) -> Tokens:
    """Read a tokenizer.json. Raises UserError: the tokenizers package or the file is missing, or
    not a CLIP one.
    """
    try:
        from tokenizers import Tokenizer
    except ImportError as error:
        raise UserError(
            'a task the policy has not seen needs the tokenizer: pip install "mtdit[runtime]"'
        ) from error
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
            f"{path} has no {START} and {END}, it is not a CLIP tokenizer: re-run `mtdit export`"
        )
    return Tokens(tokenizer, start, end, length)
