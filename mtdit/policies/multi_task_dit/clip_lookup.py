"""Finds a CLIP by Hub name, folder or trained weights: its shape, weights and tokenizer."""

from __future__ import annotations

import errno
import math
import os.path
import re
from collections.abc import Mapping
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

from mtdit.config import MAX_LAYERS
from mtdit.hub import Hub, client_errors
from mtdit.policies.multi_task_dit.clip import LEGACY_EOS, ClipShape, TextShape, VisionShape
from mtdit.policies.multi_task_dit.config import OPENAI_B16, PolicyConfig
from mtdit.policies.multi_task_dit.observation_encoder import ObservationEncoder, VisionEncoder
from mtdit_robots.errors import UserError
from mtdit_runtime.files import MAX_DIM, from_json, read_json
from mtdit_runtime.text import first_line

TOKENIZER = "tokenizer.json"
VISION, TEXT = ".vision_model.", ".text_model."  # part of the names of a tower's weights
_VISION_HEADS = {1280: 16, 1408: 16, 1664: 16}  # OpenCLIP's H, g and G
# OpenAI's CLIPs, or a local copy with the same folder name
_OF_OPENAI = re.compile(r"(openai/|[./~].*/)?clip-vit-(base|large)-patch\d\d(-336)?")
_OPENAI_TEXT = TextShape(eos_token_id=LEGACY_EOS)
_OPENAI: dict[str, ClipShape] = {
    OPENAI_B16: ClipShape(VisionShape(patch_size=16), _OPENAI_TEXT),
    "openai/clip-vit-base-patch32": ClipShape(VisionShape(patch_size=32), _OPENAI_TEXT),
    "openai/clip-vit-large-patch14": ClipShape(
        VisionShape(1024, 4096, 24, 16, patch_size=14),
        TextShape(768, 3072, 12, 12, eos_token_id=LEGACY_EOS),
    ),
}


def clip_shapes(
    config: PolicyConfig, beside: Path | None = None, weights: Mapping[str, Tensor] | None = None
) -> ClipShape:
    """The shape of the towers that a config names.

    beside: a folder whose config.json, if it exists, is used instead of the names. weights: those
    of a trained policy. They are enough for one of OpenAI's CLIPs, so that it need not be looked
    up; for another CLIP they do not give the number of heads and the activation.
    """
    vision, text = (
        shape_of(name, beside, weights)
        for name in (config.vision_encoder_name, config.text_encoder_name)
    )
    return ClipShape(vision.vision, text.text)


def shape_of(
    name: str, beside: Path | None = None, weights: Mapping[str, Tensor] | None = None
) -> ClipShape:
    """The shape of the CLIP with this Hub name or folder; see `clip_shapes`."""
    for folder in (beside, Path(name)):
        # os.path.isfile also accepts a name that is not a valid path
        if folder is not None and os.path.isfile(folder / "config.json"):
            return _shape_from_json(folder / "config.json")
    if name in _OPENAI:
        return _OPENAI[name]
    if weights is not None and _OF_OPENAI.fullmatch(name):
        return ClipShape(vision_shape(weights), text_shape(weights))
    try:
        return _shape_from_json(Hub().file(name, "config.json"))
    except client_errors() as error:
        raise _no_clip(name, error, beside) from None


def vision_shape(weights: Mapping[str, Tensor]) -> VisionShape:
    """The shape of the vision towers, from the weights of a policy; the rest as in OpenAI's CLIPs.

    UserError when the weights are not those of a CLIP. A policy without cameras has no vision
    tower; the default shape is returned.
    """
    tower = _tower(weights, VISION)
    if not tower:
        return VisionShape()
    # (D, 3, patch, patch)
    width, _, patch, _ = _sizes(tower, "vision", "embeddings.patch_embedding.weight", 4)
    # one position for each patch and one for the class token
    places, _ = _sizes(tower, "vision", "embeddings.position_embedding.weight", 2)
    (inner,) = _sizes(tower, "vision", "encoder.layers.0.mlp.fc1.bias", 1)
    heads, side = _heads(width, _VISION_HEADS), patch * math.isqrt(places - 1)
    return VisionShape(width, inner, _layers(tower), heads, image_size=side, patch_size=patch)


