"""How long an export will take and how much memory, said before the work begins.

Time is measured rather than counted: the torch policy computes one observation here, and the other
work is a multiple of that. The multiples were measured at LeRobot's default size (249 M parameters,
two cameras of 640x480) on two cores.
"""

from __future__ import annotations

import time
from collections.abc import Sequence

from mtdit_export.options import FP32, INT8
from mtdit_export.reference import (
    N_CALIBRATION,
    N_PROBES,
    N_TRIALS,
    Reference,
    draw_trials,
    synthetic_probes,
)
from mtdit_robots.errors import UserError
from mtdit_runtime.memory import free_memory

# In units of one observation with all its noises, as torch computes it:
TRACING = 35.0  # folding, tracing and writing the graphs
DETAILED = 4.0  # an observation that is compared stage by stage
GRAPHS = 1.5  # the graphs, for an observation that torch has computed
CALIBRATING = 0.5  # a frame of every camera through the folded vision tower
LEAST_S = 5.0  # to trace and open graphs of any size
# In units of the policy's weights: itself, the folded copy, the graphs and their sessions
COPIES = 3.5
LEAST_BYTES = 900_000_000  # Python, torch and ONNX Runtime


def expected_effort(reference: Reference, precision: str, tasks: Sequence[str]) -> str:
    """One line: minutes and memory. UserError when this computer has not that much memory free;
    the policy has been loaded already.
    """
    more = more_memory(reference)
    check_memory(more, free_memory())
    seconds = expected_seconds(seconds_per_trial(reference, tasks), precision)
    took = f"{seconds:.0f} s" if seconds < 90 else f"{seconds / 60:.0f} minutes"
    total = (LEAST_BYTES + weight_bytes(reference) + more) / 1e9
    return f"expect about {took} and {total:.1f} GB of memory"


def check_memory(needed: int, free: int) -> None:
    """UserError when an export that needs so many bytes more would not fit."""
    if needed > free:
        raise UserError(
            f"this export needs {needed / 1e9:.1f} GB more memory, and {free / 1e9:.1f} GB are "
            "free: close other programs, or export on a computer with more memory and copy the "
            "bundle"
        )


def weight_bytes(reference: Reference) -> int:
    return sum(p.numel() * p.element_size() for p in reference.policy.parameters())


def more_memory(reference: Reference) -> int:
    """Bytes beyond what the loaded policy takes: the other copies of its weights, and the frames of
    all observations.
    """
    config = reference.config
    pixels = sum(height * width * 3 for height, width, _ in config.cameras.values())
    frames = N_TRIALS * config.n_obs_steps * pixels
    return round((COPIES - 1) * weight_bytes(reference)) + frames


def seconds_per_trial(reference: Reference, tasks: Sequence[str]) -> float:
    """How long torch computes the chunks of one observation. The first call is a warm-up, unless it
    was so long that it cannot matter.
    """
    (probe,) = synthetic_probes(reference.checkpoint, tasks or ("",), count=1)
    (noises,) = draw_trials([probe], reference.config)
    took = 0.0
    for _ in range(2):
        began = time.perf_counter()
        reference.trial(probe, noises)
        took = time.perf_counter() - began
        if took > 1.0:
            break
    return took


def expected_seconds(per_trial: float, precision: str) -> float:
    trials = TRACING + N_PROBES * DETAILED
    trials += 0 if precision == FP32 else N_TRIALS * (1 + GRAPHS)
    trials += N_CALIBRATION * CALIBRATING if precision == INT8 else 0
    return LEAST_S + trials * per_trial
