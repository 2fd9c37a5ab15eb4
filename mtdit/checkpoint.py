"""Reads and writes checkpoints in LeRobot's layout: LeRobot loads ours, and we load LeRobot's.

    RUN/checkpoints/<step>/pretrained_model/   config.json  model.safetensors  train_config.json
                                               policy_{pre,post}processor.json and the statistics
                                               files that they name
                                               mtdit.json (joints, fps, tasks)
                                               clip/ (CLIP's shape, tokenizer)
    RUN/checkpoints/<step>/training_state/     the state for resuming; LeRobot's is read as well
    RUN/checkpoints/last -> <step>

Two other sources are read: a repository of the Hugging Face Hub, and the folders of
brysonjones/multitask_dit_policy.

A checkpoint is written to a temporary folder and renamed, so a crash or a full disk leaves the
previous one intact. LeRobot does not write mtdit.json and clip/. mtdit.json is needed because a
LeRobot checkpoint does not store the names of its joints; with clip/ a checkpoint can be exported
without the CLIP it started from. LeRobot itself still needs the CLIPs that config.json names.
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
STEP, OPTIMIZER = "training_step.json", "optimizer_state.safetensors"
LIVE = "live_weights.safetensors"
PREPROCESSOR, POSTPROCESSOR = "policy_preprocessor.json", "policy_postprocessor.json"
PRETRAINED, TRAINING_STATE = "pretrained_model", "training_state"
CHECKPOINTS, LAST = "checkpoints", "last"
PRETRAINED_EMA = "pretrained_model_ema"  # LeRobot's, from 0.6.2 on
FACTS, CLIP = "mtdit.json", "clip"
EPS = 1e-8  # LeRobot's; it is added to the standard deviation
LARGEST = 1e30  # of a statistic: the difference of two statistics still fits into float32
# mode of normalisation -> the statistics it needs
NEEDED = {"MIN_MAX": ("min", "max"), "MEAN_STD": ("mean", "std"), "IDENTITY": ("min",)}

# feature -> min, max, mean, std ... -> values
DatasetStats = Mapping[str, Mapping[str, NDArray[np.float32]]]


@dataclass(frozen=True)
class DatasetFacts:
    """What a checkpoint stores about its training dataset."""

    dataset: str
    fps: int
    joints: tuple[str, ...]  # in the order of state and action, without ".pos"
    tasks: tuple[str, ...]
    max_speed: tuple[float, ...]  # 99.9th percentile of the commanded speed per joint, units/s
    robot_type: str = ""


@dataclass(frozen=True)
class Checkpoint:
    """An opened pretrained_model folder. Weights and tokenizer are read when they are needed."""

    folder: Path
    config: PolicyConfig
    dataset_stats: DatasetStats
    facts: DatasetFacts | None  # None for a checkpoint of another program
    trainable: bool = True  # whether LeRobot's format can store the policy after more training

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
        """The trained policy in eval mode. UserError: weights missing, damaged or not matching."""
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
        """The weights, under LeRobot's names."""
        return read_tensors(self.folder / WEIGHTS)

    def clip_shape(self, weights: Mapping[str, Tensor]) -> ClipShape:
        return clip_shapes(self.config, self.folder / CLIP, weights)

    def tokenizer(self) -> Any:
        """CLIP's tokenizer, an object of transformers."""
        with self.tokenizer_folder() as folder:
            return load_tokenizer(folder)

    @contextmanager
    def tokenizer_folder(self) -> Iterator[Path]:
        """A folder with tokenizer.json: the checkpoint's or its CLIP's, else a temporary one with
        the vocabulary that all CLIPs share.
        """
        named = Path(self.config.text_encoder_name)
        # "tokenizer" is LeRobot's, from 0.6.2 on
        candidates = (self.folder / CLIP, self.folder / "tokenizer", named)
        kept = [folder for folder in candidates if os.path.isfile(folder / TOKENIZER)]
        with tempfile.TemporaryDirectory() as scratch:
            if not kept:
                write_tokenizer(Path(scratch))
            yield kept[0] if kept else Path(scratch)


