"""CLIP token ids against Hugging Face's CLIPTokenizer, built from open_clip's merges."""

from __future__ import annotations

import json
import random
import unicodedata
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mtdit_robots.errors import UserError
from mtdit_runtime.policy.tokens import END, START, Tokens, load_tokens

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
    "ΟΔΟΣ ΣΣ",  # a Greek word's last letter: one lower case here, another in str.lower
    "İstanbul'DA it'S I'LL",
    "x\x1c<|endoftext|>y",
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


def plain(path: Path) -> Any:
    """The package's tokenizer, without padding and truncation."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(path))
    tokenizer.no_padding()
    tokenizer.no_truncation()
    return tokenizer


ALPHABETS = [
    "abcdefghij KLMNOP  0123,.!?'-äß",
    "把红色方块推到左边靠近机械臂",
    "ΟΔΟΣςΣ İIıßẞﬁ",
    "🤖👍🏽‍🦱#@$%^&*",
    "äöüñ\u0301\u0308",
    "\t\n \u00a0\u2003\u3000\x0b\x1c\x1f\x85",
    "ابجد हिन्दी ไทย 한국어",
    "'s't're've'm'll'd'S'RE'Ve",
    "½²³ⅷ①१२",
]


def test_ten_thousand_texts_equal_tokenizers(reference: Any, tokens: Tokens) -> None:
    """Letters of many scripts, and every third text any characters at all. Not those that Python
    does not know, and of the combining ones only common ones: Unicode grows, and the last to come
    are in one table and not in another.
    """
    seed = 20261130
    rng, theirs = random.Random(seed), plain(reference[1])
    known = [
        chr(code)
        for code in range(32, 0x1FB00)
        if unicodedata.category(chr(code)) not in ("Cn", "Cs")
        and not unicodedata.combining(chr(code))
    ]
    for number in range(10_000):
        length = rng.randrange(40)
        if number % 3:
            text = "".join(rng.choice(rng.choice(ALPHABETS)) for _ in range(length))
        else:
            text = "".join(rng.choices(known, k=length))
        text += rng.choice(["", "", "", START, END, END.upper()])
        ids = theirs.encode(text, add_special_tokens=False).ids[:75]
        wanted = [49406, *ids] + [49407] * (76 - len(ids))
        assert tokens(text)[0].tolist() == wanted, (seed, text)


def test_what_is_not_read_begins_where_the_tokens_end(reference: Any, tokens: Tokens) -> None:
    theirs = plain(reference[1])
    seed = 7
    rng = random.Random(seed)
    for letters in ("abc d'", "把红色方块推到左边", "äÖß ", "a\u0301e\u0308 "):
        for length in (3, 200, 300):
            text = "".join(rng.choices(letters, k=length))
            nfc = unicodedata.normalize("NFC", text)
            places = theirs.encode(nfc, add_special_tokens=False).offsets
            wanted = nfc[places[75][0] :] if len(places) > 75 else ""
            assert tokens.unread(text) == wanted, (seed, text)


@pytest.mark.parametrize("content", ["{}", '{"version": "1.0"}', "[]", "null", '{"model": 3}'])
def test_what_is_no_tokenizer_says_so(tmp_path: Path, content: str) -> None:
    (tmp_path / "tokenizer.json").write_text(content)
    with pytest.raises(UserError, match=r"json is not a tokenizer file of a CLIP .*re-run `mtdit"):
        load_tokens(tmp_path / "tokenizer.json")


@pytest.mark.parametrize(
    "change",
    [
        lambda content: content["normalizer"]["normalizers"].pop(),
        lambda content: content["model"].pop("end_of_word_suffix"),
        lambda content: content["model"]["vocab"].pop(END),
    ],
)
def test_another_tokenizer_is_refused(
    change: Callable[[Any], object], reference: Any, tmp_path: Path
) -> None:
    content = json.loads(reference[1].read_text())
    change(content)
    (tmp_path / "tokenizer.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match="is not a CLIP tokenizer"):
        load_tokens(tmp_path / "tokenizer.json")
