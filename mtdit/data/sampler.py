"""Chooses the rows of the dataset for each training step, and the episodes that are held out.

The choice depends only on the episodes, the tasks, the seed and the number of the step, so every
process can compute what any other process sees.

Without weights, an epoch is one random permutation of all usable rows. With weights, each task has
a quota of the epoch's rows: its share, rounded (largest remainders). The quota is filled from
permutations of the task's rows that continue from epoch to epoch, so within a task every row is
seen equally often. Then the epoch is shuffled.
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
class Shard:
    """One slice of a step's global batch.

    It is for process `rank` of `world`, and for accumulation part `index` of `parts`.
    """

    rank: int = 0
    world: int = 1
    index: int = 0
    parts: int = 1

    @property
    def count(self) -> int:
        return self.world * self.parts

    def rows(self, batch_size: int) -> slice:
        """Its slice of the batch_size * world * parts samples, sorted by part, then by process."""
        start = (self.index * self.world + self.rank) * batch_size
        return slice(start, start + batch_size)


# --- episodes


def episode_bounds(ends: Rows) -> tuple[Rows, Rows]:
    """The first and the last row of each row's episode, each (N,)."""
    starts = np.concatenate([[0], ends[:-1]])
    lengths = ends - starts
    return np.repeat(starts, lengths), np.repeat(ends - 1, lengths)


def usable_rows(ends: Rows, drop_n_last_frames: int) -> Rows:
    """Rows that training may start from: all but each episode's last ones. UserError if none is
    left.
    """
    _, last = episode_bounds(ends)
    rows = np.arange(len(last))
    usable = rows[rows <= last - drop_n_last_frames]
    if not len(usable):
        raise UserError(
            f"every episode is shorter than drop_n_last_frames = {drop_n_last_frames}; lower it"
        )
    return usable


def held_out_episodes(episode_tasks: Sequence[int], tasks: Sequence[str], split: float) -> Rows:
    """Numbers of the held-out episodes: the last ceil(n * split) of each task's n episodes.

    This is LeRobot's eval_split, except that a task with a single episode is left out of it, since
    nothing would be left to train on. episode_tasks: (E,) index into `tasks`. UserError when
    another task would have no training episode left, or when no task has a second episode.
    """
    held: list[int] = []
    for task in sorted(set(episode_tasks)) if split else ():
        episodes = [e for e, t in enumerate(episode_tasks) if t == task]
        count = math.ceil(len(episodes) * split) if len(episodes) > 1 else 0
        if count == len(episodes):
            raise UserError(
                f"val_split {split:g} leaves no training episode of {tasks[task]!r}, which has "
                f"{len(episodes)}; lower --val-split or record more"
            )
        held += episodes[len(episodes) - count :]
    if split and not held:
        raise UserError(
            "val_split needs a task with at least two episodes, but every task has one; record "
            "more, or train without --val-split"
        )
    return np.array(sorted(held), np.int64)


# --- weights


def task_shares(
    rows_per_task: Mapping[str, int], balance: bool, weights: Mapping[str, float]
) -> dict[str, float]:
    """Task -> its share of the samples; the shares sum to 1.

    A share is proportional to weight times number of rows, with `balance` to the weight alone. A
    missing weight is 1. UserError names a weighted task that the dataset does not have.
    """
    for task in weights:
        if task not in rows_per_task:
            near = difflib.get_close_matches(task, rows_per_task, n=1, cutoff=0.4)
            hint = (
                f"did you mean {near[0]!r}?"
                if near
                else f"its tasks are {', '.join(map(repr, rows_per_task))}"
            )
            raise UserError(f"task_weights: the dataset has no task {task!r}; {hint}")
    raw = {t: weights.get(t, 1.0) * (1 if balance else n) for t, n in rows_per_task.items()}
    total = sum(raw.values())
    return {t: value / total for t, value in raw.items()}


def quotas(shares: Sequence[float], count: int) -> list[int]:
    """Whole numbers that sum to `count` and are closest to shares * count (largest remainders)."""
    exact = [share * count for share in shares]
    whole = [math.floor(x) for x in exact]
    by_rest = sorted(range(len(exact)), key=lambda i: (whole[i] - exact[i], i))
    for i in by_rest[: count - sum(whole)]:
        whole[i] += 1
    return whole


# --- the order


@dataclass
class Sampler:
    """An endless sequence of rows in epochs of len(rows)."""

    rows: Rows  # (N,) usable rows
    seed: int
    # Per task: its rows, and how many of them an epoch takes. Empty: no weights.
    quotas: Sequence[tuple[Rows, int]] = field(default=())

    def __post_init__(self) -> None:
        self._epoch = lru_cache(maxsize=2)(self._make_epoch)

    def step(self, step: int, count: int) -> Rows:
        """The rows (count,) of training step `step` (from 0) if every step takes `count`."""
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
    """`count` rows, starting at index `first`, of an endless sequence of laps of `length` rows."""
    pieces: list[Rows] = [np.empty(0, np.int64)]
    while count:
        lap, start = divmod(first, length)
        piece = laps(lap)[start : start + count]
        pieces.append(piece)
        first, count = first + len(piece), count - len(piece)
    return np.concatenate(pieces)
