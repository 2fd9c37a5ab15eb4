"""Quantises the dense products of the folded vision and text towers to int8.

A weight has one scale per output, the input of a product one scale in total. Both are symmetric
with zero point 0, the only kind that TensorRT accepts; ONNX Runtime turns the inputs into uint8 by
itself where that is faster. The range of an input is the largest magnitude seen on the dataset's
own frames and tasks. Ranges that cut off outliers (percentiles, least squares) gave smaller feature
errors on a trained policy, but larger errors of its actions. Before that, half of every channel's
scale moves from a layer norm into the weights that read it (SmoothQuant, Xiao et al. 2022, arXiv
2211.10438, alpha 0.5), because otherwise a single channel of large values sets the range for all.

These stay float32: the products inside attention (softmax weights over 197 tokens are smaller on
average than a step of int8, and TensorRT on small boards is slower with int8 attention; the keys
and values of the last vision block belong to it), the patch convolution (ONNX Runtime has no int8
convolution with a float result), the projections at a graph's inputs and outputs, and the denoiser.
Figures are in docs/export.md.

N images, S tokens, D inputs, E outputs of a product.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence

import torch
import torch.ao.quantization.fx._decomposed  # defines torch.ops.quantized_decomposed
from torch import Tensor, nn

from mtdit_export.fold.clip import Attention, ClipBlock
from mtdit_export.fold.layers import Dense, Norm, fixed
from mtdit_export.precision import EDGES

INT8_MAX = 127  # of an int8, symmetric
RANGE = (-128, INT8_MAX, torch.int8)

Peaks = dict[nn.Module, Tensor]  # product -> (D,) largest magnitude of every input channel


class Int8Dense(nn.Module):
    """A Dense whose weight and input are rounded to int8; the product is exact, result and bias are
    float32.

    `largest` (): the largest magnitude of the input; larger values are clipped.
    """

    def __init__(self, dense: Dense, largest: Tensor) -> None:
        super().__init__()
        scale = nonzero(dense.weight.abs().amax(0)) / INT8_MAX  # (E,)
        self.weight = fixed((dense.weight / scale).round().to(torch.int8))  # (D, E)
        self.scale = fixed(scale)
        # Three axes: ONNX Runtime would fuse the product and a bias vector into a float Gemm, and
        # no longer recognise an int8 product.
        self.bias = fixed(dense.bias[None, None])
        self.input_scale = float(nonzero(largest) / INT8_MAX)

    def forward(self, x: Tensor) -> Tensor:
        """(S, N, D) -> (S, N, E)."""
        ops, step = torch.ops.quantized_decomposed, (self.input_scale, 0, *RANGE)
        x = ops.dequantize_per_tensor(ops.quantize_per_tensor(x, *step), *step)
        return x @ ops.dequantize_per_channel(self.weight, self.scale, None, 1, *RANGE) + self.bias


def nonzero(value: Tensor) -> Tensor:
    """The value with 1 in place of 0, safe to divide by."""
    return torch.where(value == 0, torch.ones_like(value), value)


def quantize(module: nn.Module, samples: Iterable[Sequence[Tensor]]) -> None:
    """Quantise the products of a folded tower in place. `samples`: typical inputs of the module."""
    peaks = input_peaks(module, samples)
    for block in module.modules():
        for norm, readers in normed_products(block) if isinstance(block, ClipBlock) else ():
            smooth(norm, readers, peaks)
    for name, part in list(products(module)):
        module.set_submodule(name, Int8Dense(part, peaks[part].amax()))


def products(module: nn.Module) -> Iterator[tuple[str, Dense]]:
    """The products that become int8: (name, module)."""
    for name, part in module.named_modules():
        if isinstance(part, Dense) and name.rpartition(".")[2] not in EDGES:
            yield name, part


@torch.no_grad()
def input_peaks(module: nn.Module, samples: Iterable[Sequence[Tensor]]) -> Peaks:
    peaks: Peaks = {part: torch.zeros(len(part.weight)) for _, part in products(module)}
    handles = [part.register_forward_pre_hook(keep_peak(peaks)) for part in peaks]
    for sample in samples:
        module(*sample)
    for handle in handles:
        handle.remove()
    return peaks


def keep_peak(peaks: Peaks) -> Callable[[nn.Module, tuple[Tensor]], None]:
    def hook(part: nn.Module, inputs: tuple[Tensor]) -> None:
        peaks[part] = torch.maximum(peaks[part], inputs[0].abs().flatten(0, -2).amax(0))

    return hook


def normed_products(block: ClipBlock) -> list[tuple[Norm, list[Dense]]]:
    """Each layer norm with the products that read it, where all of them become int8."""
    attention = block.attention
    return [
        *([(block.norm1, [attention.qkv])] if isinstance(attention, Attention) else []),
        (block.norm2, [block.up]),
    ]


def smooth(norm: Norm, readers: Sequence[Dense], peaks: Peaks) -> None:
    """Balance the channels without changing the function: divide the output of a layer norm and
    multiply the weights that read it.
    """
    seen = torch.stack([peaks[reader] for reader in readers]).amax(0)  # (D,)
    weight = torch.stack([reader.weight.abs().amax(1) for reader in readers]).amax(0)  # (D,)
    factor = nonzero(seen / nonzero(weight)).sqrt()
    norm.weight.div_(factor)
    norm.bias.div_(factor)
    for reader in readers:
        reader.weight.mul_(factor[:, None])
        peaks[reader] = peaks[reader] / factor
