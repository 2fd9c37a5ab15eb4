"""What a line of `lerobot-train` leaves to the defaults, where ours differ from LeRobot's.

`mtdit train` keeps its own defaults for such a line, so that a line means the same in either
spelling, and says in one line which they are: each is a flag that can be set back.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from mtdit.policies.multi_task_dit.config import PolicyConfig
from mtdit.policies.multi_task_dit.presets import PRESETS
from mtdit.training.config import TrainConfig

# flag of lerobot-train -> our field, LeRobot's default. Version 0.6.1 has no EMA.
TRAINING: dict[str, tuple[str, Any]] = {
    "batch_size": ("batch_size", 8),
    "steps": ("steps", 100_000),
    "save_freq": ("save_every", 20_000),
    "log_freq": ("log_every", 200),
    "ema.enable": ("ema", False),
}
ALWAYS = "the random crop is drawn per sample (per batch), nothing is uploaded (to the Hub)"


def unlike_lerobot(given: Collection[str], has_weights: bool) -> str:
    """The line about defaults that differ, for the flags of lerobot-train that were given.

    has_weights: the policy's fields come from an earlier policy, not from defaults.
    """
    theirs = PolicyConfig()
    policy = {} if has_weights else PRESETS[TrainConfig.preset]
    differences = {
        **{flag: (getattr(TrainConfig, name), other) for flag, (name, other) in TRAINING.items()},
        **{f"policy.{name}": (ours, getattr(theirs, name)) for name, ours in policy.items()},
    }
    listed = [
        f"--{flag}={_shown(ours)} ({_shown(other)})"
        for flag, (ours, other) in differences.items()
        if flag not in given and ours != other
    ]
    return f"not as LeRobot's defaults, which are in brackets: {', '.join((*listed, ALWAYS))}"


def _shown(value: Any) -> str:
    """A value as lerobot-train takes it."""
    return str(value).lower() if isinstance(value, bool) else str(value).replace(" ", "")
