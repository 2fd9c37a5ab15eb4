"""Reads checkpoints in LeRobot's layout: LeRobot loads ours, and we load LeRobot's.

    RUN/checkpoints/<step>/pretrained_model/   config.json  model.safetensors  train_config.json
                                               policy_{pre,post}processor.json and the statistics
                                               files that they name
                                               mtdit.json (joints, fps, tasks)
                                               clip/ (CLIP's shape, tokenizer)
    RUN/checkpoints/<step>/training_state/     the state for resuming; LeRobot's is read as well
    RUN/checkpoints/last -> <step>

Two other sources are read: a repository of the Hugging Face Hub, and the folders of
brysonjones/multitask_dit_policy.

LeRobot does not write mtdit.json and clip/. mtdit.json is needed because a LeRobot checkpoint does
not store the names of its joints; with clip/ a checkpoint can be exported without the CLIP it
started from. LeRobot itself still needs the CLIPs that config.json names.

`mtdit.checkpoint.find` finds the folder, `mtdit.checkpoint.write` writes it, and
`mtdit.checkpoint.training_state` reads the state for resuming.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mtdit.checkpoint import adapters, brysonjones
from mtdit.checkpoint.find import find_pretrained
from mtdit.checkpoint.names import CLIP, CONFIG, FACTS, WEIGHTS
from mtdit.checkpoint.processors import read_processors, same_actions
from mtdit.checkpoint.rename_map import RenameMap, robot_names
from mtdit.checkpoint.tensors import check_finite, check_fit, fill, read_tensors, read_weights
from mtdit.policies.multi_task_dit.clip import ClipShape
from mtdit.policies.multi_task_dit.clip_lookup import (
    TOKENIZER,
    clip_shapes,
    load_tokenizer,
    shape_of,
)
from mtdit.policies.multi_task_dit.config import PolicyConfig
from mtdit.policies.multi_task_dit.config_json import (
    fields_of_newer_lerobot,
    policy_config_from_json,
)
from mtdit.policies.multi_task_dit.denoiser import Denoiser
from mtdit.policies.multi_task_dit.observation_encoder import ObservationEncoder
from mtdit.policies.multi_task_dit.policy import MultiTaskDiT
from mtdit.policies.multi_task_dit.tiny_clip import write_tokenizer
from mtdit.stats import (
    DatasetFacts,
    DatasetStats,
    facts_from_json,
    feature_stats,
    image_scaling,
    validate_facts,
)
from mtdit_robots.errors import UserError
from mtdit_robots.features import ACTION, STATE
from mtdit_runtime.files import read_json
from mtdit_runtime.normalize import Stats

MAX_STAT = 1e30  # of a statistic: the difference of two statistics still fits into float32
# mode of normalisation -> the statistics it needs
NEEDED = {"MIN_MAX": ("min", "max"), "MEAN_STD": ("mean", "std"), "IDENTITY": ("min",)}


@dataclass(frozen=True)
class Checkpoint:
    """An opened checkpoint. Weights and tokenizer are read when they are needed.

    folder: the pretrained_model folder. config: the policy's configuration, with LeRobot's field
    names; its cameras have the names of the robot. dataset_stats: feature -> statistic -> values.
    facts: joints, fps and tasks of the dataset; None for a checkpoint of another program.
    stats_file: where the statistics come from, action_stats_file: those of actions, if elsewhere.
    rename_map: name on the robot -> name in the files of the policy. tokenizer_name: the folder or
    Hub name of the tokenizer, if it is not the text encoder's.
    """

    folder: Path
    config: PolicyConfig
    dataset_stats: DatasetStats
    facts: DatasetFacts | None
    stats_file: Path
    rename_map: RenameMap = field(default_factory=dict)
    notes: tuple[str, ...] = ()  # what a user should know about the files, one line each
    trainable: bool = True  # whether LeRobot's format can store the policy after more training
    action_stats_file: Path | None = None
    tokenizer_name: str = ""

    @property
    def state_stats(self) -> Stats:
        """The statistics that normalise positions (J,)."""
        return feature_stats(self.config, self.dataset_stats, STATE)

    @property
    def action_stats(self) -> Stats:
        """The statistics that normalise actions (J,)."""
        return feature_stats(self.config, self.dataset_stats, ACTION)

    def image_scaling(self, camera: str) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """(offset, scale), each (3,): a pixel x in [0, 1] becomes (x - offset) / scale."""
        return image_scaling(self.config, self.dataset_stats, camera)

    def policy(self, device: str | torch.device = "cpu") -> MultiTaskDiT:
        """The trained policy in eval mode. UserError: weights missing, damaged or not matching."""
        weights = self.weights()
        shape = self.clip_shape(weights)
        check_fit(
            _outline(self.config, shape, self.folder / CONFIG), weights, self.folder / WEIGHTS
        )
        policy = MultiTaskDiT(self.config, shape)
        fill(policy, weights, self.folder / WEIGHTS)
        check_finite(policy.state_dict(), self.folder / WEIGHTS)
        return policy.to(device).eval()

    def weights(self) -> dict[str, Tensor]:
        """The weights, under LeRobot's names."""
        return read_weights(self.folder / WEIGHTS)

    def clip_shape(self, weights: Mapping[str, Tensor]) -> ClipShape:
        """The sizes of the CLIP towers."""
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
        named = Path(self.tokenizer_name or self.config.text_encoder_name)
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

    def weights(self) -> dict[str, Tensor]:
        return brysonjones.renamed(super().weights(), self.config)

    def clip_shape(self, weights: Mapping[str, Tensor]) -> ClipShape:
        text = shape_of(self.config.text_encoder_name, self.folder / CLIP, weights).text
        return ClipShape(brysonjones.tower_shape(self.config, weights), text)


