"""The control rate of the twin unless another one is asked for, and the physics steps in a tick."""

from __future__ import annotations

import math

TICK_HZ = 30
TICK_S = 1 / TICK_HZ  # one control period
SLOWEST_PHYSICS_HZ = 240  # contacts and servos are tuned at this rate


def physics_steps(fps: float) -> int:
    """Physics steps in a tick: so many that none is longer than 1/240 s."""
    return max(1, math.ceil(SLOWEST_PHYSICS_HZ / fps))
