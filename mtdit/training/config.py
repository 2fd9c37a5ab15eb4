"""The configuration of a training run: a frozen dataclass with names, defaults and checks.

This module does not import torch, because the CLI reads it at start-up. The configuration of the
policy is in `mtdit.policies.multi_task_dit.config`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mtdit.policies.multi_task_dit.presets import PRESETS
from mtdit_robots.errors import UserError

FRAMES = ("disk", "memory", "video")
MAX_VALUE = 65_536  # batch_size, grad_accumulation, noise_samples: more than any computer can use


@dataclass(frozen=True)
class TrainConfig:
    """One training run. `policy` holds the PolicyConfig fields that differ from the preset."""

    dataset: str  # folder of a LeRobotDataset v3, folder of a FrameCache, or Hub repo id
    output_dir: Path
    preset: str = "base"
    policy: Mapping[str, Any] = field(default_factory=dict)

    steps: int = 30_000  # of the optimiser
    max_minutes: float | None = None  # stop after this time; the learning-rate schedule ends then
    batch_size: int = 64  # per process and accumulation part, as in LeRobot
    grad_accumulation: int = 1  # parts per step; samples = batch_size * processes * parts
    noise_samples: int = 1  # (noise, timestep) draws per observation; same expected loss
    seed: int = 1000

    device: str = "auto"
    amp: str = "no"  # no, bf16 or fp16
    compile: bool = False  # torch.compile the towers and the denoiser
    ema: bool = True
    ema_max_decay: float = 0.9999
    grad_clip_norm: float = 10.0

    # disk: decode once into cache_dir; memory: decode at start-up; video: decode on demand
    frames: str = "disk"
    cache_dir: Path | None = None  # None: output_dir/frames
    workers: int = 2  # threads that make batches ahead of the step that needs them
    imagenet_stats: bool = True  # normalise images by ImageNet's mean and std, not the dataset's
    # LeRobot's JSON: max_num_transforms, random_order, tfs
    image_transforms: Mapping[str, Any] | None = None
    # Shift each camera's frames by up to this many px, edge-padded, one offset per sample.
    random_shift_px: int = 0
    # Multiply each camera's pixels by 1 + N(0, this), one draw per sample.
    random_brightness: float = 0.0
    balance_tasks: bool = False  # draw all tasks equally often, however many frames they have
    # instruction -> how much more often it is drawn; 1 if not given
    task_weights: Mapping[str, float] = field(default_factory=dict)

    val_split: float = 0.0  # share of each task's episodes (the last) held out for validation
    val_every: int = 1_000
    log_every: int = 50
    save_every: int = 5_000
    keep_checkpoints: int | None = None  # keep this many of the newest, and the best; None: all
    tensorboard: bool = True
    wandb: str | None = None  # project name

    resume: bool = False
    init_from: Path | None = None  # start from this checkpoint's weights

    def __post_init__(self) -> None:
        _check_train(self)

    def samples_per_step(self, processes: int) -> int:
        """Samples per step of the optimiser, over all processes."""
        return self.batch_size * self.grad_accumulation * processes


def _check_train(c: TrainConfig) -> None:
    positive = (
        "steps",
        "batch_size",
        "grad_accumulation",
        "noise_samples",
        "workers",
        "log_every",
        "save_every",
        "val_every",
    )
    limited = ("batch_size", "grad_accumulation", "noise_samples")
    rules = [
        *((getattr(c, n) >= 1, f"{n} must be at least 1, got {getattr(c, n)}") for n in positive),
        *(
            (getattr(c, n) <= MAX_VALUE, f"{n} must be at most {MAX_VALUE}, got {getattr(c, n)}")
            for n in limited
        ),
        (c.preset in PRESETS, f"preset must be one of {', '.join(PRESETS)}, got {c.preset!r}"),
        (c.amp in ("no", "bf16", "fp16"), f"amp must be one of no, bf16, fp16, got {c.amp!r}"),
        (c.frames in FRAMES, f"frames must be one of {', '.join(FRAMES)}, got {c.frames!r}"),
        (
            c.max_minutes is None or c.max_minutes > 0,
            f"max_minutes must be positive, got {c.max_minutes}",
        ),
        (0.0 <= c.ema_max_decay < 1.0, f"ema_max_decay must be in [0, 1), got {c.ema_max_decay}"),
        (c.grad_clip_norm > 0, f"grad_clip_norm must be positive, got {c.grad_clip_norm}"),
        (c.random_shift_px >= 0, f"random_shift_px must not be negative, got {c.random_shift_px}"),
        (
            0.0 <= c.random_brightness < 1.0,
            f"random_brightness must be in [0, 1), got {c.random_brightness}",
        ),
        (0.0 <= c.val_split < 1.0, f"val_split must be in [0, 1), got {c.val_split}"),
        (
            c.keep_checkpoints is None or c.keep_checkpoints >= 1,
            f"keep_checkpoints must be at least 1, got {c.keep_checkpoints}",
        ),
        (
            all(0 < w < 1e9 for w in c.task_weights.values()),
            f"task_weights must be positive and below 1e9, got {dict(c.task_weights)}",
        ),
        (c.wandb is None or bool(c.wandb.strip()), "wandb needs the name of a project"),
        (
            not (c.resume and c.init_from),
            "resume and init_from exclude each other: resume continues with the run's own weights",
        ),
    ]
    for holds, message in rules:
        if not holds:
            raise UserError(message)


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
