"""The observations that a policy looks at: the newest ones, oldest first."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Generic, TypeVar

import numpy as np

from mtdit_robots.errors import UserError
from mtdit_robots.robot import Frame, Positions

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
class Moment(Generic[T]):
    """One observation inside a policy that computes with arrays of type T. Its frames are dropped
    once they are encoded.
    """

    state: T  # (J,) normalised
    frames: Mapping[str, Frame]
    feature: T | None = None  # (n_cam * D,)


def check_observation(
    positions: Positions,
    frames: Mapping[str, Frame],
    n_joints: int,
    frame_sizes: Mapping[str, tuple[int, int]],
) -> None:
    """UserError unless the positions are (n_joints,) and every camera in `frame_sizes` gives
    frames of uint8 and the (height, width) of training.
    """
    if positions.shape != (n_joints,):
        raise UserError(
            f"the robot reports positions of shape {positions.shape}, "
            f"the policy needs {n_joints} joints: use the arm it was trained on"
        )
    for name, size in frame_sizes.items():
        shape = (*size, 3)
        if name not in frames:
            raise UserError(
                f"no frame from camera {name!r}: connect it or rename a camera to {name!r}"
            )
        frame = frames[name]
        if frame.shape != shape:
            raise UserError(
                f"camera {name!r} delivers {_size(frame.shape)}, the policy was trained "
                f"on {_size(shape)}: set the camera to that size"
            )
        if frame.dtype != np.uint8:
            raise UserError(
                f"camera {name!r} delivers {frame.dtype}, the policy needs uint8: "
                "give colours from 0 to 255"
            )


def _size(shape: tuple[int, ...]) -> str:
    is_rgb = len(shape) == 3 and shape[2] == 3
    return f"{shape[1]}x{shape[0]}" if is_rgb else f"an array of shape {shape}"
