"""The interface between the runtime and a robot: `Robot` and `Observation`.

Positions are calibrated; normalisation and the control rate are left to the runtime.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

# (J,) degrees, or -100..100 of the calibrated range; gripper 0..100; in joint order
Positions = NDArray[np.float64]
Frame = NDArray[np.uint8]  # (H, W, 3) RGB


@dataclass(frozen=True)
class Observation:
    """The robot's state as it was read at one instant.

    positions: (J,) in the unit of `Robot.use_units`, in the robot's joint order.
    frames: camera name -> (H, W, 3) uint8 RGB, the latest one of each camera.
    frame_age_s: camera name -> seconds between capture and this observation.
    time_s: `time.monotonic()` when the positions were read.
    """

    positions: Positions
    frames: Mapping[str, Frame]
    frame_age_s: Mapping[str, float]
    time_s: float


class Robot(Protocol):
    """An arm with cameras. Bus and camera errors are raised as `UserError` by `connect` and as
    `OSError` afterwards.
    """

    @property
    def joints(self) -> tuple[str, ...]:
        """Joint names, in the order of all positions."""
        ...

    @property
    def is_real(self) -> bool:
        """Whether a wrong movement could do harm; False for a simulated arm."""
        return True

    def use_units(self, units: str) -> Positions:
        """Before `connect`: give and take body joints in these units, "normalized" (-100..100 over
        the calibrated range) or else degrees. Returns (J,), how many units a degree is.
        """
        ...

    @property
    def cameras(self) -> tuple[str, ...]:
        """Camera names; every observation has a frame of each."""
        ...

    @property
    def errors(self) -> Mapping[str, Mapping[str, int]]:
        """Joint -> error -> packets that were retried since `connect`; empty for a robot that does
        not count them.
        """
        return {}

    def connect(self) -> None:
        """Open and check bus and cameras, then hold the present pose with torque on."""

    def observe(self) -> Observation:
        """Read the positions now, and take each camera's latest frame."""
        ...

    def command(self, positions: Positions) -> Positions:
        """Send goal positions (J,). Returns the positions sent, after the robot's own limits."""
        ...

    def hold(self) -> None:
        """Keep the last commanded position; torque stays on."""

    def close(self) -> None:
        """Torque off on every servo that answers; close bus and cameras. Safe to call twice."""
