"""Where the pictures of an episode are: the video that holds them, and when its piece begins there.

Source of the format: LeRobot `datasets/{dataset_metadata,dataset_reader}.py`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mtdit_robots.errors import UserError
from mtdit_robots.extras import missing
from mtdit_runtime.recording.dataset_layout import INFO, VIDEO_PATH
from mtdit_runtime.recording.dataset_parquet import EPISODES

MOST_FILES = 10**9  # a number beyond it is damage


@dataclass(frozen=True)
class Piece:
    """path: of the video, relative to the dataset. begin_s: where the episode's piece begins."""

    path: str
    begin_s: float


def import_av() -> Any:
    """PyAV. Raises the UserError that installs it."""
    try:
        import av
    except ImportError as error:
        raise missing("av", "videos need PyAV") from error
    return av


def open_video(path: Path) -> Any:
    """A video opened with PyAV; its errors are for the caller. Tags may be in any encoding."""
    return import_av().open(str(path), metadata_errors="replace")


def video_keys(info: Mapping[str, Any], episodes: Sequence[Mapping[str, Any]]) -> list[str]:
    """The features that are stored as video, depth maps included. Not those whose videos and
    columns were left out of a copy.
    """
    keys = [key for key, feature in info["features"].items() if feature["dtype"] == "video"]
    return [k for k in keys if not episodes or f"videos/{k}/chunk_index" in episodes[0]]


def video_pattern(info: Mapping[str, Any]) -> str:
    """The video_path of info.json; LeRobot's own where it has none."""
    return str(info.get("video_path") or VIDEO_PATH)


def video_path(root: Path, info: Mapping[str, Any], key: str, chunk: int, file: int) -> str:
    """Path of a video, relative to the dataset. key: of the camera. UserError: no pattern."""
    pattern = video_pattern(info)
    try:
        return pattern.format(video_key=key, chunk_index=chunk, file_index=file)
    except (KeyError, IndexError, ValueError, AttributeError):
        raise UserError(
            f"{root}/{INFO}: video_path {pattern!r} is not a valid pattern; "
            f"LeRobot's is {VIDEO_PATH!r}"
        ) from None


def video_piece(root: Path, info: Mapping[str, Any], episode: Mapping[str, Any], key: str) -> Piece:
    """The piece of a row of meta/episodes. UserError: the row does not say it."""
    chunk, file, begin_s = (
        _number(root, episode, f"videos/{key}/{name}")
        for name in ("chunk_index", "file_index", "from_timestamp")
    )
    return Piece(video_path(root, info, key, int(chunk), int(file)), begin_s)


def _number(root: Path, episode: Mapping[str, Any], column: str) -> float:
    value = episode.get(column)
    if value is None:
        raise UserError(f"{root}/{EPISODES} has no column {column!r}; copy the dataset again")
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    is_place = is_number and (0 <= value < MOST_FILES and value == int(value))
    if not (is_place if column.endswith("_index") else is_number and np.isfinite(value)):
        raise UserError(
            f"{root}/{EPISODES}: {column} of episode {episode['episode_index']} is {value!r}; "
            "copy the dataset again"
        )
    return float(value)
