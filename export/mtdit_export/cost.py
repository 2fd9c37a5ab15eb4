"""What one call of a graph costs: operations of its products and bytes of its weights, counted from shapes.

Knows how often a denoiser calls its network. Refuses to know how long that takes: `mtdit bench` divides the two.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from mtdit_export.fold import FoldedDenoiser
from mtdit_export.unroll import network_inputs


class Cost(NamedTuple):
    """Of one call. A weight that is read at every step of a sampler counts every time."""

    flops: int  # of matrix products and convolutions; a multiplication and an addition are two
    weight_bytes: int


def cost(module: nn.Module, inputs: Mapping[str, Tensor]) -> Cost:
    """`inputs`: examples by name, in the order of the module's arguments."""
    if not isinstance(module, FoldedDenoiser):
        return Cost(_flops(lambda: module(*inputs.values())), _bytes(module))
    calls, (observed, call) = len(module.times), network_inputs(module, inputs)
    once = _flops(lambda: module.modulation(*observed.values()))
    each = _flops(lambda: module.network(*call.values()))
    return Cost(once + calls * each, _bytes(module.modulation) + calls * _bytes(module.network))


def _bytes(module: nn.Module) -> int:
    return sum(p.numel() * p.element_size() for p in module.parameters())


@torch.no_grad()
def _flops(run: Callable[[], object]) -> int:
    with FlopCounterMode(display=False) as counter:
        run()
    return counter.get_total_flops()
