"""`mtdit train`."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from functools import partial
from pathlib import Path
from shlex import quote
from typing import Annotated, Any

from mtdit.cli.flags import option, options_from, pairs, read_rename_map
from mtdit.cli.options import RUN, Overwrite
from mtdit.cli.outputs import RUN_CACHES, RUN_PROOF, clear_output
from mtdit.cli.terminal.console import console
from mtdit.training.config import TrainConfig, field_help
from mtdit.training.presets import training_defaults
from mtdit.training.rank import rank
from mtdit_robots.errors import UserError
from mtdit_runtime.files import read_json


@options_from(
    TrainConfig,
    field_help,
    policy=list[str],
    task_weights=list[str],
    image_transforms=str,
    rename_map=str,
    cameras=str,
)
def train(
    vision_encoder: Annotated[
        str | None,
        option(
            "Policy",
            "CLIP model that encodes images and text: a Hub name, a folder, or tiny; "
            "default: the preset's.",
        ),
    ] = None,
    objective: Annotated[
        str | None,
        option("Policy", "Training objective: diffusion or flow_matching; default: diffusion."),
    ] = None,
    horizon: Annotated[
        int | None, option("Policy", "Number of actions in a chunk; default: the preset's.", min=1)
    ] = None,
    overwrite: Overwrite = False,
    **fields: Any,
) -> None:
    """Train a Multitask DiT policy; lerobot-train flags are accepted as well.

    The checkpoint loads in LeRobot.
    """
    given = {name: value for name, value in fields.items() if value is not None and value != []}
    encoders = dict.fromkeys(("vision_encoder_name", "text_encoder_name"), vision_encoder)
    shortcuts = {"horizon": horizon, "objective": objective, **encoders}
    config, chosen = train_config(
        given, {name: value for name, value in shortcuts.items() if value is not None}
    )
    if not config.resume and rank() == 0:
        clear_output(
            config.output_dir,
            overwrite,
            RUN_PROOF,
            {RUN_PROOF},
            RUN_CACHES,
            partial(_check_sources, config),
            # its frames are compared with the dataset, and what is the same is not decoded again
            kept={"frames"} if config.frames == "disk" and config.cache_dir is None else set(),
        )
    from mtdit.training.reporters import console_reporter
    from mtdit.training.run import resumed_config
    from mtdit.training.run import train as fit
    from mtdit.training.trackers import tracked

    config = resumed_config(config, chosen) if config.resume else config
    if rank() != 0:
        fit(config)
        return
    with console_reporter(console.rich) as shown, tracked(config, shown) as reporter:
        checkpoint = fit(config, reporter)
    console.print(f"checkpoint: {checkpoint}")
    console.print(f"next: mtdit export {quote(str(config.output_dir))}")
    console.print(
        "      add --fp16 if the robot computer has an NVIDIA GPU; a CPU is slower with it"
    )


def train_config(
    given: Mapping[str, Any], shortcuts: Mapping[str, Any]
) -> tuple[TrainConfig, set[str]]:
    """The TrainConfig that the options of `train` describe, and the names of the fields that were
    given. UserError for a value that cannot be read, or without a dataset.

    shortcuts: policy fields that have an option of their own; --policy goes before them.
    """
    read = {
        "task_weights": _weights,
        "image_transforms": _image_transforms,
        "policy": _policy,
        "rename_map": read_rename_map,
    }
    options = {name: read.get(name, _as_is)(value) for name, value in given.items()}
    chosen = set(options)
    options["policy"] = {**shortcuts, **options.get("policy", {})}
    options.setdefault("output_dir", RUN)
    if not options.get("resume"):
        options = {**training_defaults(given.get("preset", TrainConfig.preset)), **options}
    elif "dataset" not in options:
        options["dataset"] = _dataset_of(options["output_dir"])
    if "dataset" not in options:
        raise UserError(
            "--dataset is missing: give a LeRobotDataset's folder or repo id, "
            "or --resume and the run's --out"
        )
    return TrainConfig(**options), chosen


def _check_sources(config: TrainConfig) -> None:
    """UserError if the dataset or the initial weights do not exist, or if they are inside --out and
    --overwrite would delete them, or if another run is writing to --out.
    """
    from mtdit.checkpoint.read import open_to_train
    from mtdit.data.frames import check_dataset
    from mtdit.training.checkpoints import output_dir_lock

    with output_dir_lock(config.output_dir):
        pass
    check_dataset(config.dataset)
    if config.init_from is not None:
        open_to_train(config.init_from, config.rename_map or None)
    for flag, place in (
        ("--dataset", Path(config.dataset).expanduser()),
        ("--init-from", config.init_from),
    ):
        if (
            place is not None
            and place.exists()
            and place.resolve().is_relative_to(config.output_dir.resolve())
        ):
            raise UserError(
                f"{flag} {place} is in {config.output_dir}, which --overwrite empties: "
                "choose another --out"
            )


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


def _as_is(value: Any) -> Any:
    return value


def _weights(words: Iterable[str]) -> dict[str, float]:
    weights = {}
    for task, value in pairs("--task-weight", words, '"open the drawer=2"').items():
        try:
            weights[task] = float(value)
        except ValueError:
            raise UserError(
                f'--task-weight "{task}={value}": {value!r} is not a number: '
                f'write --task-weight "{task}=2"'
            ) from None
    return weights


def _policy(words: Iterable[str]) -> dict[str, Any]:
    """The fields of --policy; a value that is not JSON is taken as a string."""

    def read(value: str) -> Any:
        try:
            return json.loads(value)
        except json.JSONDecodeError:
            return value

    return {n: read(value) for n, value in pairs("--policy", words, "horizon=32").items()}


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
