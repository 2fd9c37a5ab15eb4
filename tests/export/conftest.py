"""Exported bundles, for the tests of this folder."""

from exported import (
    bundle,
    checkpoint,
    half_bundle,
    int8_bundle,
    plans_ahead,
    recording,
    workshop,
)

__all__ = [
    "bundle",
    "checkpoint",
    "half_bundle",
    "int8_bundle",
    "plans_ahead",
    "recording",
    "workshop",
]
