"""What a policy remembers of its dataset: statistics, and the facts that numbers do not tell."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mtdit.config import PolicyFeatures
from mtdit_robots.errors import UserError
from mtdit_robots.units import ARM_UNITS, RADIANS, UNKNOWN, joint_unit
from mtdit_runtime.bundle.manifest import Joint
from mtdit_runtime.files import MAX_DIM, build
from mtdit_runtime.normalize import Stats

EPS = 1e-8  # LeRobot's; it is added to the standard deviation

# feature -> min, max, mean, std ... -> values
DatasetStats = Mapping[str, Mapping[str, NDArray[np.float32]]]


@dataclass(frozen=True)
class DatasetFacts:
    """What a checkpoint stores about its training dataset."""

    dataset: str
    fps: int
    joints: tuple[str, ...]  # names of the action's dimensions in their order, without ".pos"
    tasks: tuple[str, ...]
    max_speed: tuple[float, ...]  # 99.9th percentile of the commanded speed per joint, units/s
    robot_type: str = ""
    units: str = UNKNOWN  # of the body joints, see mtdit_robots.units
    # names of the state's dimensions in their own order; an earlier mtdit.json lacks them, and then
    # they are the action's
    state_joints: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not self.state_joints:
            object.__setattr__(self, "state_joints", self.joints)


def demonstrated_joints(
    facts: DatasetFacts, actions: Mapping[str, NDArray[np.float32]]
) -> tuple[Joint, ...]:
    """How far and how fast the dataset's actions moved each joint. actions: their statistics, min
    and max (J,) among them.
    """
    low, high = actions["min"].tolist(), actions["max"].tolist()
    rows = zip(facts.joints, low, high, facts.max_speed, strict=True)
    return tuple(Joint(name, joint_unit(name, facts.units), *row) for name, *row in rows)


def feature_stats(config: PolicyFeatures, stats: DatasetStats, key: str) -> Stats:
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
    config: PolicyFeatures, stats: DatasetStats, camera: str
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


def facts_from_json(path: Path, raw: Any, fix: str) -> DatasetFacts:
    """The facts in a JSON file of this or an earlier mtdit. UserError names what is wrong and
    `fix`.
    """
    known = raw
    if isinstance(raw, dict):  # an earlier mtdit knew no unit and no names of the state's own
        known = {"units": UNKNOWN, "state_joints": raw.get("joints"), **raw}
    facts: DatasetFacts = build(path, DatasetFacts, known, "facts", fix)
    return facts


def validate_facts(facts: DatasetFacts) -> DatasetFacts:
    """Returns the facts unchanged. ValueError when a bundle could not have such numbers."""
    if not 1 <= facts.fps <= MAX_DIM:
        raise ValueError(f"facts.fps is {str(facts.fps)[:20]}")
    if not facts.joints or len(facts.max_speed) != len(facts.joints):
        raise ValueError(
            f"{len(facts.joints)} joints have {len(facts.max_speed)} values of max_speed"
        )
    if not all(0 <= speed < math.inf for speed in facts.max_speed):
        raise ValueError("facts.max_speed contains NaN, infinite or negative numbers")
    if facts.units not in (*ARM_UNITS, RADIANS, UNKNOWN):
        raise ValueError(f"facts.units is {facts.units[:20]!r}")
    return facts


IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def with_imagenet_stats(stats: DatasetStats, image_keys: Sequence[str]) -> DatasetStats:
    """The statistics with each camera's mean and std replaced by ImageNet's (LeRobot's default)."""
    fixed = {"mean": np.array(IMAGENET_MEAN, np.float32), "std": np.array(IMAGENET_STD, np.float32)}
    shaped = {n: v.reshape(3, 1, 1) for n, v in fixed.items()}
    return {**stats, **{key: {**stats.get(key, {}), **shaped} for key in image_keys}}
