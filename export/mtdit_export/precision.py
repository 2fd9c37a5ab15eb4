"""Converts a folded policy to half precision.

Weights and their products are float16. Layer norms, softmax, residual streams, modulation, resize
and the sampler stay float32, and so do inputs, outputs and the small projections next to them:
rounding the predicted noise to float16 would cause most of the chunk's error. The casts are
ordinary operations of the folded modules, so the types are in the ONNX file: TensorRT builds it
strongly typed, and onnxruntime computes the same for comparison.
"""

from __future__ import annotations

import torch
from torch import nn

from mtdit_export.fold.layers import Dense, Patches, PerHead, Tokens
from mtdit_robots.errors import ExportError

EDGES = ("input", "output", "projection")  # the projections at a graph's inputs and outputs


def to_fp16(module: nn.Module) -> None:
    """Convert the weights of a module to float16 in place. ExportError when one overflows."""
    for name, part in module.named_modules():
        if (
            isinstance(part, Dense | Patches | PerHead | Tokens)
            and name.rpartition(".")[2] not in EDGES
        ):
            part.half()
            if not all(torch.isfinite(weight).all() for weight in part.parameters()):
                raise ExportError(
                    f"{name} has weights beyond the range of float16: export without --fp16"
                )
