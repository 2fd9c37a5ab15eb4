"""CLIP's vision and text encoders ("towers"), and the sizes that describe them.

`mtdit.policies.multi_task_dit.clip_lookup` finds a CLIP's sizes and weights by Hub name or folder;
`mtdit.policies.multi_task_dit.observation_encoder` is built from the towers.

Parameter names and their order are those of transformers' CLIPVisionModel and CLIPTextModel inside
LeRobot's `observation_encoder`, so that optimiser states match by number. The vision feature is the
class token of the last layer *before* post_layernorm, unless the shape says after. The text tower
is frozen; its feature is read at the first EOS and projected.

B batch, S observation steps, N cameras, D vision width, W text width, P projected text width
(= hidden_dim).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mtdit_robots.errors import UserError

# --- the shape of a CLIP


@dataclass(frozen=True)
class VisionShape:
    """Sizes of a vision tower; names and defaults are those of transformers' CLIPVisionConfig."""

    hidden_size: int = 768
    intermediate_size: int = 3072
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    hidden_act: str = "quick_gelu"
    layer_norm_eps: float = 1e-5
    image_size: int = 224
    patch_size: int = 32
    class_token_normed: bool = False  # ours: the feature is read after post_layernorm


@dataclass(frozen=True)
class TextShape:
    """Sizes of a text tower; names and defaults are those of transformers' CLIPTextConfig."""

    hidden_size: int = 512
    intermediate_size: int = 2048
    num_hidden_layers: int = 12
    num_attention_heads: int = 8
    hidden_act: str = "quick_gelu"
    layer_norm_eps: float = 1e-5
    vocab_size: int = 49408
    max_position_embeddings: int = 77
    eos_token_id: int = 49407  # 2 in OpenAI's own configs, which then means "the highest id"


@dataclass(frozen=True)
class ClipShape:
    """The sizes of both towers, enough to build them without weights."""

    vision: VisionShape = field(default_factory=VisionShape)
    text: TextShape = field(default_factory=TextShape)

    def to_json(self) -> dict[str, Any]:
        """The content of a config.json for transformers' CLIPConfig."""
        parts = {"vision_config": asdict(self.vision), "text_config": asdict(self.text)}
        return {"model_type": "clip", "architectures": ["CLIPModel"], "projection_dim": 64, **parts}


LEGACY_EOS = 2  # eos_token_id in OpenAI's own configs

# --- the towers


QUICK = 1.702  # slope of quick_gelu


def quick_gelu(x: Tensor) -> Tensor:
    return x * torch.sigmoid(QUICK * x)


ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {"quick_gelu": quick_gelu, "gelu": F.gelu}


class Attention(nn.Module):
    def __init__(self, width: int, heads: int, causal: bool) -> None:
        super().__init__()
        self.heads, self.causal = heads, causal
        self.k_proj, self.v_proj, self.q_proj, self.out_proj = (
            nn.Linear(width, width) for _ in range(4)
        )

    def forward(self, x: Tensor, queries: Tensor) -> Tensor:
        """Tokens (B, L, W), and the tokens whose output is needed (B, Q, W) -> (B, Q, W)."""
        q, k, v = self.q_proj(queries), self.k_proj(x), self.v_proj(x)
        # each (B, heads, L, head dim)
        q, k, v = (t.unflatten(-1, (self.heads, -1)).transpose(1, 2) for t in (q, k, v))
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=self.causal)
        return self.out_proj(mixed.transpose(1, 2).flatten(2))


class Mlp(nn.Module):
    def __init__(self, width: int, inner: int, activation: str) -> None:
        super().__init__()
        if activation not in ACTIVATIONS:
            raise UserError(
                f"the CLIP activation {activation!r} is not supported; use a CLIP with "
                f"{' or '.join(ACTIVATIONS)}"
            )
        self.activation = ACTIVATIONS[activation]
        self.fc1 = nn.Linear(width, inner)
        self.fc2 = nn.Linear(inner, width)

    def forward(self, x: Tensor) -> Tensor:
        if self.activation is not quick_gelu:
            return self.fc2(self.activation(self.fc1(x)))
        # quick_gelu(h) = silu(a h) / a. Scaling the weights by `a` is cheaper than scaling the
        # activations, and leaves one kernel.
        up = F.silu(F.linear(x, QUICK * self.fc1.weight, QUICK * self.fc1.bias))
        return F.linear(up, self.fc2.weight / QUICK, self.fc2.bias)


