"""Exported bundles and checkpoints to damage, for the tests of this folder."""

from functools import cache

from damaged import copy, lerobots
from exported import bundle, checkpoint, half_bundle, int8_bundle, plans_ahead, recording, workshop
from torch.onnx._internal.exporter._registration import ONNXRegistry

# torch makes its table of operators again for every graph, which is a quarter of an export:
# once per process is enough, the graphs are the same to the byte.
ONNXRegistry.from_torchlib = staticmethod(cache(ONNXRegistry.from_torchlib))

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
