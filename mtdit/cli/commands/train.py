"""`mtdit train`."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import fields
from functools import partial
from pathlib import Path
from shlex import quote
from typing import Annotated, Any

import typer
from typer.core import TyperCommand

from mtdit.cli.options import MAX_SEED, RUN
from mtdit.cli.outputs import RUN_CACHES, RUN_PROOF, clear_output
from mtdit.cli.rig import pairs_of
from mtdit.cli.terminal.console import console, rank
from mtdit.training.config import TrainConfig, training_defaults
from mtdit_robots.errors import UserError
from mtdit_runtime.files import read_json


class GroupedHelp(TyperCommand):
    """Help that lists the options under the headings they were declared with."""

    def format_options(self, ctx: Any, formatter: Any) -> None:
        groups: dict[str, list[tuple[str, str]]] = {}
        for option in self.get_params(ctx):
            record = option.get_help_record(ctx)
            if record is not None:
                heading = getattr(option, "rich_help_panel", None) or "Help"
                groups.setdefault(heading, []).append(record)
        for name, records in groups.items():
            with formatter.section(name):
                formatter.write_dl(records)


def _ask(group: str, says: str, like: str = "", names: str = "", **limits: Any) -> Any:
    """An option of `train` without a value of its own: leaving it out is not the same as its
    default, which the preset may change. like: the TrainConfig field whose default the help shows.
    """
    # typer prints a `show_default` string in parentheses, so the default is part of the text
    default = f" [default: {getattr(TrainConfig, like)}]" if like else ""
    return typer.Option(
        *names.split(), help=says + default, rich_help_panel=group, show_default=False, **limits
    )


def train(
    dataset: Annotated[
        str | None,
        _ask(
            "Data",
            "LeRobotDataset v3 to train on: a folder or a Hub repo id; default with --resume: the "
            "run's dataset.",
        ),
    ] = None,
    frames: Annotated[
        str | None,
        _ask(
            "Data",
            "Where frames are read from: disk (decode once, cache), memory (decode at start-up), "
            "video (decode on demand).",
            "frames",
        ),
    ] = None,
    cache_dir: Annotated[
        Path | None, _ask("Data", "Folder for the decoded frames; default: OUT/frames.")
    ] = None,
    workers: Annotated[
        int | None,
        _ask("Data", "Number of threads that prepare batches ahead.", "workers", min=1),
    ] = None,
    imagenet_stats: Annotated[
        bool | None,
        _ask(
            "Data",
            "Normalise images with ImageNet's or the dataset's statistics; default: ImageNet's.",
            names="--imagenet-stats/--dataset-stats",
        ),
    ] = None,
    image_transforms: Annotated[
        str | None,
        _ask(
            "Data",
            "Augment images: 'default' (LeRobot's set), LeRobot's image_transforms as JSON, or a "
            "file with that JSON; off if omitted.",
        ),
    ] = None,
    random_shift_px: Annotated[
        int | None,
        _ask(
            "Data",
            "Shift each camera's frames at random by up to this many pixels.",
            "random_shift_px",
            "--random-shift",
            min=0,
        ),
    ] = None,
    random_brightness: Annotated[
        float | None,
        _ask("Data", "Multiply each camera's pixels by 1 + N(0, this value).", "random_brightness"),
    ] = None,
    balance_tasks: Annotated[
        bool | None,
        _ask(
            "Data",
            "Draw every task equally often, however many frames it has; default: no.",
            names="--balance-tasks/--no-balance-tasks",
        ),
    ] = None,
    task_weights: Annotated[
        list[str] | None,
        _ask(
            "Data",
            'Draw a task more often, e.g. "open the drawer=2" for twice; repeat for more tasks; '
            "default: 1 for every task.",
            names="--task-weight",
        ),
    ] = None,
    val_split: Annotated[
        float | None,
        _ask("Data", "Fraction of each task's episodes held out for validation.", "val_split"),
    ] = None,
    preset: Annotated[
        str | None,
        _ask(
            "Policy",
            "Size of the policy: base (CLIP ViT-B/16 encoders) or tiny (small encoders trained "
            "from scratch on a CPU, for the twin; it also changes training defaults).",
            "preset",
        ),
    ] = None,
    vision_encoder: Annotated[
        str | None,
        _ask(
            "Policy",
            "CLIP model that encodes images and text: a Hub name, a folder, or tiny; "
            "default: the preset's.",
        ),
    ] = None,
    objective: Annotated[
        str | None,
        _ask("Policy", "Training objective: diffusion or flow_matching; default: diffusion."),
    ] = None,
    horizon: Annotated[
        int | None, _ask("Policy", "Number of actions in a chunk; default: the preset's.", min=1)
    ] = None,
    policy: Annotated[
        list[str] | None,
        _ask("Policy", "Set another policy field: NAME=VALUE, with LeRobot's names; repeat."),
    ] = None,
    steps: Annotated[
        int | None, _ask("Length", "Number of optimiser steps.", "steps", min=1)
    ] = None,
    max_minutes: Annotated[
        float | None,
        _ask(
            "Length",
            "Stop after this many minutes; the LR schedule ends then. Default: no time limit.",
        ),
    ] = None,
    batch_size: Annotated[
        int | None,
        _ask("Length", "Number of samples in a batch, per process.", "batch_size", min=1),
    ] = None,
    grad_accumulation: Annotated[
        int | None,
        _ask(
            "Length",
            "Number of batches whose gradients make one optimiser step.",
            "grad_accumulation",
            min=1,
        ),
    ] = None,
    noise_samples: Annotated[
        int | None,
        _ask(
            "Length",
            "Number of (noise, timestep) draws per encoded observation.",
            "noise_samples",
            min=1,
        ),
    ] = None,
    seed: Annotated[
        int | None,
        _ask(
            "Length",
            "Random seed; the same seed gives the same run.",
            "seed",
            min=0,
            max=MAX_SEED,
        ),
    ] = None,
    device: Annotated[
        str | None, _ask("Machine", "Device to train on: auto, cpu, cuda, cuda:1 or mps.", "device")
    ] = None,
    amp: Annotated[str | None, _ask("Machine", "Mixed precision: no, bf16 or fp16.", "amp")] = None,
    compile: Annotated[
        bool | None,
        _ask(
            "Machine",
            "Run the network through torch.compile; default: no.",
            names="--compile/--no-compile",
        ),
    ] = None,
    ema: Annotated[
        bool | None,
        _ask(
            "Machine",
            "Average the weights over the steps (EMA) and save the average; default: yes.",
            names="--ema/--no-ema",
        ),
    ] = None,
    ema_max_decay: Annotated[
        float | None, _ask("Machine", "Maximum EMA decay.", "ema_max_decay")
    ] = None,
    grad_clip_norm: Annotated[
        float | None,
        _ask("Machine", "Clip the gradient to this norm.", "grad_clip_norm", "--grad-clip"),
    ] = None,
    out: Annotated[
        Path,
        typer.Option(
            help="Folder for the run's checkpoints, logs and curves.", rich_help_panel="Results"
        ),
    ] = RUN,
    log_every: Annotated[
        int | None, _ask("Results", "Log every N steps.", "log_every", min=1)
    ] = None,
    val_every: Annotated[
        int | None,
        _ask(
            "Results",
            "Compute the validation loss every N steps; needs --val-split.",
            "val_every",
            min=1,
        ),
    ] = None,
    save_every: Annotated[
        int | None, _ask("Results", "Save a checkpoint every N steps.", "save_every", min=1)
    ] = None,
    keep_checkpoints: Annotated[
        int | None,
        _ask("Results", "Keep the newest N checkpoints and the best one; default: all.", min=1),
    ] = None,
    tensorboard: Annotated[
        bool | None,
        _ask(
            "Results",
            "Write TensorBoard curves to OUT/tensorboard; default: yes.",
            names="--tensorboard/--no-tensorboard",
        ),
    ] = None,
    wandb: Annotated[
        str | None, _ask("Results", "Also log to this Weights & Biases project; default: none.")
    ] = None,
    resume: Annotated[
        bool,
        _ask(
            "Start",
            "Continue from the last checkpoint in --out, with that run's options.",
            names="--resume",
        ),
    ] = False,
    init_from: Annotated[
        Path | None,
        _ask(
            "Start",
            "Start from this policy's weights: a run, a checkpoint folder or a Hub repo id; "
            "default: new weights.",
        ),
    ] = None,
    overwrite: Annotated[
        bool,
        _ask(
            "Start",
            "Replace an earlier run in --out; default: stop if there is one.",
            names="--overwrite",
        ),
    ] = False,
) -> None:
    """Train a Multitask DiT policy; lerobot-train flags are accepted as well.

    The checkpoint loads in LeRobot.
    """
    given = {name: value for name, value in locals().items() if value is not None and value != []}
    config, chosen = _train_config(given)
    if not resume and rank() == 0:
        clear_output(
            out, overwrite, RUN_PROOF, {RUN_PROOF}, RUN_CACHES, partial(_check_sources, config)
        )
    from mtdit.training.reporters import console_reporter
    from mtdit.training.run import resumed_config
    from mtdit.training.run import train as fit
    from mtdit.training.trackers import tracked

    config = resumed_config(config, chosen) if resume else config
    if rank() == 0:
        with console_reporter(console) as voice, tracked(config, voice) as reporter:
            checkpoint = fit(config, reporter)
    else:
        checkpoint = fit(config)
    if rank() == 0:
        console.print(f"checkpoint: {checkpoint}")
        console.print(f"next: mtdit export {quote(str(out))} --fp16")


# -- a training's options


def _train_config(given: Mapping[str, Any]) -> tuple[TrainConfig, set[str]]:
    """The TrainConfig that the options of `train` describe, and the names of the fields that were
    given. UserError for a value that cannot be read, or without a dataset.
    """
    options = {f.name: given[f.name] for f in fields(TrainConfig) if f.name in given}
    read = {"task_weights": _weights, "image_transforms": _image_transforms}
    options.update({name: parse(given[name]) for name, parse in read.items() if name in given})
    chosen = set(options)
    options["policy"] = {**_shortcuts(given), **dict(_fields(given.get("policy", [])))}
    if not given["resume"]:
        options = {**training_defaults(given.get("preset", TrainConfig.preset)), **options}
    elif "dataset" not in options:
        options["dataset"] = _dataset_of(given["out"])
    if "dataset" not in options:
        raise UserError(
            "--dataset is missing: give a LeRobotDataset's folder or repo id, "
            "or --resume and the run's --out"
        )
    return TrainConfig(output_dir=given["out"], **options), chosen


def _check_sources(config: TrainConfig) -> None:
    """UserError if the dataset or the initial weights do not exist, or if they are inside --out and
    --overwrite would delete them, or if another run is writing to --out.
    """
    from mtdit.checkpoint.read import open_to_train
    from mtdit.data.frame_cache import check_dataset
    from mtdit.training.checkpoints import output_dir_lock

    with output_dir_lock(config.output_dir):
        pass
    check_dataset(config.dataset)
    if config.init_from is not None:
        open_to_train(config.init_from)
    for option, place in (
        ("--dataset", Path(config.dataset).expanduser()),
        ("--init-from", config.init_from),
    ):
        if (
            place is not None
            and place.exists()
            and place.resolve().is_relative_to(config.output_dir.resolve())
        ):
            raise UserError(
                f"{option} {place} is in {config.output_dir}, which --overwrite empties: "
                "choose another --out"
            )


def _shortcuts(given: Mapping[str, Any]) -> dict[str, Any]:
    """Policy fields that have an option of their own."""
    shortcuts = {name: given[name] for name in ("horizon", "objective") if name in given}
    if "vision_encoder" in given:
        names = ("vision_encoder_name", "text_encoder_name")
        shortcuts.update(dict.fromkeys(names, given["vision_encoder"]))
    return shortcuts


def _dataset_of(run: Path) -> str:
    """The dataset that a run was trained on; the run may be LeRobot's."""
    from mtdit.checkpoint.find import find_last_checkpoint
    from mtdit.checkpoint.names import PRETRAINED, TRAIN_CONFIG

    raw = read_json(find_last_checkpoint(run) / PRETRAINED / TRAIN_CONFIG)
    dataset = raw.get("dataset") if isinstance(raw, dict) else None
    name = (dataset.get("root") or dataset.get("repo_id")) if isinstance(dataset, dict) else dataset
    if not isinstance(name, str):
        raise UserError(f"{run} does not name the dataset it was trained on: add --dataset")
    return name


