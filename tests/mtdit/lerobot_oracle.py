"""LeRobot's own policy with random weights, and ours with the same ones: what the oracle tests
compare.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lerobot.configs.types import FeatureType, PolicyFeature
from lerobot.policies.multi_task_dit.configuration_multi_task_dit import MultiTaskDiTConfig
from lerobot.policies.multi_task_dit.modeling_multi_task_dit import (
    DiffusionObjective,
    FlowMatchingObjective,
    MultiTaskDiTPolicy,
)

from mtdit.policies.multi_task_dit.clip_lookup import load_tokenizer, tokenize
from mtdit.policies.multi_task_dit.config import PolicyConfig
from mtdit.policies.multi_task_dit.config_json import policy_config_from_dict
from mtdit.policies.multi_task_dit.policy import Batch, MultiTaskDiT
from mtdit.policies.objectives import make_objective

CAMERAS = ("top", "wrist", "side")
SMALL: dict[str, Any] = {
    "horizon": 12,
    "n_action_steps": 6,
    "hidden_dim": 32,
    "num_layers": 2,
    "num_heads": 2,
    "timestep_embed_dim": 16,
    "image_resize_shape": (70, 68),
    "image_crop_shape": (64, 64),
    "image_crop_is_random": False,
    "dropout": 0.0,
    "num_train_timesteps": 30,
}
# of pictures for the CLIP whose towers take 32 x 32
SIZES = {"image_resize_shape": (38, 36), "image_crop_shape": (32, 32)}
DDIM = {"objective": "diffusion", "noise_scheduler_type": "DDIM", "num_inference_steps": 6}


def lerobot_policy(clip: Path, cameras: int, **options: Any) -> MultiTaskDiTPolicy:
    """Random weights, always the same; also in AdaLN, which starts at zero and would hide all
    behind it.
    """
    images = {
        f"observation.images.{c}": PolicyFeature(FeatureType.VISUAL, (3, 80, 96))
        for c in CAMERAS[:cameras]
    }
    config = MultiTaskDiTConfig(
        input_features={"observation.state": PolicyFeature(FeatureType.STATE, (6,)), **images},
        output_features={"action": PolicyFeature(FeatureType.ACTION, (6,))},
        vision_encoder_name=str(clip),
        text_encoder_name=str(clip),
        device="cpu",
        **{**SMALL, **options},
    )
    torch.manual_seed(7)
    policy = MultiTaskDiTPolicy(config).eval()
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for name, parameter in policy.named_parameters():
            if "adaLN" in name:
                parameter.normal_(std=0.02, generator=generator)
    return policy


def our_config(theirs: MultiTaskDiTPolicy) -> PolicyConfig:
    """The same configuration, through LeRobot's own JSON."""
    import draccus
    from lerobot.configs.policies import PreTrainedConfig

    raw = draccus.encode(theirs.config, PreTrainedConfig)
    return policy_config_from_dict({k: v for k, v in raw.items() if k != "type"})


def our_policy(theirs: MultiTaskDiTPolicy) -> MultiTaskDiT:
    ours = MultiTaskDiT(our_config(theirs)).eval()
    ours.load_state_dict(theirs.state_dict(), strict=True)
    return ours


def set_objective(theirs: MultiTaskDiTPolicy, ours: MultiTaskDiT, **options: Any) -> None:
    """Gives both policies another objective over the same network, as their constructors would."""
    c = theirs.config
    for name, value in options.items():
        assert hasattr(c, name), name
        setattr(c, name, value)
    kind = DiffusionObjective if c.is_diffusion else FlowMatchingObjective
    theirs.objective = kind(c, c.action_feature.shape[0], c.horizon, c.do_mask_loss_for_padding)
    ours.config = our_config(theirs)
    ours.objective = make_objective(ours.config)


tokenizer_of = cache(load_tokenizer)  # reading the vocabulary takes longer than the rest of a test


def batches(
    ours: MultiTaskDiT, clip: Path, size: int = 3, seed: int = 11
) -> tuple[dict[str, torch.Tensor], Batch]:
    """The same random observations and actions as LeRobot's batch and as ours."""
    c, generator = ours.config, torch.Generator().manual_seed(seed)
    texts = ["open the drawer", "push the red cube to the left", "close the drawer"]
    ids = tokenize(tokenizer_of(clip), texts[:size], c)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator)

    state, actions = draw(size, c.n_obs_steps, 6), draw(size, c.horizon, 6).clamp(-1, 1)
    images = {camera: draw(size, c.n_obs_steps, 3, 80, 96) for camera in c.cameras}
    is_pad = torch.arange(c.horizon).repeat(size, 1) > torch.tensor([[20], [8], [5]])[:size]
    theirs = {
        "observation.state": state,
        "action": actions,
        "action_is_pad": is_pad,
        "observation.language.tokens": ids,
        "observation.language.attention_mask": torch.ones_like(ids, dtype=torch.bool),
        **{f"observation.images.{camera}": x for camera, x in images.items()},
    }
    return theirs, Batch(images, state, ours.pooled_text(ids), actions, is_pad)


STUCK = -30.0


def statistics(rng: np.random.Generator) -> dict[str, dict[str, np.ndarray]]:
    low = rng.uniform(-90, 0, 6).astype(np.float32)
    high = (low + rng.uniform(20, 120, 6)).astype(np.float32)
    low[4] = high[4] = STUCK  # a joint that never moved
    image = {
        "mean": np.full((3, 1, 1), 0.45, np.float32),
        "std": np.full((3, 1, 1), 0.22, np.float32),
    }
    vectors = {
        "observation.state": {"min": low, "max": high},
        "action": {"min": low - 1, "max": high + 1},
    }
    return {**vectors, **{f"observation.images.{c}": image for c in ("top", "wrist")}}


def save_as_lerobot(policy: Any, folder: Path) -> None:
    from lerobot.policies.factory import make_pre_post_processors

    stats = {
        k: {n: torch.from_numpy(v) for n, v in s.items()}
        for k, s in statistics(np.random.default_rng(1)).items()
    }
    policy.save_pretrained(folder)
    for processor in make_pre_post_processors(policy.config, dataset_stats=stats):
        processor.save_pretrained(folder)


def assert_close(
    what: str, mine: torch.Tensor, theirs: torch.Tensor, tolerance: float = 1e-5
) -> None:
    error = float((mine - theirs).detach().abs().max())
    assert error <= tolerance, f"{what}: max error {error:.2e} > {tolerance}"
