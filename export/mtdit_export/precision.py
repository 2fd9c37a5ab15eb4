"""Which numbers of a folded policy are half precision.

Weights and the products they take part in are float16; layer norms, softmax, residual streams,
modulation, resize and the sampler stay float32, and so do inputs and outputs and the small
projections next to them: rounding the predicted noise to float16 would be most of the chunk's
error. The casts are ordinary operations of the folded modules, so the types are in the ONNX file:
TensorRT builds it strongly typed, and onnxruntime computes the same thing for comparison.
"""

from __future__ import annotations

import torch
from torch import nn

from mtdit_export.errors import ExportError
from mtdit_export.fold import Dense, Patches, PerHead, Tokens

FP32, FP16, INT8 = "fp32", "fp16", "int8"
EDGES = (
    "input",
    "output",
    "projection",
)  # names of the projections at a graph's inputs and outputs


def halve(module: nn.Module) -> None:
    """Turns the weights of a folded module into float16, in place. ExportError when one does not
    fit.
    """
    for name, part in module.named_modules():
        if (
            isinstance(part, Dense | Patches | PerHead | Tokens)
            and name.rpartition(".")[2] not in EDGES
        ):
            part.half()
            if not all(torch.isfinite(weight).all() for weight in part.parameters()):
                raise ExportError(
                    f"{name} has weights beyond float16's range: export without --fp16"
                )
