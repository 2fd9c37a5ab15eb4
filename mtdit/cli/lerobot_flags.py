"""Translate `lerobot-train` flags to `mtdit train` options.

Covers the flags of lerobot-train 0.6 (lerobot/configs/train.py, default.py). Each becomes an option
of `mtdit train`, or is ignored with a note that says why, or is refused if training without it
would train something else. Options of `mtdit train` pass through unchanged, so one line may mix
both.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

from mtdit.cli.lerobot_defaults import unlike_lerobot
from mtdit.policies.multi_task_dit.config import PolicyConfig
from mtdit_robots.errors import UserError
from mtdit_robots.features import ACTION, IMAGES, STATE

CHECKPOINTS = "checkpoints"

# flag -> option of `mtdit train` that takes the same value
SAME = {
    "output_dir": "--out",
    "batch_size": "--batch-size",
    "save_freq": "--save-every",
    "log_freq": "--log-every",
    "eval_steps": "--val-every",
    "policy.device": "--device",
    "policy.path": "--init-from",
    "policy.pretrained_path": "--init-from",
    "dataset.eval_split": "--val-split",
    "tolerance_s": "--tolerance-seconds",
    "accelerator.mixed_precision": "--amp",
    "rename_map": "--rename-map",
}
SWITCHES = {  # flag -> option for true, option for false
    "dataset.use_imagenet_stats": ("--imagenet-stats", "--dataset-stats"),
    "ema.enable": ("--ema", "--no-ema"),
}
NO_ENV = "training does not evaluate in a simulator, `mtdit eval` does"
SPEED_ONLY = "it changes only the speed of LeRobot's data loader"
IGNORED = {  # flag, or the group it belongs to -> why it is ignored
    "env_eval_freq": NO_ENV,
    "eval_freq": NO_ENV,
    "env": NO_ENV,
    "eval": NO_ENV,
    "job_name": "the run has the name of --output_dir",
    "job": "the training runs on the computer where it is started",
    "policy.repo_id": "nothing is uploaded, `hf upload` does that",
    "policy.private": "nothing is uploaded",
    "policy.tags": "nothing is uploaded",
    "policy.license": "nothing is uploaded",
    "save_checkpoint_to_hub": "nothing is uploaded",
    "dataset.video_backend": "videos are always decoded with PyAV",
    "dataset.return_uint8": "frames are always kept as uint8",
    "dataset.repo_type": "only repositories of type dataset are supported",
    "dataset.depth_output_unit": "depth images are not used",
    "prefetch_factor": SPEED_ONLY,
    "persistent_workers": SPEED_ONLY,
    "dataloader_multiprocessing_context": "threads load the data, not processes",
    "cudnn_deterministic": "every step has its own random seed",
    "max_eval_samples": "the validation loss uses all held-out samples",
    "wandb.entity": "set WANDB_ENTITY instead",
    "wandb.notes": "set WANDB_NOTES instead",
    "wandb.mode": "set WANDB_MODE instead",
    "wandb.run_id": "a run gets its own id, and --resume keeps it",
    "wandb.add_tags": "set WANDB_TAGS instead",
    "wandb.disable_artifact": "checkpoints are not uploaded",
}
HARMLESS = {  # flag -> the only value that is supported, and what to do instead of another one
    "policy.push_to_hub": ("false", "nothing is uploaded: set it to false, run `hf upload` later"),
    "policy.use_peft": ("false", "adapters are not supported: leave it out to train all weights"),
    "dataset.streaming": ("false", "datasets are read from disk: leave it out"),
    "save_checkpoint": ("true", "checkpoints are always saved: raise --save_freq for fewer"),
    "use_policy_training_preset": (
        "true",
        "set --policy.optimizer_lr and the other --policy.optimizer_ flags instead",
    ),
}
REFUSED = {  # flag, or the group it belongs to -> what to do instead
    "dataset.episodes": (
        "make a dataset without the others with "
        "`lerobot-edit-dataset --operation.type delete_episodes`"
    ),
    "dataset.revision": "download that revision and pass its folder as --dataset.root",
    "peft": "adapters are not supported; leave it out to train all weights",
    "optimizer": "use --policy.optimizer_lr, _betas, _eps and _weight_decay, and --grad-clip-norm",
    "scheduler": "set --policy.scheduler_name and --policy.scheduler_warmup_steps",
    "sample_weighting": "use --balance-tasks or --task-weight",
    "reward_model": "only policies can be trained; leave it out",
    "checkpoint_path": "use --config_path with --resume=true, or --init-from",
    "policy.pretrained_revision": "download that revision and pass its folder as --policy.path",
    "ema": "use --ema or --no-ema",
    "accelerator": "use --amp and --grad-accumulation",
}
# flags that are translated together, once all of them are read
TOGETHER = (
    "dataset.repo_id",
    "dataset.root",
    "policy.type",
    "policy.use_amp",
    "num_workers",
    "resume",
    "config_path",
    "wandb.enable",
    "wandb.project",
    "policy.input_features",
    "policy.output_features",
    "dataset.image_transforms.enable",
    "dataset.image_transforms.max_num_transforms",
    "dataset.image_transforms.random_order",
    "dataset.image_transforms.tfs",
)
POLICY_FIELDS = tuple(
    f.name
    for f in fields(PolicyConfig)
    if f.name not in ("device", "use_amp", "input_features", "output_features")
)
KNOWN = (
    *SAME,
    *SWITCHES,
    *IGNORED,
    *HARMLESS,
    *REFUSED,
    *TOGETHER,
    *(f"policy.{name}" for name in POLICY_FIELDS),
)


@dataclass(frozen=True)
class Translation:
    """The options of `mtdit train`; notes about flags that were ignored or changed, and a line
    about defaults that are unlike LeRobot's.
    """

    words: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    unlike: str = ""


def translate(words: Sequence[str]) -> Translation:
    """Translate the words after `mtdit train`. UserError for a flag that is unknown or not
    supported.
    """
    out = Translation()
    flags = dict(_read(words, out))
    for name, value in flags.items():
        if name not in TOGETHER:
            _one(name, value, out)
    for together in (_policy_type, _dataset, _inputs, _resume, _amp, _workers, _wandb, _transforms):
        together(flags, out)
    return replace(out, unlike=_unlike(flags, out.words))


def _unlike(flags: Mapping[str, str], words: Sequence[str]) -> str:
    """The line about defaults: for a new training in LeRobot's words, without a preset by name."""
    names = {word.partition("=")[0] for word in words if word.startswith("--")}
    if not flags or names & {"--preset", "--resume"}:
        return ""
    ours = {"--steps": "steps", "--ema": "ema.enable", "--no-ema": "ema.enable"}
    ours |= {option: flag for flag, option in SAME.items()}
    policy = {f"policy.{w.partition('=')[0]}" for o, w in pairwise(words) if o == "--policy"}
    given = {*flags, *policy, *(ours[name] for name in names & ours.keys())}
    return unlike_lerobot(given, has_weights="--init-from" in names)


