"""The shape of a CLIP, told by the weights alone: real architectures, without their memory."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from lerobot_oracle import lerobot_policy, save_as_lerobot

from mtdit.checkpoint.read import open_checkpoint
from mtdit.config import Feature
from mtdit.policies.multi_task_dit.clip import ClipShape, TextShape, VisionShape
from mtdit.policies.multi_task_dit.clip_lookup import (
    clip_shapes,
    load_tokenizer,
    text_shape,
    vision_shape,
)
from mtdit.policies.multi_task_dit.config import PolicyConfig
from mtdit.policies.multi_task_dit.observation_encoder import ObservationEncoder
from mtdit.policies.multi_task_dit.tiny_clip import make_tiny_clip
from mtdit_robots.errors import UserError

OPENAI_TEXT = TextShape(eos_token_id=2)
SHAPES = {
    "openai/clip-vit-base-patch32": ClipShape(VisionShape(patch_size=32), OPENAI_TEXT),
    "openai/clip-vit-base-patch16": ClipShape(VisionShape(patch_size=16), OPENAI_TEXT),
    "openai/clip-vit-large-patch14": ClipShape(
        VisionShape(1024, 4096, 24, 16, patch_size=14), TextShape(768, 3072, 12, 12, eos_token_id=2)
    ),
    "openai/clip-vit-large-patch14-336": ClipShape(
        VisionShape(1024, 4096, 24, 16, image_size=336, patch_size=14),
        TextShape(768, 3072, 12, 12, eos_token_id=2),
    ),
    "small": ClipShape(
        VisionShape(128, 256, 3, 2, image_size=32, patch_size=8),
        TextShape(64, 128, 2, 1, max_position_embeddings=16, eos_token_id=2),
    ),
    "laion/CLIP-ViT-H-14": ClipShape(
        VisionShape(1280, 5120, 32, 16, patch_size=14),
        TextShape(1024, 4096, 24, 16, eos_token_id=2),
    ),
}


def weights_of(
    shape: ClipShape, cameras: tuple[str, ...] = ("top",), **options: object
) -> dict[str, torch.Tensor]:
    """The names and shapes of a policy's encoders; nothing is allocated."""
    side = shape.vision.image_size
    images = {f"observation.images.{c}": Feature("VISUAL", (3, side, side)) for c in cameras}
    config = PolicyConfig(
        input_features={"observation.state": Feature("STATE", (6,)), **images},
        output_features={"action": Feature("ACTION", (6,))},
        image_crop_shape=(side, side),
        **options,
    )  # type: ignore[arg-type]
    with torch.device("meta"):
        return ObservationEncoder(config, shape).state_dict()


@pytest.mark.parametrize("name", SHAPES)
def test_weights_tell_the_shape(name: str) -> None:
    weights = weights_of(SHAPES[name])
    assert ClipShape(vision_shape(weights), text_shape(weights)) == SHAPES[name]


def test_towers_per_camera_and_no_tower() -> None:
    small = SHAPES["small"]
    separate = weights_of(small, ("top", "wrist"), use_separate_rgb_encoder_per_camera=True)
    assert vision_shape(separate) == small.vision
    assert text_shape(weights_of(small, ())) == small.text
    assert vision_shape(weights_of(small, ())) == VisionShape()


def test_weights_that_are_no_clips() -> None:
    weights = weights_of(SHAPES["small"])
    with pytest.raises(UserError, match="do not contain a CLIP text tower"):
        text_shape({})
    odd = {
        name: value.new_empty(100) if "class_embedding" in name else value
        for name, value in weights.items()
    }
    assert vision_shape(odd) == SHAPES["small"].vision
    narrow = ClipShape(
        VisionShape(96, 192, 1, 3, image_size=16, patch_size=8), SHAPES["small"].text
    )
    with pytest.raises(
        UserError, match="of width 96, which is not a multiple of the head width 64"
    ):
        vision_shape(weights_of(narrow))


@pytest.mark.parametrize(
    "name",
    [
        "openai/clip-vit-large-patch14-336",
        "/home/me/models/clip-vit-base-patch32",
        "./clip-vit-large-patch14",
    ],
)
def test_openais_are_not_looked_up(name: str) -> None:
    config = PolicyConfig(vision_encoder_name=name, text_encoder_name=name)
    small = SHAPES["small"]
    assert clip_shapes(config, weights=weights_of(small)) == small


@pytest.mark.parametrize("name", ["/gone/CLIP-ViT-B-32-laion2B", "/gone/clip-tiny"])
def test_others_are_not_guessed(name: str, tmp_path: Path) -> None:
    """OpenCLIP's conversions use gelu, and a tiny one may have narrow heads."""
    config = PolicyConfig(vision_encoder_name=name, text_encoder_name=name)
    with pytest.raises(
        UserError,
        match=r"copy that CLIP's config\.json to .*/clip/config\.json: the weights alone do not",
    ):
        clip_shapes(config, tmp_path / "clip", weights_of(SHAPES["small"]))


def test_lerobots_folder_works_alone(clip_folder: Path, tmp_path: Path) -> None:
    """No clip/, no tokenizer, the CLIP it names is gone: the right answer needs heads 64 wide, as
    OpenAI's have.
    """
    vision = VisionShape(128, 256, 2, 2, image_size=64, patch_size=16)
    wide = ClipShape(vision, TextShape(64, 128, 2, 1, eos_token_id=2))
    folder = tmp_path / "clip-vit-base-patch16"
    theirs = lerobot_policy(make_tiny_clip(folder, wide), 2, n_obs_steps=2)
    save_as_lerobot(theirs, tmp_path / "saved")
    shutil.rmtree(folder)
    checkpoint = open_checkpoint(tmp_path / "saved")
    policy = checkpoint.policy()
    assert policy.clip_shape == wide
    images = torch.randn(1, 3, 64, 64)
    wanted = theirs.observation_encoder.vision_encoder(images).flatten(1)
    assert torch.allclose(policy.observation_encoder.vision_encoder(images), wanted, atol=1e-5)
    tokens = checkpoint.tokenizer()(
        ["open the drawer"], padding="max_length", max_length=77, return_tensors="pt"
    )
    text = theirs.observation_encoder.text_encoder(tokens["input_ids"], tokens["attention_mask"])
    ours = policy.observation_encoder.text_encoder(policy.pooled_text(tokens["input_ids"]))
    assert torch.allclose(ours, text, atol=1e-5)
    assert json.loads((tmp_path / "saved/config.json").read_text())["vision_encoder_name"] == str(
        folder
    )


def test_a_folder_without_a_vocabulary(clip_folder: Path, tmp_path: Path) -> None:
    """transformers would give a tokenizer to which all instructions are equal."""
    shutil.copy(clip_folder / "config.json", tmp_path)
    shutil.copy(clip_folder / "tokenizer_config.json", tmp_path)
    with pytest.raises(UserError, match=r"no tokenizer\.json, no vocab\.json"):
        load_tokenizer(tmp_path)
