"""Folds a trained policy: exact algebra that rearranges its weights into four small modules.

Every rearrangement is an identity on real numbers; only the order of float operations changes.

- Denoiser: the AdaLN linear splits by columns into three parts. One depends on time (a constant per
  step), one on the newest observation (once per chunk), and one on the text and the earlier
  observations; the last is a module of its own, the history. The times and coefficients of all
  sampler steps are constants.
- The conditioning repeats the text for every observation step, so the text's columns are summed.
- Vision: antialiased resize and centre crop are one small matrix per axis. The last CLIP block is
  evaluated for the class token only, because nothing else is read from it.
- Attention's 1/sqrt(d) moves into the query weights, AdaLN's "1 +" into the constant part.

Uses LeRobot's parameter names and CLIP's architecture. Files and ONNX are left to `export` and
`trace`.

Shapes: N images, S patches + 1, L text tokens, D width, T horizon, A action dim, P text feature, O
observation steps, M = layers * 6 D numbers of modulation per call of the network.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from mtdit.config import PolicyConfig
from mtdit.dit import SinusoidalTime, rope_tables
from mtdit.encoders import TextShape, VisionShape, quick_gelu
from mtdit.objectives import Denoise, Diffusion, make_objective
from mtdit.policy import Policy

Weights = Mapping[str, Tensor]  # parameter name -> value, e.g. a state_dict
TowerShape = VisionShape | TextShape
# (offset, scale), (3,) each: a pixel x in 0..1 becomes (x - offset) / scale
Scaling = tuple[NDArray[np.float32], NDArray[np.float32]]

NORM_EPS = 1e-6  # of DiT's layer norms
LATER = -1e4  # added to the score of a later token: its softmax weight becomes exactly 0


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


# -- CLIP --


ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {"quick_gelu": quick_gelu, "gelu": F.gelu}


def packed(*projections: Sequence[Tensor]) -> Dense:
    """Several (weight, bias) of the same input as one product, with their outputs concatenated."""
    weights, biases = zip(*projections, strict=True)
    return Dense(torch.cat(weights), torch.cat(biases))


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
        self.mask = fixed(torch.full((length, length), LATER).triu(1))
        self.earliness = fixed(torch.arange(length, 0, -1).float())
        self.blocks = clip_blocks(weights, shape, first_only=False)
        self.final_norm = Norm(under(weights, "final_layer_norm."), shape.layer_norm_eps)
        self.projection = Dense(projection["weight"], projection["bias"])
        # OpenAI's configs say 2, for which transformers looks for the highest id instead
        legacy = shape.eos_token_id == 2
        self.eos = shape.vocab_size - 1 if legacy else shape.eos_token_id

    def forward(self, token_ids: Tensor) -> Tensor:
        x = (self.tokens(token_ids[0]).float() + self.position)[:, None]  # (L, 1, D)
        for block in self.blocks:
            x = block(x, self.mask)
        first_eos = ((token_ids == self.eos).float() * self.earliness).argmax(-1)  # (1,), no ties
        return self.projection(self.final_norm(x)[:, 0].index_select(0, first_eos)).float()


# -- frames --


def resize_matrix(n_in: int, n_out: int) -> Tensor:
    """(n_out, n_in) float64: what torchvision's antialiased bilinear Resize does along one axis."""
    eye = torch.eye(n_in, dtype=torch.float64)[None, None]
    size = (n_out, n_in)
    return F.interpolate(eye, size=size, mode="bilinear", antialias=True, align_corners=False)[0, 0]


def crop_window(size: int, crop: int | None) -> slice:
    """The centre crop of torchvision's CenterCrop, whose start is Python's round (half to even)."""
    start = 0 if crop is None else round((size - crop) / 2)
    return slice(start, size if crop is None else start + crop)


class Axis(nn.Module):
    """Resize, then crop along the last axis: (..., size) -> (..., out). Without a resize it is only
    a slice.
    """

    def __init__(self, size: int, resized: int | None, crop: int | None) -> None:
        super().__init__()
        resized = resized or size
        self.window = crop_window(resized, crop)
        matrix = resize_matrix(size, resized)[self.window].float()  # (out, size)
        self.matrix = None if resized == size else fixed(matrix.T)

    def forward(self, x: Tensor) -> Tensor:
        return x[..., self.window] if self.matrix is None else x @ self.matrix


