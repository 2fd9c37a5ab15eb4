"""CLIP token ids against Hugging Face's CLIPTokenizer, built from open_clip's merges."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mtdit_robots.errors import UserError
from mtdit_runtime.policy.tokens import Tokens, load_tokens

TEXTS = [
    "open the drawer",
    "Open The DRAWER",
    "",
    "  push   the red cube\tto the left\n",
    "pick up the 2nd screwdriver, please!",
    "put it in the bowl; don't drop it...",
    "mach die Schublade auf, bitte (größer)",
    "把红色方块推到左边",
    "emoji 🤖 and symbols #@$%^&*",
    "café Ångström naïve ﬁ",
    "a" * 300,
    "very " * 100 + "long",
    "<|endoftext|> in the middle",
    "<|startoftext|>open",
]


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Hugging Face's tokenizer, saved as the bundle keeps it."""
    import open_clip.tokenizer
    from transformers import CLIPTokenizer

    bpe = open_clip.tokenizer.SimpleTokenizer()
    vocabulary = dict(bpe.encoder)
    vocabulary = {
        {"<start_of_text>": "<|startoftext|>", "<end_of_text>": "<|endoftext|>"}.get(w, w): i
        for w, i in vocabulary.items()
    }
    tokenizer = CLIPTokenizer(
        vocab=vocabulary, merges=[tuple(pair) for pair in bpe.bpe_ranks], model_max_length=77
    )
    folder = tmp_path_factory.mktemp("clip")
    tokenizer.save_pretrained(folder)
    return tokenizer, folder / "tokenizer.json"


@pytest.fixture(scope="module")
def tokens(reference: Any) -> Tokens:
    return load_tokens(reference[1])


@pytest.mark.parametrize("text", TEXTS, ids=range(len(TEXTS)))
def test_ids_equal_hugging_faces(reference: Any, tokens: Tokens, text: str) -> None:
    wanted = reference[0](
        text, padding="max_length", truncation=True, max_length=77, return_tensors="np"
    )["input_ids"]
    got = tokens(text)
    assert got.shape == (1, 77)
    assert got.dtype == np.int64
    np.testing.assert_array_equal(got, wanted)


def test_known_ids(tokens: Tokens) -> None:
    ids = tokens("open the drawer")[0]
    assert ids[0] == 49406
    assert ids[4:].tolist() == [49407] * 73
    assert tokens("very " * 100)[0, -1] == 49407


def test_random_texts_equal_hugging_faces(reference: Any, tokens: Tokens) -> None:
    seed = 20240607
    rng = np.random.default_rng(seed)
    alphabet = list("abcdefghij KLMNOP  0123,.!?'-äß")
    for _ in range(300):
        text = "".join(rng.choice(alphabet, rng.integers(0, 120)))
        wanted = reference[0](text, padding="max_length", truncation=True, max_length=77)[
            "input_ids"
        ]
        assert tokens(text)[0].tolist() == wanted, (seed, text)


@pytest.mark.parametrize("content", ["", "{}", '{"version": "1.0"}'])
def test_what_is_no_tokenizer_says_so(tmp_path: Path, content: str) -> None:
    (tmp_path / "tokenizer.json").write_text(content)
    with pytest.raises(UserError, match=r"tokenizer\.json is not a tokenizer file"):
        load_tokens(tmp_path / "tokenizer.json")


def test_another_tokenizer_is_refused(tmp_path: Path) -> None:
    model = {"type": "BPE", "vocab": {"a": 0}, "merges": []}
    import json

    (tmp_path / "tokenizer.json").write_text(
        json.dumps({"version": "1.0", "added_tokens": [], "model": model})
    )
    with pytest.raises(UserError, match="not a CLIP tokenizer"):
        load_tokens(tmp_path / "tokenizer.json")