def _read(words: Sequence[str], out: Translation) -> Iterator[tuple[str, str]]:
    """LeRobot's flags with their values, from `--a=b` or `--a b`. All other words go to `out`;
    underscores in options become hyphens.
    """
    left = list(words)
    while left:
        word = left.pop(0)
        name, sign, value = word.removeprefix("--").partition("=")
        if not _is_theirs(word, name, bool(sign), left):
            out.words.append(
                f"--{name.replace('_', '-')}{sign}{value}" if word.startswith("--") else word
            )
        elif sign:
            yield name, value
        else:
            yield name, left.pop(0) if left and not left[0].startswith("--") else "true"


def _is_theirs(word: str, name: str, has_value: bool, after: Sequence[str]) -> bool:
    """True for a flag of lerobot-train only; a bare --resume is an option of `mtdit train`."""
    if name == "resume":
        return has_value or bool(after and after[0].lower() in ("true", "false"))
    return word.startswith("--") and ("." in name or ("_" in name and name in KNOWN))


def _one(name: str, value: str, out: Translation) -> None:
    """Translate a flag that does not depend on other flags."""
    policy_field = name.removeprefix("policy.")
    if name in SAME:
        out.words.extend([SAME[name], value])
    elif name in SWITCHES:
        out.words.append(SWITCHES[name][not _is_true(name, value)])
    elif name.startswith("policy.") and policy_field in POLICY_FIELDS:
        out.words.extend(["--policy", f"{policy_field}={_as_json(value)}"])
    elif name in HARMLESS:
        wanted, why = HARMLESS[name]
        if _is_true(name, value) != (wanted == "true"):
            raise UserError(f"--{name}={value} is not supported: {why}")
    elif (known := _first_words(name, IGNORED)) is not None:
        out.notes.append(f"ignored: --{name}; {IGNORED[known]}")
    elif (known := _first_words(name, REFUSED)) is not None:
        raise UserError(f"--{name} is not supported: {REFUSED[known]}")
    else:
        near = difflib.get_close_matches(name, KNOWN, n=1)
        hint = f"did you mean --{near[0]}?" if near else "`mtdit train --help` lists the options"
        raise UserError(f"LeRobot's trainer has no flag --{name}; {hint}")


def _first_words(name: str, table: Mapping[str, str]) -> str | None:
    """The table's key for this flag or for its group, e.g. `env` for `env.type`."""
    return next((known for known in (name, name.partition(".")[0]) if known in table), None)


def _policy_type(flags: Mapping[str, str], out: Translation) -> None:
    kind = flags.get("policy.type", "multi_task_dit")
    if kind != "multi_task_dit":
        raise UserError(
            f"--policy.type={kind} is not supported, only multi_task_dit is: "
            "train other policies with lerobot-train"
        )