@dataclass(frozen=True)
class BrysonJonesCheckpoint(Checkpoint):
    """A policy of brysonjones/multitask_dit_policy; LeRobot does not support its vision feature."""

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
    """Opens the folder that `find_pretrained` finds, of mtdit, LeRobot or brysonjones.

    UserError when it is not such a policy or is damaged. Weights and tokenizer are checked when
    they are read, everything else now.
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
            f"{folder / CONFIG} lists no features; copy the checkpoint again, or train a policy"
        )
    check_stats(opened)
    return opened


def open_to_train(path: Path) -> Checkpoint:
    """Opens a checkpoint to start training from. UserError when its policy cannot be trained."""
    checkpoint = open_checkpoint(path)
    if not checkpoint.trainable:
        raise UserError(
            f"{path} is a policy of brysonjones/multitask_dit_policy, whose image features "
            "LeRobot's format cannot express: export or evaluate it, or train a new policy without "
            "--init-from"
        )
    return checkpoint


def find_pretrained(path: Path) -> Path:
    """Finds the pretrained_model folder for a path to it, to a checkpoint or to a run, or for a
    Hub repo id (then downloaded). UserError when there is none.
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
            f"{path} is a file: give its folder, {path.parent}, which must also contain {CONFIG}"
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
    """The run below `outputs`, of mtdit or LeRobot, that saved last. UserError: there is none."""
    depths = ("*", "*/*", "*/*/*")  # train, demo/train, train/<date>/<time>_<job> of lerobot-train
    saved = [
        c
        for depth in depths
        for c in outputs.glob(f"{depth}/{CHECKPOINTS}/[0-9]*/{PRETRAINED}/{CONFIG}")
    ]
    if not saved:
        raise UserError(
            f"there is no training run in {outputs}: run `mtdit train` first, or give a checkpoint"
        )
    return max(saved, key=lambda config: config.stat().st_mtime).parents[3]


def find_last_checkpoint(run: Path) -> Path:
    """The newest complete checkpoint of a run, even without the `last` link. UserError: none."""
    last = run / CHECKPOINTS / LAST
    if (last / PRETRAINED / CONFIG).is_file():
        return last.resolve()
    found = [c.parent.parent for c in run.glob(f"{CHECKPOINTS}/[0-9]*/{PRETRAINED}/{CONFIG}")]
    complete = [c for c in found if c.name.isdecimal()]
    if complete:
        return max(complete, key=lambda c: int(c.name))
    if not run.exists():
        raise UserError(
            f"there is no checkpoint at {run}, because the folder does not exist: check the path, "
            "or run `mtdit train` first"
        )
    raise UserError(
        f"there is no checkpoint in {run}: give a run, a checkpoint or a pretrained_model folder "
        "of `mtdit train`"
    )


def load_weights(policy: torch.nn.Module, path: Path) -> None:
    """Loads a policy's weights from a file. UserError when they do not fit."""
    fill(policy, read_tensors(path), path)


def fill(policy: torch.nn.Module, weights: Mapping[str, Tensor], path: Path) -> None:
    """Loads weights into a policy. UserError, which names `path`, when they do not fit."""
    check_fit(policy.state_dict(), weights, path)
    policy.load_state_dict(weights)


def check_fit(own: Mapping[str, Tensor], weights: Mapping[str, Tensor], path: Path) -> None:
    """UserError unless `weights` has exactly the names and shapes of `own`."""
    missing, extra = sorted(set(own) - set(weights)), sorted(set(weights) - set(own))
    shapes = [k for k in own if k in weights and own[k].shape != weights[k].shape]
    if missing:
        problem = f"lacks {missing[0]}"
    elif extra:
        problem = f"has the unknown tensor {extra[0][:100]!r}"
    elif shapes:
        name = shapes[0]
        problem = f"has {name} as {tuple(weights[name].shape)}, not {tuple(own[name].shape)}"
    else:
        return
    raise UserError(
        f"{path} does not match its config.json: it {problem}; use the files of one training"
    )


def check_finite(weights: Mapping[str, Tensor], path: Path) -> None:
    broken = [name for name, value in weights.items() if not value.isfinite().all()]
    if broken:
        raise UserError(
            f"{path}: {broken[0]} contains NaN or infinite numbers; use an earlier checkpoint or "
            "train again"
        )


