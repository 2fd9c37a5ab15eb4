"""The policy that a run starts from: its configuration (preset, options, earlier checkpoint,
dataset), its weights, its tokenizer and the statistics that normalise it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from mtdit.checkpoint.names import CLIP, FACTS, LIVE, TRAINING_STATE
from mtdit.checkpoint.read import Checkpoint, open_to_train
from mtdit.checkpoint.rename_map import RenameMap, check_rename_map, policy_names
from mtdit.checkpoint.tensors import load_weights
from mtdit.config import Feature
from mtdit.data.frame_cache import FrameCache
from mtdit.policies.multi_task_dit.clip_lookup import clip_shapes, load_tokenizer
from mtdit.policies.multi_task_dit.config import PolicyConfig
from mtdit.policies.multi_task_dit.config_json import policy_config_from_dict, policy_config_to_dict
from mtdit.policies.multi_task_dit.policy import MultiTaskDiT
from mtdit.policies.multi_task_dit.presets import with_features
from mtdit.policies.multi_task_dit.tiny_clip import make_tiny_clip
from mtdit.stats import DatasetFacts, DatasetStats, with_imagenet_stats
from mtdit.training.config import TrainConfig
from mtdit_robots.errors import UserError
from mtdit_runtime.joint_order import listed

TINY_CLIP = "clip-tiny"
ENCODERS = {"vision_encoder_name", "text_encoder_name"}
SMALLER = "lower batch_size or noise_samples, or the policy's sizes"


def earlier_checkpoint(config: TrainConfig, resumed: Path | None) -> Checkpoint | None:
    """What the run begins from, opened: the checkpoint that it resumes or --init-from. UserError
    when that cannot be trained.
    """
    place = resumed or config.init_from
    return None if place is None else open_to_train(place, config.rename_map or None)


def initial_config(config: TrainConfig, earlier: Checkpoint | None) -> PolicyConfig:
    """The policy config without the dataset: the earlier checkpoint's or the preset's, with the
    options of `config.policy`.
    """
    if earlier is None:
        tiny = config.preset == "tiny"
        standard = dict.fromkeys(ENCODERS, "tiny") if tiny else {}
        options = _with_clip_folders({**standard, **config.policy}, config)
        return with_features(options, config.preset, {}, {})
    fields = {k: v for k, v in policy_config_to_dict(earlier.config).items() if k != "type"}
    return policy_config_from_dict(
        {
            **fields,
            **_own_tiny_clip(earlier, config),
            **_with_clip_folders(config.policy, config),
        }
    )


def _with_clip_folders(options: Mapping[str, Any], config: TrainConfig) -> dict[str, Any]:
    """The options with absolute CLIP folders, so that LeRobot finds them from any folder.

    For the name "tiny" a tiny CLIP is generated in the output folder.
    """
    found = dict(options)
    for name in ENCODERS & found.keys():
        if not isinstance(found[name], str):
            continue  # PolicyConfig refuses it
        if found[name] == "tiny":
            found[name] = str(make_tiny_clip(config.output_dir.absolute() / TINY_CLIP))
        else:
            found[name] = from_anywhere(found[name])
    return found


def from_anywhere(name: str) -> str:
    """A local folder as an absolute path; a Hub name unchanged."""
    folder = Path(name).expanduser()
    return str(folder.absolute()) if name and folder.is_dir() else name


def _own_tiny_clip(checkpoint: Checkpoint, config: TrainConfig) -> dict[str, str]:
    """If the checkpoint used a tiny CLIP, generates it again in this run's output folder.

    The earlier run's folder may not exist any more.
    """
    names = [name for name in ENCODERS if Path(getattr(checkpoint.config, name)).name == TINY_CLIP]
    shape = clip_shapes(checkpoint.config, beside=checkpoint.folder / CLIP) if names else None
    return {
        name: str(make_tiny_clip(config.output_dir.absolute() / TINY_CLIP, shape))
        for name in names
        if shape
    }


def with_dataset(config: PolicyConfig, cache: FrameCache, device: torch.device) -> PolicyConfig:
    """The config with the dataset's features. UserError: an earlier checkpoint has others."""
    inputs, outputs = cache.info.input_features, cache.info.output_features
    if config.input_features and (dict(config.input_features), dict(config.output_features)) != (
        inputs,
        outputs,
    ):
        raise UserError(
            f"the checkpoint was trained on {_listed(config.input_features)}, but the dataset has "
            f"{_listed(inputs)}; {_remedy(config.input_features, inputs)}"
        )
    return replace(
        config,
        # a checkpoint's order of cameras wins
        input_features=config.input_features or inputs,
        output_features=config.output_features or outputs,
        device=device.type,
    )


