"""Presets for a new training, and the configuration that fits a dataset.

A new training starts from a preset, which differs from LeRobot's defaults where a default is a
trap. All differences of "base":

| field | LeRobot | ours | why |
|---|---|---|---|
| image_resize_shape | None | (240, 240) | else the 224 crop shows 16 % of a 640x480 frame |
| noise_scheduler_type | DDPM | DDIM | acts alike with a tenth of the network calls |
| num_inference_steps | None | 10 | None means num_train_timesteps |
| push_to_hub | True | False | nothing leaves this computer unless the user asks for it |
| batch_size | 8 | 64 | the smallest batch that LeRobot's guide advises |
| steps | 100000 | 30000 | what LeRobot's guide advises to begin with |
| ema | False | True | the averaged weights act more steadily |
| random crop | one offset per batch | one per sample and camera | more variety, same cost |
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from mtdit.config import Feature
from mtdit.policies.multi_task_dit.config import DDPM_SCHEDULES, PolicyConfig
from mtdit.policies.multi_task_dit.config_json import policy_config_from_dict
from mtdit_robots.errors import UserError

_DDIM_10 = {"noise_scheduler_type": "DDIM", "num_inference_steps": 10}
PRESETS: dict[str, dict[str, Any]] = {
    # LeRobot's network with the differences of the table above. The crop from 240 to 224 keeps 93 %
    # of each side.
    "base": {**_DDIM_10, "image_resize_shape": (240, 240)},
    # A few million parameters, trained from scratch on 64-pixel frames: for tests and CPU demos.
    # Its tiny CLIP is generated, not downloaded.
    "tiny": {
        **_DDIM_10,
        "n_obs_steps": 1,
        "horizon": 16,
        "n_action_steps": 8,
        "drop_n_last_frames": 0,
        "hidden_dim": 128,
        "num_layers": 4,
        "num_heads": 4,
        "timestep_embed_dim": 64,
        "dropout": 0.0,
        "image_resize_shape": (64, 64),
        "image_crop_shape": (64, 64),
        "use_separate_rgb_encoder_per_camera": False,
        "optimizer_lr": 5e-4,
        "vision_encoder_lr_multiplier": 1.0,
        "scheduler_warmup_steps": 100,
    },
}


def with_features(
    overrides: Mapping[str, Any],
    preset: str,
    inputs: Mapping[str, Feature],
    outputs: Mapping[str, Feature],
) -> PolicyConfig:
    """The preset, changed by `overrides` (JSON values), for a dataset with these features.

    UserError also for a config that LeRobot could not load.
    """
    merged = {**PRESETS[preset], **overrides}
    config = policy_config_from_dict(merged)
    if config.beta_schedule in DDPM_SCHEDULES and config.noise_scheduler_type != "DDPM":
        raise UserError(
            f"beta_schedule {config.beta_schedule!r} needs noise_scheduler_type DDPM: "
            "LeRobot's DDIM does not have it"
        )
    return replace(config, input_features=dict(inputs), output_features=dict(outputs))
