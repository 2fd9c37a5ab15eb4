"""What float16 costs by itself: the torch policy with the factors and the result of every product
rounded to float16, as an fp16 bundle computes it.

Only products are rounded, and none of the small ones at the edges of a graph
(`mtdit_export.precision`). Says how large the error of an fp16 graph is if nothing else is wrong
with it; judging is left to `mtdit_runtime.verify.gates`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode

from mtdit.policies.multi_task_dit.policy import MultiTaskDiT

ATEN = torch.ops.aten
PRODUCTS = (
    ATEN.embedding.default,  # the token table is stored in float16
    ATEN.addmm.default,
    ATEN.mm.default,
    ATEN.bmm.default,
    ATEN.baddbmm.default,
    ATEN.convolution.default,
)
# computed once in float32 at export, or the float32 projections at a graph's edges
EXACT = ("time_mlp.", "input_proj.", "output_proj.", "text_encoder.projection.")


@contextmanager
def half_products(policy: MultiTaskDiT) -> Iterator[None]:
    """Inside, the policy computes its products as float16 does."""
    exact = [p for name, p in policy.named_parameters() if any(part in name for part in EXACT)]
    with sdpa_kernel(SDPBackend.MATH), _HalfProducts(exact):  # attention as two products
        yield


class _HalfProducts(TorchDispatchMode):
    def __init__(self, exact: Sequence[Tensor]) -> None:
        super().__init__()
        self._exact = {place(weight) for weight in exact}

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        tensors = [x for x in args if isinstance(x, Tensor)]
        if func not in PRODUCTS or any(place(x) in self._exact for x in tensors):
            return func(*args, **(kwargs or {}))
        rounded = [half(x) if isinstance(x, Tensor) and x.is_floating_point() else x for x in args]
        return half(func(*rounded, **(kwargs or {})))


def place(x: Tensor) -> int:
    """Where a tensor's memory is: the same for a weight and its transpose."""
    return x.untyped_storage().data_ptr()


def half(x: Tensor) -> Tensor:
    return x.half().float()
