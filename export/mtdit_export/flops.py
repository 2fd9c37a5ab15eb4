"""Counts what one call of a graph costs: operations of its matrix products and bytes of its
weights, computed from shapes. `mtdit bench` divides them by the measured time.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from mtdit_export.fold.denoiser import FoldedDenoiser
from mtdit_runtime.bundle.manifest import FEATURES, HISTORY_MODULATION, NOISE, PREFIX_WEIGHTS, STATE


class Cost(NamedTuple):
    """The cost of one call of a graph."""

    flops: int  # of matrix products and convolutions; a multiplication and an addition are two
    weight_bytes: int  # read per call; a weight read at each sampler step counts each time


def cost(module: nn.Module, inputs: Mapping[str, Tensor]) -> Cost:
    """The cost of a folded module. `inputs`: examples by name, in the order of the module's
    arguments; if prefix_weights is among them, the cost is that of the guided graph.
    """
    if not isinstance(module, FoldedDenoiser):
        return Cost(flops(lambda: module(*inputs.values())), weight_bytes(module))
    per_call = 2 if PREFIX_WEIGHTS in inputs else 1  # the backward pass repeats each product
    passes = len(module.times) * per_call
    observed = [inputs[name] for name in (HISTORY_MODULATION, STATE, FEATURES) if name in inputs]
    rows = module.modulation(*observed).chunk(len(module.times))[0]
    once = flops(lambda: module.modulation(*observed))
    each = flops(lambda: module.network(inputs[NOISE], rows))
    return Cost(
        once + passes * each,
        weight_bytes(module.modulation) + passes * weight_bytes(module.network),
    )


def weight_bytes(module: nn.Module) -> int:
    return sum(p.numel() * p.element_size() for p in module.parameters())


@torch.no_grad()
def flops(run: Callable[[], object]) -> int:
    with FlopCounterMode(display=False) as counter:
        run()
    return int(counter.get_total_flops())
