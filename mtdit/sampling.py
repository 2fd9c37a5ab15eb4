"""Which rows of a dataset a training step sees, and which episodes it never sees.

Knows episodes, tasks, the seed and the number of a step; everything here follows from those alone,
so that any process can say what any other one sees. Refuses to know what is in a row.

Without weights an epoch is one random permutation of all usable rows. With weights every task has a
quota of an epoch's rows, its share of them rounded (largest remainders); it fills the quota from
permutations of its own rows that run on from epoch to epoch, so within a task every row is seen
equally often, and the epoch is then shuffled.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from mtdit_robots.errors import UserError

Rows = NDArray[np.int64]


@dataclass(frozen=True)
class Part:
    """One slice of a step's global batch: of process `rank` of `world`, for accumulation part
    `index` of `parts`.
    """

    rank: int = 0
    world: int = 1
    index: int = 0
    parts: int = 1

    @property
    def count(self) -> int:
        return self.world * self.parts

    def of(self, batch_size: int) -> slice:
        """Its place among the batch_size * world * parts samples: parts first, then processes."""
        start = (self.index * self.world + self.rank) * batch_size
        return slice(start, start + batch_size)


# --- episodes


def episode_bounds(ends: Rows) -> tuple[Rows, Rows]:
    """First and last row of the episode of every row, each (N,)."""
    starts = np.concatenate([[0], ends[:-1]])
    lengths = ends - starts
    return np.repeat(starts, lengths), np.repeat(ends - 1, lengths)


def usable_rows(ends: Rows, drop_n_last_frames: int) -> Rows:
    """Rows training may start from: all but the last of each episode. UserError when none is left."""
    _, last = episode_bounds(ends)
    rows = np.arange(len(last))
    usable = rows[rows <= last - drop_n_last_frames]
    if not len(usable):
        raise UserError(
            f"every episode is shorter than drop_n_last_frames = {drop_n_last_frames}; lower it"
        )
    return usable


def held_out_episodes(episode_tasks: Sequence[int], tasks: Sequence[str], split: float) -> Rows:
    """Numbers of the episodes to validate on: the last ceil(n * split) of each task's n, as
    LeRobot's eval_split.

    episode_tasks: (E,) index into `tasks`. UserError when a task would keep no episode to train on
    (LeRobot lets it).
    """
    held: list[int] = []
    for task in sorted(set(episode_tasks)) if split else ():
        episodes = [e for e, t in enumerate(episode_tasks) if t == task]
        count = math.ceil(len(episodes) * split)
        if count == len(episodes):
            raise UserError(
                f"val_split {split:g} leaves no training episode of {tasks[task]!r}, which has {len(episodes)}; "
                "lower val_split or record more"
            )
        held += episodes[len(episodes) - count :]
    return np.array(sorted(held), np.int64)


# --- weights


def task_shares(
    rows_per_task: Mapping[str, int], balance: bool, weights: Mapping[str, float]
) -> dict[str, float]:
    """Task -> its share of the samples, summing to 1: in proportion to weight times number of rows,
    or weight alone when balanced. Weights not given are 1. UserError names a task that has no rows.
    """
    for task in weights:
        if task not in rows_per_task:
            near = difflib.get_close_matches(task, rows_per_task, n=1, cutoff=0.4)
            hint = (
                f"did you mean {near[0]!r}?"
                if near
                else f"it has {', '.join(map(repr, rows_per_task))}"
            )
            raise UserError(f"task_weights: the dataset has no task {task!r}; {hint}")
    raw = {t: weights.get(t, 1.0) * (1 if balance else n) for t, n in rows_per_task.items()}
    total = sum(raw.values())
    return {t: value / total for t, value in raw.items()}


def quotas(shares: Sequence[float], count: int) -> list[int]:
    """Whole numbers that sum to `count`, as near to shares * count as can be (largest remainders)."""
    exact = [share * count for share in shares]
    whole = [math.floor(x) for x in exact]
    by_rest = sorted(range(len(exact)), key=lambda i: (whole[i] - exact[i], i))
    for i in by_rest[: count - sum(whole)]:
        whole[i] += 1
    return whole


# --- the order


@dataclass
class Sampler:
    """The endless order of rows, epoch by epoch, each len(rows) long."""

    rows: Rows  # (N,) usable
    seed: int
    quotas: Sequence[tuple[Rows, int]] = field(
        default=()
    )  # per task: its rows, how many an epoch takes; (): no weights

    def __post_init__(self) -> None:
        self._epoch = lru_cache(maxsize=2)(self._make_epoch)

    def step(self, step: int, count: int) -> Rows:
        """The rows (count,) of training step `step` (from 0), when every step takes `count`."""
        return _take(self._epoch, len(self.rows), step * count, count)

    def _make_epoch(self, epoch: int) -> Rows:
        rows = self._weighted(epoch) if self.quotas else self.rows
        return rows[np.random.default_rng((self.seed, epoch)).permutation(len(rows))]

    def _weighted(self, epoch: int) -> Rows:
        return np.concatenate(
            [
                _take(self._laps(task, rows), len(rows), epoch * n, n)
                for task, (rows, n) in enumerate(self.quotas)
            ]
        )

    def _laps(self, task: int, rows: Rows) -> Callable[[int], Rows]:
        return lambda lap: rows[
            np.random.default_rng((self.seed, lap, task + 1)).permutation(len(rows))
        ]


def _take(laps: Callable[[int], Rows], length: int, first: int, count: int) -> Rows:
    """`count` rows from place `first` on of an endless sequence of laps, each `length` long."""
    pieces: list[Rows] = [np.empty(0, np.int64)]
    while count:
        lap, start = divmod(first, length)
        piece = laps(lap)[start : start + count]
        pieces.append(piece)
        first, count = first + len(piece), count - len(piece)
    return np.concatenate(pieces)
