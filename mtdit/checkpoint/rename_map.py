"""LeRobot's rename_map: the names that a policy gives the observations of a dataset or a robot.

In memory a policy's cameras always have the names of the dataset and the robot. The policy's own
names are only in the files of a checkpoint: they are replaced when it is read, and put back when
it is written. Source: LeRobot `processor/rename_processor.py`.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from dataclasses import replace

from mtdit.policies.multi_task_dit.config import PolicyConfig
from mtdit.stats import DatasetStats
from mtdit_robots.errors import UserError
from mtdit_robots.features import STATE

RenameMap = Mapping[str, str]  # name in the dataset and on the robot -> name in the policy


def robot_names(
    config: PolicyConfig, stats: DatasetStats, rename_map: RenameMap, source: str
) -> tuple[PolicyConfig, DatasetStats]:
    """The config and the statistics with the robot's names in place of the policy's.

    Positions keep their name, because they do not come from a feature of the robot. A camera whose
    new name has no statistics has none, as in LeRobot. UserError, which names `source`, when the
    map says of two observations, or of none, that the policy calls them by one name.
    """
    if not rename_map:
        return config, stats
    robots = {key: _robot_name(key, rename_map, source) for key in config.input_features}
    robots = {key: STATE if key == STATE else name for key, name in robots.items()}
    features = {robots[key]: feature for key, feature in config.input_features.items()}
    other = {k: v for k, v in stats.items() if k not in features and k not in rename_map}
    own = {robots[key]: stats[key] for key in robots if key in stats}
    return replace(config, input_features=features), {**other, **own}


def policy_names(
    config: PolicyConfig, stats: DatasetStats, rename_map: RenameMap
) -> tuple[PolicyConfig, DatasetStats]:
    """The config and the statistics with the policy's names in place of the robot's."""
    features = {rename_map.get(k, k): f for k, f in config.input_features.items()}
    renamed = {rename_map.get(k, k): v for k, v in stats.items()}
    return replace(config, input_features=features), renamed


def check_rename_map(rename_map: RenameMap, features: Iterable[str]) -> None:
    """UserError unless every name of the map is one of these features of the dataset, and no two
    features get one name.
    """
    known = list(features)
    for name in rename_map:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"it has {', '.join(known)}"
            raise UserError(f"rename_map: the dataset has no {name!r} that is trained on; {hint}")
    names = [rename_map.get(name, name) for name in known]
    twice = [name for name in names if names.count(name) > 1]
    if twice:
        raise UserError(
            f"rename_map calls two of the dataset's features {twice[0]!r}: give each its own name"
        )


def _robot_name(key: str, rename_map: RenameMap, source: str) -> str:
    """The robot's name of the observation that reaches the policy as `key`."""
    names = [name for name, policys in rename_map.items() if policys == key]
    if len(names) > 1:
        raise UserError(
            f"{source}: {names[0]!r} and {names[1]!r} are both renamed to {key!r}; name the one "
            f"that the robot has with --rename-map {names[0]}={key}"
        )
    if not names and key in rename_map and key != STATE:
        raise UserError(
            f"{source}: the policy needs {key!r}, but that is renamed to {rename_map[key]!r}; "
            "give the map that fits with --rename-map"
        )
    return names[0] if names else key
