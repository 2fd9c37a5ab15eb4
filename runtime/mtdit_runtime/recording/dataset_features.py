"""What the features of a LeRobotDataset are: names, cameras, and what mtdit has no use for.

Source: LeRobot `datasets/{dataset_metadata,feature_utils}.py`, and the forms that its older
recorders and converters wrote.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mtdit_robots.features import ACTION, STATE
from mtdit_runtime.recording.dataset_layout import INDICES

PICTURES = ("video", "image")


def listed_names(feature: Mapping[str, Any]) -> list[str]:
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


def image_shape(feature: Mapping[str, Any]) -> tuple[int, ...]:
    """A picture's shape, channels last. info.json may say (C, H, W)."""
    shape, names = [int(n) for n in feature["shape"]], listed_names(feature)
    first = names[:1] in (["channel"], ["channels"])
    if first or (not names and len(shape) == 3 and shape[0] in (1, 3) and shape[2] > 4):
        shape = [*shape[1:], shape[0]]
    return tuple(shape)


def cameras(features: Mapping[str, Mapping[str, Any]]) -> dict[str, tuple[int, int, int]]:
    """Feature key -> (H, W, 3), of the cameras that can be used, in the order of info.json."""
    return {
        key: (shape[0], shape[1], 3)
        for key, feature in features.items()
        if feature["dtype"] in PICTURES
        and _unusable(feature) is None
        and (shape := image_shape(feature))
    }


def unused(features: Mapping[str, Mapping[str, Any]]) -> dict[str, str]:
    """Feature key -> why mtdit has no use for it."""
    needed = {STATE, ACTION, *INDICES, *cameras(features)}
    return {key: _reason(f) for key, f in features.items() if key not in needed}


def _reason(feature: Mapping[str, Any]) -> str:
    if feature["dtype"] in PICTURES:
        return _unusable(feature) or ""
    kinds = {"audio": "audio", "string": "text", "language": "text"}
    return kinds.get(str(feature["dtype"]), "not an input of this policy")


def _unusable(feature: Mapping[str, Any]) -> str | None:
    """Why the pictures of a feature are not those of a colour camera; None: they are."""
    if _is_depth(feature):
        return "a depth map"
    shape = image_shape(feature)
    if len(shape) != 3 or shape[2] != 3:
        return f"shape {list(feature['shape'])} is not RGB"
    return None


def _is_depth(feature: Mapping[str, Any]) -> bool:
    """As LeRobot's `depth_keys`, with its older places of the mark."""
    said = [feature.get(part) or {} for part in ("info", "video_info")]
    marks = ("is_depth_map", "video.is_depth_map")
    return any(part.get(mark) for part in said if isinstance(part, dict) for mark in marks)
