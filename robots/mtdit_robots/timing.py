"""The length of one lock-step tick of the twin."""

from __future__ import annotations

TICK_S = 1 / 30  # one control period