def _outline(config: PolicyConfig, shape: ClipShape, path: Path) -> dict[str, Tensor]:
    """Names and shapes of a policy's weights, without memory for their values.

    UserError when a damaged size needs more memory than exists.
    """
    try:
        with torch.device("meta"):
            encoder = ObservationEncoder(config, shape)
            denoiser = Denoiser(config, encoder.conditioning_dim)
    except (UserError, RuntimeError) as error:
        reason = (
            str(error)
            if isinstance(error, UserError)
            else "its sizes are damaged, it would not fit into any memory"
        )
        raise UserError(
            f"cannot build a policy from {path} and the CLIP that it names or that is in clip/: "
            f"{reason}"
        ) from None
    parts = torch.nn.ModuleDict({"observation_encoder": encoder, "noise_predictor": denoiser})
    return parts.state_dict()


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Reads a .safetensors file. UserError when it is missing or damaged."""
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
    """The file of statistics that the preprocessor's normalizer names.

    UserError when none is named, or when it is not in `folder`.
    """
    path = folder / PREPROCESSOR
    if not path.is_file():
        raise UserError(
            f"{folder} has no {PREPROCESSOR}, which names the file of statistics; "
            "copy the whole checkpoint folder"
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
            f"{path} does not name the normalizer's file of statistics; "
            "save the policy together with its processors"
        )
    if (
        not isinstance(names[0], str)
        or Path(names[0]).name != names[0]
        or not os.path.isfile(folder / names[0])
    ):
        raise UserError(
            f"{path} names {str(names[0])[:80]!r} as file of statistics, but there is no such file "
            "in that folder; copy the whole checkpoint folder"
        )
    return folder / names[0]


def read_stats(path: Path) -> DatasetStats:
    """Reads a normalizer's file: feature -> statistic -> values."""
    stats: dict[str, dict[str, NDArray[np.float32]]] = {}
    for key, value in read_tensors(path).items():
        feature, _, name = key.rpartition(".")
        stats.setdefault(feature, {})[name] = value.float().numpy()
    return stats


def check_stats(checkpoint: Checkpoint) -> None:
    """UserError for the first statistic that normalisation needs and that is missing or invalid."""
    config, stats = checkpoint.config, checkpoint.dataset_stats
    # a camera without statistics is not normalised
    cameras = [key for key in config.image_keys.values() if stats.get(key)]
    for key, feature in {**config.input_features, **config.output_features}.items():
        mode = config.normalization_mapping.get(feature.type, "IDENTITY")
        if key in (STATE, ACTION) or (key in cameras and mode != "IDENTITY"):
            need_stats(checkpoint, key, NEEDED[mode])


def need_stats(checkpoint: Checkpoint, key: str, names: Sequence[str]) -> None:
    """UserError when one of these statistics of a feature is missing or invalid."""
    feature = {**checkpoint.config.input_features, **checkpoint.config.output_features}[key]
    known = dict(checkpoint.dataset_stats.get(key, {}))
    if feature.type == "VISUAL":  # shape (3, 1, 1), one number per colour channel
        known = {name: value.reshape(-1) for name, value in known.items()}
    for name in names:
        wrong = _wrong(name, known, feature.shape[0])
        if wrong:
            fix = "copy the checkpoint again, or train again with meta/stats.json recomputed"
            raise UserError(f"{checkpoint.stats_file}: {name!r} of {key} {wrong}; {fix}")


def _wrong(name: str, known: Mapping[str, NDArray[np.float32]], count: int) -> str | None:
    """What is wrong with a statistic of a feature of size `count`; None if nothing is."""
    if name not in known:
        return "is missing"
    value = np.atleast_1d(known[name])
    if value.shape != (count,):
        return f"has shape {value.shape}, but the policy needs {(count,)}"
    if not (np.abs(value) < LARGEST).all():
        return f"contains NaN, infinite numbers or numbers above {LARGEST:g}"
    if (name == "std" and (value < 0).any()) or (
        name == "max" and "min" in known and (value < known["min"]).any()
    ):
        return "is below zero" if name == "std" else "is below 'min'"
    return None


@dataclass(frozen=True)
class TrainingState:
    """The state from which training resumes, written by `mtdit train` or by LeRobot's trainer."""

    step: int
    adam: Mapping[int, Mapping[str, Tensor]]  # parameter number -> step, exp_avg, exp_avg_sq
    weights: Mapping[str, Tensor]  # the optimiser's weights, named as in Policy.state_dict
    average: Mapping[str, Tensor]  # their moving average; the same weights if there is none
    elapsed_s: float  # training time so far; 0 if not known
    numbers: Mapping[str, Any]  # all of training_step.json: batch_size, num_processes ...