def _dataset(flags: Mapping[str, str], out: Translation) -> None:
    """LeRobot's `root` is the local folder of the dataset that `repo_id` names."""
    dataset = flags.get("dataset.root") or flags.get("dataset.repo_id")
    if dataset:
        out.words.extend(["--dataset", dataset])


def _inputs(flags: Mapping[str, str], out: Translation) -> None:
    """The cameras among the policy's inputs; sizes are the dataset's. Other inputs than cameras and
    positions, and other outputs than the action, it cannot have.
    """
    inputs = _features_of("policy.input_features", flags)
    cameras = [key for key, kind in inputs.items() if kind == "VISUAL"]
    others = [key for key in inputs if key not in (STATE, *cameras)]
    if others or (inputs and STATE not in inputs):
        what = f"{others[0]} is no input of this policy" if others else f"{STATE} is missing"
        raise UserError(
            f"--policy.input_features: {what}: name {STATE} and cameras, or use --cameras"
        )
    if cameras:
        out.words.extend(["--cameras", ",".join(key.removeprefix(IMAGES) for key in cameras)])
    if set(_features_of("policy.output_features", flags)) - {ACTION}:
        raise UserError(f"--policy.output_features: {ACTION} is this policy's only output")


def _features_of(name: str, flags: Mapping[str, str]) -> dict[str, str]:
    """Feature -> type, of LeRobot's JSON: {"observation.state": {"type": "STATE", "shape": [6]}}"""
    try:
        features = json.loads(_as_json(flags.get(name, "null"))) or {}
        return {key: str(feature["type"]) for key, feature in features.items()}
    except (json.JSONDecodeError, AttributeError, KeyError, TypeError):
        raise UserError(
            f"--{name} is not JSON of features, each with a type: put it in single quotes, or "
            "leave it out"
        ) from None


def _resume(flags: Mapping[str, str], out: Translation) -> None:
    resume, path = _is_true("resume", flags.get("resume", "false")), flags.get("config_path")
    if path is not None and not resume:
        raise UserError(
            "--config_path needs --resume=true: for a new run, give the options themselves"
        )
    if resume:
        out.words.append("--resume")
    if path is not None:
        out.words.extend(["--out", _run_folder(path)])


def _run_folder(path: str) -> str:
    """RUN of RUN/checkpoints/STEP/pretrained_model/train_config.json, or of a folder above it."""
    parts = Path(path).parts
    if CHECKPOINTS not in parts:
        raise UserError(
            f"--config_path={path} is not inside a run: "
            f"give RUN/{CHECKPOINTS}/last/pretrained_model/train_config.json"
        )
    return str(Path(*parts[: len(parts) - 1 - parts[::-1].index(CHECKPOINTS)]))


def _amp(flags: Mapping[str, str], out: Translation) -> None:
    if _is_true("policy.use_amp", flags.get("policy.use_amp", "false")):
        out.words.extend(["--amp", "bf16"])
        out.notes.append(
            "--policy.use_amp: trains in bf16; LeRobot uses fp16 on CUDA, add --amp fp16 for that"
        )


def _workers(flags: Mapping[str, str], out: Translation) -> None:
    """LeRobot's 0 means the main process; here a thread always loads ahead, so it becomes 1."""
    if "num_workers" in flags:
        out.words.extend(
            ["--workers", "1" if flags["num_workers"] == "0" else flags["num_workers"]]
        )


def _wandb(flags: Mapping[str, str], out: Translation) -> None:
    if _is_true("wandb.enable", flags.get("wandb.enable", "false")):
        out.words.extend(["--wandb", flags.get("wandb.project", "lerobot")])


def _transforms(flags: Mapping[str, str], out: Translation) -> None:
    prefix = "dataset.image_transforms."
    said = {
        name.removeprefix(prefix): value for name, value in flags.items() if name.startswith(prefix)
    }
    if not _is_true(f"{prefix}enable", said.pop("enable", "false")):
        return
    chosen: dict[str, Any] = {}
    for name, value in said.items():
        try:
            chosen[name] = json.loads(_as_json(value))
        except json.JSONDecodeError as error:
            raise UserError(
                f"--{prefix}{name} is not valid JSON ({error}): put it in single quotes"
            ) from None
    out.words.extend(["--image-transforms", json.dumps(chosen) if chosen else "default"])


def _is_true(name: str, value: str) -> bool:
    if value.lower() not in ("true", "false"):
        raise UserError(f"--{name} must be true or false, got {value!r}: write --{name}=true")
    return value.lower() == "true"


def _as_json(value: str) -> str:
    """JSON of a value that is written as in Python, which LeRobot accepts too."""
    plain = {"True": "true", "False": "false", "None": "null", "~": "null"}.get(value, value)
    return f"[{plain[1:-1]}]" if plain.startswith("(") and plain.endswith(")") else plain
