"""How strongly each row of a new chunk is held to the chunk that is being executed.

Knows the weights of real-time chunking (arXiv 2506.07339, eq. 5). Refuses to know what is done with
them.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from mtdit_robots.errors import UserError

SCHEDULES = ("linear", "exp", "ones", "zeros")


def prefix_weights(
    horizon: int, committed: int, execution_horizon: int, schedule: str = "linear"
) -> NDArray[np.float32]:
    """(horizon,) weights of 0..1 for the rows of a new chunk.

    The first `committed` rows will have been executed before the chunk is there: 1. Rows from
    `execution_horizon` on have nothing to agree with: 0. Between them the weight falls linearly,
    exponentially, not at all ("ones") or at once ("zeros"). Source: LeRobot
    `policies/rtc/modeling_rtc.py::get_prefix_weights`. UserError: no such schedule.
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