def _weights(words: Iterable[str]) -> dict[str, float]:
    weights = {}
    for task, value in pairs_of("--task-weight", words):
        try:
            weights[task] = float(value)
        except ValueError:
            raise UserError(
                f'--task-weight "{task}={value}": {value!r} is not a number: '
                f'write --task-weight "{task}=2"'
            ) from None
    return weights


def _image_transforms(word: str) -> Mapping[str, Any]:
    """LeRobot's image_transforms, from JSON or from a file; `default` is LeRobot's own set."""
    if word == "default":
        return {}
    if not word.lstrip().startswith("{"):
        read = read_json(Path(word))
    else:
        try:
            read = json.loads(word)
        except json.JSONDecodeError as error:
            raise UserError(
                f"--image-transforms is not valid JSON ({error}): put it in single quotes"
            ) from None
    if not isinstance(read, dict):
        raise UserError(
            f"--image-transforms {word} is not a JSON object: "
            "give LeRobot's image_transforms, or default"
        )
    return read


def _fields(words: Iterable[str]) -> Iterator[tuple[str, Any]]:
    """Names and values of --policy; a value that is not JSON is taken as a string."""
    for name, value in pairs_of("--policy", words):
        try:
            yield name, json.loads(value)
        except json.JSONDecodeError:
            yield name, value
