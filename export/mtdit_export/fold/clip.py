"""CLIP's two towers, folded: norms and scales merged into the weights of the products."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from mtdit.policies.multi_task_dit.clip import ACTIVATIONS, LEGACY_EOS, TextShape, VisionShape
from mtdit_export.fold.layers import (
    Dense,
    Norm,
    Patches,
    PerHead,
    Tokens,
    Weights,
    attend,
    dense,
    fixed,
    split_heads,
    under,
)

MASK_VALUE = -1e4  # added to the score of a later token: its softmax weight becomes exactly 0

TowerShape = VisionShape | TextShape


class Attention(nn.Module):
    """Self-attention of all tokens: layer-normed (S, N, D) -> addend of the residual stream (S, N,
    D).
    """

    def __init__(self, weights: Weights, heads: int) -> None:
        super().__init__()
        q, k, v = ([weights[f"{n}_proj.{kind}"] for kind in ("weight", "bias")] for n in "qkv")
        self.qkv = packed(scaled(q, heads), k, v)
        self.out, self.heads = dense(weights, "out_proj"), heads

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        q, k, v = split_heads(self.qkv(x), 3, self.heads)
        return self.out(attend(q, k, v, mask))


class FirstAttention(nn.Module):
    """Attention with the first token as the only query: (S, N, D) -> (1, N, D). No key or value is
    computed.

    A score is q . (W_k x) = (W_k^T q) . x, and the weighted mean of the values W_v x is W_v times
    the weighted mean of x. The bias of the keys adds the same number to all scores, which softmax
    ignores; the bias of the values becomes part of the output's bias.
    """

    def __init__(self, weights: Weights, heads: int) -> None:
        super().__init__()
        q, v = ([weights[f"{n}_proj.{kind}"] for kind in ("weight", "bias")] for n in "qv")
        out, bias = weights["out_proj.weight"], weights["out_proj.bias"]
        self.q, self.out = packed(scaled(q, heads)), Dense(out, bias + out @ v[1])
        self.keys = PerHead(weights["k_proj.weight"].unflatten(0, (heads, -1)))  # (heads, d, D)
        self.values = PerHead(v[0].unflatten(0, (heads, -1)).transpose(1, 2))  # (heads, D, d)
        self.heads = heads

    def forward(self, x: Tensor) -> Tensor:
        q = self.q(x[:1]).unflatten(-1, (self.heads, -1)).permute(1, 2, 0, 3)  # (N, heads, 1, d)
        seen = x.to(q.dtype).transpose(0, 1)  # (N, S, D)
        scores = (self.keys(q).squeeze(2) @ seen.transpose(1, 2)).float()  # (N, heads, S)
        mixed = scores.softmax(-1).to(seen.dtype) @ seen  # (N, heads, D)
        return self.out(self.values(mixed.unsqueeze(2)).flatten(1)[None])


class ClipBlock(nn.Module):
    """Pre-norm transformer block on a float32 residual stream (S, N, D) -> (S, N, D), or only the
    first token (1, N, D) with `first_only`.
    """

    def __init__(self, weights: Weights, shape: TowerShape, first_only: bool) -> None:
        super().__init__()
        self.first_only = first_only
        attention = under(weights, "self_attn."), shape.num_attention_heads
        self.attention = FirstAttention(*attention) if first_only else Attention(*attention)
        self.norm1, self.norm2 = (
            Norm(under(weights, f"layer_norm{i}."), shape.layer_norm_eps) for i in (1, 2)
        )
        self.up = dense(weights, "mlp.fc1")
        self.down = dense(weights, "mlp.fc2")
        self.activation = ACTIVATIONS[shape.hidden_act]

    def forward(self, x: Tensor, *mask: Tensor) -> Tensor:
        seen = self.attention(self.norm1(x), *mask).float()
        x = (x[:1] if self.first_only else x) + seen
        return x + self.down(self.activation(self.up(self.norm2(x)))).float()


def packed(*projections: Sequence[Tensor]) -> Dense:
    """Several (weight, bias) of the same input as one product, with their outputs concatenated."""
    weights, biases = zip(*projections, strict=True)
    return Dense(torch.cat(weights), torch.cat(biases))


def scaled(projection: Sequence[Tensor], heads: int) -> list[Tensor]:
    """Multiply the weight and bias of the queries by 1/sqrt(head dim)."""
    return [(len(part) // heads) ** -0.5 * part for part in projection]


def clip_blocks(weights: Weights, shape: TowerShape, first_only: bool) -> nn.ModuleList:
    layers = [under(weights, f"encoder.layers.{i}.") for i in range(shape.num_hidden_layers)]
    return nn.ModuleList(
        ClipBlock(layer, shape, first_only and i == len(layers) - 1)
        for i, layer in enumerate(layers)
    )


class FoldedTower(nn.Module):
    """Normalised pixels (N, 3, H, W) -> class token (N, D): before the final norm, as LeRobot reads
    it, or after it with `shape.class_token_normed`.
    """

    def __init__(self, weights: Weights, shape: VisionShape) -> None:
        super().__init__()
        position = weights["embeddings.position_embedding.weight"]  # (S, D)
        self.patches = Patches(weights["embeddings.patch_embedding.weight"])
        self.patch_position = fixed(position[1:, None])  # (S - 1, 1, D)
        first = weights["embeddings.class_embedding"] + position[0]
        self.first_token = fixed(first[None, None])  # (1, 1, D)
        self.pre_norm = Norm(under(weights, "pre_layrnorm."), shape.layer_norm_eps)
        self.blocks = clip_blocks(weights, shape, first_only=True)
        normed = shape.class_token_normed
        self.final_norm = (
            Norm(under(weights, "post_layernorm."), shape.layer_norm_eps)
            if normed
            else nn.Identity()
        )

    def forward(self, pixels: Tensor) -> Tensor:
        patches = self.patches(pixels).float() + self.patch_position  # (S - 1, N, D)
        x = self.pre_norm(torch.cat([self.first_token.expand(-1, len(pixels), -1), patches]))
        for block in self.blocks:
            x = block(x)
        return self.final_norm(x[0])


class FoldedText(nn.Module):
    """Token ids (1, L) int64 -> projected text feature (1, P). Run once per task."""

    def __init__(
        self, weights: Weights, projection: Weights, shape: TextShape, length: int
    ) -> None:
        super().__init__()
        self.tokens = Tokens(weights["embeddings.token_embedding.weight"])
        self.position = fixed(weights["embeddings.position_embedding.weight"][:length])
        self.mask = fixed(torch.full((length, length), MASK_VALUE).triu(1))
        self.earliness = fixed(torch.arange(length, 0, -1).float())
        self.blocks = clip_blocks(weights, shape, first_only=False)
        self.final_norm = Norm(under(weights, "final_layer_norm."), shape.layer_norm_eps)
        self.projection = Dense(projection["weight"], projection["bias"])
        # OpenAI's configs say 2, for which transformers looks for the highest id instead
        legacy = shape.eos_token_id == LEGACY_EOS
        self.eos = shape.vocab_size - 1 if legacy else shape.eos_token_id

    def forward(self, token_ids: Tensor) -> Tensor:
        x = (self.tokens(token_ids[0]).float() + self.position)[:, None]  # (L, 1, D)
        for block in self.blocks:
            x = block(x, self.mask)
        first_eos = ((token_ids == self.eos).float() * self.earliness).argmax(-1)  # (1,), no ties
        return self.projection(self.final_norm(x)[:, 0].index_select(0, first_eos)).float()
