"""Timings: a bounded list of durations per stage, and their percentiles."""

from __future__ import annotations

import time
from collections import defaultdict, deque
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np

KEEP = 4096  # durations kept per stage: 20 minutes of chunks of the default policy


class Timings:
    """Stage -> its last durations. Any thread may call `add`: it is one append to a deque."""

    def __init__(self) -> None:
        self._durations_s: dict[str, deque[float]] = defaultdict(lambda: deque(maxlen=KEEP))

    def add(self, stage: str, duration_s: float) -> None:
        self._durations_s[stage].append(duration_s)

    @contextmanager
    def time(self, stage: str) -> Iterator[None]:
        start = time.perf_counter()
        yield
        self.add(stage, time.perf_counter() - start)

    def durations(self, stage: str) -> list[float]:
        """The kept durations of a stage in seconds, oldest first."""
        return list(self._durations_s[stage])

    def percentile(self, stage: str, percent: float) -> float | None:
        """A percentile of a stage's durations in seconds; None while there is none."""
        durations_s = self._durations_s.get(stage)
        return float(np.percentile(list(durations_s), percent)) if durations_s else None

    def clear(self) -> None:
        self._durations_s.clear()

    def summary(self) -> dict[str, dict[str, float]]:
        """Stage -> {count, p50_ms, p95_ms, max_ms}."""
        return {
            stage: _summary(list(durations)) for stage, durations in list(self._durations_s.items())
        }


def _summary(durations_s: list[float]) -> dict[str, float]:
    p50, p95, top = np.percentile(durations_s, (50, 95, 100)) * 1e3
    return {
        "count": len(durations_s),
        "p50_ms": float(p50),
        "p95_ms": float(p95),
        "max_ms": float(top),
    }
