"""Reads a LeRobotDataset v3 folder without torch or LeRobot.

Source of the format: LeRobot `datasets/`, codebase_version v3.0.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mtdit_robots.errors import UserError
from mtdit_robots.extras import missing
from mtdit_robots.features import ACTION, STATE
from mtdit_runtime.recording.dataset_layout import DATA_PATH, INFO
from mtdit_runtime.recording.video_encoder import RECORDING
from mtdit_runtime.text import first_line

# -- reading


@dataclass(frozen=True)
class Recorded:
    """One recorded episode, without its images."""

    fps: int
    joints: tuple[str, ...]
    task: str
    states: NDArray[np.float64]  # (N, J)
    actions: NDArray[np.float64]  # (N, J)


def read_episode(root: Path, number: int) -> Recorded:
    """Read episode `number` of a LeRobotDataset v3.

    Raises UserError when there is no dataset or no such episode, or when its tables are damaged.
    """
    pq, info = import_parquet(), read_info(root)
    with damage_named(root):
        rows = list(episode_rows(root))
        if not 0 <= number < len(rows):
            numbers = f"episodes 0 to {len(rows) - 1}" if rows else "no episodes"
            raise UserError(f"{root} has no episode {number}: it has {numbers}")
        row = rows[number]
        pattern = info.get("data_path") or DATA_PATH
        indices = {"chunk_index": row["data/chunk_index"], "file_index": row["data/file_index"]}
        table = pq.read_table(
            root / pattern.format(**indices),
            columns=[ACTION, STATE, "episode_index"],
            filters=[("episode_index", "=", number)],
        )
        states, actions = (np.array(table[key].to_pylist(), np.float64) for key in (STATE, ACTION))
        names = info["features"][ACTION].get("names") or []
        joints = tuple(str(name).removesuffix(".pos") for name in names)
        return Recorded(int(info["fps"]), joints, row["tasks"][0], states, actions)


@contextmanager
def damage_named(root: Path) -> Iterator[None]:
    """Raise UserError for any error that a damaged table causes in the block."""
    try:
        yield
    except (OSError, ValueError, KeyError, IndexError, TypeError, AttributeError) as error:
        raise UserError(
            f"{root} is damaged ({type(error).__name__}: {first_line(error)}): "
            "restore it from a copy"
        ) from error


def read_info(root: Path) -> dict[str, Any]:
    """Read meta/info.json. Raises UserError when `root` is not a v3 dataset."""
    try:
        info = json.loads((root / INFO).read_text())
    except FileNotFoundError as error:
        raise UserError(
            f"{root} is not a dataset, it has no {INFO}: give the folder that contains meta/"
        ) from error
    except (OSError, ValueError) as error:
        raise UserError(
            f"{root / INFO} cannot be read ({error}): copy the dataset again"
        ) from error
    version = info.get("codebase_version") if isinstance(info, dict) else None
    if not str(version).startswith("v3."):
        raise UserError(
            f"{root} is a dataset of version {version}, mtdit needs v3.x: "
            "convert it with LeRobot's script"
        )
    return dict(info)


def episode_rows(root: Path) -> Iterator[dict[str, Any]]:
    """The rows of meta/episodes without their statistics, in order."""
    pq, rows = import_parquet(), []
    for file in sorted((root / "meta/episodes").glob("chunk-*/file-*.parquet")):
        columns = [name for name in pq.read_schema(file).names if not name.startswith("stats/")]
        rows += pq.read_table(file, columns=columns).to_pylist()
    yield from sorted(rows, key=lambda row: int(row["episode_index"]))


def import_parquet() -> Any:
    try:
        import pyarrow.parquet as pq
    except ImportError as error:
        raise missing("pyarrow", RECORDING) from error
    return pq
