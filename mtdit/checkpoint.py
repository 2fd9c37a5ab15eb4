"""Checkpoints on disk, in LeRobot's own layout, so that LeRobot loads ours and we load LeRobot's.

    RUN/checkpoints/<step>/pretrained_model/   config.json  model.safetensors  train_config.json
                                               policy_{pre,post}processor.json and the statistics
                                               they name
                                               mtdit.json (joints, fps, tasks)  clip/ (CLIP's shape,
                                               tokenizer)
    RUN/checkpoints/<step>/training_state/     what resuming needs; LeRobot's is read as well
    RUN/checkpoints/last -> <step>

Two more are read: a repository of the Hugging Face Hub, and the folders of
brysonjones/multitask_dit_policy. Knows files. Refuses to know how a policy is trained or run. Every
checkpoint is written under another name and renamed, so a crash or a full disk leaves the one
before it intact. Two things LeRobot does not write: mtdit.json, because a LeRobot checkpoint does
not say which joints it moves, and clip/, so that a checkpoint can be exported without the CLIP it
started from. LeRobot itself still wants the CLIPs of config.json where their names say.
"""

from __future__ import annotations

import json
import math
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from mtdit import brysonjones
from mtdit.config import (
    ACTION,
    STATE,
    PolicyConfig,
    check_policy_type,
    policy_config_from_json,
    policy_config_to_dict,
    read_json,
)
from mtdit.dit import Denoiser
from mtdit.encoders import (
    TOKENIZER,
    ClipShape,
    ObservationEncoder,
    clip_shapes,
    load_tokenizer,
    save_tokenizer,
    shape_of,
)
from mtdit.hub import fetch, is_repo_id
from mtdit.policy import Policy
from mtdit.tiny import write_tokenizer
from mtdit_robots.errors import UserError
from mtdit_runtime.bundle import MOST, from_json
from mtdit_runtime.normalize import Stats

CONFIG, WEIGHTS, TRAIN_CONFIG = "config.json", "model.safetensors", "train_config.json"
STEP, OPTIMIZER, LIVE = (
    "training_step.json",
    "optimizer_state.safetensors",
    "live_weights.safetensors",
)
PREPROCESSOR, POSTPROCESSOR = "policy_preprocessor.json", "policy_postprocessor.json"
PRETRAINED, TRAINING_STATE, CHECKPOINTS, LAST = (
    "pretrained_model",
    "training_state",
    "checkpoints",
    "last",
)
PRETRAINED_EMA = "pretrained_model_ema"  # LeRobot's, from 0.6.2 on
FACTS, CLIP = "mtdit.json", "clip"
EPS = 1e-8  # LeRobot's, added to the standard deviation
LARGEST = 1e30  # of a statistic: the difference of two still fits into float32
NEEDED = {
    "MIN_MAX": ("min", "max"),
    "MEAN_STD": ("mean", "std"),
    "IDENTITY": ("min",),
}  # mode -> statistics

DatasetStats = Mapping[
    str, Mapping[str, NDArray[np.float32]]
]  # feature -> min, max, mean, std ... -> values


@dataclass(frozen=True)
class DatasetFacts:
    """What a policy remembers of its demonstrations."""

    dataset: str
    fps: int
    joints: tuple[str, ...]  # in the order of state and action, without ".pos"
    tasks: tuple[str, ...]
    max_speed: tuple[
        float, ...
    ]  # units per second, 99.9th percentile of the commanded speed per joint
    robot_type: str = ""