class Layer(nn.Module):
    def __init__(self, shape: VisionShape | TextShape, causal: bool) -> None:
        super().__init__()
        width, eps = shape.hidden_size, shape.layer_norm_eps
        self.self_attn = Attention(width, shape.num_attention_heads, causal)
        self.layer_norm1 = nn.LayerNorm(width, eps=eps)
        self.mlp = Mlp(width, shape.intermediate_size, shape.hidden_act)
        self.layer_norm2 = nn.LayerNorm(width, eps=eps)

    def forward(self, x: Tensor, wanted: int | None = None) -> Tensor:
        """Tokens (B, L, W) -> the first `wanted` output tokens, all if None."""
        normed = self.layer_norm1(x)
        x = x[:, :wanted] + self.self_attn(normed, normed[:, :wanted])
        return x + self.mlp(self.layer_norm2(x))


class Stack(nn.Module):
    def __init__(self, shape: VisionShape | TextShape, causal: bool) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Layer(shape, causal) for _ in range(shape.num_hidden_layers))

    def forward(self, x: Tensor, wanted: int | None = None) -> Tensor:
        """Tokens (B, L, W) -> the first `wanted` output tokens, all if None.

        Only the last layer can skip the others; the layers before it need all tokens.
        """
        for layer in self.layers[:-1]:
            x = layer(x)
        return self.layers[-1](x, wanted)


class PatchEmbeddings(nn.Module):
    def __init__(self, shape: VisionShape) -> None:
        super().__init__()
        width, patch = shape.hidden_size, shape.patch_size
        self.class_embedding = nn.Parameter(torch.randn(width) * width**-0.5)
        self.patch_embedding = nn.Conv2d(3, width, kernel_size=patch, stride=patch, bias=False)
        self.position_embedding = nn.Embedding((shape.image_size // patch) ** 2 + 1, width)

    def forward(self, images: Tensor) -> Tensor:
        patches = self.patch_embedding(images).flatten(2).transpose(1, 2)  # (B, patches, D)
        first = self.class_embedding.expand(images.shape[0], 1, -1)
        return torch.cat([first, patches], dim=1) + self.position_embedding.weight


class VisionTower(nn.Module):
    """Normalised images (B, 3, size, size) -> class token (B, D).

    The token is read before post_layernorm, or after it if `shape.class_token_normed`.
    """

    def __init__(self, shape: VisionShape) -> None:
        super().__init__()
        self.embeddings = PatchEmbeddings(shape)
        width, eps = shape.hidden_size, shape.layer_norm_eps
        self.pre_layrnorm = nn.LayerNorm(width, eps=eps)  # transformers' spelling
        self.encoder = Stack(shape, causal=False)
        self.post_layernorm = nn.LayerNorm(width, eps=eps)  # LeRobot has it, but does not use it
        self.normed = shape.class_token_normed

    def forward(self, images: Tensor) -> Tensor:
        first = self.encoder(self.pre_layrnorm(self.embeddings(images)), wanted=1)[:, 0]
        return self.post_layernorm(first) if self.normed else first


class TokenEmbeddings(nn.Module):
    def __init__(self, shape: TextShape) -> None:
        super().__init__()
        self.token_embedding = nn.Embedding(shape.vocab_size, shape.hidden_size)
        self.position_embedding = nn.Embedding(shape.max_position_embeddings, shape.hidden_size)

    def forward(self, token_ids: Tensor) -> Tensor:
        return (
            self.token_embedding(token_ids) + self.position_embedding.weight[: token_ids.shape[1]]
        )


class TextTower(nn.Module):
    """Token ids (B, L) -> feature at the first EOS (B, W).

    Attention is causal, so the tokens after the EOS have no influence.
    """

    def __init__(self, shape: TextShape) -> None:
        super().__init__()
        self.eos_token_id = shape.eos_token_id
        self.embeddings = TokenEmbeddings(shape)
        self.encoder = Stack(shape, causal=True)
        self.final_layer_norm = nn.LayerNorm(shape.hidden_size, eps=shape.layer_norm_eps)

    def forward(self, token_ids: Tensor) -> Tensor:
        x = self.final_layer_norm(self.encoder(self.embeddings(token_ids)))  # (B, L, W)
        legacy = self.eos_token_id == LEGACY_EOS
        end = (token_ids if legacy else (token_ids == self.eos_token_id).int()).argmax(dim=-1)
        return x[torch.arange(x.shape[0], device=x.device), end]