def text_shape(weights: Mapping[str, Tensor]) -> TextShape:
    """The shape of the text tower, from the weights of a policy. UserError: not those of a CLIP."""
    tower = _tower(weights, TEXT)
    vocabulary, width = _sizes(tower, "text", "embeddings.token_embedding.weight", 2)
    longest, _ = _sizes(tower, "text", "embeddings.position_embedding.weight", 2)
    (inner,) = _sizes(tower, "text", "encoder.layers.0.mlp.fc1.bias", 1)
    return TextShape(
        width,
        inner,
        _layers(tower),
        _heads(width),
        vocab_size=vocabulary,
        max_position_embeddings=longest,
        eos_token_id=LEGACY_EOS,
    )


def _tower(weights: Mapping[str, Tensor], marker: str) -> dict[str, Tensor]:
    """The weights whose names contain `marker`, under the rest of the name.

    If each camera has its own tower, the last one is used: all have the same shape.
    """
    return {name.partition(marker)[2]: value for name, value in weights.items() if marker in name}


def _sizes(tower: Mapping[str, Tensor], kind: str, name: str, axes: int) -> tuple[int, ...]:
    """The shape of a weight that every CLIP has. UserError: missing, or wrong number of axes."""
    found = tuple(tower[name].shape) if name in tower else ()
    if len(found) != axes or 0 in found:
        what = f"{name} has shape {found}" if name in tower else f"{name} is missing"
        raise UserError(
            f"the weights do not contain a CLIP {kind} tower ({what}); mtdit supports only CLIP: "
            "train a policy with a CLIP"
        )
    return found


def _layers(tower: Mapping[str, Tensor]) -> int:
    return len(
        [name for name in tower if re.fullmatch(r"encoder\.layers\.\d+\.layer_norm1\.weight", name)]
    )


