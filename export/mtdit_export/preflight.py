"""Checks the options of an export and the facts about the robot before the first graph is traced.

Decides which samplers, precisions and datasets fit a checkpoint, and collects the joints, rate and
tasks that a bundle must state.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from mtdit.checkpoint.names import FACTS
from mtdit.checkpoint.read import Checkpoint, need_stats
from mtdit.data.frame_cache import dataset_facts
from mtdit.data.lerobot_dataset import Dataset, open_dataset
from mtdit.policies.multi_task_dit.clip import LEGACY_EOS
from mtdit.policies.multi_task_dit.clip_lookup import load_tokenizer, tokenize
from mtdit.policies.multi_task_dit.config import PolicyConfig
from mtdit.policies.multi_task_dit.policy import MultiTaskDiT
from mtdit.stats import DatasetFacts, validate_facts
from mtdit_export.fold.denoiser import with_sampler
from mtdit_export.options import INT8
from mtdit_robots.errors import UserError
from mtdit_robots.features import ACTION, STATE
from mtdit_robots.units import UNKNOWN, joint_unit
from mtdit_runtime.bundle.manifest import TOKENIZER, Joint
from mtdit_runtime.policy.tokens import load_tokens
from mtdit_runtime.recording.dataset_units import dataset_units
from mtdit_runtime.units import Judged, Vector, advice, judge, settled

# objective -> samplers; the first is the default
SAMPLERS = {"diffusion": ("ddim", "ddpm"), "flow_matching": ("euler", "rk4")}
# the graph repeats the network for every call, and the time to open it grows with the square
MAX_FLOW_CALLS = 100
CALLS_PER_STEP = {"euler": 1, "rk4": 4}
SAMPLE_TEXT = "open the drawer"  # every CLIP tokenizer gives the same tokens for this text


def choose_sampler(config: PolicyConfig, sampler: str | None, steps: int) -> PolicyConfig:
    """The config with this sampler (None: the default) and number of steps. UserError when the
    sampler does not fit the objective or `steps` is out of range.
    """
    fitting = SAMPLERS[config.objective]
    standard = config.integration_method if config.objective == "flow_matching" else fitting[0]
    chosen = standard if sampler is None else sampler
    if chosen not in fitting:
        raise UserError(
            f"sampler {chosen or repr(chosen)} does not fit a {config.objective} policy: "
            f"use {' or '.join(fitting)}"
        )
    is_flow = config.objective == "flow_matching"
    most = MAX_FLOW_CALLS // CALLS_PER_STEP[chosen] if is_flow else config.num_train_timesteps
    if not 1 <= steps <= most:
        raise UserError(f"steps {steps} is out of range: this policy takes 1 to {most}")
    return with_sampler(config, chosen, steps)


def matching_dataset(
    name: str | Path, config: PolicyConfig, facts: DatasetFacts | None = None
) -> Dataset:
    """Open a dataset that has the policy's cameras, joints and rate. UserError names the first
    difference.
    """
    dataset, fix = open_dataset(str(name)), "pass the dataset that the policy was trained on"
    for camera, shape in config.cameras.items():
        if camera not in dataset.cameras:
            raise UserError(
                f"{name}: the dataset has no camera {camera!r} with frames of {shape}, "
                f"which the policy needs: {fix}; or add --rename-map NAME={camera}, with the name "
                f"that it has there ({', '.join(dataset.cameras) or 'there is none'})"
            )
        if (found := dataset.cameras[camera]) != shape:
            raise UserError(
                f"{name}: camera {camera!r} has frames of {found}, the policy needs {shape}: {fix}"
            )
    sizes = dataset.state.shape[1], dataset.action.shape[1]
    wanted = config.state_dim, config.action_dim
    if sizes != wanted:
        raise UserError(
            f"{name}: state and action have {sizes} dimensions, the policy has {wanted}: {fix}"
        )
    if facts is not None and (dataset.joints, dataset.fps) != (facts.joints, facts.fps):
        there, here = (
            f"joints {', '.join(robot.joints)} at {robot.fps} Hz" for robot in (dataset, facts)
        )
        raise UserError(f"{name}: the dataset has {there}, the policy has {here}: {fix}")
    return dataset


def robot_facts(checkpoint: Checkpoint, dataset: Dataset | None) -> DatasetFacts:
    """Joints, rate and tasks: from the checkpoint, or from the dataset for a checkpoint of LeRobot,
    which lacks them. UserError when neither has them or they are invalid.
    """
    if checkpoint.facts is not None:
        return with_distinct_joints(checkpoint.facts, str(checkpoint.folder / FACTS))
    if dataset is None:
        raise UserError(
            f"{checkpoint.folder} does not state its joints, rate and tasks: "
            "add --dataset with the dataset that it was trained on"
        )
    try:
        facts = validate_facts(dataset_facts(dataset))
        return with_distinct_joints(facts, str(dataset.root / "meta"))
    except ValueError as error:
        raise UserError(
            f"cannot build a bundle from {dataset.root}: {error}: "
            "correct its meta/info.json or its actions"
        ) from None


def known_units(
    checkpoint: Checkpoint,
    facts: DatasetFacts,
    dataset: Dataset | None,
    said: str | None,
    say: Callable[[str], None],
) -> str:
    """The unit that the bundle will state: `said`, else what is known; a line when it is not
    degrees.
    """
    judged = policy_units(checkpoint, facts, dataset)
    if said is None:
        for line in advice(judged):
            say(line)
    return settled(judged, said, str(checkpoint.folder))


def policy_units(checkpoint: Checkpoint, facts: DatasetFacts, dataset: Dataset | None) -> Judged:
    """The unit of the policy's positions: as its training knew it, else judged from the dataset or
    from the ranges in the checkpoint's statistics.
    """
    vectors = []
    for key, what in ((STATE, "state"), (ACTION, "action")):
        stats = checkpoint.dataset_stats[key]
        ends = [np.ravel(stats[name]) for name in ("min", "max") if name in stats]
        rows = np.stack(ends) if ends else np.zeros((1, len(facts.joints)))
        vectors.append(Vector(what, facts.joints, rows))
    judged = judge(*vectors)
    if facts.units == UNKNOWN:
        return judged if dataset is None or judged.is_certain else dataset_units(dataset)
    if facts.units == judged.units:
        return judged
    return Judged(facts.units, "its training says so")


def with_distinct_joints(facts: DatasetFacts, source: str) -> DatasetFacts:
    """The same facts. UserError when two joints have the same name; `source` is the file or folder
    to correct.
    """
    twice = [name for name in facts.joints if facts.joints.count(name) > 1]
    if twice:
        raise UserError(
            f"{source}: two joints are called {twice[0]!r}: give each joint its own name there"
        )
    return facts


def check_calibration(precision: str, config: PolicyConfig, dataset: Dataset | None) -> None:
    """UserError when int8 has no dataset to calibrate the vision tower with."""
    if precision == INT8 and config.cameras and dataset is None:
        raise UserError(
            "--int8 needs recorded frames to calibrate the vision tower with: add --dataset"
        )


def checked_tokenizer(folder: Path, policy: MultiTaskDiT) -> Any:
    """The tokenizer of a folder. UserError when it does not give the same ids on the robot
    computer, or does not belong to the policy's text tower.
    """
    shape, fix = policy.clip_shape.text, "copy all files of the checkpoint again"
    whole = replace(policy.config, tokenizer_padding="max_length", tokenizer_truncation=True)
    tokenizer = load_tokenizer(folder)
    try:
        tokens = load_tokens(folder / TOKENIZER, whole.tokenizer_max_length)
        ids = tokenize(tokenizer, [SAMPLE_TEXT], whole).numpy()
    except Exception:  # a damaged file can raise anything
        raise UserError(f"{folder} holds no tokenizer of CLIP that can be read: {fix}") from None
    end = int(ids.max()) if shape.eos_token_id == LEGACY_EOS else shape.eos_token_id
    if (
        not np.array_equal(ids, tokens(SAMPLE_TEXT))
        or tokens.end != end
        or ids.max() >= shape.vocab_size
    ):
        raise UserError(
            f"the tokenizer in {folder} does not match the text tower "
            f"({shape.vocab_size} tokens, end token {end}): {fix}"
        )
    return tokenizer


def joints_of(checkpoint: Checkpoint, facts: DatasetFacts) -> tuple[Joint, ...]:
    """The joints of a bundle. UserError when the numbers of states, actions and joints differ, or
    when the statistics have no range of actions.
    """
    n_state, n_action = checkpoint.config.state_dim, checkpoint.config.action_dim
    if not n_state == n_action == len(facts.joints):
        raise UserError(
            f"{checkpoint.folder} has {n_state} states, {n_action} actions and {len(facts.joints)} "
            "joints: a bundle needs one state and one action per joint, train with such a dataset"
        )
    need_stats(checkpoint, ACTION, ("min", "max"))
    stats = checkpoint.dataset_stats[ACTION]
    rows = zip(
        facts.joints, stats["min"].tolist(), stats["max"].tolist(), facts.max_speed, strict=True
    )
    return tuple(
        Joint(name, joint_unit(name, facts.units), low, high, speed)
        for name, low, high, speed in rows
    )