def read_training_state(checkpoint: Path) -> TrainingState:
    """Reads RUN/checkpoints/<step>. UserError when it has no training state, or one of FSDP.

    LeRobot stores the live weights in pretrained_model, and an average, if any, in
    pretrained_model_ema. mtdit stores the average in pretrained_model and the live weights in
    training_state. Both number the parameters in the order of `Policy.parameter_groups`.
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
            f"{path} does not exist, so this training cannot be resumed; "
            "start a new one with --init-from"
        )
    numbers = read_json(path)
    if not isinstance(numbers, dict) or type(numbers.get("step")) is not int:
        raise UserError(
            f"{path} has no valid 'step'; copy the checkpoint again or use an earlier one"
        )
    return numbers


def _by_parameter(flat: Mapping[str, Tensor], path: Path) -> dict[int, dict[str, Tensor]]:
    """state/<number>/<name> -> number -> name -> values. UserError: names instead of numbers."""
    states: dict[int, dict[str, Tensor]] = {}
    for key, value in flat.items():
        kind, _, rest = key.partition("/")
        number, _, name = rest.partition("/")
        if kind != "state" or not number.isdecimal():
            # FSDP writes names of parameters instead of numbers.
            raise UserError(
                f"{path} is not the state of a single Adam optimiser (it contains {key!r}); "
                "start a new training with --init-from"
            )
        states.setdefault(int(number), {})[name] = value
    return states


def feature_stats(config: PolicyConfig, stats: DatasetStats, key: str) -> Stats:
    """The normalisation of one vector feature. UserError when its statistics are missing."""
    feature = config.input_features.get(key) or config.output_features[key]
    mode = config.normalization_mapping.get(feature.type, "IDENTITY")
    if key not in stats:
        raise UserError(
            f"there are no statistics of {key!r}; recompute the dataset's meta/stats.json and "
            "train again"
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
    """Parsed mtdit.json -> DatasetFacts. Raises TypeError, ValueError or OverflowError."""
    facts: DatasetFacts = from_json(DatasetFacts, raw, "facts")
    return facts


def sane_facts(facts: DatasetFacts) -> DatasetFacts:
    """Returns the facts unchanged. ValueError when a bundle could not have such numbers."""
    if not 1 <= facts.fps <= MOST:
        raise ValueError(f"facts.fps is {str(facts.fps)[:20]}")
    if not facts.joints or len(facts.max_speed) != len(facts.joints):
        raise ValueError(
            f"{len(facts.joints)} joints have {len(facts.max_speed)} values of max_speed"
        )
    if not all(0 <= speed < math.inf for speed in facts.max_speed):
        raise ValueError("facts.max_speed contains NaN, infinite or negative numbers")
    return facts


def _read_facts(path: Path) -> DatasetFacts:
    try:
        return sane_facts(facts_from_json(read_json(path)))
    except (TypeError, ValueError, OverflowError) as error:
        reason = " ".join(str(error).split())[:160]
        raise UserError(
            f"{path} is not valid ({reason}); correct it, or delete it and export with --dataset"
        ) from None


# --- writing


def save_checkpoint(
    run: Path,
    step: int,
    checkpoint_files: PretrainedFiles,
    training_state: Mapping[str, Mapping[str, Tensor]],
    training_numbers: Mapping[str, Any],
) -> Path:
    """Writes RUN/checkpoints/<step>, points `last` at it, and returns the checkpoint's folder.

    training_state: file name -> tensors. training_numbers: the content of training_step.json
    without the step. UserError when it cannot be written.
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
            f"cannot write {final} ({error}); free disk space and resume: the previous checkpoint "
            "is intact"
        ) from None
    point_at(final, LAST)
    return final


@dataclass(frozen=True)
class PretrainedFiles:
    """The content of a pretrained_model folder."""

    policy: Policy
    weights: Mapping[str, Tensor]  # the policy's, or their moving average
    dataset_stats: DatasetStats
    facts: DatasetFacts
    tokenizer: Any
    train_config: Mapping[str, Any]


def save_pretrained(folder: Path, files: PretrainedFiles) -> None:
    """Writes the files of LeRobot's from_pretrained and make_pre_post_processors, mtdit.json and
    clip/.
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
    """LeRobot's processing of an observation before the policy, for policy_preprocessor.json."""
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
    """LeRobot's processing of an action after the policy, for policy_postprocessor.json."""
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
    """Flushes all files to disk, so that the rename cannot outrun them in a power cut."""
    for path in [p for p in folder.rglob("*") if p.is_file()]:
        with path.open("rb") as file:
            os.fsync(file.fileno())


def point_at(checkpoint: Path, name: str) -> None:
    """Creates the link RUN/checkpoints/<name>, or replaces it atomically."""
    fresh = checkpoint.with_name(f".{name}.tmp")
    fresh.unlink(missing_ok=True)
    fresh.symlink_to(checkpoint.name)
    os.replace(fresh, checkpoint.with_name(name))
