"""Reads policies of github.com/brysonjones/multitask_dit_policy.

The network is LeRobot's multi_task_dit, but names and some numbers differ. Their files on the left,
ours on the right:

- config.json in sections, without `type`; by default horizon 100, absolute positions and no RoPE ->
  flat.
- Vision tower of timm: its names, q, k and v in one weight -> transformers' names.
- Feature: class token *after* the final norm; exact GELU unless the backbone's name contains
  quickgelu -> stored in the tower's shape.
- clip_sample and clip_sample_range are never passed to the scheduler -> diffusers' defaults: true,
  1.0.
- Images normalised by dataset_stats.json, never by ImageNet's numbers -> the same statistics.
- Attention of a block is `attn` with and without RoPE -> `multihead_attn` without RoPE.
- Instructions padded to the longest -> `tokenizer_padding`.

LeRobot's format cannot express this vision feature, so these policies can be exported and
evaluated, but not trained further. Source: utils/configuration.py, utils/utils.py and model/*.py of
that repository.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from mtdit.policies.multi_task_dit.clip import VisionShape
from mtdit.policies.multi_task_dit.clip_lookup import vision_shape
from mtdit.policies.multi_task_dit.config import PolicyConfig
from mtdit.policies.multi_task_dit.config_json import policy_config_from_dict
from mtdit_robots.errors import UserError
from mtdit_runtime.files import read_json

STATS = "dataset_stats.json"
FINAL = "final_model"  # next to the checkpoint_<step> folders

_SECTIONS = ("observation_encoder", "transformer", "objective")
# Defaults that differ from LeRobot's.
_DEFAULTS = {"horizon": 100, "use_positional_encoding": True, "use_rope": False}
_FIXED = {"clip_sample": True, "clip_sample_range": 1.0, "tokenizer_padding": "longest"}
_TRANSFORMER = {"diffusion_step_embed_dim": "timestep_embed_dim"}
_VISION = {
    "use_separate_encoder_per_camera": "use_separate_rgb_encoder_per_camera",
    "lr_multiplier": "vision_encoder_lr_multiplier",
    "resize_shape": "image_resize_shape",
    "crop_shape": "image_crop_shape",
    "crop_is_random": "image_crop_is_random",
    "backbone": "vision_encoder_name",
}
_TEXT = {"model": "text_encoder_name"}
_SAMPLING = {
    "type": "timestep_sampling_strategy",
    "s": "timestep_sampling_s",
    "alpha": "timestep_sampling_alpha",
    "beta": "timestep_sampling_beta",
}

_WHOLE = {  # timm's name -> transformers'; in timm the first two have a batch axis of 1
    "cls_token": "embeddings.class_embedding",
    "pos_embed": "embeddings.position_embedding.weight",
    "patch_embed.proj.weight": "embeddings.patch_embedding.weight",
}
_PART = {  # one part of a dotted name: timm's -> transformers'
    "norm_pre": "pre_layrnorm",
    "norm": "post_layernorm",
    "blocks": "encoder.layers",
    "norm1": "layer_norm1",
    "norm2": "layer_norm2",
    "attn": "self_attn",
    "proj": "out_proj",
}
_TOWER = re.compile(r"(observation_encoder\.vision_encoders?\.(?:\d+\.)?model\.)(.+)")
_ATTENTION = re.compile(r"(noise_predictor\.transformer_blocks\.\d+\.)attn\.")


def is_config(raw: Any) -> bool:
    """Whether parsed JSON is a config.json of that repository."""
    return (
        isinstance(raw, dict)
        and "type" not in raw
        and isinstance(raw.get("observation_encoder"), dict)
    )


def checkpoints(run: Path) -> list[Path]:
    """The policy folders of a run of that trainer, the last one first."""
    steps = [p for p in run.glob("checkpoint_*") if p.name.removeprefix("checkpoint_").isdecimal()]
    return [
        run / FINAL,
        *sorted(steps, key=lambda p: int(p.name.removeprefix("checkpoint_")), reverse=True),
    ]


def policy_config(raw: Mapping[str, Any], source: str) -> PolicyConfig:
    """Parsed config.json of that repository -> PolicyConfig. UserError if it has no CLIP or
    a value is invalid.
    """
    encoder, transformer, objective = (_section(raw, name, source) for name in _SECTIONS)
    vision, text = _section(encoder, "vision", source), _section(encoder, "text", source)
    for kind in (vision.get("type", "clip"), text.get("type", "clip")):
        if kind != "clip":
            raise UserError(
                f"{source}: an encoder of type {kind!r} is not supported; train with a CLIP encoder"
            )
    sampling = _section(objective, "timestep_sampling", source)
    values = {
        **_DEFAULTS,
        **{name: value for name, value in raw.items() if name not in _SECTIONS},
        **_renamed(transformer, _TRANSFORMER),
        **_renamed(vision, _VISION, "type"),
        **_renamed(text, _TEXT, "type"),
        **_renamed(objective, {"type": "objective"}, "objective_name", "timestep_sampling"),
        **_renamed(sampling, _SAMPLING, "strategy_name"),
        **_FIXED,
    }
    return policy_config_from_dict(values, source)


def _section(raw: Mapping[str, Any], name: str, source: str) -> Mapping[str, Any]:
    value = raw.get(name, {})
    if not isinstance(value, dict):
        raise UserError(
            f"{source}: {name} must be a JSON object, got {value!r}; copy the checkpoint again"
        )
    return value


def _renamed(values: Mapping[str, Any], names: Mapping[str, str], *without: str) -> dict[str, Any]:
    return {names.get(key, key): value for key, value in values.items() if key not in without}


def dataset_stats(folder: Path) -> dict[str, dict[str, NDArray[np.float32]]]:
    """Feature -> statistic -> values. UserError when the file is missing or damaged."""
    path = folder / STATS
    if not path.is_file():
        raise UserError(
            f"{folder} has no {STATS}, which normalisation needs; copy the whole checkpoint folder"
        )
    raw = read_json(path)
    try:
        with np.errstate(over="ignore"):  # check_stats reports an infinite value
            return {
                key: {name: np.asarray(v, np.float32) for name, v in stats.items()}
                for key, stats in raw.items()
            }
    except (AttributeError, TypeError, ValueError, OverflowError) as error:
        reason = str(error)[:160]
        raise UserError(
            f"{path} does not contain statistics of features ({reason}); copy the checkpoint again"
        ) from None


def tower_shape(config: PolicyConfig, weights: Mapping[str, Tensor]) -> VisionShape:
    """The shape of the vision tower, from the renamed weights.

    timm encodes the activation in the name of the model (timm/models/vision_transformer.py).
    """
    activation = "quick_gelu" if "quickgelu" in config.vision_encoder_name else "gelu"
    return replace(vision_shape(weights), hidden_act=activation, class_token_normed=True)


def renamed(weights: Mapping[str, Tensor], config: PolicyConfig) -> dict[str, Tensor]:
    """The weights under the names of LeRobot's policy. Unknown names stay; loading refuses them."""
    return {
        name: value
        for old, tensor in weights.items()
        for name, value in _tensors(old, tensor, config)
    }


def _tensors(name: str, value: Tensor, config: PolicyConfig) -> Iterator[tuple[str, Tensor]]:
    tower = _TOWER.fullmatch(name)
    if tower is not None:
        prefix, own = tower.groups()
        yield from ((f"{prefix}vision_model.{new}", tensor) for new, tensor in _of_timm(own, value))
    elif not name.endswith(".position_ids"):  # a constant that older transformers versions saved
        yield name if config.use_rope else _ATTENTION.sub(r"\1multihead_attn.", name), value


def _of_timm(name: str, value: Tensor) -> Iterator[tuple[str, Tensor]]:
    """One weight of timm's vision transformer of width D -> transformers' CLIP vision model."""
    if name in _WHOLE:
        yield (
            _WHOLE[name],
            value.flatten() if name == "cls_token" else value[0] if name == "pos_embed" else value,
        )
        return
    translated = ".".join(_PART.get(part, part) for part in name.split("."))
    if ".qkv." not in name:
        yield translated, value
        return
    for letter, part in zip("qkv", value.chunk(3), strict=True):  # (3 D, ...) -> 3 times (D, ...)
        yield translated.replace(".qkv.", f".{letter}_proj."), part
