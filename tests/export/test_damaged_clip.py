"""A CLIP folder that is damaged or does not fit its checkpoint: one line that names it."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from damaged import HUGE, NAN, edit_json, refusal

from mtdit.checkpoint.read import open_checkpoint
from mtdit_robots.errors import UserError


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda raw: 3, "it is not a JSON object"),
        (lambda raw: {"vision_config": 3}, "vision_config is not a JSON object"),
        (lambda raw: {**raw, "text_config": []}, "text_config is not a JSON object"),
        (
            lambda raw: raw["vision_config"].update(hidden_size="64"),
            "vision_config.hidden_size must be int, not str",
        ),
        (
            lambda raw: raw["vision_config"].update(hidden_size=HUGE),
            "vision_config.hidden_size is 1000",
        ),
        (lambda raw: raw["vision_config"].update(patch_size=0), "vision_config.patch_size is 0"),
        (lambda raw: raw["vision_config"].update(patch_size=-8), "vision_config.patch_size is -8"),
        (
            lambda raw: raw["vision_config"].update(image_size=True),
            "vision_config.image_size must be int, not bool",
        ),
        (
            lambda raw: raw["text_config"].update(num_hidden_layers=10**6),
            "text_config.num_hidden_layers is 1000000",
        ),
        (
            lambda raw: raw["text_config"].update(num_attention_heads=5),
            "text_config has 5 heads in hidden_size 32",
        ),
        (lambda raw: raw["text_config"].update(layer_norm_eps=NAN), "layer_norm_eps nan"),
        (lambda raw: raw["text_config"].update(layer_norm_eps=HUGE), "does not describe a CLIP"),
        (
            lambda raw: raw["text_config"].update(hidden_act=["gelu"]),
            "text_config.hidden_act must be str, not list",
        ),
        (
            lambda raw: raw["text_config"].update(hidden_act="swish"),
            "activation 'swish' is not supported",
        ),
        (
            lambda raw: raw["text_config"].update(eos_token_id=5),
            "does not match the text tower",
        ),
        (
            lambda raw: raw["text_config"].update(hidden_size=1 << 20),
            "does not match its config.json: it has",
        ),
        (
            lambda raw: raw["text_config"].update(vocab_size=1 << 20),
            "does not match its config.json: it has",
        ),
        (
            lambda raw: raw["vision_config"].update(image_size=224),
            r"config\.json and the CLIP that it names or that is in clip/",
        ),
    ],
)
def test_the_shape_of_clip(change: Callable[[Any], Any], says: str, copy: Path) -> None:
    edit_json(copy / "clip/config.json", change)
    assert re.search(says, refusal(copy))


TOKENS = json.dumps(
    {
        "version": "1.0",
        "added_tokens": [],
        "model": {"type": "BPE", "vocab": {"a": 0}, "merges": []},
    }
)


@pytest.mark.parametrize("content", ["{}", "{", "", "[]", "null", "3", "[" * 100_000, TOKENS])
def test_the_tokenizer(content: str, copy: Path) -> None:
    (copy / "clip/tokenizer.json").write_text(content)
    assert re.search(
        r"pretrained_model/clip "
        r"(does not contain a valid CLIP tokenizer|holds no tokenizer of CLIP)"
        r".*[:;] copy",
        refusal(copy),
    )


def test_a_tokenizer_that_the_robot_computer_reads_otherwise(copy: Path) -> None:
    edit_json(copy / "clip/tokenizer_config.json", lambda raw: raw.update(pad_token="!"))
    assert "clip does not match the text tower" in refusal(copy)


def test_clip_of_a_size_that_is_not_known(lerobots: Path) -> None:
    """As LeRobot writes it: weights and the name of one of OpenAI's, whose shape they then tell."""
    shutil.rmtree(lerobots / "clip")
    names = dict.fromkeys(
        ("vision_encoder_name", "text_encoder_name"), "openai/clip-vit-large-patch14-336"
    )
    edit_json(lerobots / "config.json", lambda raw: {**raw, **names})
    with pytest.raises(
        UserError,
        match="a CLIP tower of width 32, which is not a multiple of the head width 64",
    ):
        open_checkpoint(lerobots).policy()
