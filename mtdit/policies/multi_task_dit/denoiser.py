"""The denoiser: a transformer over action chunks, conditioned by one vector through AdaLN-Zero.

Parameter names and shapes are those of LeRobot's `noise_predictor`
(lerobot/policies/multi_task_dit/modeling_multi_task_dit.py); the design is by Peebles and Xie,
arXiv 2212.09748. The conditioning comes from `mtdit.policies.multi_task_dit.observation_encoder`;
training loss and sampling are in `mtdit.policies.objectives`.

B batch, T horizon, D hidden, A action dim, C conditioning, E time embedding.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mtdit.policies.multi_task_dit.config import PolicyConfig


class Denoiser(nn.Module):
    """Noisy chunk (B, T, A), time (B,), conditioning (B, C) -> prediction (B, T, A)."""

    def __init__(self, config: PolicyConfig, conditioning_dim: int) -> None:
        super().__init__()
        time_dim, hidden = config.timestep_embed_dim, config.hidden_dim
        self.time_mlp = nn.Sequential(
            SinusoidalTime(time_dim),
            nn.Linear(time_dim, 2 * time_dim),
            nn.GELU(),
            nn.Linear(2 * time_dim, time_dim),
            nn.GELU(),
        )
        self.input_proj = nn.Linear(config.action_dim, hidden)
        if config.use_positional_encoding:
            self.pos_embedding = nn.Parameter(0.02 * torch.randn(1, config.horizon, hidden))
        self.transformer_blocks = nn.ModuleList(
            Block(config, time_dim + conditioning_dim) for _ in range(config.num_layers)
        )
        self.output_proj = nn.Linear(hidden, config.action_dim)
        self.use_positional_encoding = config.use_positional_encoding
        if config.use_rope:
            cos, sin = rope_tables(config.horizon, hidden // config.num_heads, config.rope_base)
            self.register_buffer("rope_cos", cos, persistent=False)  # (T, head dim)
            self.register_buffer("rope_sin", sin, persistent=False)
        self.use_rope = config.use_rope

    def forward(self, actions: Tensor, time: Tensor, conditioning: Tensor) -> Tensor:
        condition = torch.cat([self.time_mlp(time), conditioning], dim=-1)  # (B, E + C)
        x = self.input_proj(actions)  # (B, T, D)
        if self.use_positional_encoding:
            x = x + self.pos_embedding
        rope = (self.rope_cos, self.rope_sin) if self.use_rope else None
        for block in self.transformer_blocks:
            x = block(x, condition, rope)
        return self.output_proj(x)


class Block(nn.Module):
    """Attention and MLP, shifted, scaled and gated by the conditioning; gates start at zero."""

    def __init__(self, config: PolicyConfig, condition_dim: int) -> None:
        super().__init__()
        hidden = config.hidden_dim
        if config.use_rope:
            self.attn = RopeAttention(hidden, config.num_heads, config.dropout)
        else:
            self.multihead_attn = nn.MultiheadAttention(
                hidden, config.num_heads, dropout=config.dropout, batch_first=True
            )
        self.norm1 = nn.LayerNorm(hidden, elementwise_affine=False, eps=1e-6)
        self.norm2 = nn.LayerNorm(hidden, elementwise_affine=False, eps=1e-6)
        self.mlp = nn.Sequential(
            nn.Linear(hidden, 4 * hidden),
            nn.GELU(approximate="tanh"),
            nn.Linear(4 * hidden, hidden),
        )
        modulation = nn.Linear(condition_dim, 6 * hidden)
        nn.init.zeros_(modulation.weight)
        nn.init.zeros_(modulation.bias)
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), modulation)

    def forward(self, x: Tensor, condition: Tensor, rope: tuple[Tensor, Tensor] | None) -> Tensor:
        modulation = self.adaLN_modulation(condition).unsqueeze(1)  # (B, 1, 6 D)
        shift_a, scale_a, gate_a, shift_m, scale_m, gate_m = modulation.chunk(6, dim=-1)
        x = x + gate_a * self.attend(self.norm1(x) * (1 + scale_a) + shift_a, rope)
        return x + gate_m * self.mlp(self.norm2(x) * (1 + scale_m) + shift_m)

    def attend(self, x: Tensor, rope: tuple[Tensor, Tensor] | None) -> Tensor:
        if rope is not None:
            return self.attn(x, *rope)
        return self.multihead_attn(x, x, x, need_weights=False)[0]


class RopeAttention(nn.Module):
    """Bidirectional self-attention with rotary position embedding of queries and keys."""

    def __init__(self, hidden: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads, self.dropout = heads, dropout
        self.qkv_proj = nn.Linear(hidden, 3 * hidden)
        self.out_proj = nn.Linear(hidden, hidden)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        batch, steps, hidden = x.shape
        qkv = self.qkv_proj(x).reshape(batch, steps, 3, self.heads, hidden // self.heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)  # each (B, heads, T, head dim)
        dropout = self.dropout if self.training else 0.0
        mixed = F.scaled_dot_product_attention(
            rotate(q, cos, sin), rotate(k, cos, sin), v, dropout_p=dropout
        )
        return self.out_proj(mixed.transpose(1, 2).reshape(batch, steps, hidden))


class SinusoidalTime(nn.Module):
    """Time (B,) -> [sin, cos] (B, E) at E/2 geometric frequencies from 1 to 1/10000.

    Time is a diffusion timestep, or a number from 0 to 1 for flow matching.
    """

    frequencies: Tensor  # (E / 2,)

    def __init__(self, dim: int) -> None:
        super().__init__()
        half = dim // 2
        frequencies = torch.exp(torch.arange(half) * (-math.log(10000) / (half - 1)))
        self.register_buffer("frequencies", frequencies, persistent=False)

    def forward(self, time: Tensor) -> Tensor:
        angles = time[:, None] * self.frequencies
        return torch.cat([angles.sin(), angles.cos()], dim=-1)  # (B, E)


def rope_tables(steps: int, head_dim: int, base: float) -> tuple[Tensor, Tensor]:
    """cos and sin (steps, head_dim) in the rotate-half layout (arXiv 2104.09864).

    Both halves of a row hold the same angles.
    """
    inverse = 1.0 / base ** (torch.arange(0, head_dim, 2).float() / head_dim)
    angles = torch.outer(torch.arange(steps).float(), inverse).repeat(1, 2)
    return angles.cos(), angles.sin()


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotates x (..., T, head dim) by position; the tables are (T, head dim)."""
    first, second = x.chunk(2, dim=-1)
    return x * cos.to(x.dtype) + torch.cat([-second, first], dim=-1) * sin.to(x.dtype)
