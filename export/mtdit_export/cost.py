"""What one call of a graph costs: operations of its products and bytes of its weights, counted from
shapes.

Knows how often a denoiser calls its network. Refuses to know how long that takes: `mtdit bench`
divides the two.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from mtdit_export.fold import FoldedDenoiser
from mtdit_runtime.bundle import FEATURES, KNOWN, NOISE, PREFIX_WEIGHTS, STATE


class Cost(NamedTuple):
    """Of one call."""

    flops: int  # of matrix products and convolutions; a multiplication and an addition are two
    weight_bytes: int  # read; a weight that is read at every step of a sampler counts every time


def cost(module: nn.Module, inputs: Mapping[str, Tensor]) -> Cost:
    """`inputs`: examples by name, in the order of the module's arguments; with prefix_weights, of
    the guided graph.
    """
    if not isinstance(module, FoldedDenoiser):
        return Cost(flops(lambda: module(*inputs.values())), weight_bytes(module))
    passes = len(module.times) * (
        2 if PREFIX_WEIGHTS in inputs else 1
    )  # backwards each product is done once more
    observed = [inputs[name] for name in (KNOWN, STATE, FEATURES) if name in inputs]
    rows = module.modulation(*observed).chunk(len(module.times))[0]
    once, each = (
        flops(lambda: module.modulation(*observed)),
        flops(lambda: module.network(inputs[NOISE], rows)),
    )
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