@dataclass(frozen=True)
class Checkpoint:
    """An opened pretrained_model folder. Weights and tokenizer are read when asked for."""

    folder: Path
    config: PolicyConfig
    dataset_stats: DatasetStats
    facts: DatasetFacts | None  # None for a checkpoint that another program wrote
    trainable: bool = True  # whether LeRobot's format can hold what a training would make of it

    @property
    def stats_file(self) -> Path:
        return normalizer_file(self.folder)

    @property
    def state_stats(self) -> Stats:
        return feature_stats(self.config, self.dataset_stats, STATE)

    @property
    def action_stats(self) -> Stats:
        return feature_stats(self.config, self.dataset_stats, ACTION)

    def image_scaling(self, camera: str) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        return image_scaling(self.config, self.dataset_stats, camera)

    def policy(self, device: str | torch.device = "cpu") -> Policy:
        """The trained policy, in eval mode. UserError when the weights are missing, broken or
        another network's.
        """
        weights = self.weights()
        shape = self.clip_shape(weights)
        check_fit(
            _outline(self.config, shape, self.folder / CONFIG), weights, self.folder / WEIGHTS
        )
        policy = Policy(self.config, shape)
        fill(policy, weights, self.folder / WEIGHTS)
        check_finite(policy.state_dict(), self.folder / WEIGHTS)
        return policy.to(device).eval()

    def weights(self) -> dict[str, Tensor]:
        """Under LeRobot's names."""
        return read_tensors(self.folder / WEIGHTS)

    def clip_shape(self, weights: Mapping[str, Tensor]) -> ClipShape:
        return clip_shapes(self.config, self.folder / CLIP, weights)

    def tokenizer(self) -> Any:
        """CLIP's tokenizer, as transformers has it."""
        with self.tokenizer_folder() as folder:
            return load_tokenizer(folder)

    @contextmanager
    def tokenizer_folder(self) -> Iterator[Path]:
        """A folder with tokenizer.json: the checkpoint's, its CLIP's, or one made of the vocabulary
        all CLIPs share.
        """
        named = Path(self.config.text_encoder_name)
        candidates = (
            self.folder / CLIP,
            self.folder / "tokenizer",
            named,
        )  # the second is LeRobot's, from 0.6.2 on
        kept = [folder for folder in candidates if os.path.isfile(folder / TOKENIZER)]
        with tempfile.TemporaryDirectory() as scratch:
            if not kept:
                write_tokenizer(Path(scratch))
            yield kept[0] if kept else Path(scratch)


@dataclass(frozen=True)
class BrysonJonesCheckpoint(Checkpoint):
    """A folder of that repository's trainer: other names, and a vision feature that LeRobot does
    not know.
    """

    trainable: bool = False

    @property
    def stats_file(self) -> Path:
        return self.folder / brysonjones.STATS

    def weights(self) -> dict[str, Tensor]:
        return brysonjones.renamed(super().weights(), self.config)

    def clip_shape(self, weights: Mapping[str, Tensor]) -> ClipShape:
        text = shape_of(self.config.text_encoder_name, self.folder / CLIP, weights).text
        return ClipShape(brysonjones.tower_shape(self.config, weights), text)


# --- reading


def open_checkpoint(path: Path) -> Checkpoint:
    """Opens what `find_pretrained` finds; UserError when it is no policy of ours, LeRobot's or
    brysonjones', or broken.

    All is checked but the weights and the tokenizer, which are when they are read.
    """
    folder = find_pretrained(Path(path))
    raw = read_json(folder / CONFIG)
    facts = _read_facts(folder / FACTS) if (folder / FACTS).is_file() else None
    if brysonjones.is_config(raw):
        config = brysonjones.policy_config(raw, str(folder / CONFIG))
        opened: Checkpoint = BrysonJonesCheckpoint(
            folder, config, brysonjones.dataset_stats(folder), facts
        )
    else:
        config = policy_config_from_json(folder / CONFIG)
        opened = Checkpoint(folder, config, read_stats(normalizer_file(folder)), facts)
    if not config.input_features:
        raise UserError(
            f"{folder / CONFIG} names no features; copy the checkpoint again, or train one"
        )
    check_stats(opened)
    return opened