def _heads(width: int, known: Mapping[int, int] | None = None) -> int:
    """The number of heads: a head has width 64 in every CLIP except the `known` ones."""
    if width % 64:
        raise UserError(
            f"the weights contain a CLIP tower of width {width}, which is not a multiple of the "
            "head width 64: put that CLIP's config.json next to them as clip/config.json, or train "
            "with one of OpenAI's CLIPs"
        )
    return (known or {}).get(width, width // 64)


Shape = TypeVar("Shape", VisionShape, TextShape)


def _shape_from_json(path: Path) -> ClipShape:
    """Reads the shape from a CLIP's config.json. UserError when the file does not describe one."""
    raw = read_json(path)
    try:
        if not isinstance(raw, dict):
            raise TypeError("it is not a JSON object")
        vision = _part(VisionShape, raw.get("vision_config", {}), "vision_config")
        return ClipShape(vision, _part(TextShape, raw.get("text_config", {}), "text_config"))
    except (TypeError, ValueError, OverflowError) as error:
        reason = " ".join(str(error).split())[:160]
        raise UserError(
            f"{path} does not describe a CLIP ({reason}); copy the checkpoint again"
        ) from None


# Lowest and highest value; of all other numbers (1, MOST).
_LIMITS = {"num_hidden_layers": (1, MAX_LAYERS), "eos_token_id": (0, MAX_DIM)}


def _part(kind: type[Shape], values: Any, where: str) -> Shape:
    """The shape of one tower, with the defaults of `kind`.

    Raises TypeError, ValueError or OverflowError for invalid values.
    """
    if not isinstance(values, dict):
        raise TypeError(f"{where} is not a JSON object")
    own = {f.name: values[f.name] for f in fields(kind) if f.name in values}
    shape: Shape = from_json(kind, {**asdict(kind()), **own}, where)
    for name, value in asdict(shape).items():
        least, most = _LIMITS.get(name, (1, MAX_DIM))
        if type(value) is int and not least <= value <= most:
            raise ValueError(f"{where}.{name} is {str(value)[:20]}")
    if shape.hidden_size % shape.num_attention_heads or not 0 < shape.layer_norm_eps < 1:
        heads = f"{shape.num_attention_heads} heads in hidden_size {shape.hidden_size}"
        raise ValueError(f"{where} has {heads}, layer_norm_eps {shape.layer_norm_eps}")
    return shape


def _no_clip(name: str, error: Exception, beside: Path | None = None) -> UserError:
    fix = "give a folder with a CLIP, or a Hub name while online"
    if beside is not None:
        fix = (
            f"copy that CLIP's config.json to {beside / 'config.json'}: the weights alone do not "
            "give the number of heads and the activation"
        )
    return UserError(f"cannot load the CLIP {name!r} ({first_line(error)}); {fix}")


# --- weights


def load_clip(encoder: ObservationEncoder) -> None:
    """Loads the weights of the CLIPs that the config names. UserError when one cannot be loaded."""
    towers = [module for module in encoder.modules() if isinstance(module, VisionEncoder)]
    if towers:
        weights = _pretrained("CLIPVisionModel", encoder.config.vision_encoder_name)
        for tower in towers:
            tower.model.load_state_dict(weights)
    weights = _pretrained("CLIPTextModel", encoder.config.text_encoder_name)
    encoder.text_encoder.text_encoder.load_state_dict(weights)


def _pretrained(kind: str, name: str) -> dict[str, Tensor]:
    import transformers

    before = transformers.logging.get_verbosity()
    # No warning about the weights of the other tower, which a whole CLIP contains too.
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    try:
        model = getattr(transformers, kind).from_pretrained(
            name, dtype=torch.float32, local_files_only=_kept_only(name)
        )
    except client_errors() as error:
        raise _no_clip(name, error) from None
    finally:
        transformers.logging.set_verbosity(before)
    return {k: v for k, v in model.state_dict().items() if not k.endswith("position_ids")}


def _kept_only(name: str) -> bool:
    """Whether a CLIP can come only from this computer: a folder, or a Hub that does not answer.

    transformers itself would ask the Hub for each file with six attempts, minutes in all.
    """
    return os.path.isdir(name) or not Hub().answers(name, "config.json")


def load_tokenizer(name: str | Path) -> Any:
    """CLIP's tokenizer, by Hub name or folder. UserError when it cannot be loaded."""
    from transformers import CLIPTokenizer

    try:
        tokenizer = CLIPTokenizer.from_pretrained(str(name), local_files_only=_kept_only(str(name)))
        # transformers makes an empty tokenizer when it finds no files
        if not tokenizer.get_vocab().keys() - set(tokenizer.all_special_tokens):
            raise OSError(f"no {TOKENIZER}, no vocab.json")
        return tokenizer
    except Exception as error:  # a damaged file can raise anything
        if os.path.isfile(Path(name) / TOKENIZER):
            reason = f"{type(error).__name__}: {first_line(error)}"
            raise UserError(
                f"{name} does not contain a valid CLIP tokenizer ({reason}); "
                "copy its tokenizer files again"
            ) from None
        raise _no_clip(str(name), error) from None


def save_tokenizer(tokenizer: Any, folder: Path) -> None:
    """Writes the tokenizer's files. OSError instead of the bare Exception of `tokenizers`."""
    try:
        tokenizer.save_pretrained(str(folder))
    except Exception as error:
        raise OSError(
            errno.ENOSPC if "os error 28" in str(error) else errno.EIO, str(error), str(folder)
        ) from error


def tokenize(tokenizer: Any, texts: list[str], config: PolicyConfig) -> Tensor:
    """Texts -> ids (len(texts), tokenizer_max_length) int64, padded on the right like LeRobot's.

    UserError for a text that is too long if `tokenizer_truncation` is false.
    """
    for text in texts if not config.tokenizer_truncation else ():
        count = len(tokenizer(text)["input_ids"])
        if count > config.tokenizer_max_length:
            raise UserError(
                f"{text[:40]!r} has {count} tokens, but tokenizer_max_length is "
                f"{config.tokenizer_max_length}; shorten the instruction or set "
                "tokenizer_truncation to true"
            )
    tokens = tokenizer(
        texts,
        padding=config.tokenizer_padding,
        truncation=config.tokenizer_truncation,
        max_length=config.tokenizer_max_length,
        return_tensors="pt",
    )
    return tokens["input_ids"]


def unread(tokenizer: Any, text: str, length: int) -> str:
    """The end of a text that has more than `length` tokens, which is cut; "" if all is read."""
    places = tokenizer(text, return_offsets_mapping=True, verbose=False)["offset_mapping"]
    return text[places[length - 1][0] :] if len(places) > length else ""
