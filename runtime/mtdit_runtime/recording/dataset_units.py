"""The unit of a dataset's positions: as its recorder wrote it down, else judged from the numbers.

LeRobot has no place for it. A recording of ours says it in meta/mtdit.json, a file that LeRobot
neither reads nor compares; a copy that LeRobot's tools write lacks it, and is judged.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from mtdit_robots.errors import UserError
from mtdit_robots.units import ARM_UNITS, DEGREES, NORMALIZED
from mtdit_runtime.files import load
from mtdit_runtime.recording.dataset_layout import RECORDER
from mtdit_runtime.units import Judged, Vector, judge, vectors

MOST_EPISODES = 20  # whose own unit is judged, to find a dataset merged from two units


class Rows(Protocol):
    """What is needed of a `RecordedDataset`."""

    @property
    def root(self) -> Path: ...
    @property
    def joints(self) -> tuple[str, ...]: ...
    @property
    def state_joints(self) -> tuple[str, ...]: ...
    @property
    def state(self) -> NDArray[Any]: ...  # (N, S)
    @property
    def action(self) -> NDArray[Any]: ...  # (N, J)
    @property
    def episode_ends(self) -> NDArray[np.int64]: ...  # (E,) exclusive


@dataclass(frozen=True)
class RecorderFacts:
    """The content of meta/mtdit.json."""

    units: str  # of the body joints in state and action: degrees or normalized


def recorded_units(root: Path) -> str | None:
    """The unit that the dataset's recorder wrote; None when it wrote none."""
    path, fix = root / RECORDER, "remove that file, and the unit is judged from the numbers"
    if not path.is_file():
        return None
    facts: RecorderFacts = load(path, RecorderFacts, "recorder", fix)
    if facts.units not in ARM_UNITS:
        raise UserError(f"{path}: units are {facts.units!r}, not {' or '.join(ARM_UNITS)}; {fix}")
    return facts.units


def dataset_units(dataset: Rows) -> Judged:
    """The unit of a dataset's positions. UserError when its parts are in different ones."""
    judged = judge(*_vectors(dataset, slice(None)))
    recorded = recorded_units(dataset.root)
    if recorded is not None and judged.is_certain and judged.units != recorded:
        raise UserError(f"{dataset.root}/{RECORDER} says {recorded}, but {judged.reason}: {_ADDED}")
    _check_episodes(dataset, recorded)
    if recorded is not None:
        return Judged(recorded, f"{RECORDER} says so", is_certain=True)
    return judged


_ADDED = "episodes in another unit were added; remove them, or that file if it is wrong"


def _vectors(dataset: Rows, rows: slice) -> tuple[Vector, Vector]:
    state, action = dataset.state[rows], dataset.action[rows]
    return vectors(dataset.state_joints, state, dataset.joints, action)


def _check_episodes(dataset: Rows, recorded: str | None) -> None:
    """UserError when some episodes are in degrees and others are normalized: merged datasets."""
    found = {} if recorded is None else {recorded: RECORDER}
    for episode, units in _episode_units(dataset):
        found.setdefault(units, f"episode {episode}")
    if {DEGREES, NORMALIZED} <= set(found):
        advice = "use a dataset of one unit" if recorded is None else _ADDED
        raise UserError(
            f"{dataset.root} mixes units: degrees ({found[DEGREES]}) and -100..100 of LeRobot's "
            f"use_degrees=false ({found[NORMALIZED]}); {advice}"
        )


def _episode_units(dataset: Rows) -> Iterator[tuple[int, str]]:
    """(episode, unit) of MOST_EPISODES, evenly chosen."""
    bounds = list(pairwise(np.append(0, dataset.episode_ends).tolist()))
    for episode in range(0, len(bounds), -(-len(bounds) // MOST_EPISODES)):
        yield episode, judge(*_vectors(dataset, slice(*bounds[episode]))).units
