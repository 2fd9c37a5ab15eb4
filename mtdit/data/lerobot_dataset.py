"""A LeRobotDataset v3 for training: float32 arrays, policy features, the Hub.

The files are read and checked by `mtdit_runtime.recording.dataset_reader`. Its frames are in
`mtdit.data.frame_sources`; windows and batches are made in `mtdit.data.loader`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mtdit.config import Feature
from mtdit.data.hub_dataset import fetch_dataset
from mtdit_robots.errors import UserError
from mtdit_robots.features import ACTION, STATE
from mtdit_runtime.instructions import one_form
from mtdit_runtime.recording.dataset_reader import (
    RecordedDataset,
    check_folder,
    read_dataset,
    read_stats,
)


@dataclass(frozen=True)
class Dataset(RecordedDataset):
    """An opened dataset: everything except the frames is in memory."""

    state: NDArray[np.float32]  # (N, J)
    action: NDArray[np.float32]  # (N, A)
    stats: Mapping[str, Mapping[str, NDArray[np.float32]]]  # meta/stats.json, else computed

    @property
    def features(self) -> tuple[dict[str, Feature], dict[str, Feature]]:
        """Input and output features as in LeRobot's policy config."""
        images = {
            self.image_keys[c]: Feature("VISUAL", (s[2], s[0], s[1]))
            for c, s in self.cameras.items()
        }
        inputs = {STATE: Feature("STATE", (self.state.shape[1],)), **images}
        ordered = {k: inputs[k] for k in self.info["features"] if k in inputs}
        return ordered, {ACTION: Feature("ACTION", (self.action.shape[1],))}

    @property
    def max_speed(self) -> tuple[float, ...]:
        """99.9th percentile of each joint's commanded speed, in units per second."""
        steps = np.abs(np.diff(self.action, axis=0)) * self.fps
        inside = np.delete(steps, self.episode_ends[:-1] - 1, axis=0)
        return (
            tuple(float(v) for v in np.quantile(inside, 0.999, axis=0))
            if len(inside)
            else (0.0,) * len(self.joints)
        )

    def place(self, row: int) -> tuple[int, int]:
        """The number of the row's episode, and which of the episode's frames the row is."""
        position = int(np.searchsorted(self.episode_ends, row, side="right"))
        first = int(self.episode_ends[position - 1]) if position else 0
        return int(self.episodes[position]["episode_index"]), row - first

    def describe(self, row: int) -> str:
        """A row as text: "episode 3 frame 17"."""
        return "episode {} frame {}".format(*self.place(int(row)))


def open_dataset(name: str) -> Dataset:
    """Opens a LeRobotDataset v3: a folder or a Hub repo id. UserError says what is missing or
    damaged.
    """
    recorded = read_dataset(find_dataset(name))
    state, action = recorded.state.astype(np.float32), recorded.action.astype(np.float32)
    stats = read_stats(recorded.root, {STATE: state, ACTION: action})
    tasks, task = _in_one_form(recorded)
    own = {"state": state, "action": action, "stats": stats, "tasks": tasks, "task": task}
    return Dataset(**{**vars(recorded), **own})


def _in_one_form(recorded: RecordedDataset) -> tuple[tuple[str, ...], NDArray[np.int64]]:
    """The tasks in the one form of Unicode, and the rows' numbers of them: tasks that differ only
    in form are one. To CLIP they always were, so a training is the same number for number.
    """
    words = [one_form(task) for task in recorded.tasks]
    tasks = tuple(dict.fromkeys(words))
    return tasks, np.array([tasks.index(task) for task in words], np.int64)[recorded.task]


def find_dataset(name: str) -> Path:
    """The folder of a dataset that is given as a folder or as a Hub repo id (then downloaded).

    UserError says why there is no dataset.
    """
    folder = Path(name).expanduser()
    if folder.is_dir():
        check_folder(folder)
        return folder
    if folder.is_absolute() or name.count("/") != 1 or name.startswith("."):
        raise UserError(
            f"there is no dataset at {folder}; check the path, or record one with "
            f"`mtdit simulate --out {folder}`"
        )
    return fetch_dataset(name)