def open_to_train(path: Path) -> Checkpoint:
    """An opened checkpoint that a training may start from."""
    checkpoint = open_checkpoint(path)
    if not checkpoint.trainable:
        raise UserError(
            f"{path} is of brysonjones/multitask_dit_policy, whose image features LeRobot's format cannot express: "
            "export or evaluate it, or train anew without --init-from"
        )
    return checkpoint


def find_pretrained(path: Path) -> Path:
    """The pretrained_model folder meant by a path to it, to one checkpoint, to a whole run, or by a
    Hub repo id.
    """
    inside = (
        path,
        path / PRETRAINED,
        path / LAST / PRETRAINED,
        path / CHECKPOINTS / LAST / PRETRAINED,
    )
    for candidate in (*inside, *brysonjones.checkpoints(path)):
        if (candidate / CONFIG).is_file() and not (candidate / CHECKPOINTS).is_dir():
            return candidate
    if path.is_file():
        raise UserError(
            f"{path} is a file: give the folder it lies in, {path.parent}, with {CONFIG} beside it"
        )
    if (path / WEIGHTS).is_file():
        raise UserError(f"{path} has {WEIGHTS} but no {CONFIG}: copy the whole checkpoint folder")
    if not path.exists() and is_repo_id(path):
        return fetch(str(path), _check_config)
    return find_last_checkpoint(path) / PRETRAINED


def _check_config(path: Path) -> None:
    raw = read_json(path)
    if not brysonjones.is_config(raw):
        check_policy_type(raw, str(path))


def last_run(outputs: Path) -> Path:
    """The run below `outputs` that saved last, ours or LeRobot's; UserError when there is none."""
    depths = ("*", "*/*", "*/*/*")  # train, demo/train, train/<date>/<time>_<job> of lerobot-train
    saved = [
        c
        for depth in depths
        for c in outputs.glob(f"{depth}/{CHECKPOINTS}/[0-9]*/{PRETRAINED}/{CONFIG}")
    ]
    if not saved:
        raise UserError(
            f"no training run in {outputs}: run `mtdit train` first, or give a checkpoint"
        )
    return max(saved, key=lambda config: config.stat().st_mtime).parents[3]


def find_last_checkpoint(run: Path) -> Path:
    """The newest complete checkpoint of a run, also when the `last` link is lost. UserError when
    there is none.
    """
    last = run / CHECKPOINTS / LAST
    if (last / PRETRAINED / CONFIG).is_file():
        return last.resolve()
    found = [c.parent.parent for c in run.glob(f"{CHECKPOINTS}/[0-9]*/{PRETRAINED}/{CONFIG}")]
    complete = [c for c in found if c.name.isdecimal()]
    if complete:
        return max(complete, key=lambda c: int(c.name))
    if not run.exists():
        raise UserError(
            f"no checkpoint at {run}: the folder does not exist; run `mtdit train` first"
        )
    raise UserError(
        f"no checkpoint in {run}: give a run, a checkpoint or a pretrained_model folder of `mtdit train`"
    )


def load_weights(policy: torch.nn.Module, path: Path) -> None:
    """Fills a policy from a file."""
    fill(policy, read_tensors(path), path)


def fill(policy: torch.nn.Module, weights: Mapping[str, Tensor], path: Path) -> None:
    """With weights that fit. `path` is named to the user."""
    check_fit(policy.state_dict(), weights, path)
    policy.load_state_dict(weights)


def check_fit(own: Mapping[str, Tensor], weights: Mapping[str, Tensor], path: Path) -> None:
    """Strictly: every tensor must be there, with its shape, and none may be left over."""
    missing, extra = sorted(set(own) - set(weights)), sorted(set(weights) - set(own))
    shapes = [k for k in own if k in weights and own[k].shape != weights[k].shape]
    if missing or extra or shapes:
        first = (
            f"lacks {missing[0]}"
            if missing
            else f"has an unknown {extra[0][:100]!r}"
            if extra
            else ""
        )
        first = (
            first
            or f"has {shapes[0]} as {tuple(weights[shapes[0]].shape)}, not {tuple(own[shapes[0]].shape)}"
        )
        raise UserError(
            f"{path} does not fit its config.json: it {first}; use the files of one and the same training"
        )