class Preprocess(nn.Module):
    """One camera's frame (H, W, 3) uint8 -> normalised pixels (3, h, w).

    The first operation is the cast, because TensorRT takes uint8 as a network input and for nothing
    else. Scale and shift stay operations on float32 pixels and are not folded into the patch
    weights, which may be half precision.
    """

    def __init__(self, size: tuple[int, int], config: PolicyConfig, scaling: Scaling) -> None:
        super().__init__()
        resize = config.image_resize_shape or (None, None)
        crop = config.image_crop_shape or (None, None)
        self.rows, self.columns = (
            Axis(n, r, c) for n, r, c in zip(size, resize, crop, strict=True)
        )
        offset, scale = (torch.from_numpy(part).double().view(3, 1, 1) for part in scaling)
        self.scale = fixed((1 / (255 * scale)).float())
        self.shift = fixed((-offset / scale).float())

    def forward(self, frame: Tensor) -> Tensor:
        x = self.columns(frame.float().permute(2, 0, 1))  # (3, H, w)
        x = self.rows(x.transpose(1, 2)).transpose(1, 2)  # (3, h, w)
        return x * self.scale + self.shift


class FoldedVision(nn.Module):
    """One uint8 frame (H, W, 3) per camera -> features (1, n_cam * D), cameras in order."""

    def __init__(self, preprocess: Sequence[Preprocess], towers: Sequence[FoldedTower]) -> None:
        super().__init__()
        self.preprocess, self.towers = nn.ModuleList(preprocess), nn.ModuleList(towers)

    def forward(self, *frames: Tensor) -> Tensor:
        pixels = [
            prepare(frame)[None] for prepare, frame in zip(self.preprocess, frames, strict=True)
        ]
        if len(self.towers) == 1:
            return self.towers[0](torch.cat(pixels)).reshape(1, -1)
        return torch.cat([tower(p) for tower, p in zip(self.towers, pixels, strict=True)], dim=1)


# -- denoiser --


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
        return self.sample(
            lambda x, time: self.network(x, next(calls)), noise, prefix, prefix_mask, steps
        )

    def sample(
        self,
        denoise: Denoise,
        noise: Tensor,
        prefix: Tensor | None,
        mask: Tensor | None,
        on_the_way: Sequence[Tensor],
    ) -> Tensor:
        """Run the sampler with any `denoise`. `on_the_way`: the noise that DDPM adds after each
        step but the last.
        """
        if isinstance(self.objective, Diffusion):
            return self.objective.sample(denoise, noise, on_the_way, prefix, mask)
        return self.objective.sample(denoise, noise, prefix, mask)


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


# -- a whole policy --


@dataclass(frozen=True)
class Folded:
    """The four modules of a bundle. `vision` is None for a policy without cameras."""

    vision: FoldedVision | None
    text: FoldedText
    history: FoldedHistory
    denoiser: FoldedDenoiser

    def modules(self) -> dict[str, nn.Module]:
        """Graph name -> module."""
        vision = {} if self.vision is None else {"vision": self.vision}
        return {**vision, "text": self.text, "history": self.history, "denoiser": self.denoiser}


def fold(policy: Policy, scaling: Mapping[str, Scaling]) -> Folded:
    """Fold a float32 policy. Its weights are copied, so the policy may be deleted afterwards.
    `scaling`: camera -> (offset, scale).
    """
    config, shape, weights = policy.config, policy.clip_shape, policy.state_dict()
    encoder, predictor = (
        under(weights, f"{part}.") for part in ("observation_encoder", "noise_predictor")
    )
    tower = under(encoder, "text_encoder.text_encoder.text_model.")
    projection = under(encoder, "text_encoder.projection.")
    return Folded(
        vision=fold_vision(encoder, config, scaling, shape.vision) if config.cameras else None,
        text=FoldedText(tower, projection, shape.text, config.tokenizer_max_length),
        history=FoldedHistory(observation_columns(denoiser_blocks(predictor, config), config)),
        denoiser=FoldedDenoiser(predictor, config),
    )


def fold_vision(
    encoder: Weights, config: PolicyConfig, scaling: Mapping[str, Scaling], shape: VisionShape
) -> FoldedVision:
    if config.use_separate_rgb_encoder_per_camera:
        prefixes = [f"vision_encoders.{i}.model.vision_model." for i in range(len(config.cameras))]
    else:
        prefixes = ["vision_encoder.model.vision_model."]
    towers = [FoldedTower(under(encoder, prefix), shape) for prefix in prefixes]
    prepare = [Preprocess(size[:2], config, scaling[name]) for name, size in config.cameras.items()]
    return FoldedVision(prepare, towers)
