"""Writes checkpoints in LeRobot's layout, which `mtdit.checkpoint.read` shows.

Each checkpoint is written under another name and renamed, so a crash or a full disk leaves the
previous one intact.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from mtdit.checkpoint.names import (
    CHECKPOINTS,
    CLIP,
    CONFIG,
    FACTS,
    LAST,
    POSTPROCESSOR,
    PREPROCESSOR,
    PRETRAINED,
    STEP,
    TRAIN_CONFIG,
    TRAINING_STATE,
    WEIGHTS,
)
from mtdit.checkpoint.rename_map import RenameMap, policy_names
from mtdit.policies.multi_task_dit.clip_lookup import save_tokenizer
from mtdit.policies.multi_task_dit.config import PolicyConfig
from mtdit.policies.multi_task_dit.config_json import policy_config_to_dict
from mtdit.policies.multi_task_dit.policy import MultiTaskDiT
from mtdit.stats import EPS, DatasetFacts, DatasetStats
from mtdit_robots.errors import UserError
from mtdit_robots.files import new_file, new_folder


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
    try:
        with new_folder(final, sync=True) as part:
            save_pretrained(part / PRETRAINED, checkpoint_files)
            (part / TRAINING_STATE).mkdir()
            for name, tensors in training_state.items():
                save_file(dict(tensors), part / TRAINING_STATE / name)
            _write_json(part / TRAINING_STATE / STEP, {"step": step, **training_numbers})
    except (OSError, SafetensorError) as error:
        raise UserError(
            f"cannot write {final} ({error}); free disk space and resume: the previous checkpoint "
            "is intact"
        ) from None
    point_at(final, LAST)
    return final


@dataclass(frozen=True)
class PretrainedFiles:
    """The content of a pretrained_model folder."""

    policy: MultiTaskDiT
    weights: Mapping[str, Tensor]  # the policy's, or their moving average
    dataset_stats: DatasetStats
    facts: DatasetFacts
    tokenizer: Any
    train_config: Mapping[str, Any]
    rename_map: RenameMap = field(default_factory=dict)  # the dataset's names -> the policy's
    tokenizer_name: str = ""  # its folder or Hub name, if it is not the text encoder's


def save_pretrained(folder: Path, files: PretrainedFiles) -> None:
    """Writes the files of LeRobot's from_pretrained and make_pre_post_processors, mtdit.json and
    clip/.
    """
    (folder / CLIP).mkdir(parents=True)
    config, stats = policy_names(files.policy.config, files.dataset_stats, files.rename_map)
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
        (PREPROCESSOR, preprocessor_steps(config, files.rename_map, files.tokenizer_name)),
        (POSTPROCESSOR, postprocessor_steps(config)),
    ):
        for step in steps:
            if "state_file" in step:
                save_file(_flat_stats(stats), folder / step["state_file"])
        _write_json(folder / name, {"name": name.removesuffix(".json"), "steps": steps})


def preprocessor_steps(
    config: PolicyConfig, rename_map: RenameMap, tokenizer_name: str = ""
) -> list[dict[str, Any]]:
    """LeRobot's processing of an observation before the policy, for policy_preprocessor.json."""
    tokenizer = {
        "max_length": config.tokenizer_max_length,
        "task_key": "task",
        "padding_side": config.tokenizer_padding_side,
        "padding": config.tokenizer_padding,
        "truncation": config.tokenizer_truncation,
        "tokenizer_name": tokenizer_name or config.text_encoder_name,
    }
    features = {**config.input_features, **config.output_features}
    return [
        {
            "registry_name": "rename_observations_processor",
            "config": {"rename_map": dict(rename_map)},
        },
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


def point_at(checkpoint: Path, name: str) -> None:
    """Creates the link RUN/checkpoints/<name>, or replaces it atomically."""
    with new_file(checkpoint.with_name(name)) as part:
        part.symlink_to(checkpoint.name)
