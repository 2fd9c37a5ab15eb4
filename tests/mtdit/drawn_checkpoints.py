"""Policies of any shape, drawn at random and saved by LeRobot itself; `changed_checkpoints` has
what may happen to their files afterwards.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lerobot.configs.types import FeatureType, PolicyFeature
from lerobot.policies.factory import make_pre_post_processors
from lerobot.policies.multi_task_dit.configuration_multi_task_dit import MultiTaskDiTConfig
from lerobot.policies.multi_task_dit.modeling_multi_task_dit import MultiTaskDiTPolicy
from safetensors.torch import save_file

from mtdit.policies.multi_task_dit.clip import ClipShape, TextShape, VisionShape
from mtdit.policies.multi_task_dit.tiny_clip import EOS, clip_vocabulary, tiny_weights

Raw = dict[str, Any]
IMAGES = "observation.images."
STATE, ACTION = "observation.state", "action"
LETTERS = 512  # tokens of CLIP's vocabulary that are a byte, alone or at the end of a word
CAMERAS = ("top", "wrist", "side", "front", "cam_high", "Laptop", "phone 2", "links.oben")
TEXTS = (
    "push the red cube to the left",
    "Öffne   die SCHUBLADE!",
    "put it " * 40,
    "推 🟥",
    "a",
    "",
)
MODES = ("MIN_MAX", "MEAN_STD", "IDENTITY")
VECTORS = {  # what else a robot may give: the policy ignores it, in LeRobot and here
    "observation.velocity": PolicyFeature(FeatureType.STATE, (3,)),
    "observation.environment_state": PolicyFeature(FeatureType.ENV, (4,)),
}


MERGES = 200


def small_clip(folder: Path, seed: int) -> Path:
    """A CLIP that is read in milliseconds. Its seed decides its weights and the numbers of tokens,
    so that two of them give others for the same words.
    """
    from transformers import CLIPTokenizer

    ids, pairs = clip_vocabulary()
    kept = [word for word, number in ids.items() if number < LETTERS + MERGES]
    kept = np.random.default_rng(seed).permutation(kept).tolist()
    words = {word: i for i, word in enumerate([*kept, "<|startoftext|>", EOS])}
    text = TextShape(16, 32, 2, 2, vocab_size=len(words), eos_token_id=words[EOS])
    shape = ClipShape(VisionShape(32, 64, 2, 2, image_size=32, patch_size=16), text)
    folder.mkdir(parents=True)
    save_file(tiny_weights(shape, seed), folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps(shape.to_json()))
    (folder / "vocab.json").write_text(json.dumps(words))
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *pairs[:MERGES], ""]))
    special = {"unk_token": EOS, "bos_token": "<|startoftext|>", "eos_token": EOS, "pad_token": EOS}
    settings = {"tokenizer_class": "CLIPTokenizer", "model_max_length": 77, **special}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    CLIPTokenizer.from_pretrained(str(folder)).save_pretrained(str(folder))
    return folder


def one_of(rng: np.random.Generator, *choices: Any) -> Any:
    return choices[rng.integers(len(choices))]


def drawn_policy(rng: np.random.Generator, clips: list[Path]) -> MultiTaskDiTPolicy:
    """LeRobot's policy of a drawn shape, with awake weights."""
    vision, text = one_of(rng, *clips), one_of(rng, *clips)
    config = MultiTaskDiTConfig(
        **_features(rng),
        **_sampling(rng),
        **_network(rng),
        vision_encoder_name=str(vision),
        text_encoder_name=str(text),
        tokenizer_max_length=int(one_of(rng, 77, 77, 20)),
        tokenizer_padding=one_of(rng, "max_length", "longest"),
        device="cpu",
    )
    torch.manual_seed(int(rng.integers(1 << 30)))
    policy = MultiTaskDiTPolicy(config).eval()
    with torch.no_grad():
        for name, parameter in policy.named_parameters():
            if "adaLN" in name:  # starts at zero and would hide all behind it
                parameter.normal_(std=0.05)
    return policy


