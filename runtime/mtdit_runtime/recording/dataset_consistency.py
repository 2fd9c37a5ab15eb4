"""Whether the parts of a LeRobotDataset v3 agree: metadata, tables, episodes, tasks and fps.

Every function raises UserError with what is wrong, where, and what to do.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from shlex import quote
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mtdit_robots.errors import UserError
from mtdit_robots.features import ACTION, STATE
from mtdit_runtime.joint_order import repeated
from mtdit_runtime.recording.dataset_features import listed_names
from mtdit_runtime.recording.dataset_layout import INFO
from mtdit_runtime.text import printable


def check_info(root: Path, info: Any) -> None:
    """Check the content of meta/info.json: version, storage, features and fps."""
    info = info if isinstance(info, dict) else {}
    _check_version(root, str(info.get("codebase_version", "?")))
    _check_storage(root, info.get("storage_format"))
    if not isinstance(info.get("features"), dict):
        raise UserError(f"{root}/{INFO} lists no features; copy the dataset again")
    for key, feature in info["features"].items():
        if not isinstance(feature, dict) or not (feature.get("dtype") and "shape" in feature):
            raise UserError(
                f"{root}/{INFO}: feature {key!r} lacks dtype or shape; copy the dataset again"
            )
        if not _is_shape(feature["shape"]):
            raise UserError(
                f"{root}/{INFO}: shape {feature['shape']!r} of feature {key!r} is not a list of "
                "whole numbers; copy the dataset again"
            )
    for key in (STATE, ACTION):
        if key not in info["features"]:
            raise UserError(
                f"{root} has no feature {key!r}, it has {', '.join(info['features'])[:300]}: it is "
                "of another robot or program; convert it with that program's converter, to "
                f"LeRobot's names (one vector {STATE}, one {ACTION}), or use `mtdit record`"
            )
    _check_fps(root, info.get("fps"))


def _is_shape(shape: Any) -> bool:
    return isinstance(shape, list) and all(type(n) is int and n >= 0 for n in shape)


def _check_version(root: Path, version: str) -> None:
    if version.startswith("v3."):
        return
    fix = "LeRobot 0.6 converts v2.1 only, so record it again"
    if version == "v2.1":
        fix = (
            "convert it in place with `python -m lerobot.scripts.convert_dataset_v21_to_v30 "
            f"--repo-id={quote(root.name)} --root={quote(str(root))} --push-to-hub=false`"
        )
    raise UserError(f"{root} is a LeRobotDataset of version {version}, but mtdit needs v3.x; {fix}")


def _check_storage(root: Path, said: Any) -> None:
    """Newer LeRobots can store a dataset in another format than Parquet and video files."""
    lance = any(root.glob("*.lance")) or any(root.glob("data/*.lance"))
    stored = str(said or ("lance" if lance else "parquet")).lower()
    if stored != "parquet":
        raise UserError(
            f"{root} is stored as {stored.capitalize()}, but mtdit reads Parquet tables and video "
            "files only; get the dataset in that format"
        )


def _check_fps(root: Path, fps: Any) -> None:
    """fps is a whole number, which converters may write as 30.0."""
    if isinstance(fps, bool) or not isinstance(fps, int | float) or not 0 < fps < np.inf:
        raise UserError(f"{root}/{INFO}: fps must be a positive integer, got {fps!r}; correct it")
    if fps != int(fps):
        raise UserError(
            f"{root}/{INFO}: fps must be a positive integer, got {fps!r}; write {round(fps)} "
            "there: each frame keeps its own timestamp, by which its picture is found"
        )


def joint_names(root: Path, features: Mapping[str, Any], key: str) -> tuple[str, ...]:
    """The names of a vector's dimensions in their order, without ".pos". UserError with the names
    of state and action when the vector has none, or has one twice.
    """
    names = tuple(name.removesuffix(".pos") for name in listed_names(features[key]))
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


def check_rows(
    root: Path,
    columns: Mapping[str, NDArray[Any]],
    episodes: Sequence[Mapping[str, Any]],
    fps: int,
) -> NDArray[np.int64]:
    """Check the rows, sorted by episode and frame, against meta/episodes and fps. Returns the
    episodes' ends, (E,) exclusive.
    """
    episode, frame = columns["episode_index"], columns["frame_index"]
    new = np.flatnonzero(np.diff(episode))  # the last row of every episode but the last
    twice = np.flatnonzero((np.diff(episode) == 0) & (np.diff(frame) == 0))
    if len(twice):
        raise UserError(
            f"{root}/data has frame {frame[twice[0]]} of episode {episode[twice[0]]} twice; "
            "copy the dataset again"
        )
    starts, ends = np.append(0, new + 1), np.append(new + 1, len(episode))
    counts = dict(zip(episode[starts].tolist(), (ends - starts).tolist(), strict=True))
    for row in episodes:
        number, length = row["episode_index"], row["length"]
        if counts.get(number, 0) != length:
            raise UserError(
                f"{root}/data has {counts.get(number, 0)} frames of episode {number}, but "
                f"meta/episodes lists {length}{_gap(frame[episode == number])}; "
                "copy the dataset again, or keep its whole episodes with "
                f"`mtdit repair {quote(str(root))}`"
            )
    _check_times(root, columns, new, fps)
    return ends.astype(np.int64)


def _gap(frames: NDArray[np.int64]) -> str:
    """The first frame that is not there, for a message."""
    absent = np.flatnonzero(frames != np.arange(len(frames)))
    return f" (frame {absent[0]} is missing)" if len(absent) else ""


def _check_times(
    root: Path, columns: Mapping[str, NDArray[Any]], new: NDArray[Any], fps: int
) -> None:
    """Times ascend within an episode, as many per second as fps says."""
    times = columns["timestamp"]
    absent = np.flatnonzero(~np.isfinite(times))
    if len(absent):
        raise UserError(
            f"{root}: frame {columns['frame_index'][absent[0]]} of episode "
            f"{columns['episode_index'][absent[0]]} has no time, its timestamp is "
            f"{times[absent[0]]}; copy the dataset again"
        )
    steps = np.delete(np.diff(times), new)
    typical = float(np.median(steps)) if len(steps) else 1 / fps
    if abs(typical * fps - 1) > 0.01:
        raise UserError(
            f"{root}/{INFO} says fps {fps}, but the frames are {typical:.4g} s apart "
            f"({1 / max(typical, 1e-9):.4g} fps); correct fps in that file"
        )
    back = np.flatnonzero(np.delete(np.diff(times), new) <= 0)
    if len(back):
        row = np.delete(np.arange(len(times) - 1), new)[back[0]] + 1
        raise UserError(
            f"{root}: frame {columns['frame_index'][row]} of episode "
            f"{columns['episode_index'][row]} is at {times[row]:.4g} s, not after the frame before "
            f"it ({times[row - 1]:.4g} s); copy the dataset again"
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
