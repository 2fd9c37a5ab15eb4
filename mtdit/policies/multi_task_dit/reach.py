"""Whether a policy can plan every action of its dataset.

A diffusion sampler with `clip_sample` cuts normalised actions at `clip_sample_range`. MIN_MAX puts
all of a dataset inside; MEAN_STD leaves what is further from the mean than that many standard
deviations outside.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from mtdit.policies.multi_task_dit.config import PolicyConfig
from mtdit.stats import DatasetStats, feature_stats
from mtdit_robots.features import ACTION

MARGIN = 0.01  # of the range: rounding of the statistics
SMALLEST = 1e-3  # units; a joint that moves less has no reach that could be cut


@dataclass(frozen=True)
class Cut:
    """What is cut. line: which joints reach how far. needed: the clip_sample_range that would cut
    nothing.
    """

    line: str
    needed: float


def cut_actions(config: PolicyConfig, stats: DatasetStats, joints: Sequence[str]) -> Cut | None:
    """What the sampler cuts off the dataset's actions; None if it reaches all of them."""
    known = stats.get(ACTION, {})
    if (
        config.objective != "diffusion"
        or not config.clip_sample
        or not {"min", "max"} <= set(known)
    ):
        return None
    scale, most = feature_stats(config, stats, ACTION), config.clip_sample_range
    ends = np.stack([np.ravel(known["min"]), np.ravel(known["max"])]).astype(np.float32)  # (2, A)
    planned = np.abs(scale.normalize(ends)).max(axis=0)  # (A,)
    beyond = (planned > most * (1 + MARGIN)) & (np.ptp(ends, axis=0) > SMALLEST)
    if not beyond.any():
        return None
    reach = scale.unnormalize(np.array([[-most], [most]], np.float32) * np.ones_like(ends))
    worst = int(np.argmax(np.where(beyond, planned, 0)))
    others = f", and {beyond.sum() - 1} more joints are cut" if beyond.sum() > 1 else ""
    line = (
        f"clip_sample cuts normalised actions at +-{most:g}, and {scale.mode} puts actions beyond "
        f"that: of {joints[worst]}'s {_range(ends[:, worst])} the policy can reach only "
        f"{_range(reach[:, worst])}{others}"
    )
    return Cut(line, math.ceil(float(planned[beyond].max()) * 10) / 10)


def _range(ends: np.ndarray) -> str:
    return f"{ends[0]:.3g} to {ends[1]:.3g}"
