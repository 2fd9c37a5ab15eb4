"""Weights and statistics that are damaged, missing, elsewhere or of another policy: one line that
names them.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from damaged import (
    ACTION,
    INF,
    NAN,
    NORMALIZER,
    STATE,
    TOP,
    UNNORMALIZER,
    WEIGHTS,
    edit_json,
    edit_tensors,
    refusal,
)


@pytest.mark.parametrize(
    ("key", "value", "says"),
    [
        (f"{STATE}.min", None, "'min' of observation.state is missing"),
        (
            f"{STATE}.max",
            torch.zeros(5),
            r"'max' of observation.state has shape \(5,\), but the policy needs \(6,\)",
        ),
        (
            f"{STATE}.max",
            torch.zeros(1, 6),
            r"'max' of observation.state has shape \(1, 6\), but the policy needs",
        ),
        (
            f"{STATE}.min",
            torch.full((6,), -INF),
            "'min' of observation.state contains NaN, infinite",
        ),
        (
            f"{STATE}.max",
            torch.full((6,), 3e38),
            r"'max' of observation.state contains NaN, infinite numbers or numbers above 1e\+30",
        ),
        (f"{STATE}.max", torch.full((6,), -90.0), "'max' of observation.state is below 'min'"),
        (f"{ACTION}.min", None, "'min' of action is missing"),
        (f"{ACTION}.max", torch.full((6,), NAN), "'max' of action contains NaN"),
        (
            f"{ACTION}.max",
            torch.tensor(1.0),
            r"'max' of action has shape \(1,\), but the policy needs \(6,\)",
        ),
        (
            f"{TOP}.mean",
            torch.zeros(4, 1, 1),
            r"'mean' of observation.images.top has shape \(4,\), but the policy needs",
        ),
        (f"{TOP}.std", None, "'std' of observation.images.top is missing"),
        (
            f"{TOP}.std",
            torch.tensor([1.0, NAN, 1.0]),
            "'std' of observation.images.top contains NaN",
        ),
        (
            f"{TOP}.std",
            torch.tensor([1.0, -1.0, 1.0]),
            "'std' of observation.images.top is below zero",
        ),
    ],
)
def test_statistics(key: str, value: torch.Tensor | None, says: str, copy: Path) -> None:
    # actions come back by the postprocessor's statistics, which must be the preprocessor's
    files = (NORMALIZER, UNNORMALIZER) if key.startswith(ACTION) else (NORMALIZER,)
    for file in files:
        edit_tensors(copy / file, lambda t: t.pop(key) if value is None else t.update({key: value}))
    assert re.search(
        rf"{files[-1]}: {says}.*; copy the checkpoint again, or train again", refusal(copy)
    )


@pytest.mark.parametrize("feature", [STATE, ACTION])
def test_statistics_of_a_whole_feature(feature: str, copy: Path) -> None:
    for file in (NORMALIZER, UNNORMALIZER):
        edit_tensors(
            copy / file,
            lambda t: [t.pop(key) for key in list(t) if key.startswith(f"{feature}.")],
        )
    assert f"'min' of {feature} is missing" in refusal(copy)


def test_the_range_of_actions_is_needed_whatever_normalises(copy: Path) -> None:
    edit_json(
        copy / "config.json", lambda raw: raw["normalization_mapping"].update(ACTION="MEAN_STD")
    )
    edit_tensors(copy / UNNORMALIZER, lambda t: t.pop("action.max"))
    assert "'max' of action is missing" in refusal(copy)


@pytest.mark.parametrize("value", [NAN, INF])
def test_weights_that_are_no_numbers(value: float, copy: Path) -> None:
    name = "noise_predictor.transformer_blocks.1.mlp.2.weight"
    edit_tensors(copy / WEIGHTS, lambda t: t[name].view(-1)[7].fill_(value))
    said = refusal(copy)
    assert (
        f"{WEIGHTS}: {name} contains NaN or infinite numbers; "
        "use an earlier checkpoint or train again" in said
    )


@pytest.mark.parametrize(
    "content",
    [
        '{"steps": 3}',
        '{"steps": {}}',
        '{"steps": [{"registry_name": "normalizer_processor", "state_file": null}]}',
        "3",
        "[]",
        "null",
    ],
)
def test_a_preprocessor_without_statistics(content: str, copy: Path) -> None:
    (copy / "policy_preprocessor.json").write_text(content)
    assert "policy_preprocessor.json does not name the normalizer's file of statistics" in refusal(
        copy
    )


def test_a_step_that_is_none(copy: Path) -> None:
    (copy / "policy_preprocessor.json").write_text('{"steps": [3]}')
    assert "policy_preprocessor.json: step 0 has no name or no settings" in refusal(copy)


ELSEWHERE = (5, ["a"], "", ".", "..", "../../x", "clip/config.json", "a\0b", "a" * 400, "no")


@pytest.mark.parametrize("name", ELSEWHERE, ids=lambda name: repr(name)[:10])
def test_statistics_that_are_elsewhere(name: Any, copy: Path) -> None:
    file = {"registry_name": "normalizer_processor", "state_file": name}
    (copy / "policy_preprocessor.json").write_text(json.dumps({"steps": [file]}))
    assert "as file of statistics, but there is no such file in that folder" in refusal(copy)


def test_statistics_of_an_absolute_path(copy: Path, tmp_path: Path) -> None:
    outside = Path(shutil.copyfile(copy / NORMALIZER, tmp_path / "x.safetensors"))
    for path in (str(outside), "../x.safetensors"):
        edit_json(
            copy / "policy_preprocessor.json",
            lambda raw: raw["steps"][4].update(state_file=path),  # noqa: B023
        )
        assert "as file of statistics, but there is no such file in that folder" in refusal(copy)


def siglip(weights: dict[str, torch.Tensor]) -> None:
    """A tower without a class token, with a bias on its patches, as SigLIP's."""
    tower = "observation_encoder.vision_encoder.model.vision_model."
    weights.pop(f"{tower}embeddings.class_embedding")
    weights[f"{tower}embeddings.patch_embedding.bias"] = torch.zeros(64)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (
            lambda weights: weights.clear() or weights.update(x=torch.zeros(2)),
            "lacks noise_predictor.input_proj.bias",
        ),
        (
            siglip,
            "lacks observation_encoder.vision_encoder.model.vision_model."
            "embeddings.class_embedding",
        ),
        (
            lambda weights: weights.update({"unet\n.weight": torch.zeros(1)}),
            r"has the unknown tensor 'unet\\n.weight'",
        ),
    ],
)
def test_other_architectures_by_weights(
    change: Callable[[Any], Any], says: str, copy: Path
) -> None:
    edit_tensors(copy / WEIGHTS, change)
    assert re.search(f"{WEIGHTS} does not match its config.json: it {says}", refusal(copy))


@pytest.mark.parametrize("file", [WEIGHTS, NORMALIZER])
@pytest.mark.parametrize(
    "content", [b"", b"hello, world", b"\xff" * 64, b"\x08" + bytes(7) + b"[[[[[[[["]
)
def test_tensors_that_are_none(file: str, content: bytes, copy: Path) -> None:
    (copy / file).write_bytes(content)
    assert f"{file} cannot be read" in refusal(copy)
