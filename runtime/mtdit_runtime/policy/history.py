"""The observations that a policy looks at: the newest ones, oldest first."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

from mtdit_robots.robot import Frame

T = TypeVar("T")


class History(Generic[T]):
    """The last observations of a policy, like LeRobot's deques: one per tick, and the first one is
    repeated to fill the history.

    Source: LeRobot `policies/utils.py::populate_queues`.
    """

    def __init__(self, n_obs_steps: int) -> None:
        self._items: deque[T] = deque(maxlen=n_obs_steps)

    def clear(self) -> None:
        self._items.clear()

    def push(self, item: T) -> None:
        self._items.extend([item] * (1 if self._items else self._items.maxlen or 1))

    def steps(self) -> list[T]:
        """The n_obs_steps items for a request made now, oldest first."""
        if not self._items:
            raise RuntimeError("observe() must come before the first chunk")
        return list(self._items)

    def steps_after_next(self) -> list[T]:
        """The items of `steps()` after the next push, without the newest."""
        return list(self._items)[1:]


@dataclass(eq=False)
class Moment:
    """One observation inside the policy. Its frames are dropped once they are encoded."""

    state: NDArray[np.float32]  # (J,) normalised
    frames: Mapping[str, Frame]
    feature: NDArray[np.float32] | None = None  # (n_cam * D,)
