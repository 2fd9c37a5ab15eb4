"""Whether the parts of a LeRobotDataset v3 agree: metadata, tables, episodes, tasks and fps.

Every function raises UserError with what is wrong, where, and what to do.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mtdit_robots.errors import UserError
from mtdit_robots.features import ACTION, STATE
from mtdit_runtime.joint_order import repeated
from mtdit_runtime.recording.dataset_layout import INFO
from mtdit_runtime.text import printable


def check_info(root: Path, info: Any) -> None:
    """Check the content of meta/info.json: version, features and fps."""
    version = str(info.get("codebase_version", "?")) if isinstance(info, dict) else "?"
    if not version.startswith("v3."):
        raise UserError(
            f"{root} is a LeRobotDataset of version {version}, but mtdit needs v3.x; "
            "convert it with LeRobot's script"
        )
    if not isinstance(info.get("features"), dict):
        raise UserError(f"{root}/{INFO} lists no features; copy the dataset again")
    for key, feature in info["features"].items():
        if not isinstance(feature, dict) or not {"dtype", "shape"} <= set(feature):
            raise UserError(
                f"{root}/{INFO}: feature {key!r} lacks dtype or shape; copy the dataset again"
            )
    for key in (STATE, ACTION):
        if key not in info["features"]:
            raise UserError(
                f"{root} has no feature {key!r}, it has {', '.join(info['features'])[:300]}: it is "
                "of another robot or program; convert it with that program's converter, to "
                f"LeRobot's names (one vector {STATE}, one {ACTION}), or use `mtdit record`"
            )
    if type(info.get("fps")) is not int or info["fps"] <= 0:
        raise UserError(f"{root}/{INFO}: fps must be a positive integer, got {info.get('fps')!r}")


def image_shape(root: Path, key: str, feature: Mapping[str, Any]) -> tuple[int, int, int]:
    """A camera's (H, W, 3) from its feature in info.json, which may say (3, H, W)."""
    shape, names = list(feature["shape"]), list(feature.get("names") or [])
    if names[:1] in (["channel"], ["channels"]) or (not names and shape[0] == 3):
        shape = [*shape[1:], shape[0]]
    if len(shape) != 3 or shape[2] != 3:
        raise UserError(
            f"{root}: camera {key!r} has shape {feature['shape']}, but mtdit needs RGB (H, W, 3)"
        )
    return int(shape[0]), int(shape[1]), 3


def joint_names(root: Path, features: Mapping[str, Any], key: str) -> tuple[str, ...]:
    """The names of a vector's dimensions in their order, without ".pos". UserError with the names
    of state and action when the vector has none, or has one twice.
    """
    names = tuple(name.removesuffix(".pos") for name in _listed_names(features[key]))
    twice, [count] = repeated(names), features[key]["shape"]
    if len(names) == count and twice is None:
        return names
    what = f"has {count} dimensions but {len(names)} names"
    if twice is not None:
        what = f"has two dimensions called {twice!r}"
    both = "; ".join(f"{k}: {features[k].get('names') or 'no names'}" for k in (STATE, ACTION))
    raise UserError(
        f"{root}/{INFO}: {key} {what} ({printable(both, 400)}): write a name for every dimension "
        "of both there, in the order of their numbers"
    )


def _listed_names(feature: Mapping[str, Any]) -> list[str]:
    """Dimension names: a list, a dict of lists ({"motors": [...]}, in older recordings), or a dict
    of name -> place (LeRobot's gym_manipulator). Empty when there are none.
    """
    names = feature.get("names")
    if isinstance(names, dict):
        values = list(names.values())
        if values and sorted(v if type(v) is int else -1 for v in values) == list(
            range(len(values))
        ):
            return sorted(names, key=names.__getitem__)
        names = [name for part in values if isinstance(part, list) for name in part]
    is_named = isinstance(names, list) and all(isinstance(n, str) and n for n in names)
    return list(names) if is_named and names else []


def check_rows(
    root: Path,
    columns: Mapping[str, NDArray[Any]],
    tasks: Sequence[str],
    episodes: Sequence[Mapping[str, Any]],
    fps: int,
) -> None:
    """Check the columns of data/ against each other, meta/episodes, the tasks and fps."""
    index, episode = columns["index"], columns["episode_index"]
    if not np.array_equal(index, np.arange(len(index))):
        gap = int(np.argmax(index != np.arange(len(index))))
        raise UserError(f"{root}/data: row {gap} is missing or duplicated; copy the dataset again")
    ends = [*(np.flatnonzero(np.diff(episode)) + 1).tolist(), len(index)]
    listed = [row["dataset_to_index"] for row in episodes]
    if ends != listed:
        raise UserError(
            f"{root}: data/ has {len(ends)} episodes and {len(index)} frames, but meta/episodes "
            f"lists {len(listed)} and {max(listed, default=0)}; copy the dataset again, or finish "
            "its recording"
        )
    used = int(columns["task_index"].max())
    if used >= len(tasks) or columns["task_index"].min() < 0:
        raise UserError(
            f"{root}/data uses task number {used}, but meta/tasks.parquet has {len(tasks)} tasks; "
            "copy the dataset again"
        )
    times = np.delete(
        np.diff(columns["timestamp"].reshape(-1).astype(np.float64)), np.array(ends[:-1], int) - 1
    )
    if len(times) and abs(np.median(times) * fps - 1) > 0.01:
        raise UserError(
            f"{root}/{INFO} says fps {fps}, but the frames are {np.median(times):.4g} s apart "
            f"({1 / max(np.median(times), 1e-9):.4g} fps); correct fps in that file"
        )


def check_vectors(
    root: Path, columns: Mapping[str, NDArray[Any]], key: str, feature: Mapping[str, Any]
) -> NDArray[Any]:
    """The states or actions, (N, D): as many as the feature says, all finite in float32."""
    values = columns[key].reshape(len(columns[key]), -1)  # (N, D)
    if list(feature["shape"]) != [values.shape[1]]:
        raise UserError(
            f"{root}: {key} has {values.shape[1]} numbers per frame, but {INFO} says shape "
            f"{feature['shape']}; copy the dataset again"
        )
    with np.errstate(over="ignore"):
        bad = np.flatnonzero(~np.isfinite(values.astype(np.float32)).all(axis=1))
    if len(bad):
        episode = columns["episode_index"][bad[0]]
        raise UserError(
            f"{root}: {key} is not finite in frame {bad[0]} (episode {episode}); "
            "remove that episode"
        )
    return values
