"""The configuration of a training run: a frozen dataclass with names, defaults, help and checks.

`mtdit train` has an option for each field, made from the field itself. This module does not import
torch, because the CLI reads it at start-up. The configuration of the policy is in
`mtdit.policies.multi_task_dit.config`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Annotated, Any, get_args, get_type_hints

from mtdit.policies.multi_task_dit.presets import PRESETS
from mtdit_robots.errors import UserError
from mtdit_robots.features import STATE
from mtdit_robots.units import ARM_UNITS
from mtdit_runtime.instructions import one_form

FRAMES = ("disk", "memory", "video")
MAX_VALUE = 65_536  # batch_size, grad_accumulation, noise_samples: more than any computer can use
MAX_SEED = 2**31 - 1


@dataclass(frozen=True)
class Help:
    """What `mtdit train --help` says about a field: its heading and one sentence, which names the
    default if that is not a plain value. low and high: the limits of a number, inclusive.
    """

    heading: str
    text: str
    low: int | None = None
    high: int | None = None


@dataclass(frozen=True)
class TrainConfig:
    """One training run. UserError for a value that is out of range.

    preset: "base" or "tiny". policy: the fields of the policy that differ from the preset, under
    LeRobot's names, e.g. {"horizon": 32}. `mtdit train --help` explains every field.

        config = mtdit.TrainConfig("my-dataset", Path("outputs/train"), steps=30_000)
        checkpoint = mtdit.train(config)
    """

    dataset: Annotated[
        str,
        Help(
            "Data",
            "LeRobotDataset v3 to train on: a folder, a Hub repo id or a folder of decoded frames; "
            "default with --resume: the run's dataset.",
        ),
    ]
    output_dir: Annotated[
        Path,
        Help(
            "Results", "Folder for the run's checkpoints, logs and curves; default: outputs/train."
        ),
    ]
    preset: Annotated[
        str,
        Help(
            "Policy",
            "Size of the policy: base (CLIP ViT-B/16 encoders) or tiny (small encoders trained "
            "from scratch on a CPU, for the twin; it also changes training defaults).",
        ),
    ] = "base"
    policy: Annotated[
        Mapping[str, Any],
        Help(
            "Policy",
            "Set another policy field: NAME=VALUE, with LeRobot's names; repeat for more fields; "
            "default: the preset's values.",
        ),
    ] = field(default_factory=dict)

    steps: Annotated[int, Help("Length", "Number of optimiser steps.", low=1)] = 30_000
    max_minutes: Annotated[
        float | None,
        Help(
            "Length",
            "Stop after this many minutes, even if steps are left; the learning-rate schedule ends "
            "then; default: no time limit.",
        ),
    ] = None
    batch_size: Annotated[
        int,
        # as in LeRobot
        Help("Optimiser", "Number of samples in a batch, per process.", low=1, high=MAX_VALUE),
    ] = 64
    # samples per step = batch_size * processes * grad_accumulation
    grad_accumulation: Annotated[
        int,
        Help(
            "Optimiser",
            "Number of batches whose gradients make one optimiser step.",
            low=1,
            high=MAX_VALUE,
        ),
    ] = 1
    noise_samples: Annotated[
        int,
        Help(
            "Optimiser",
            "Number of (noise, timestep) draws per encoded observation; the expected loss stays "
            "the same.",
            low=1,
            high=MAX_VALUE,
        ),
    ] = 1
    seed: Annotated[
        int,
        Help("Start", "Random seed; the same seed gives the same run.", low=0, high=MAX_SEED),
    ] = 1000

    device: Annotated[
        str, Help("Machine", "Device to train on: auto, cpu, cuda, cuda:1 or mps.")
    ] = "auto"
    amp: Annotated[str, Help("Machine", "Mixed precision: no, bf16 or fp16.")] = "no"
    compile: Annotated[
        bool, Help("Machine", "Run the encoders and the denoiser through torch.compile.")
    ] = False
    ema: Annotated[
        bool, Help("Optimiser", "Average the weights over the steps (EMA) and save the average.")
    ] = True
    ema_max_decay: Annotated[float, Help("Optimiser", "Maximum EMA decay.")] = 0.9999
    grad_clip_norm: Annotated[float, Help("Optimiser", "Clip the gradient to this norm.")] = 10.0

    frames: Annotated[
        str,
        Help(
            "Data",
            "Where frames are read from: disk (decode once, cache), memory (decode at start-up), "
            "video (decode on demand).",
        ),
    ] = "disk"
    cache_dir: Annotated[
        Path | None, Help("Data", "Folder for the decoded frames; default: OUT/frames.")
    ] = None
    # the dataset's names
    cameras: Annotated[
        tuple[str, ...] | None,
        Help(
            "Data",
            "Cameras of the dataset to train on, comma-separated: top,wrist; default: all, or "
            "those of the policy that the run starts from.",
        ),
    ] = None
    rename_map: Annotated[
        Mapping[str, str],
        Help(
            "Data",
            "Names that the policy gives the dataset's cameras, as LeRobot's rename_map: "
            "DATASET_NAME=POLICY_NAME, comma-separated, or JSON; default: the dataset's names.",
        ),
    ] = field(default_factory=dict)
    # LeRobot's tolerance_s
    tolerance_seconds: Annotated[
        float,
        Help("Data", "How many seconds a frame of a video may be away from its row's timestamp."),
    ] = 1e-4
    check_frames: Annotated[
        bool, Help("Data", "Compare some frames of each camera with the dataset's statistics.")
    ] = True
    workers: Annotated[
        int, Help("Data", "Number of threads that prepare batches ahead.", low=1)
    ] = 2
    imagenet_stats: Annotated[
        bool,
        Help(
            "Data",
            "Normalise images with ImageNet's or the dataset's statistics; default: ImageNet's.",
        ),
    ] = True
    # LeRobot's JSON: max_num_transforms, random_order, tfs
    image_transforms: Annotated[
        Mapping[str, Any] | None,
        Help(
            "Data",
            "Augment images: 'default' (LeRobot's set), LeRobot's image_transforms as JSON, or a "
            "file with that JSON; default: no augmentation.",
        ),
    ] = None
    # edge-padded, one offset per sample
    random_shift_px: Annotated[
        int,
        Help("Data", "Shift each camera's frames at random by up to this many pixels.", low=0),
    ] = 0
    # one draw per sample
    random_brightness: Annotated[
        float, Help("Data", "Multiply each camera's pixels by 1 + N(0, this value).")
    ] = 0.0
    balance_tasks: Annotated[
        bool, Help("Data", "Draw every task equally often, however many frames it has.")
    ] = False
    # instruction -> how much more often it is drawn
    task_weights: Annotated[
        Mapping[str, float],
        Help(
            "Data",
            'Draw a task more often, e.g. "open the drawer=2" for twice; repeat for more tasks; '
            "default: 1 for every task.",
        ),
    ] = field(default_factory=dict)

    units: Annotated[
        str | None,
        Help(
            "Data",
            "Unit of the dataset's body joints: degrees, or normalized (-100..100, LeRobot's "
            "use_degrees=false); default: as recorded, else judged from the numbers.",
        ),
    ] = None
    val_split: Annotated[
        float,
        Help("Data", "Fraction of each task's episodes (the last) held out for validation."),
    ] = 0.0
    val_every: Annotated[
        int,
        Help("Results", "Compute the validation loss every N steps; needs --val-split.", low=1),
    ] = 1_000
    log_every: Annotated[int, Help("Results", "Log every N steps.", low=1)] = 50
    save_every: Annotated[int, Help("Results", "Save a checkpoint every N steps.", low=1)] = 5_000
    keep_checkpoints: Annotated[
        int | None,
        Help("Results", "Keep the newest N checkpoints and the best one; default: all.", low=1),
    ] = None
    tensorboard: Annotated[
        bool, Help("Results", "Write TensorBoard curves to OUT/tensorboard.")
    ] = True
    wandb: Annotated[
        str | None,
        Help("Results", "Also log to this Weights & Biases project; default: none."),
    ] = None

    resume: Annotated[
        bool,
        Help("Start", "Continue from the last checkpoint in --out, with that run's options."),
    ] = False
    init_from: Annotated[
        Path | None,
        Help(
            "Start",
            "Start from this policy's weights: a run, a checkpoint folder or a Hub repo id; "
            "default: new weights.",
        ),
    ] = None

    def __post_init__(self) -> None:
        for name in ("output_dir", "cache_dir", "init_from"):
            if isinstance(path := getattr(self, name), str):  # from Python, or from JSON
                object.__setattr__(self, name, Path(path))
        if self.cameras is not None:
            words = self.cameras.split(",") if isinstance(self.cameras, str) else self.cameras
            object.__setattr__(self, "cameras", tuple(word.strip() for word in words))
        weights = {one_form(task): weight for task, weight in self.task_weights.items()}
        object.__setattr__(self, "task_weights", weights)
        _check_train(self)

    def samples_per_step(self, processes: int) -> int:
        """Samples per step of the optimiser, over all processes."""
        return self.batch_size * self.grad_accumulation * processes


@cache
def field_help() -> dict[str, tuple[Any, Help]]:
    """The type and the help of each field of TrainConfig."""
    hints = get_type_hints(TrainConfig, include_extras=True)
    return {name: get_args(hint) for name, hint in hints.items()}


def _check_train(c: TrainConfig) -> None:
    numbers = [
        (name, getattr(c, name), text)
        for name, (_, text) in field_help().items()
        if getattr(c, name) is not None
    ]
    rules = [
        *(
            (value >= text.low, f"{name} must be at least {text.low}, got {value}")
            for name, value, text in numbers
            if text.low is not None
        ),
        *(
            (value <= text.high, f"{name} must be at most {text.high}, got {value}")
            for name, value, text in numbers
            if text.high is not None
        ),
        (c.preset in PRESETS, f"preset must be one of {', '.join(PRESETS)}, got {c.preset!r}"),
        (c.amp in ("no", "bf16", "fp16"), f"amp must be one of no, bf16, fp16, got {c.amp!r}"),
        (c.frames in FRAMES, f"frames must be one of {', '.join(FRAMES)}, got {c.frames!r}"),
        (
            c.units in (None, *ARM_UNITS),
            f"units must be one of {', '.join(ARM_UNITS)}, got {c.units!r}",
        ),
        (
            0 <= c.tolerance_seconds < 1,
            f"tolerance_seconds must be at least 0 and less than 1, got {c.tolerance_seconds}",
        ),
        (
            c.max_minutes is None or c.max_minutes > 0,
            f"max_minutes must be positive, got {c.max_minutes}",
        ),
        (0.0 <= c.ema_max_decay < 1.0, f"ema_max_decay must be in [0, 1), got {c.ema_max_decay}"),
        (c.grad_clip_norm > 0, f"grad_clip_norm must be positive, got {c.grad_clip_norm}"),
        (
            0.0 <= c.random_brightness < 1.0,
            f"random_brightness must be in [0, 1), got {c.random_brightness}",
        ),
        (0.0 <= c.val_split < 1.0, f"val_split must be in [0, 1), got {c.val_split}"),
        (
            all(0 < w < 1e9 for w in c.task_weights.values()),
            f"task_weights must be positive and below 1e9, got {dict(c.task_weights)}",
        ),
        (c.cameras is None or bool(c.cameras), "cameras must name at least one camera"),
        (c.wandb is None or bool(c.wandb.strip()), "wandb needs the name of a project"),
        (
            not (c.resume and c.init_from),
            "resume and init_from exclude each other: resume continues with the run's own weights",
        ),
        *(
            (
                old == new or STATE not in (old, new),
                f"rename_map has {old}={new}, but positions are called {STATE} in the dataset and "
                "in the policy: leave it out of the map; a feature of the dataset is renamed in "
                "meta/info.json, in meta/stats.json and as a column of data/",
            )
            for old, new in c.rename_map.items()
        ),
    ]
    for holds, message in rules:
        if not holds:
            raise UserError(message)
