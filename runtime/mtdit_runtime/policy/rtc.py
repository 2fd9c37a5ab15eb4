"""The weights of real-time chunking (RTC; arXiv 2506.07339, eq. 5): how strongly each row of a new
chunk is guided towards the chunk that is being executed.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from mtdit_robots.errors import UserError

SCHEDULES = ("linear", "exp", "ones", "zeros")


def prefix_weights(
    horizon: int, committed: int, execution_horizon: int, schedule: str = "linear"
) -> NDArray[np.float32]:
    """(horizon,) weights in 0..1 for the rows of a new chunk.

    The first `committed` rows will have been executed before the new chunk is ready: their weight
    is 1. Rows from `execution_horizon` on have no row of the old chunk to agree with: 0. Between
    them the weight falls linearly ("linear"), exponentially ("exp"), not at all ("ones") or at once
    ("zeros"). Source: LeRobot `policies/rtc/modeling_rtc.py::get_prefix_weights`. UserError when
    the schedule is unknown.
    """
    if schedule not in SCHEDULES:
        raise UserError(f"schedule {schedule!r} is unknown: use one of {', '.join(SCHEDULES)}")
    end = min(execution_horizon, horizon)
    start = min(committed, end)
    falling = np.linspace(1, 0, end - start + 2, dtype=np.float32)[1:-1]
    between = {
        "linear": falling,
        "exp": falling * np.expm1(falling) / np.float32(np.e - 1),
        "ones": np.ones_like(falling),
        "zeros": np.zeros_like(falling),
    }
    return np.concatenate([np.ones(start), between[schedule], np.zeros(horizon - end)]).astype(
        np.float32
    )