def _features(rng: np.random.Generator) -> Raw:
    """Inputs in any order: cameras, positions, what else the robot gives."""
    shape = (3, *one_of(rng, (48, 64), (40, 40), (37, 50)))
    names = rng.permutation(CAMERAS)[: rng.integers(4)].tolist()
    keys = [IMAGES + name for name in names] + one_of(rng, [], [], [], ["observation.image"])
    inputs = {key: PolicyFeature(FeatureType.VISUAL, shape) for key in keys}
    inputs[STATE] = PolicyFeature(FeatureType.STATE, (int(rng.integers(1, 9)),))
    inputs |= {key: feature for key, feature in VECTORS.items() if rng.random() < 0.2}
    mapping = {kind: one_of(rng, *MODES) for kind in ("VISUAL", "STATE", "ACTION", "ENV")}
    gone = one_of(rng, None, None, None, "VISUAL", "STATE", "ACTION", "ENV")
    return {
        "input_features": {key: inputs[key] for key in rng.permutation(list(inputs)).tolist()},
        "output_features": {ACTION: PolicyFeature(FeatureType.ACTION, (int(rng.integers(1, 8)),))},
        "normalization_mapping": {kind: m for kind, m in mapping.items() if kind != gone},
    }


def _sampling(rng: np.random.Generator) -> Raw:
    observed = int(rng.integers(1, 4))
    horizon = int(rng.integers(observed + 1, 13))
    kinds: tuple[Raw, ...] = (
        {"noise_scheduler_type": "DDIM", "num_inference_steps": 3},
        {"noise_scheduler_type": "DDPM", "num_inference_steps": 3},
        {"objective": "flow_matching", "num_integration_steps": 2},
        {"objective": "flow_matching", "num_integration_steps": 2, "integration_method": "rk4"},
    )
    return {
        "n_obs_steps": observed,
        "horizon": horizon,
        "n_action_steps": int(rng.integers(1, horizon - observed + 2)),
        "num_train_timesteps": int(one_of(rng, 4, 20)),
        "prediction_type": one_of(rng, "epsilon", "sample"),
        "clip_sample": bool(rng.random() < 0.8),
        **one_of(rng, *kinds),
    }


def _network(rng: np.random.Generator) -> Raw:
    resize, crop = one_of(rng, ((38, 36), (32, 32)), ((32, 32), None), (None, (32, 32)))
    return {
        "hidden_dim": int(one_of(rng, 16, 32)),
        "num_layers": int(rng.integers(1, 3)),
        "num_heads": 2,
        "timestep_embed_dim": 8,
        "use_rope": bool(rng.random() < 0.7),
        "use_positional_encoding": bool(rng.random() < 0.3),
        "use_separate_rgb_encoder_per_camera": bool(rng.random() < 0.3),
        "image_resize_shape": resize,
        "image_crop_shape": crop,
    }


def drawn_stats(rng: np.random.Generator, config: MultiTaskDiTConfig) -> dict[str, Raw]:
    """Of every feature, as `compute_stats` shapes them; a joint may never have moved."""
    stats: dict[str, Raw] = {}
    for key, feature in {**config.input_features, **config.output_features}.items():
        if feature.type is FeatureType.VISUAL:
            stats[key] = _range(rng, (3, 1, 1), 0.0, 1.0)
            continue
        stats[key] = _range(rng, feature.shape, -90.0, 90.0)
        if rng.random() < 0.3:
            stats[key]["max"][0] = stats[key]["mean"][0] = stats[key]["min"][0]
            stats[key]["std"][0] = 0.0
    return stats


def _range(rng: np.random.Generator, shape: tuple[int, ...], low: float, high: float) -> Raw:
    ends = np.sort(rng.uniform(low, high, (2, *shape)), axis=0)
    values = {"min": ends[0], "max": ends[1], "mean": ends.mean(0), "std": np.ptp(ends, axis=0) / 3}
    return {name: torch.from_numpy(v.astype(np.float32)) for name, v in values.items()}


def save(policy: MultiTaskDiTPolicy, stats: dict[str, Raw], folder: Path) -> None:
    policy.save_pretrained(folder)
    for processor in make_pre_post_processors(policy.config, dataset_stats=stats):
        processor.save_pretrained(folder)


def observations(
    rng: np.random.Generator, config: MultiTaskDiTConfig, stats: dict[str, Raw], count: int
) -> list[tuple[np.ndarray, dict[str, np.ndarray]]]:
    """Positions within their range, a little beyond, and at rest where the joint never moved;
    frames under the policy's keys.
    """
    low, high = (stats[STATE][name].numpy() for name in ("min", "max"))
    cameras = {k: f.shape for k, f in config.input_features.items() if f.type is FeatureType.VISUAL}
    return [
        (
            (low + (high - low) * rng.uniform(-0.1, 1.1, low.shape)).astype(np.float32),
            {key: rng.integers(0, 256, (*s[1:], 3), np.uint8) for key, s in cameras.items()},
        )
        for _ in range(count)
    ]
