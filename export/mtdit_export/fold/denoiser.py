"""The denoiser, folded: one call of the network, the modulation of all calls as constants of time
plus one product with the observation, and the sampler around them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mtdit.policies.multi_task_dit.config import PolicyConfig
from mtdit.policies.multi_task_dit.denoiser import SinusoidalTime, rope_tables
from mtdit.policies.objectives import make_objective
from mtdit_export.fold.layers import (
    NORM_EPS,
    Dense,
    Weights,
    attend,
    dense,
    fixed,
    under,
    without_bias,
)

Rope = tuple[Tensor, Tensor]  # (T, 1, d) each: cosines, and sines with the first half negated


class DenoiserBlock(nn.Module):
    """A block of the denoiser: x (T, D) and six modulation rows (D,) -> (T, D)."""

    def __init__(self, weights: Weights, heads: int) -> None:
        super().__init__()
        # LeRobot uses an attention of its own with RoPE and torch's without it
        attention = {
            name.removeprefix("attn.").removeprefix("multihead_attn."): w
            for name, w in weights.items()
        }
        qkv = [
            attention.get(f"qkv_proj.{kind}", attention.get(f"in_proj_{kind}"))
            for kind in ("weight", "bias")
        ]
        self.qkv = Dense(*(scale_queries(w, heads) for w in qkv if w is not None))
        self.out = dense(attention, "out_proj")
        self.up = dense(weights, "mlp.0")
        self.down = dense(weights, "mlp.2")
        self.heads = heads

    def forward(self, x: Tensor, modulation: Sequence[Tensor], rope: Rope | None) -> Tensor:
        shift_a, scale_a, gate_a, shift_m, scale_m, gate_m = modulation
        x = x + gate_a * self.attention(normed(x, scale_a, shift_a), rope).float()
        hidden = F.gelu(self.up(normed(x, scale_m, shift_m)), approximate="tanh")
        return x + gate_m * self.down(hidden).float()

    def attention(self, x: Tensor, rope: Rope | None) -> Tensor:
        qk, v = self.qkv(x).split([2 * x.shape[1], x.shape[1]], dim=1)
        qk = qk.unflatten(1, (2 * self.heads, -1))  # (T, 2 heads, d): rotated together
        qk = qk if rope is None else rotate(qk, *rope)
        q, k = qk.unsqueeze(1).chunk(2, dim=2)  # (T, 1, heads, d) each
        return self.out(attend(q, k, v.unflatten(1, (1, self.heads, -1))).squeeze(1))


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary position embedding of (T, heads, d)."""
    first, second = x.chunk(2, dim=-1)
    return x * cos.to(x.dtype) + torch.cat([second, first], dim=-1) * sin.to(x.dtype)


