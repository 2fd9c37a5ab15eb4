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

from mtdit.checkpoint.names import CONFIG, FACTS
from mtdit.checkpoint.read import Checkpoint, need_stats
from mtdit.data.frame_cache import dataset_facts
from mtdit.data.lerobot_dataset import Dataset, open_dataset
from mtdit.policies.multi_task_dit.clip import LEGACY_EOS
from mtdit.policies.multi_task_dit.clip_lookup import load_tokenizer, tokenize
from mtdit.policies.multi_task_dit.config import PolicyConfig
from mtdit.policies.multi_task_dit.policy import MultiTaskDiT
from mtdit.policies.multi_task_dit.reach import cut_actions
from mtdit.stats import DatasetFacts, demonstrated_joints, validate_facts
from mtdit_export.fold.denoiser import with_sampler
from mtdit_export.options import INT8
from mtdit_robots.errors import UserError
from mtdit_robots.features import ACTION, STATE
from mtdit_robots.units import UNKNOWN
from mtdit_runtime.bundle.manifest import TOKENIZER, Joint
from mtdit_runtime.joint_order import listed, repeated
from mtdit_runtime.policy.tokens import END, load_tokens
from mtdit_runtime.recording.dataset_units import dataset_units
from mtdit_runtime.units import Judged, advice, judge, settled, vectors

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
    if facts is not None and _signature(dataset) != _signature(facts):
        there, here = _signature(dataset), _signature(facts)
        if facts.state_joints == facts.joints == dataset.joints and facts.fps == dataset.fps:
            fix += f"; a {FACTS} without state_joints means the action's, add them if it is wrong"
        raise UserError(f"{name}: the dataset has {there}, the policy has {here}: {fix}")
    return dataset


def _signature(robot: Dataset | DatasetFacts) -> str:
    """What the numbers of a dataset's vectors are, and how often they come."""
    state = "" if robot.state_joints == robot.joints else f", state {listed(robot.state_joints)}"
    return f"joints {listed(robot.joints)}{state} at {robot.fps} Hz"


def robot_facts(checkpoint: Checkpoint, dataset: Dataset | None) -> DatasetFacts:
    """Joints, rate and tasks: from the checkpoint, or from the dataset for a checkpoint of LeRobot,
    which lacks them. UserError when neither has them or they are invalid.
    """
    if checkpoint.facts is not None:
        check_counts(checkpoint, checkpoint.facts)
        return with_distinct_joints(checkpoint.facts, str(checkpoint.folder / FACTS))
    if dataset is None:
        raise UserError(
            f"{checkpoint.folder} does not state its joints, rate and tasks: "
            "add --dataset with the dataset that it was trained on"
        )
    try:
        facts = validate_facts(dataset_facts(dataset))
        check_counts(checkpoint, facts)
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
    rows = {}
    for key, joints in ((STATE, facts.state_joints), (ACTION, facts.joints)):
        stats = checkpoint.dataset_stats[key]
        ends = [np.ravel(stats[name]) for name in ("min", "max") if name in stats]
        rows[key] = np.stack(ends) if ends else np.zeros((1, len(joints)))
    judged = judge(*vectors(facts.state_joints, rows[STATE], facts.joints, rows[ACTION]))
    if facts.units == UNKNOWN:
        return judged if dataset is None or judged.is_certain else dataset_units(dataset)
    if facts.units == judged.units:
        return judged
    return Judged(facts.units, "its training says so")


def with_distinct_joints(facts: DatasetFacts, source: str) -> DatasetFacts:
    """The same facts. UserError with both lists when two joints of a vector have the same name;
    `source` is the file or folder to correct.
    """
    twice = repeated(facts.joints) or repeated(facts.state_joints)
    if twice:
        raise UserError(
            f"{source}: two joints are called {twice!r} (state: {listed(facts.state_joints)}; "
            f"action: {listed(facts.joints)}): give each joint its own name there"
        )
    return facts


def reach_notes(checkpoint: Checkpoint, facts: DatasetFacts) -> list[str]:
    """A line when the sampler cuts actions that the policy was trained on."""
    cut = cut_actions(checkpoint.config, checkpoint.dataset_stats, facts.joints)
    if cut is None:
        return []
    fix = "its program always cuts there: train a policy with MIN_MAX for actions"
    if checkpoint.trainable:
        place = checkpoint.folder / CONFIG
        fix = f'write "clip_sample_range": {cut.needed:g} in {place}, and export again'
    return [f"{cut.line}; {fix}"]


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
        or tokens.vocabulary[END] != end
        or ids.max() >= shape.vocab_size
    ):
        raise UserError(
            f"the tokenizer in {folder} does not match the text tower "
            f"({shape.vocab_size} tokens, end token {end}): {fix}"
        )
    return tokenizer


def joints_of(checkpoint: Checkpoint, facts: DatasetFacts) -> tuple[Joint, ...]:
    """The joints of a bundle. UserError as `check_counts`, and when the statistics have no range of
    actions.
    """
    check_counts(checkpoint, facts)
    need_stats(checkpoint, ACTION, ("min", "max"))
    return demonstrated_joints(facts, checkpoint.dataset_stats[ACTION])


def check_counts(checkpoint: Checkpoint, facts: DatasetFacts) -> None:
    """UserError with both lists when state or action has another number of values than of names."""
    config = checkpoint.config
    named = (
        (STATE, config.state_dim, facts.state_joints),
        (ACTION, config.action_dim, facts.joints),
    )
    if any(count != len(names) for _, count, names in named):
        have = "; ".join(f"{key}: {n} values, joints {listed(names)}" for key, n, names in named)
        raise UserError(
            f"{checkpoint.folder} does not name every value ({have}): correct its {FACTS}, or "
            "delete it and export with --dataset and the dataset that the policy was trained on"
        )
