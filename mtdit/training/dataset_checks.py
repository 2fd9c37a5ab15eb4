"""Warnings before training: likely problems of the dataset and the settings, with figure and fix.

They cover the failure modes named on LeRobot's page about this policy
(docs/source/multi_task_dit.mdx): idling, the wrong task, unstable training. A warning never stops
the training; errors are raised elsewhere.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import combinations, pairwise

import numpy as np
from numpy.typing import NDArray

from mtdit.data.frame_cache import FrameCache
from mtdit.policies.multi_task_dit.config import PolicyConfig
from mtdit.policies.multi_task_dit.reach import cut_actions
from mtdit.stats import DatasetStats
from mtdit.training.config import TrainConfig
from mtdit.training.instructions import alike
from mtdit_robots.features import ACTION, STATE
from mtdit_runtime.joint_order import difference

MIN_EPISODES = 50
MIN_SAMPLES = 64
MAX_TASK_RATIO = 3.0  # frames of the most frequent task / frames of the rarest
IDLE_S, MAX_IDLE_SHARE = 0.5, 0.1  # duration of a stretch, share of all frames
STILL_RATIO = 0.001  # movement per frame, as a share of the joint's range
MIN_RANGE = 0.1  # degrees, or percent of the gripper
MAX_SQUASH = 1.4  # change of aspect ratio: 640x480 to square is 1.33 and harmless, 1280x720 is 1.78
MIN_VISIBLE = 0.75  # share of the frame's area inside the crop
HORIZON_S = (0.5, 2.5)
RANGE_MARGIN = 0.05  # margin, as a share of the range of the statistics


@dataclass(frozen=True)
class TrainingSetup:
    """The training that is checked."""

    train: TrainConfig
    policy: PolicyConfig
    cache: FrameCache
    stats: DatasetStats  # those that normalise states and actions
    world: int  # number of processes


def dataset_warnings(
    train: TrainConfig,
    policy: PolicyConfig,
    cache: FrameCache,
    world: int = 1,
    stats: DatasetStats | None = None,
) -> list[str]:
    """Warnings, one line each; none if the dataset and the settings look good.

    stats: the statistics that normalise the policy, if they are not the dataset's.
    """
    setup = TrainingSetup(train, policy, cache, cache.stats if stats is None else stats, world)
    checks = (
        _order,
        _episodes,
        _tasks,
        _imbalance,
        _idle,
        _constant,
        _outside,
        _cut,
        _batch,
        _images,
        _horizon,
        _short,
    )
    return [line for check in checks for line in check(setup)]


def _episode_tasks(setup: TrainingSetup) -> list[str]:
    ends = np.asarray(setup.cache.episode_ends)
    return [setup.cache.info.facts.tasks[t] for t in np.asarray(setup.cache.task)[ends - 1]]


def _order(setup: TrainingSetup) -> Iterator[str]:
    facts = setup.cache.info.facts
    if note := difference(facts.state_joints, facts.joints):
        yield note


def _episodes(setup: TrainingSetup) -> Iterator[str]:
    tasks = _episode_tasks(setup)
    if len(tasks) < MIN_EPISODES:
        yield (
            f"only {len(tasks)} episodes: with fewer than {MIN_EPISODES} a policy tends to stand "
            "still; record about twice as many"
        )
        return
    counts = {task: tasks.count(task) for task in sorted(set(tasks))}
    few = [f"{task!r} ({n})" for task, n in counts.items() if n < MIN_EPISODES]
    if few:
        yield (
            f"fewer than {MIN_EPISODES} episodes of {_some(few)}: the policy may ignore a rare "
            "task; record more"
        )


def _tasks(setup: TrainingSetup) -> Iterator[str]:
    for a, b in combinations(sorted(set(_episode_tasks(setup))), 2):
        if alike(a, b):
            yield (
                f"tasks {a!r} and {b!r} look like one task with two spellings; use one wording, or "
                "make them clearly different"
            )


def _imbalance(setup: TrainingSetup) -> Iterator[str]:
    numbers, counts = np.unique(np.asarray(setup.cache.task), return_counts=True)
    if (
        setup.train.balance_tasks
        or setup.train.task_weights
        or counts.max() <= MAX_TASK_RATIO * counts.min()
    ):
        return
    rare, often = (
        setup.cache.info.facts.tasks[numbers[i]] for i in (counts.argmin(), counts.argmax())
    )
    yield (
        f"task {often!r} has {counts.max() / counts.min():.1f} times the frames of {rare!r}, which "
        "the policy may ignore; use --balance-tasks"
    )


def _idle(setup: TrainingSetup) -> Iterator[str]:
    idle, bounds = standing_still(setup), np.append(0, np.asarray(setup.cache.episode_ends))
    share = float(idle.mean())
    if share <= MAX_IDLE_SHARE:
        return
    start = end = 0
    for first, last in pairwise(bounds):
        moves = np.flatnonzero(~idle[first:last])
        start += moves[0] if len(moves) else last - first
        end += last - first - 1 - moves[-1] if len(moves) else 0
    yield (
        f"the action stands still for more than {IDLE_S} s in {share:.0%} of the frames "
        f"({start / len(idle):.0%} at the start, {end / len(idle):.0%} at the end of episodes): "
        "a policy learns to wait; cut these frames, or record without pauses"
    )


def standing_still(setup: TrainingSetup) -> NDArray[np.bool_]:
    """(N,) True for frames in a stretch longer than IDLE_S without movement of any joint."""
    action, fps = np.asarray(setup.cache.action), setup.cache.info.facts.fps
    spread = np.maximum(action.max(0) - action.min(0), 1e-6)
    moved = np.abs(np.diff(action, axis=0))  # (N - 1, A) until the next frame
    rests = np.append((moved < STILL_RATIO * spread).all(axis=1), False)
    rests[np.asarray(setup.cache.episode_ends) - 1] = False
    edges = np.flatnonzero(np.diff(np.concatenate([[0], rests.astype(np.int8), [0]])))
    idle = np.zeros(len(action), bool)
    for first, last in edges.reshape(-1, 2):
        if last - first > IDLE_S * fps:
            idle[first : last + 1] = True
    return idle


def _constant(setup: TrainingSetup) -> Iterator[str]:
    stats, names = setup.stats[ACTION], setup.cache.info.facts.joints
    spread = np.asarray(stats["max"]) - np.asarray(stats["min"])
    joints = [f"{names[i]} ({spread[i]:.2g})" for i in np.flatnonzero(spread < MIN_RANGE)]
    if joints:
        amplified = setup.policy.normalization_mapping.get("ACTION") == "MIN_MAX"
        why = "; MIN_MAX turns the smallest deviation into huge values" if amplified else ""
        yield (
            f"the action of {_some(joints)} hardly changes in the dataset{why}; "
            "leave the joint out, or move it"
        )


def _outside(setup: TrainingSetup) -> Iterator[str]:
    for key, rows in ((STATE, setup.cache.state), (ACTION, setup.cache.action)):
        low, high = (np.asarray(setup.stats[key][n]) for n in ("min", "max"))
        margin = RANGE_MARGIN * (high - low) + 1e-4
        out = ((np.asarray(rows) < low - margin) | (np.asarray(rows) > high + margin)).any(axis=1)
        if out.any():
            yield (
                f"{key} is outside the range of its statistics in {out.mean():.1%} of the frames: "
                f"{_statistics_remedy(setup.train)}"
            )


def _cut(setup: TrainingSetup) -> Iterator[str]:
    cut = cut_actions(setup.policy, setup.stats, setup.cache.info.facts.joints)
    if cut is None:
        return
    fix = f"add --policy clip_sample_range={cut.needed:g}"
    if not setup.train.resume and setup.train.init_from is None:
        fix += ", or leave normalization_mapping out: MIN_MAX, LeRobot's default, cuts nothing"
    yield f"{cut.line}; {fix}"


def _statistics_remedy(train: TrainConfig) -> str:
    """Why the statistics do not cover the dataset, and what helps: they belong to the weights."""
    if train.resume:
        return (
            "a resumed run keeps the statistics that it began with, and actions beyond them are "
            "hard to learn; for the new range start another run with another --out"
        )
    if train.init_from is not None:
        return (
            "--init-from keeps the statistics that its weights were trained with; "
            "train without it for the new range"
        )
    return "they are those of other data: delete meta/stats.json, and mtdit computes them"


def _batch(setup: TrainingSetup) -> Iterator[str]:
    """Noise draws count as samples, because they make the gradient less noisy too."""
    t = setup.train
    one = t.batch_size * setup.world * t.noise_samples
    if one * t.grad_accumulation < MIN_SAMPLES:
        yield (
            f"a step sees {one * t.grad_accumulation} samples; with fewer than {MIN_SAMPLES} "
            "training may be unstable: raise --batch-size, or --grad-accumulation to "
            f"{-(-MIN_SAMPLES // one)}"
        )


def _images(setup: TrainingSetup) -> Iterator[str]:
    c = setup.policy
    for camera, (height, width, _) in c.cameras.items():
        resized, kept = c.image_resize_shape, c.image_crop_shape
        if resized is not None:
            squash = (width / height) / (resized[1] / resized[0])
            if max(squash, 1 / squash) > MAX_SQUASH:
                yield (
                    f"camera {camera!r}: image_resize_shape {_by(resized)} squashes "
                    f"{_by((height, width))} frames by {max(squash, 1 / squash):.2f}; "
                    "record frames that are closer to square"
                )
        size = resized or (height, width)
        seen = kept[0] * kept[1] / (size[0] * size[1]) if kept is not None else 1.0
        if seen < MIN_VISIBLE:
            yield (
                f"camera {camera!r}: the crop of {_by(kept or size)} shows {seen:.0%} of a "
                f"{_by(size)} frame; set image_resize_shape a little larger than the crop, "
                "e.g. (240, 240) for (224, 224)"
            )


def _horizon(setup: TrainingSetup) -> Iterator[str]:
    fps, c = setup.cache.info.facts.fps, setup.policy
    if not HORIZON_S[0] <= c.horizon / fps <= HORIZON_S[1]:
        yield (
            f"horizon {c.horizon} is {c.horizon / fps:.1f} s at {fps} fps; start with about one "
            f"second: horizon {fps}, n_action_steps {round(0.8 * fps)}"
        )


def _short(setup: TrainingSetup) -> Iterator[str]:
    lengths = np.diff(np.append(0, np.asarray(setup.cache.episode_ends)))
    short = int((lengths < setup.policy.horizon).sum())
    if short:
        yield (
            f"{short} of {len(lengths)} episodes are shorter than the horizon of "
            f"{setup.policy.horizon} frames (the shortest has {lengths.min()}): much of their "
            "chunks is padding; lower horizon or remove these episodes"
        )


def _some(names: list[str], most: int = 4) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def _by(size: tuple[int, ...]) -> str:
    """(height, width) as "width x height"."""
    return f"{size[1]}x{size[0]}"