def initial_tokenizer(policy_config: PolicyConfig, earlier: Checkpoint | None) -> Any:
    """The tokenizer of the policy at the start of this run. UserError when it cannot be had.

    It needs no dataset, so a CLIP that is missing is noticed before any frame is decoded.
    """
    if earlier is None:
        return load_tokenizer(policy_config.text_encoder_name)
    return earlier.tokenizer()


def initial_policy(
    config: TrainConfig, policy_config: PolicyConfig, cache: FrameCache, earlier: Checkpoint | None
) -> tuple[MultiTaskDiT, DatasetStats]:
    """The policy at the start of this run, and the statistics that normalise it."""
    torch.manual_seed(config.seed)
    if earlier is None:
        cameras = list(cache.info.image_keys.values())
        stats = with_imagenet_stats(cache.stats, cameras) if config.imagenet_stats else cache.stats
        return MultiTaskDiT.pretrained(policy_config), stats
    if earlier.facts is not None:
        _check_names(earlier.facts, cache.info.facts)
    policy = replace(earlier, config=policy_config).policy()
    if config.resume:
        raw_weights = earlier.folder.parent / TRAINING_STATE / LIVE
        if raw_weights.is_file():  # not in LeRobot's checkpoints: their model.safetensors is live
            load_weights(policy, raw_weights)
    return policy, earlier.dataset_stats


def rename_map_of(
    config: TrainConfig, policy_config: PolicyConfig, cache: FrameCache, earlier: Checkpoint | None
) -> RenameMap:
    """The names that the policy's files give the dataset's cameras: the config's, else those of
    the earlier checkpoint. UserError when they do not fit the dataset.
    """
    if not config.rename_map and earlier is not None:
        return earlier.rename_map
    check_rename_map(config.rename_map, cache.info.input_features)
    policy_names(policy_config, {}, config.rename_map)  # a name that a camera cannot have
    return config.rename_map


def _remedy(theirs: Mapping[str, Feature], ours: Mapping[str, Feature]) -> str:
    """What to do about a checkpoint's inputs that are not the dataset's."""
    new = [key for key in theirs if key not in ours]
    old = [key for key in ours if key not in theirs]
    if len(new) == len(old) and [theirs[k] for k in new] == [ours[k] for k in old]:
        pairs = ",".join(f"{a}={b}" for a, b in zip(old, new, strict=True))
        return f"if they are the same cameras, add --rename-map {pairs}"
    return "record with the same joints and cameras, or train without --init-from"


def _check_names(policy: DatasetFacts, dataset: DatasetFacts) -> None:
    """UserError with both lists when a dataset's numbers would land on other joints of a policy."""
    for what, ours, theirs in (
        ("state", policy.state_joints, dataset.state_joints),
        ("action", policy.joints, dataset.joints),
    ):
        if ours != theirs:
            raise UserError(
                f"the {what} of the checkpoint has joints {listed(ours)}, in this order, that of "
                f"the dataset {listed(theirs)}: train on a dataset with the same order, or from "
                f"scratch; a {FACTS} without state_joints means the action's, add them if it is "
                "wrong"
            )


def _listed(features: Mapping[str, Any]) -> str:
    return ", ".join(f"{key}{list(feature.shape)}" for key, feature in features.items())
