"""Generates a tiny CLIP that transformers and LeRobot can load: random weights, real vocabulary.

It is for tests, CPU demos and training from scratch without a download; it is not a pretrained
CLIP. The byte-pair vocabulary comes from the open_clip wheel. The random weights are scaled so that
the frozen random text encoder still distinguishes instructions.
"""

from __future__ import annotations

import gzip
import json
import shutil
from importlib.util import find_spec
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from mtdit.policies.multi_task_dit.clip import (
    ClipShape,
    TextShape,
    TextTower,
    VisionShape,
    VisionTower,
)
from mtdit.policies.multi_task_dit.clip_lookup import save_tokenizer
from mtdit_robots.errors import UserError
from mtdit_robots.extras import missing
from mtdit_robots.files import new_file

TINY = ClipShape(
    VisionShape(
        hidden_size=128,
        intermediate_size=512,
        num_hidden_layers=4,
        num_attention_heads=4,
        image_size=64,
        patch_size=16,
    ),
    TextShape(hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2),
)
EOS = "<|endoftext|>"
CONTEXT = 77
TEXT_SEED = 34


def make_tiny_clip(folder: Path, shape: ClipShape = TINY, seed: int = 0) -> Path:
    """Writes config, weights and tokenizer (about 12 MB) into `folder` and returns the folder.

    A complete folder is kept as it is. The same seed gives the same bytes. UserError when the
    folder's name does not contain "clip", which LeRobot requires.
    """
    if "clip" not in folder.name.lower():
        raise UserError(
            f"{folder}: the folder's name must contain 'clip', because LeRobot requires it; "
            "name it clip-tiny"
        )
    if (folder / "config.json").is_file():
        return folder
    folder.mkdir(parents=True, exist_ok=True)
    write_tokenizer(folder)
    save_file(tiny_weights(shape, seed), folder / "model.safetensors", metadata={"format": "pt"})
    with new_file(folder / "config.json") as part:  # the last file: it marks a complete folder
        part.write_text(json.dumps(shape.to_json(), indent=2) + "\n")
    return folder


def tiny_weights(shape: ClipShape, seed: int) -> dict[str, Tensor]:
    """The weights of both encoders, under the names of transformers' CLIPModel."""
    state = torch.random.get_rng_state()
    torch.manual_seed(seed)
    try:
        vision = VisionTower(shape.vision)
        _init_vision(vision)
        torch.manual_seed(seed + TEXT_SEED)
        text = TextTower(shape.text)
        _init_text(text)
    finally:
        torch.random.set_rng_state(state)
    towers = {"vision_model": vision, "text_model": text}
    weights = {
        f"{name}.{key}": value
        for name, tower in towers.items()
        for key, value in tower.state_dict().items()
    }
    return {key: value.contiguous() for key, value in weights.items()}


def _init_vision(tower: VisionTower) -> None:
    """For training from scratch: small positions, unit-variance patches, zero biases."""
    for module in tower.modules():
        if isinstance(module, nn.Linear):
            nn.init.trunc_normal_(module.weight, std=0.02 * (768 / module.in_features) ** 0.5)
            nn.init.zeros_(module.bias)
    nn.init.normal_(tower.embeddings.position_embedding.weight, std=0.02)
    nn.init.normal_(tower.embeddings.class_embedding, std=0.02)
    fan_in = tower.embeddings.patch_embedding.weight[0].numel()
    nn.init.normal_(tower.embeddings.patch_embedding.weight, std=fan_in**-0.5)


def _init_text(tower: TextTower) -> None:
    """Large word embeddings, small EOS and position embeddings.

    The feature at the EOS is then what attention gathers from the words. With CLIP's own
    initialisation all instructions have nearly the same feature (cosine above 0.99), and with some
    seeds too. TEXT_SEED is the best of 120: the cosine is at most 0.63 between any two of ten
    table-top instructions.
    """
    embeddings = tower.embeddings
    nn.init.normal_(embeddings.token_embedding.weight, std=1.0)
    nn.init.normal_(embeddings.position_embedding.weight, std=0.05)
    embeddings.token_embedding.weight.data[-2:] *= 0.05  # <|startoftext|>, <|endoftext|>
    for name, module in tower.named_modules():
        if isinstance(module, nn.Linear):
            sharp = 1.5 if name.endswith(("q_proj", "k_proj")) else 1.0
            nn.init.normal_(module.weight, std=sharp * module.in_features**-0.5)
            nn.init.zeros_(module.bias)


def write_tokenizer(folder: Path) -> None:
    """Writes CLIP's tokenizer in transformers' format (tokenizer.json, tokenizer_config.json)."""
    from transformers import CLIPTokenizer

    vocabulary, merges = clip_vocabulary()
    source = folder / "vocabulary.tmp"
    source.mkdir(parents=True, exist_ok=True)
    (source / "vocab.json").write_text(json.dumps(vocabulary))
    (source / "merges.txt").write_text("#version: 0.2\n" + "\n".join(merges) + "\n")
    special = {"unk_token": EOS, "bos_token": "<|startoftext|>", "eos_token": EOS, "pad_token": EOS}
    settings = {"tokenizer_class": "CLIPTokenizer", "model_max_length": CONTEXT, **special}
    (source / "tokenizer_config.json").write_text(json.dumps(settings))
    save_tokenizer(CLIPTokenizer.from_pretrained(str(source)), folder)
    shutil.rmtree(source)


def clip_vocabulary() -> tuple[dict[str, int], list[str]]:
    """CLIP's 49408 tokens and 48894 merges, from open_clip's wheel.

    Source of the layout: simple_tokenizer.py of github.com/openai/CLIP.
    """
    package = find_spec("open_clip")
    if package is None or package.origin is None:
        raise missing("open_clip", "CLIP's vocabulary comes with open-clip-torch")
    packed = Path(package.origin).parent / "bpe_simple_vocab_16e6.txt.gz"
    merges = gzip.decompress(packed.read_bytes()).decode().split("\n")[1 : 49152 - 256 - 2 + 1]
    letters = _byte_letters()
    words = [
        *letters,
        *(f"{c}</w>" for c in letters),
        *(m.replace(" ", "") for m in merges),
        "<|startoftext|>",
        EOS,
    ]
    return {word: i for i, word in enumerate(words)}, merges


def _byte_letters() -> list[str]:
    """One printable letter per byte: itself if printable, else a code point from 256 on."""
    printable = [
        *range(ord("!"), ord("~") + 1),
        *range(ord("¡"), ord("¬") + 1),
        *range(ord("®"), ord("ÿ") + 1),
    ]
    hidden = [b for b in range(256) if b not in printable]
    return [chr(b) for b in printable] + [chr(256 + i) for i in range(len(hidden))]
