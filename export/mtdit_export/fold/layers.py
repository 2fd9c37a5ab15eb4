"""Building blocks of the folded graphs: dense layers, norms, attention, embeddings."""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Weights = Mapping[str, Tensor]  # parameter name -> value, e.g. a state_dict

NORM_EPS = 1e-6  # of DiT's layer norms


def under(weights: Weights, prefix: str) -> dict[str, Tensor]:
    """The weights whose names start with `prefix`, under their names without it."""
    return {name.removeprefix(prefix): w for name, w in weights.items() if name.startswith(prefix)}


def fixed(value: Tensor) -> nn.Parameter:
    """A weight of a folded module: a copy that is never trained."""
    return nn.Parameter(value.detach().clone().contiguous(), requires_grad=False)


class Dense(nn.Module):
    """x @ weight + bias in the precision of the weight. The argument is (out, in) as in torch, it
    is stored as (in, out).
    """

    def __init__(self, weight: Tensor, bias: Tensor) -> None:
        super().__init__()
        self.weight, self.bias = fixed(weight.T), fixed(bias)

    def forward(self, x: Tensor) -> Tensor:
        return x.to(self.weight.dtype) @ self.weight + self.bias


def without_bias(weight: Tensor) -> Dense:
    return Dense(weight, torch.zeros(len(weight)))


def dense(weights: Weights, name: str) -> Dense:
    return Dense(weights[f"{name}.weight"], weights[f"{name}.bias"])


class Patches(nn.Module):
    """Pixels (N, 3, H, W) -> patch embeddings (S - 1, N, D), in the precision of the weight (D, 3,
    patch, patch).
    """

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.weight = fixed(weight)

    def forward(self, pixels: Tensor) -> Tensor:
        grid = F.conv2d(pixels.to(self.weight.dtype), self.weight, stride=self.weight.shape[-1])
        return grid.flatten(2).permute(2, 0, 1)


class Tokens(nn.Module):
    """Token ids (L,) -> rows (L, D) of a table (vocabulary, D)."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.weight = fixed(weight)

    def forward(self, token_ids: Tensor) -> Tensor:
        return F.embedding(token_ids, self.weight)


class PerHead(nn.Module):
    """One row per head (N, heads, 1, D) times that head's weight (heads, D, E), in the precision of
    the weight.
    """

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.weight = fixed(weight)

    def forward(self, x: Tensor) -> Tensor:
        return x.to(self.weight.dtype) @ self.weight


class Norm(nn.Module):
    """LayerNorm over the last axis, in float32 whatever the precision of the rest."""

    def __init__(self, weights: Weights, eps: float) -> None:
        super().__init__()
        self.weight, self.bias, self.eps = fixed(weights["weight"]), fixed(weights["bias"]), eps

    def forward(self, x: Tensor) -> Tensor:
        return F.layer_norm(x, x.shape[-1:], self.weight, self.bias, self.eps)


def split_heads(x: Tensor, parts: int, heads: int) -> tuple[Tensor, ...]:
    """(S, N, parts * D) -> `parts` tensors (S, N, heads, D / heads)."""
    return tuple(part.unflatten(-1, (heads, -1)) for part in x.chunk(parts, -1))


def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
    """Attention of scaled queries, softmax in float32: (S, N, heads, d) each -> (S, N, heads * d).

    Tokens are the first axis because moving them behind the heads is then free: ONNX Runtime's
    matrix product can read transposed operands.
    """
    scores = (q.permute(1, 2, 0, 3) @ k.permute(1, 2, 3, 0)).float()  # (N, heads, S, S)
    weights = (scores if mask is None else scores + mask).softmax(-1).to(v.dtype)
    return (weights @ v.permute(1, 2, 0, 3)).permute(2, 0, 1, 3).flatten(2)
