"""The guided denoiser of real-time chunking (RTC), with its vector-Jacobian product written out as
ordinary graph operations.

The method itself is explained in `mtdit.policies.multi_task_dit.rtc`, which is also the reference
that the graph is checked against.

T horizon, A action dim, D hidden, K calls of the network.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import onnx
import torch
from torch import Tensor, nn
from torch._decomp import get_decompositions
from torch.fx import GraphModule
from torch.fx.experimental.proxy_tensor import make_fx

from mtdit.policies.multi_task_dit.rtc import Correction, correction_at
from mtdit_export.fold.denoiser import FoldedDenoiser, Network
from mtdit_export.fold.layers import NORM_EPS
from mtdit_export.unroll import unroll
from mtdit_runtime.bundle.manifest import NOISE, PREFIX, PREFIX_WEIGHTS

aten = torch.ops.aten
DECOMPOSED = (aten.gelu_backward, aten._softmax_backward_data)  # ONNX has no such operators


class GuidedNetwork(nn.Module):
    """One guided call of the network: x (1, T, A) -> the corrected output (1, T, A).

    modulation (layers * 6 D,) as for `Network`; numbers (3,) of a `Correction`; prefix (1, T, A)
    normalised; weights (1, T, 1) in 0..1.
    """

    def __init__(self, network: Network, clip_range: float) -> None:
        super().__init__()
        self.network, self.clip_range = network, clip_range

    def forward(
        self, x: Tensor, modulation: Tensor, numbers: Tensor, prefix: Tensor, weights: Tensor
    ) -> Tensor:
        output, pull, *_ = torch.func.vjp(lambda x: self.network(x, modulation), x)
        of_x, of_output, strength = numbers.chunk(3)  # (1,) each
        now = Correction(of_x, of_output, strength, self.clip_range)
        error = now.error(now.clean(x, output), prefix, weights)
        # J = of_x + of_output * J_network: only the error, which is small, passes through half
        # precision
        return output + strength * (of_x * error + of_output * pull(error)[0])


def unroll_guided(denoiser: FoldedDenoiser, inputs: Mapping[str, Tensor]) -> onnx.ModelProto:
    """Like `unroll`, with every call of the network guided. `inputs` hold prefix_weights instead of
    prefix_mask.
    """
    at = correction_at(denoiser.config)
    corrections = [at(time) for time in denoiser.times]
    numbers = torch.tensor([(c.of_x, c.of_output, c.strength) for c in corrections])  # (K, 3)
    modulation = torch.zeros(6 * denoiser.config.num_layers * denoiser.config.hidden_dim)
    call = (inputs[NOISE], modulation, numbers[0], inputs[PREFIX], inputs[PREFIX_WEIGHTS])
    network = without_autograd(GuidedNetwork(denoiser.network, corrections[0].clip_range), call)
    return unroll(denoiser, inputs, network, {"correction": numbers})


def without_autograd(module: GuidedNetwork, inputs: Sequence[Tensor]) -> GraphModule:
    """The module traced for inputs of these shapes, with its derivatives written out. The weights
    keep their names in the network.
    """
    parts: dict[Any, Any] = {
        **get_decompositions(DECOMPOSED),
        aten.native_layer_norm_backward.default: layer_norm_backward,
    }
    traced = make_fx(module, decomposition_table=parts)(*inputs)
    names = {id(parameter): name for name, parameter in module.network.named_parameters()}
    constants = {}
    for node in traced.graph.find_nodes(op="get_attr"):
        value = getattr(traced, str(node.target))
        node.target = names.get(id(value), node.target)
        constants[str(node.target)] = value
    return GraphModule(constants, traced.graph)


def layer_norm_backward(
    pull: Tensor,
    x: Tensor,
    shape: list[int],
    mean: Tensor,
    deviation: Tensor,
    weight: Tensor,
    *_: Any,
) -> tuple[Tensor, None, None]:
    """The derivative of `normed` with respect to x (T, D), from x and its scale.

    torch reuses mean and deviation of the forward pass, which would need a LayerNormalization with
    three outputs. TensorRT refuses that, and the network would no longer consist of the same
    operations as in the plain graph.
    """
    pull, centred = pull * weight, x - x.mean(-1, keepdim=True)
    scale = torch.rsqrt((centred * centred).mean(-1, keepdim=True) + NORM_EPS)
    normal = centred * scale
    along = normal * (pull * normal).mean(-1, keepdim=True)
    return scale * (pull - pull.mean(-1, keepdim=True) - along), None, None