def check_finite(weights: Mapping[str, Tensor], path: Path) -> None:
    broken = [name for name, value in weights.items() if not value.isfinite().all()]
    if broken:
        raise UserError(
            f"{path}: {broken[0]} holds NaN or infinite numbers; use an earlier checkpoint or train again"
        )


def _outline(config: PolicyConfig, shape: ClipShape, path: Path) -> dict[str, Tensor]:
    """Names and shapes of a policy's weights, without the memory: a damaged size can ask for more
    than there is.
    """
    try:
        with torch.device("meta"):
            encoder = ObservationEncoder(config, shape)
            denoiser = Denoiser(config, encoder.conditioning_dim)
    except (UserError, RuntimeError) as error:
        reason = (
            str(error)
            if isinstance(error, UserError)
            else "no memory could hold it; its sizes are damaged"
        )
        raise UserError(
            f"{path} and the CLIP it names, or that of clip/, make no policy: {reason}"
        ) from None
    parts = torch.nn.ModuleDict({"observation_encoder": encoder, "noise_predictor": denoiser})
    return parts.state_dict()


def read_tensors(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except FileNotFoundError:
        raise UserError(f"{path} does not exist; copy the whole checkpoint folder") from None
    except (SafetensorError, OSError) as error:
        reason = " ".join(str(error).split())[:160]
        raise UserError(
            f"{path} cannot be read ({reason}); copy the checkpoint again or use an earlier one"
        ) from None


def normalizer_file(folder: Path) -> Path:
    """The file of statistics that the preprocessor's normalizer names. UserError: there is none, or
    not in `folder`.
    """
    path = folder / PREPROCESSOR
    if not path.is_file():
        raise UserError(
            f"{folder} has no {PREPROCESSOR}, which names the statistics; copy the whole checkpoint folder"
        )
    raw = read_json(path)
    steps = raw.get("steps") if isinstance(raw, dict) else None
    known = [step for step in steps if isinstance(step, dict)] if isinstance(steps, list) else []
    names = [
        s["state_file"]
        for s in known
        if s.get("registry_name") == "normalizer_processor" and "state_file" in s
    ]
    if not names:
        raise UserError(
            f"{path} names no normalizer statistics; save the policy with its processors"
        )
    if (
        not isinstance(names[0], str)
        or Path(names[0]).name != names[0]
        or not os.path.isfile(folder / names[0])
    ):
        raise UserError(
            f"{path} names {str(names[0])[:80]!r} as statistics, which is no file in that folder; copy the whole folder"
        )
    return folder / names[0]


def read_stats(path: Path) -> DatasetStats:
    """Feature -> statistic -> values, from a normalizer's file."""
    stats: dict[str, dict[str, NDArray[np.float32]]] = {}
    for key, value in read_tensors(path).items():
        feature, _, name = key.rpartition(".")
        stats.setdefault(feature, {})[name] = value.float().numpy()
    return stats


def check_stats(checkpoint: Checkpoint) -> None:
    """UserError names the first statistic that normalising takes and cannot take."""
    config, stats = checkpoint.config, checkpoint.dataset_stats
    cameras = [
        key for key in config.image_keys.values() if stats.get(key)
    ]  # one without is not normalised
    for key, feature in {**config.input_features, **config.output_features}.items():
        mode = config.normalization_mapping.get(feature.type, "IDENTITY")
        if key in (STATE, ACTION) or (key in cameras and mode != "IDENTITY"):
            need_stats(checkpoint, key, NEEDED[mode])


def need_stats(checkpoint: Checkpoint, key: str, names: Sequence[str]) -> None:
    """UserError: one of these statistics of a feature is missing, of another size, or of no use."""
    feature = {**checkpoint.config.input_features, **checkpoint.config.output_features}[key]
    known = dict(checkpoint.dataset_stats.get(key, {}))
    if feature.type == "VISUAL":  # of (3, 1, 1), one number per colour
        known = {name: value.reshape(-1) for name, value in known.items()}
    for name in names:
        wrong = _wrong(name, known, feature.shape[0])
        if wrong:
            fix = "copy the checkpoint again, or train again with meta/stats.json recomputed"
            raise UserError(f"{checkpoint.stats_file}: {name!r} of {key} {wrong}; {fix}")


def _wrong(name: str, known: Mapping[str, NDArray[np.float32]], count: int) -> str | None:
    """What is wrong with a feature's statistic, if anything."""
    if name not in known:
        return "is missing"
    value = np.atleast_1d(known[name])
    if value.shape != (count,):
        return f"is of shape {value.shape}, the policy takes {(count,)}"
    if not (np.abs(value) < LARGEST).all():
        return "holds NaN, infinite or absurdly large numbers"
    if (name == "std" and (value < 0).any()) or (
        name == "max" and "min" in known and (value < known["min"]).any()
    ):
        return "is below zero" if name == "std" else "is below 'min'"
    return None


@dataclass(frozen=True)
class TrainingState:
    """What a training goes on from, whether `mtdit train` or LeRobot's trainer left it."""

    step: int
    adam: Mapping[int, Mapping[str, Tensor]]  # parameter number -> step, exp_avg, exp_avg_sq
    weights: Mapping[str, Tensor]  # those the optimiser moves, under the names of Policy.state_dict
    average: Mapping[str, Tensor]  # their moving average, or they themselves where none was kept
    elapsed_s: float  # trained so far; 0 if not known
    numbers: Mapping[str, Any]  # all of training_step.json: batch_size, num_processes ...


def read_training_state(checkpoint: Path) -> TrainingState:
    """Reads RUN/checkpoints/<step>. UserError when it holds no state, or one that only FSDP can
    read.

    LeRobot keeps the live weights in pretrained_model (an average, if any, in
    pretrained_model_ema); we keep the average there and the live weights in training_state.
    Parameters are numbered alike: the order of `Policy.parameter_groups`.
    """
    folder, used = checkpoint / TRAINING_STATE, checkpoint / PRETRAINED / WEIGHTS
    numbers = _read_step(folder / STEP)
    adam = _by_parameter(read_tensors(folder / OPTIMIZER), folder / OPTIMIZER)
    ours, averaged = (folder / LIVE).is_file(), checkpoint / PRETRAINED_EMA / WEIGHTS
    weights = read_tensors(folder / LIVE if ours else used)
    average = (
        read_tensors(used) if ours else read_tensors(averaged) if averaged.is_file() else weights
    )
    return TrainingState(
        numbers["step"], adam, weights, average, float(numbers.get("elapsed_s", 0.0)), numbers
    )


def _read_step(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise UserError(
            f"{path} does not exist, so there is no training to resume; start a new one with --init-from"
        )
    numbers = read_json(path)
    if not isinstance(numbers, dict) or type(numbers.get("step")) is not int:
        raise UserError(
            f"{path} does not say which step it is of; copy the checkpoint again or use an earlier one"
        )
    return numbers


def _by_parameter(flat: Mapping[str, Tensor], path: Path) -> dict[int, dict[str, Tensor]]:
    """state/<number>/<name> -> number -> name -> values. FSDP writes parameter names for numbers."""
    states: dict[int, dict[str, Tensor]] = {}
    for key, value in flat.items():
        kind, _, rest = key.partition("/")
        number, _, name = rest.partition("/")
        if kind != "state" or not number.isdecimal():
            raise UserError(
                f"{path} is not the state of one Adam (it holds {key!r}); start anew with --init-from"
            )
        states.setdefault(int(number), {})[name] = value
    return states


def feature_stats(config: PolicyConfig, stats: DatasetStats, key: str) -> Stats:
    """How one vector feature is normalised."""
    feature = config.input_features.get(key) or config.output_features[key]
    mode = config.normalization_mapping.get(feature.type, "IDENTITY")
    if key not in stats:
        raise UserError(
            f"the statistics lack {key!r}; recompute the dataset's meta/stats.json and train again"
        )
    return Stats.of(mode, stats[key])


def image_scaling(
    config: PolicyConfig, stats: DatasetStats, camera: str
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """(offset, scale), each (3,): a pixel x in [0, 1] becomes (x - offset) / scale."""
    known = stats.get(config.image_keys[camera], {})
    mode = config.normalization_mapping.get("VISUAL", "IDENTITY")
    if mode == "IDENTITY" or not known:
        return np.zeros(3, np.float32), np.ones(3, np.float32)
    s = Stats.of(mode, {name: np.asarray(v, np.float32).reshape(-1) for name, v in known.items()})
    if mode == "MEAN_STD":
        return s.low, s.high + np.float32(EPS)
    half = np.maximum((s.high - s.low) / 2, np.float32(EPS / 2))
    return s.low + half, half


def facts_from_json(raw: Any) -> DatasetFacts:
    """Raises TypeError, ValueError, OverflowError: the fields or their types are others."""
    facts: DatasetFacts = from_json(DatasetFacts, raw, "facts")
    return facts


def sane_facts(facts: DatasetFacts) -> DatasetFacts:
    """The facts. ValueError: no bundle can have such numbers."""
    if not 1 <= facts.fps <= MOST:
        raise ValueError(f"facts.fps is {str(facts.fps)[:20]}")
    if not facts.joints or len(facts.max_speed) != len(facts.joints):
        raise ValueError(
            f"{len(facts.joints)} joints have {len(facts.max_speed)} values of max_speed"
        )
    if not all(0 <= speed < math.inf for speed in facts.max_speed):
        raise ValueError("facts.max_speed holds NaN, infinite or negative numbers")
    return facts


def _read_facts(path: Path) -> DatasetFacts:
    try:
        return sane_facts(facts_from_json(read_json(path)))
    except (TypeError, ValueError, OverflowError) as error:
        reason = " ".join(str(error).split())[:160]
        raise UserError(
            f"{path} is not what training writes ({reason}); correct it there, or remove it and export with --dataset"
        ) from None


# --- writing


def save_checkpoint(
    run: Path,
    step: int,
    checkpoint_files: PretrainedFiles,
    training_state: Mapping[str, Mapping[str, Tensor]],
    training_numbers: Mapping[str, Any],
) -> Path:
    """Writes RUN/checkpoints/<step> and moves `last` to it. Returns the checkpoint's folder.

    training_state: file name -> tensors; training_numbers: what training_step.json holds, without
    the step.
    """
    final = run / CHECKPOINTS / f"{step:06d}"
    partial = final.with_name(f".{final.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        save_pretrained(partial / PRETRAINED, checkpoint_files)
        (partial / TRAINING_STATE).mkdir()
        for name, tensors in training_state.items():
            save_file(dict(tensors), partial / TRAINING_STATE / name)
        _write_json(partial / TRAINING_STATE / STEP, {"step": step, **training_numbers})
        _to_disk(partial)
        shutil.rmtree(final, ignore_errors=True)
        os.replace(partial, final)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(partial, ignore_errors=True)
        raise UserError(
            f"cannot write {final} ({error}); free some space, the checkpoint before is intact"
        ) from None
    point_at(final, LAST)
    return final


@dataclass(frozen=True)
class PretrainedFiles:
    """What goes into one pretrained_model folder."""

    policy: Policy
    weights: Mapping[str, Tensor]  # the policy's, or their moving average
    dataset_stats: DatasetStats
    facts: DatasetFacts
    tokenizer: Any
    train_config: Mapping[str, Any]


def save_pretrained(folder: Path, files: PretrainedFiles) -> None:
    """Writes the files that LeRobot's from_pretrained and make_pre_post_processors read, and our
    two extras.
    """
    (folder / CLIP).mkdir(parents=True)
    config = files.policy.config
    _write_json(folder / CONFIG, policy_config_to_dict(config))
    _write_json(folder / TRAIN_CONFIG, files.train_config)
    _write_json(folder / FACTS, asdict(files.facts))
    _write_json(folder / CLIP / "config.json", files.policy.clip_shape.to_json())
    save_tokenizer(files.tokenizer, folder / CLIP)
    save_file(
        {k: v.detach().cpu().contiguous() for k, v in files.weights.items()},
        folder / WEIGHTS,
        {"format": "pt"},
    )
    for name, steps in (
        (PREPROCESSOR, preprocessor_steps(config)),
        (POSTPROCESSOR, postprocessor_steps(config)),
    ):
        for step in steps:
            if "state_file" in step:
                save_file(_flat_stats(files.dataset_stats), folder / step["state_file"])
        _write_json(folder / name, {"name": name.removesuffix(".json"), "steps": steps})


def preprocessor_steps(config: PolicyConfig) -> list[dict[str, Any]]:
    """What LeRobot does to an observation before the policy sees it."""
    tokenizer = {
        "max_length": config.tokenizer_max_length,
        "task_key": "task",
        "padding_side": config.tokenizer_padding_side,
        "padding": config.tokenizer_padding,
        "truncation": config.tokenizer_truncation,
        "tokenizer_name": config.text_encoder_name,
    }
    features = {**config.input_features, **config.output_features}
    return [
        {"registry_name": "rename_observations_processor", "config": {"rename_map": {}}},
        {"registry_name": "to_batch_processor", "config": {}},
        {"registry_name": "tokenizer_processor", "config": tokenizer},
        {
            "registry_name": "device_processor",
            "config": {"device": config.device or "cpu", "float_dtype": None},
        },
        _normalizer(
            "normalizer_processor",
            "policy_preprocessor_step_4_normalizer_processor",
            config,
            features,
        ),
    ]


def postprocessor_steps(config: PolicyConfig) -> list[dict[str, Any]]:
    """What LeRobot does to an action before the robot sees it."""
    file = "policy_postprocessor_step_0_unnormalizer_processor"
    return [
        _normalizer("unnormalizer_processor", file, config, config.output_features),
        {"registry_name": "device_processor", "config": {"device": "cpu", "float_dtype": None}},
    ]


def _normalizer(
    kind: str, file: str, config: PolicyConfig, features: Mapping[str, Any]
) -> dict[str, Any]:
    listed = {key: asdict(feature) for key, feature in features.items()}
    settings = {"eps": EPS, "features": listed, "norm_map": dict(config.normalization_mapping)}
    return {"registry_name": kind, "config": settings, "state_file": f"{file}.safetensors"}


def _flat_stats(stats: DatasetStats) -> dict[str, Tensor]:
    flat = {
        f"{key}.{name}": np.asarray(v, np.float32)
        for key, values in stats.items()
        for name, v in values.items()
    }
    return {k: torch.from_numpy(np.array(v, ndmin=1, copy=True)) for k, v in flat.items()}


def _write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=2, default=str) + "\n")


def _to_disk(folder: Path) -> None:
    """What is renamed next must be there after a power cut as well."""
    for path in [p for p in folder.rglob("*") if p.is_file()]:
        with path.open("rb") as file:
            os.fsync(file.fileno())


def point_at(checkpoint: Path, name: str) -> None:
    """Makes the link RUN/checkpoints/<name>, replacing an older one in one step, so that there
    always is one.
    """
    fresh = checkpoint.with_name(f".{name}.tmp")
    fresh.unlink(missing_ok=True)
    fresh.symlink_to(checkpoint.name)
    os.replace(fresh, checkpoint.with_name(name))
