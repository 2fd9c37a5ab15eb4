"""A LeRobotDataset v3 for training: float32 arrays, policy features, the Hub.

The files are read and checked by `mtdit_runtime.recording.dataset_reader`. Its frames are in
`mtdit.data.frame_sources`; windows and batches are made in `mtdit.data.loader`.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mtdit.config import Feature
from mtdit.data.hub_dataset import fetch_dataset
from mtdit_robots.errors import UserError
from mtdit_robots.features import ACTION, IMAGES, STATE
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
    def left_out(self) -> str:
        """What is not trained on and why, as a line; "" when there is nothing."""
        groups: dict[str, list[str]] = {}
        for key, why in self.unused.items():
            groups.setdefault(why, []).append(key)
        parts = [f"{', '.join(keys)} ({why})" for why, keys in groups.items()]
        return f"left out of the dataset: {'; '.join(parts)}" if parts else ""

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


def open_dataset(
    name: str, cameras: Sequence[str] | None = None, preferred: Collection[str] = ()
) -> Dataset:
    """Opens a LeRobotDataset v3: a folder or a Hub repo id. UserError says what is missing or
    damaged. cameras, preferred: as `chosen_cameras`.
    """
    recorded = _with_cameras(read_dataset(find_dataset(name)), cameras, preferred)
    state, action = recorded.state.astype(np.float32), recorded.action.astype(np.float32)
    stats = read_stats(recorded.root, {STATE: state, ACTION: action})
    tasks, task = _in_one_form(recorded)
    own = {"state": state, "action": action, "stats": stats, "tasks": tasks, "task": task}
    return Dataset(**{**vars(recorded), **own})


def chosen_cameras(
    known: Mapping[str, str],
    unused: Mapping[str, str],
    cameras: Sequence[str] | None,
    preferred: Collection[str],
) -> dict[str, str]:
    """Those of `known` (camera -> feature key) that were chosen, in its order: the ones that are
    named in `cameras`, else the `preferred` keys if there are all of them, else all.

    unused: feature key -> why it is left out. UserError for a name that is not known.
    """
    keys = {**{key: key for key in known.values()}, **known}
    for name in cameras or ():
        if name not in keys:
            why = unused.get(name) or unused.get(IMAGES + name)
            what = f"has no camera {name!r}"
            if why:
                what = f"has no camera {name!r} that a policy can use ({why})"
            raise UserError(f"cameras: the dataset {what}; it has {', '.join(known) or 'none'}")
    wanted = set(preferred)
    if cameras is not None:
        wanted = {keys[name] for name in cameras}
    elif not wanted or not wanted <= set(known.values()):
        wanted = set(known.values())
    return {camera: key for camera, key in known.items() if key in wanted}


def _with_cameras(
    recorded: RecordedDataset, cameras: Sequence[str] | None, preferred: Collection[str]
) -> RecordedDataset:
    keys = chosen_cameras(recorded.image_keys, recorded.unused, cameras, preferred)
    others = {k: "not chosen" for c, k in recorded.image_keys.items() if c not in keys}
    sizes = {camera: recorded.cameras[camera] for camera in keys}
    return replace(recorded, cameras=sizes, image_keys=keys, unused={**recorded.unused, **others})


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
