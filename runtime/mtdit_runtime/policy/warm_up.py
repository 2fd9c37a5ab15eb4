"""Loads a bundle's engines and computes their first chunks, while something else is opened."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from mtdit_runtime.bundle.bundle import Bundle
from mtdit_runtime.engines.choose import choose_engines
from mtdit_runtime.engines.engine import Engines
from mtdit_runtime.policy.bundle_policy import BundlePolicy
from mtdit_runtime.worker import START_S, begin, within

WARM_UPS = 5  # chunks that are measured, after a first one


@dataclass(frozen=True)
class WarmEngines:
    """Engines that have computed chunks. latency_s: seconds of the slowest, except the first; it
    is the 95th percentile of so few.
    """

    engines: Engines
    latency_s: float


def start_engines(bundle: Bundle, backend: str = "auto") -> Callable[[], WarmEngines]:
    """Begins to load the engines of a backend and to compute first chunks, in a thread.

    The function that is returned waits for them. It raises UserError for a backend that does not
    work here, and TimeoutError when it hangs.
    """

    def start() -> WarmEngines:
        engines = choose_engines(bundle, backend)
        return WarmEngines(engines, _latency_s(bundle, engines))

    return begin(START_S, "computing the first chunks", start)


def warm_up_s(bundle: Bundle, engines: Engines) -> float:
    """Compute a few chunks from blank observations: `WarmEngines.latency_s`. TimeoutError when it
    hangs.
    """
    return within(START_S, "computing the first chunks", lambda: _latency_s(bundle, engines))


def _latency_s(bundle: Bundle, engines: Engines) -> float:
    m = bundle.manifest
    policy = BundlePolicy(bundle, engines)  # a second policy on the same engines
    frames = {c.name: np.zeros((c.height, c.width, 3), np.uint8) for c in m.cameras}
    noise = np.zeros((m.horizon, len(m.joints)), np.float32)
    policy.reset(m.tasks[0] if m.tasks else "", seed=0)
    durations_s = []
    for _ in range(WARM_UPS + 1):
        policy.prepare()()
        policy.observe(np.array(m.usual_positions), frames)
        began = time.perf_counter()
        policy.chunk(noise)
        durations_s.append(time.perf_counter() - began)
    return max(durations_s[1:])