def open_checkpoint(path: Path | str, rename_map: RenameMap | None = None) -> Checkpoint:
    """Opens a checkpoint of mtdit, of LeRobot or of brysonjones/multitask_dit_policy.

    path: a run (its last checkpoint is opened), a checkpoint or its pretrained_model folder, or a
    Hub repo id. rename_map: LeRobot's, name on the robot -> name in the policy; None takes the one
    that the checkpoint's preprocessor has. UserError when there is no such policy or it is damaged,
    and for a step of its processors that mtdit cannot apply. Weights and tokenizer are checked when
    they are read, everything else now.

        checkpoint = mtdit.open_checkpoint("outputs/train")
        network = checkpoint.policy("cuda")  # a torch module, in eval mode
    """
    folder = find_pretrained(Path(path))
    raw = read_json(folder / CONFIG)
    if adapters.is_adapter(folder) and (raw.get("use_peft") or not (folder / WEIGHTS).is_file()):
        raise adapters.refusal(folder)
    facts = _read_facts(folder / FACTS) if (folder / FACTS).is_file() else None
    if brysonjones.is_config(raw):
        opened = _brysonjones(folder, raw, facts, rename_map or {})
    else:
        opened = _lerobots(folder, raw, facts, rename_map)
    if not opened.config.input_features:
        raise UserError(
            f"{folder / CONFIG} lists no features; copy the checkpoint again, or train a policy"
        )
    check_stats(opened)
    return opened


def _brysonjones(
    folder: Path, raw: Mapping[str, Any], facts: DatasetFacts | None, rename_map: RenameMap
) -> Checkpoint:
    config = brysonjones.policy_config(raw, str(folder / CONFIG))
    stats = brysonjones.dataset_stats(folder)
    named = robot_names(config, stats, rename_map, str(folder))
    return BrysonJonesCheckpoint(folder, *named, facts, folder / brysonjones.STATS, rename_map)


def _lerobots(
    folder: Path, raw: Mapping[str, Any], facts: DatasetFacts | None, rename_map: RenameMap | None
) -> Checkpoint:
    """What LeRobot's own processors compute: positions and frames are normalised by the statistics
    of the preprocessor, actions come back by those of the postprocessor.
    """
    config = policy_config_from_json(folder / CONFIG)
    processors = read_processors(folder, config)
    config = processors.applied(config, str(processors.normalizer.parent))
    stats, undone = read_stats(processors.normalizer), read_stats(processors.unnormalizer)
    needed = NEEDED[config.normalization_mapping.get("ACTION", "IDENTITY")]
    if not same_actions(stats, undone, needed):
        raise UserError(
            f"{folder}: {processors.normalizer.name} and {processors.unnormalizer.name} have "
            "different statistics of actions; use the files of one training"
        )
    stats = {key: value for key, value in stats.items() if key != ACTION}
    stats |= {ACTION: undone[ACTION]} if ACTION in undone else {}
    used = processors.rename_map if rename_map is None else rename_map
    named = robot_names(config, stats, used, str(folder))
    newer = fields_of_newer_lerobot(raw, str(folder / CONFIG))
    note = f"{folder / CONFIG}: ignored {', '.join(newer)}, of a newer LeRobot and switched off"
    notes = (note,) if newer else ()
    files = processors.normalizer, processors.unnormalizer
    return Checkpoint(
        folder,
        *named,
        facts,
        files[0],
        used,
        notes,
        action_stats_file=files[1],
        tokenizer_name=processors.tokenizer,
    )


def open_to_train(path: Path, rename_map: RenameMap | None = None) -> Checkpoint:
    """Opens a checkpoint to start training from. UserError when its policy cannot be trained."""
    checkpoint = open_checkpoint(path, rename_map)
    if not checkpoint.trainable:
        raise UserError(
            f"{path} is a policy of brysonjones/multitask_dit_policy, whose image features "
            "LeRobot's format cannot express: export or evaluate it, or train a new policy without "
            "--init-from"
        )
    return checkpoint


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
            file = checkpoint.action_stats_file if key == ACTION else None
            raise UserError(f"{file or checkpoint.stats_file}: {name!r} of {key} {wrong}; {fix}")


def _wrong(name: str, known: Mapping[str, NDArray[np.float32]], count: int) -> str | None:
    """What is wrong with a statistic of a feature of size `count`; None if nothing is."""
    if name not in known:
        return "is missing"
    value = np.atleast_1d(known[name])
    if value.shape != (count,):
        return f"has shape {value.shape}, but the policy needs {(count,)}"
    if not (np.abs(value) < MAX_STAT).all():
        return f"contains NaN, infinite numbers or numbers above {MAX_STAT:g}"
    if (name == "std" and (value < 0).any()) or (
        name == "max" and "min" in known and (value < known["min"]).any()
    ):
        return "is below zero" if name == "std" else "is below 'min'"
    return None


def _read_facts(path: Path) -> DatasetFacts:
    fix = "correct it, or delete it and export with --dataset"
    facts = facts_from_json(path, read_json(path, fix), fix)
    try:
        return validate_facts(facts)
    except ValueError as error:
        raise UserError(f"{path} is not valid ({error}); {fix}") from None
