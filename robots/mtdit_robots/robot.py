"""What the runtime may ask of a robot, and nothing more.

Knows joints, cameras, and calibrated positions. Refuses to know policies, normalisation, and
control rates.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

Positions = NDArray[np.float64]  # (J,) degrees, gripper 0..100, in joint order
Frame = NDArray[np.uint8]  # (H, W, 3) RGB


@dataclass(frozen=True)
class Observation:
    """One instant of the robot, as it was read.

    positions: (J,) degrees (gripper 0..100), in the robot's joint order.
    frames: camera name -> (H, W, 3) uint8 RGB, the latest one of each camera.
    frame_age_s: camera name -> seconds between capture and this observation.
    time_s: `time.monotonic()` when the positions were read.
    """

    positions: Positions
    frames: Mapping[str, Frame]
    frame_age_s: Mapping[str, float]
    time_s: float


class Robot(Protocol):
    """An arm with cameras. Errors of bus and camera surface as `UserError` at connect and `OSError`
    afterwards.
    """

    @property
    def joints(self) -> tuple[str, ...]: ...

    @property
    def cameras(self) -> tuple[str, ...]: ...

    def connect(self) -> None:
        """Open everything, check it, and hold the present pose with torque on."""

    def observe(self) -> Observation: ...

    def command(self, positions: Positions) -> Positions:
        """Send goal positions (J,) and return what was really sent after the robot's own limits."""
        ...

    def hold(self) -> None:
        """Keep the last commanded position; the arm stays energised."""

    def close(self) -> None:
        """Release torque on every servo that still answers, then close bus and cameras. Safe to
        call twice.
        """
