"""Exported bundles and checkpoints to damage, for the tests of this folder."""

from damaged import copy, lerobots
from exported import bundle, checkpoint, half_bundle, int8_bundle, plans_ahead, recording, workshop

__all__ = [
    "bundle",
    "checkpoint",
    "copy",
    "half_bundle",
    "int8_bundle",
    "lerobots",
    "plans_ahead",
    "recording",
    "workshop",
]
