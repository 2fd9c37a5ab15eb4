"""Pads the hidden layers of MLPs whose width is slow on CPUs.

Rows that are a multiple of 4096 bytes apart map to the same few sets of a processor's L1 cache, and
a product that reads down its columns waits for memory: with a width of 3072 (ViT-B) ONNX Runtime
takes a third longer than with 3088. The additional columns of the first weight and rows of the
second are zero, so the results do not change. TensorRT arranges its weights itself.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import nn

from mtdit_export.fold.clip import ClipBlock
from mtdit_export.fold.denoiser import DenoiserBlock
from mtdit_export.fold.layers import Dense, fixed

SLOW_STRIDE_BYTES = 4096  # a page: addresses this far apart map to the same L1 cache set
PADDING = 16  # columns to add: one cache line of float32


def pad_mlps(module: nn.Module) -> None:
    """Pad the MLPs of all blocks in place, where the width of the hidden layer is a slow one."""
    for block in module.modules():
        if isinstance(block, ClipBlock | DenoiserBlock) and is_slow(block.up):
            block.up.weight = fixed(F.pad(block.up.weight, (0, PADDING)))
            block.up.bias = fixed(F.pad(block.up.bias, (0, PADDING)))
            block.down.weight = fixed(F.pad(block.down.weight, (0, 0, 0, PADDING)))


def is_slow(up: Dense) -> bool:
    return up.weight.shape[1] * up.weight.element_size() % SLOW_STRIDE_BYTES == 0
