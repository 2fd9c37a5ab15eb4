"""Small policies, checkpoints and bundles: random weights, awake AdaLN, statistics of a
real-looking arm.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file

from mtdit.checkpoint.names import WEIGHTS
from mtdit.checkpoint.write import PretrainedFiles, save_pretrained
from mtdit.config import Feature
from mtdit.policies.multi_task_dit.clip import ClipShape, TextShape, VisionShape
from mtdit.policies.multi_task_dit.clip_lookup import load_tokenizer
from mtdit.policies.multi_task_dit.config import PolicyConfig
from mtdit.policies.multi_task_dit.policy import MultiTaskDiT
from mtdit.stats import DatasetFacts, image_scaling
from mtdit_robots.so101.joints import JOINTS

torch.set_num_threads(1)
SHAPE = ClipShape(
    VisionShape(64, 128, 2, 4, image_size=32, patch_size=8),
    TextShape(32, 64, 2, 2, eos_token_id=49407),
)
CAMERA = (60, 80)  # height, width
TASKS = ("open the drawer", "push the red cube to the left")
STEPS = 4
SMALL: Mapping[str, Any] = {
    "noise_scheduler_type": "DDIM",
    "num_inference_steps": STEPS,
    "hidden_dim": 32,
    "num_heads": 2,
    "num_layers": 2,
    "horizon": 16,
    "n_action_steps": 8,
    "timestep_embed_dim": 16,
    "image_resize_shape": (41, 47),
    "image_crop_shape": (32, 32),
}


def overflow_half(folder: Path) -> Path:
    """Change a checkpoint so that one hidden unit of its text tower, which nothing reads, is beyond
    the range of float16: float32 computes it as before, float16 gives NaN.
    """
    weights = load_file(folder / WEIGHTS)
    (name,) = (n for n in weights if "text_model" in n and n.endswith("layers.0.mlp.fc1.weight"))
    weights[name][0] *= 1e4
    weights[name.replace("weight", "bias")][0] = 65_000.0
    weights[name.replace("fc1", "fc2")][:, 0] = 0.0
    save_file(weights, folder / WEIGHTS)
    return folder


class Workshop:
    """Makes what a test needs around one CLIP folder."""

    def __init__(self, clip: Path, shape: ClipShape = SHAPE) -> None:
        self.clip, self.shape, self.tokenizer = clip, shape, load_tokenizer(clip)

    def config(
        self,
        cameras: tuple[str, ...] = ("top", "wrist"),
        size: tuple[int, int] = CAMERA,
        **changes: Any,
    ) -> PolicyConfig:
        images = {f"observation.images.{name}": Feature("VISUAL", (3, *size)) for name in cameras}
        return PolicyConfig(
            input_features={"observation.state": Feature("STATE", (6,)), **images},
            output_features={"action": Feature("ACTION", (6,))},
            vision_encoder_name=str(self.clip),
            text_encoder_name=str(self.clip),
            **{**SMALL, **changes},
        )

    def policy(self, config: PolicyConfig, seed: int = 0) -> MultiTaskDiT:
        """A fresh AdaLN is zero, which would switch every block off: it is drawn too."""
        torch.manual_seed(seed)
        policy = MultiTaskDiT(config, self.shape).eval()
        for name, parameter in policy.named_parameters():
            if "adaLN" in name:
                torch.nn.init.normal_(parameter, std=0.05)
        return policy

    def stats(self, config: PolicyConfig, span: float = 40.0) -> dict[str, dict[str, np.ndarray]]:
        """Positions from -span to span or less, pixels with ImageNet's mean and std."""
        low, high = np.full(6, -span, np.float32), np.linspace(0.5, 1.0, 6, dtype=np.float32) * span
        vector = {"min": low, "max": high, "mean": (low + high) / 2, "std": (high - low) / 4}
        pixels = {"mean": np.array([0.485, 0.456, 0.406]), "std": np.array([0.229, 0.224, 0.225])}
        image = {name: value.astype(np.float32).reshape(3, 1, 1) for name, value in pixels.items()}
        return {
            "observation.state": vector,
            "action": vector,
            **dict.fromkeys(config.image_keys.values(), image),
        }

    def scaling(self, config: PolicyConfig) -> dict[str, tuple[np.ndarray, np.ndarray]]:
        stats = self.stats(config)
        return {camera: image_scaling(config, stats, camera) for camera in config.cameras}

    def checkpoint(self, folder: Path, config: PolicyConfig, span: float = 40.0) -> Path:
        """A pretrained_model folder as training writes it."""
        policy = self.policy(config)
        facts = DatasetFacts("demo", 30, JOINTS, TASKS, (90.0,) * 6, "so_follower", units="degrees")
        stats = self.stats(config, span)
        save_pretrained(
            folder, PretrainedFiles(policy, policy.state_dict(), stats, facts, self.tokenizer, {})
        )
        return folder
