"""What an export is asked for and what is known of the policy, settled before the first graph is
traced.

Knows which samplers, precisions and datasets fit a checkpoint, and what a bundle must be able to
say of its robot. Refuses to know graphs and files of a bundle.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from mtdit.checkpoint import FACTS, Checkpoint, DatasetFacts, need_stats, sane_facts
from mtdit.config import PolicyConfig
from mtdit.dataset import Dataset, open_dataset
from mtdit.encoders import LEGACY_EOS, load_tokenizer, tokenize
from mtdit.frames import dataset_facts
from mtdit.policy import Policy
from mtdit_export.fold import with_sampler
from mtdit_export.precision import FP16, FP32, INT8
from mtdit_robots.errors import UserError
from mtdit_runtime.bundle import ACTION_KEY, TOKENIZER, Joint
from mtdit_runtime.tokens import load_tokens
from mtdit_runtime.words import steers

SAMPLERS = {
    "diffusion": ("ddim", "ddpm"),
    "flow_matching": ("euler", "rk4"),
}  # the first is the default
MOST_FLOW_CALLS = (
    100  # the graph holds every call of the network; opening it takes the square of that
)
CALLS_PER_STEP = {"euler": 1, "rk4": 4}
PLAIN = "open the drawer"  # what every tokenizer of CLIP takes for the same


def sampled(config: PolicyConfig, sampler: str | None, steps: int) -> PolicyConfig:
    """The config sampled as asked. UserError: a sampler that does not fit the objective, steps out
    of range.
    """
    fitting = SAMPLERS[config.objective]
    standard = config.integration_method if config.objective == "flow_matching" else fitting[0]
    chosen = standard if sampler is None else sampler
    if chosen not in fitting:
        raise UserError(
            f"--sampler {chosen or repr(chosen)} does not fit a {config.objective} policy: use {' or '.join(fitting)}"
        )
    is_flow = config.objective == "flow_matching"
    most = MOST_FLOW_CALLS // CALLS_PER_STEP[chosen] if is_flow else config.num_train_timesteps
    if not 1 <= steps <= most:
        raise UserError(f"--steps {steps} is out of range: this policy takes 1 to {most}")
    return with_sampler(config, chosen, steps)


def matching_dataset(name: str, config: PolicyConfig, facts: DatasetFacts | None = None) -> Dataset:
    """An opened dataset with the policy's cameras, joints and rate. UserError names the first
    difference.
    """
    dataset = open_dataset(name)
    for camera, shape in config.cameras.items():
        if dataset.cameras.get(camera) != shape:
            has = dataset.cameras.get(camera, "no such camera")
            raise UserError(
                f"{name}: camera {camera!r} is {has}, the policy wants {shape}: give its training dataset"
            )
    sizes, wanted = (
        (dataset.state.shape[1], dataset.action.shape[1]),
        (config.state_dim, config.action_dim),
    )
    if sizes != wanted:
        raise UserError(
            f"{name}: state and action have {sizes} dimensions, the policy's {wanted}: give its dataset"
        )
    if facts is not None and (dataset.joints, dataset.fps) != (facts.joints, facts.fps):
        robots = (f"{', '.join(robot.joints)} at {robot.fps} Hz" for robot in (dataset, facts))
        raise UserError(
            "{}: is of {}, the policy of {}: give its training dataset".format(name, *robots)
        )
    return dataset


def known_facts(checkpoint: Checkpoint, dataset: Dataset | None) -> DatasetFacts:
    """Joints, rate and tasks: from the checkpoint, else from the dataset, because LeRobot's
    checkpoints lack them.
    """
    if checkpoint.facts is not None:
        return printable(checkpoint.facts, str(checkpoint.folder / FACTS))
    if dataset is None:
        raise UserError(
            f"{checkpoint.folder} does not say its joints, rate and tasks: add --dataset with the one it was trained on"
        )
    try:
        return printable(sane_facts(dataset_facts(dataset)), str(dataset.root / "meta"))
    except ValueError as error:
        raise UserError(
            f"{dataset.root} makes no bundle ({error}): correct its meta/info.json or its actions"
        ) from None


def printable(facts: DatasetFacts, source: str) -> DatasetFacts:
    """The facts, which a bundle shows in one line each. UserError: a control character in one, a
    joint twice.
    """
    words = {
        "joint": facts.joints,
        "task": facts.tasks,
        "dataset": (facts.dataset,),
        "robot type": (facts.robot_type,),
    }
    for what, word in ((what, word) for what, some in words.items() for word in some):
        if any(map(steers, word)):
            raise UserError(
                f"{source}: {what} {word[:60]!r} holds a control character: put a space in its place there"
            )
    twice = [name for name in facts.joints if facts.joints.count(name) > 1]
    if twice:
        raise UserError(
            f"{source}: two joints are called {twice[0]!r}: give each a name of its own there"
        )
    return facts


def chosen_precision(fp16: bool, int8: bool, config: PolicyConfig, dataset: Dataset | None) -> str:
    """UserError: both, or nothing to calibrate the vision tower with."""
    if fp16 and int8:
        raise UserError("--fp16 and --int8 exclude each other: give one of them")
    if int8 and config.cameras and dataset is None:
        raise UserError(
            "--int8 takes the ranges of the vision tower from recorded frames: add --dataset"
        )
    return INT8 if int8 else FP16 if fp16 else FP32


def checked_tokenizer(folder: Path, policy: Policy) -> Any:
    """A folder's tokenizer. UserError: the robot computer could not read it alike, or the text
    tower is another's.
    """
    shape, fix = policy.clip_shape.text, "copy the checkpoint again, all of its files"
    whole = replace(policy.config, tokenizer_padding="max_length", tokenizer_truncation=True)
    tokenizer = load_tokenizer(folder)
    try:
        tokens = load_tokens(folder / TOKENIZER, whole.tokenizer_max_length)
        ids = tokenize(tokenizer, [PLAIN], whole).numpy()
    except Exception:  # of any kind, when a file is damaged
        raise UserError(f"{folder} holds no tokenizer of CLIP: {fix}") from None
    end = int(ids.max()) if shape.eos_token_id == LEGACY_EOS else shape.eos_token_id
    if not np.array_equal(ids, tokens(PLAIN)) or tokens.end != end or ids.max() >= shape.vocab_size:
        there = f"of {shape.vocab_size} tokens, a text's end being {end}"
        raise UserError(f"{folder} holds a tokenizer that is not the text tower's ({there}): {fix}")
    return tokenizer


def joints_of(checkpoint: Checkpoint, facts: DatasetFacts) -> tuple[Joint, ...]:
    """UserError: state, action and joints are not as many, or the statistics have no range of
    actions.
    """
    counts = checkpoint.config.state_dim, checkpoint.config.action_dim, len(facts.joints)
    if len(set(counts)) > 1:
        raise UserError(
            "{} reads {} numbers and commands {}, of {} joints: a bundle drives arms commanded as they are read, "
            "train with one state and one action per joint".format(checkpoint.folder, *counts)
        )
    need_stats(checkpoint, ACTION_KEY, ("min", "max"))
    stats = checkpoint.dataset_stats[ACTION_KEY]
    rows = zip(
        facts.joints, stats["min"].tolist(), stats["max"].tolist(), facts.max_speed, strict=True
    )
    return tuple(
        Joint(name, "percent" if name == "gripper" else "degrees", low, high, speed)
        for name, low, high, speed in rows
    )
