"""A small checkpoint of ours, and what its policy observes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from lerobot_oracle import STUCK, lerobot_policy, our_policy, statistics
from small_dataset import JOINTS

from mtdit.checkpoint.write import PretrainedFiles, save_checkpoint
from mtdit.policies.multi_task_dit.clip_lookup import load_tokenizer
from mtdit.policies.multi_task_dit.policy import MultiTaskDiT
from mtdit.stats import DatasetFacts

TASK = "push the red cube to the left"
DDIM = {"noise_scheduler_type": "DDIM", "num_inference_steps": 10, "prediction_type": "sample"}
FLOW = {"objective": "flow_matching", "num_integration_steps": 5}
SEPARATE = {"use_separate_rgb_encoder_per_camera": True}
POLICIES: list[tuple[int, dict[str, Any]]] = [  # cameras, options
    (2, {**DDIM, "n_obs_steps": 2}),
    (2, {**DDIM, **SEPARATE, "n_obs_steps": 1, "use_rope": False}),
    (2, {**FLOW, "n_obs_steps": 3}),
    (2, {**FLOW, **SEPARATE, "n_obs_steps": 2, "integration_method": "rk4"}),
    (0, {**FLOW, "n_obs_steps": 2}),
]


def facts() -> DatasetFacts:
    return DatasetFacts("small", 10, JOINTS, (TASK,), (30.0,) * 6, "so_follower")


def files_for(policy: MultiTaskDiT, clip: Path) -> PretrainedFiles:
    stats = statistics(np.random.default_rng(0))
    return PretrainedFiles(
        policy, policy.state_dict(), stats, facts(), load_tokenizer(clip), {"steps": 3}
    )


def save_small(clip_folder: Path, run: Path) -> Path:
    """One checkpoint of ours, with awake weights."""
    policy = our_policy(lerobot_policy(clip_folder, 2, **POLICIES[0][1]))
    return save_checkpoint(run, 7, files_for(policy, clip_folder), {}, {"elapsed_s": 1.0})


def observations(ticks: int) -> list[tuple[np.ndarray, dict[str, np.ndarray]]]:
    rng = np.random.default_rng(3)
    pose = rng.uniform(-60, 20, 6)
    walk = pose + np.cumsum(rng.normal(0, 1, (ticks, 6)), axis=0)
    walk[:, 4] = STUCK
    return [
        (p, {c: rng.integers(0, 256, (80, 96, 3), np.uint8) for c in ("top", "wrist")})
        for p in walk
    ]
