"""The tiny CLIP: real vocabulary, loads in transformers, and tells instructions apart."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from mtdit.policies.multi_task_dit.clip import TextTower, VisionTower
from mtdit.policies.multi_task_dit.clip_lookup import load_tokenizer, tokenize
from mtdit.policies.multi_task_dit.config import PolicyConfig
from mtdit.policies.multi_task_dit.tiny_clip import TINY, make_tiny_clip, tiny_weights
from mtdit_robots.errors import UserError
from mtdit_robots.twin.tasks import TASKS

TEXTS = [*TASKS, "put the sponge in the bowl", "move the blue cube to the left"]


@pytest.fixture(scope="module")
def token_ids(clip_folder: Path) -> torch.Tensor:
    return tokenize(load_tokenizer(clip_folder), TEXTS, PolicyConfig())


def towers() -> tuple[VisionTower, TextTower]:
    weights = tiny_weights(TINY, seed=0)
    vision, text = VisionTower(TINY.vision), TextTower(TINY.text)
    for tower, prefix in ((vision, "vision_model."), (text, "text_model.")):
        tower.load_state_dict(
            {k.removeprefix(prefix): v for k, v in weights.items() if k.startswith(prefix)}
        )
    return vision, text


def test_tokens_are_clips(token_ids: torch.Tensor) -> None:
    assert token_ids.shape == (len(TEXTS), 77)
    assert TEXTS[0] == "open the drawer"
    assert token_ids[0, :6].tolist() == [49406, 1488, 518, 23219, 49407, 49407]


def test_a_long_instruction_is_cut_or_refused(clip_folder: Path) -> None:
    tokenizer, text = load_tokenizer(clip_folder), "open the drawer " * 40
    ids = tokenize(tokenizer, [text, "stop"], PolicyConfig())
    assert ids.shape == (2, 77)
    assert ids[0, -1] == 49407
    with pytest.raises(UserError, match=r"122 tokens.*tokenizer_truncation"):
        tokenize(tokenizer, ["stop", text], PolicyConfig(tokenizer_truncation=False))
    assert tokenize(tokenizer, ["stop"], PolicyConfig(tokenizer_truncation=False)).shape == (1, 77)


def test_instructions_are_far_apart(token_ids: torch.Tensor) -> None:
    features = F.normalize(towers()[1](token_ids), dim=-1)
    cosine = (features @ features.T).detach().fill_diagonal_(-1)
    assert float(cosine.max()) < 0.7, f"{cosine}"


def test_transformers_computes_the_same(clip_folder: Path, token_ids: torch.Tensor) -> None:
    from transformers import CLIPTextModel, CLIPVisionModel

    vision, text = towers()
    images = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    theirs = CLIPVisionModel.from_pretrained(str(clip_folder))(
        pixel_values=images
    ).last_hidden_state[:, 0]
    torch.testing.assert_close(vision(images), theirs, atol=1e-5, rtol=0)
    theirs = CLIPTextModel.from_pretrained(str(clip_folder))(input_ids=token_ids).pooler_output
    torch.testing.assert_close(text(token_ids), theirs, atol=1e-5, rtol=0)


def test_legacy_eos_id_means_the_highest_id(token_ids: torch.Tensor) -> None:
    """OpenAI's own configs say eos_token_id 2, which transformers reads as argmax of the ids."""
    text = towers()[1]
    now = text(token_ids)
    text.eos_token_id = 2
    assert torch.equal(text(token_ids), now)


def test_same_seed_same_bytes_and_a_finished_folder_is_kept(
    clip_folder: Path, tmp_path: Path
) -> None:
    again = make_tiny_clip(tmp_path / "clip-again")
    for name in ("model.safetensors", "config.json", "tokenizer.json"):
        assert digest(again / name) == digest(clip_folder / name), name
    written = (again / "model.safetensors").stat().st_mtime_ns
    assert make_tiny_clip(again) == again
    assert (again / "model.safetensors").stat().st_mtime_ns == written


def test_making_it_leaves_the_global_generator_alone() -> None:
    torch.manual_seed(4)
    expected = torch.rand(3)
    torch.manual_seed(4)
    tiny_weights(TINY, seed=9)
    assert torch.equal(torch.rand(3), expected)


def test_a_folder_lerobot_would_refuse_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="'clip'"):
        make_tiny_clip(tmp_path / "towers")


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