def signed_rope(config: PolicyConfig) -> list[Tensor]:
    """The tables (cos, sin) of `rotate`, (T, 1, d) each."""
    cos, sin = rope_tables(config.horizon, config.hidden_dim // config.num_heads, config.rope_base)
    first, second = sin.chunk(2, dim=-1)
    return [cos[:, None], torch.cat([-first, second], dim=-1)[:, None]]


def scale_queries(qkv: Tensor, heads: int) -> Tensor:
    """Multiply the query rows of a packed (3 D, ...) projection by 1/sqrt(head dim)."""
    width = qkv.shape[0] // 3
    return torch.cat([qkv[:width] * (width // heads) ** -0.5, qkv[width:]])


def normed(x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    """LayerNorm of rows (T, D) with the observation's scale and shift (D,)."""
    return F.layer_norm(x, x.shape[-1:], scale, shift, eps=NORM_EPS)


class FoldedHistory(nn.Module):
    """Text and earlier observations -> their part of the modulation (1, M)."""

    def __init__(self, columns: ObservationColumns) -> None:
        super().__init__()
        earlier = columns.features[:, :-1].flatten(1), columns.state[:, :-1].flatten(1)
        self.modulation = without_bias(torch.cat([columns.text, *earlier], dim=1))

    def forward(self, text: Tensor, *earlier: Tensor) -> Tensor:
        """text (1, P); earlier, only with O > 1: features (1, O - 1, n_cam * D), if there are
        cameras, and normalised states (1, O - 1, S).
        """
        return self.modulation(
            F.silu(torch.cat([text, *(x.flatten(1) for x in earlier)], dim=1))
        ).float()


class Modulation(nn.Module):
    """The modulation of all K calls of the network (K * M,), from time, `known` (1, M) and the
    newest observation.
    """

    def __init__(self, table: Tensor, columns: ObservationColumns) -> None:
        super().__init__()
        self.of_time = fixed(table)  # (K, M)
        self.of_newest = without_bias(
            torch.cat([columns.features[:, -1], columns.state[:, -1]], dim=1)
        )

    def forward(self, known: Tensor, state: Tensor, features: Tensor | None = None) -> Tensor:
        newest = F.silu(state if features is None else torch.cat([features, state], dim=1))
        return (self.of_time + (known + self.of_newest(newest).float())).flatten()


class Network(nn.Module):
    """One call of the network: x (1, T, A) and its modulation (layers * 6 D,) -> (1, T, A)."""

    def __init__(self, weights: Weights, blocks: Sequence[Weights], config: PolicyConfig) -> None:
        super().__init__()
        self.input = dense(weights, "input_proj")
        self.output = dense(weights, "output_proj")
        self.position = (
            fixed(weights["pos_embedding"][0]) if config.use_positional_encoding else None
        )
        self.blocks = nn.ModuleList(DenoiserBlock(block, config.num_heads) for block in blocks)
        self.rope = nn.ParameterList(map(fixed, signed_rope(config))) if config.use_rope else None
        self.width = config.hidden_dim

    def forward(self, x: Tensor, modulation: Tensor) -> Tensor:
        rope = None if self.rope is None else (self.rope[0], self.rope[1])
        rows = modulation.split(self.width)
        # (T, D): with two axes a product and its bias are one operation
        x = self.input(x.squeeze(0)).float()
        x = x if self.position is None else x + self.position
        for i, block in enumerate(self.blocks):
            x = block(x, rows[6 * i : 6 * i + 6], rope)
        return self.output(x).float()[None]


class FoldedDenoiser(nn.Module):
    """History, newest observation and noise -> the actions of a chunk, with the whole sampler."""

    def __init__(self, weights: Weights, config: PolicyConfig) -> None:
        super().__init__()
        blocks = denoiser_blocks(weights, config)
        self.config, self.objective = config, make_objective(config)
        self.times = network_times(config)  # K of them
        columns = observation_columns(blocks, config)
        self.modulation = Modulation(time_modulation(weights, blocks, config, self.times), columns)
        self.network = Network(weights, blocks, config)
        self.feature_dim = columns.features.shape[2]  # n_cam * D

    def forward(
        self, known: Tensor, state: Tensor, noise: Tensor, prefix: Tensor, prefix_mask: Tensor,
        features: Tensor | None = None, step_noise: Tensor | None = None,
    ) -> Tensor:  # fmt: skip
        """known (1, M), state (1, S) normalised, noise (1, T, A), prefix (1, T, A), prefix_mask
        (1, T, 1), features (1, n_cam * D), step_noise of DDPM (1, steps - 1, T, A) -> actions
        (1, T, A) normalised.
        """
        calls = iter(self.modulation(known, state, features).chunk(len(self.times)))  # each (M,)
        steps = () if step_noise is None else step_noise.unbind(1)
        return self.objective.sample(
            lambda x, time: self.network(x, next(calls)), noise, steps, prefix, prefix_mask
        )


def with_sampler(config: PolicyConfig, sampler: str, steps: int) -> PolicyConfig:
    """The config with another sampler. A policy trained with DDPM may be sampled with DDIM, and a
    flow-matching policy with either solver.
    """
    if config.objective == "diffusion":
        return replace(config, noise_scheduler_type=sampler.upper(), num_inference_steps=steps)
    return replace(config, integration_method=sampler, num_integration_steps=steps)


def network_times(config: PolicyConfig) -> list[float]:
    """The times at which the sampler calls the network, in order."""
    times: list[float] = []

    def record(x: Tensor, time: Tensor) -> Tensor:
        times.append(float(time[0]))
        return x

    make_objective(config).sample(record, torch.zeros(1, 1, 1))
    return times


def time_modulation(
    weights: Weights, blocks: Sequence[Weights], config: PolicyConfig, times: Sequence[float]
) -> Tensor:
    """The part of the modulation that depends on time only, (K, layers * 6 D), with 1 added to the
    scales.
    """
    sinusoid = SinusoidalTime(config.timestep_embed_dim)(torch.tensor(times))
    hidden = F.gelu(F.linear(sinusoid, weights["time_mlp.1.weight"], weights["time_mlp.1.bias"]))
    embedding = F.gelu(F.linear(hidden, weights["time_mlp.3.weight"], weights["time_mlp.3.bias"]))
    columns = slice(0, config.timestep_embed_dim)
    parts = [
        F.linear(
            F.silu(embedding),
            block["adaLN_modulation.1.weight"][:, columns],
            block["adaLN_modulation.1.bias"],
        )
        for block in blocks
    ]
    shape = len(times), len(blocks), 6, config.hidden_dim
    table = torch.cat(parts, dim=1).detach().reshape(shape).clone()
    table[:, :, [1, 4]] += 1.0  # the six: shift, scale, gate of attention, then of the MLP
    return table.reshape(len(times), -1)


@dataclass(frozen=True)
class ObservationColumns:
    """The columns of all AdaLN linears that multiply the SiLU of an observation, (M, ...) each."""

    state: Tensor  # (M, O, S)
    features: Tensor  # (M, O, n_cam * D)
    text: Tensor  # (M, P)


def observation_columns(blocks: Sequence[Weights], config: PolicyConfig) -> ObservationColumns:
    weight = torch.cat([block["adaLN_modulation.1.weight"] for block in blocks]).detach()
    per_step = weight[:, config.timestep_embed_dim :].unflatten(1, (config.n_obs_steps, -1))
    # the order within LeRobot's observation step: state, features, text
    n_state, n_text = config.state_dim, config.hidden_dim
    n_features = per_step.shape[2] - n_state - n_text
    state, features, text = per_step.split([n_state, n_features, n_text], dim=2)
    return ObservationColumns(state, features, text.sum(1))


def denoiser_blocks(weights: Weights, config: PolicyConfig) -> list[Weights]:
    return [under(weights, f"transformer_blocks.{i}.") for i in range(config.num_layers)]
