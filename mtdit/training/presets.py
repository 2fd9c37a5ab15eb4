"""What `--preset` sets of a training run. What it sets of the policy is in
`mtdit.policies.multi_task_dit.presets`.
"""

from __future__ import annotations

from typing import Any

from mtdit_robots.errors import UserError

# The TrainConfig fields that each preset sets.
_TRAINING: dict[str, dict[str, Any]] = {
    "base": {},
    # On a CPU many small steps are best, and noise draws are cheap compared to the encoder. A pixel
    # of the twin's top camera is 8 mm on the table: with shifts of more than one pixel the policy
    # would learn to ignore where objects are.
    "tiny": {
        "batch_size": 32,
        "noise_samples": 4,
        "random_shift_px": 1,
        "random_brightness": 0.1,
        "grad_clip_norm": 1.0,
        "save_every": 1_000,
    },
}


def training_defaults(preset: str) -> dict[str, Any]:
    """The TrainConfig fields that a preset sets. UserError for an unknown preset."""
    if preset not in _TRAINING:
        raise UserError(f"preset must be one of {', '.join(_TRAINING)}, got {preset!r}")
    return dict(_TRAINING[preset])
