"""Widths that processors dislike, made a little wider: the hidden layers of the MLPs.

Rows that are a multiple of 4096 bytes apart fall into the same few places of a processor's first
cache, and a product that reads down its columns waits for memory: with 3072 hidden numbers (ViT-B)
ONNX Runtime takes a third longer than with 3088. The further columns of the first weight and rows
of the second are zero, so nothing changes but the time.

Knows the folded modules. Refuses to know files and other backends: TensorRT lays its weights out by
itself.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import nn

from mtdit_export.fold import ClipBlock, DenoiserBlock, Dense, fixed

DISLIKED_BYTES = 4096  # a page; cache sets repeat within it
FURTHER = 16  # numbers: one cache line


def widen(module: nn.Module) -> None:
    """In place, the MLPs of all blocks, where the width of the hidden layer asks for it."""
    for block in module.modules():
        if isinstance(block, ClipBlock | DenoiserBlock) and is_disliked(block.up):
            block.up.weight = fixed(F.pad(block.up.weight, (0, FURTHER)))
            block.up.bias = fixed(F.pad(block.up.bias, (0, FURTHER)))
            block.down.weight = fixed(F.pad(block.down.weight, (0, 0, 0, FURTHER)))


def is_disliked(up: Dense) -> bool:
    return up.weight.shape[1] * up.weight.element_size() % DISLIKED_BYTES == 0
