"""CLIP's vision and text encoders ("towers"), and the observation encoder built from them.

The observation encoder turns images, token ids and joint states into one conditioning vector.
`clip_shapes` and `load_clip` find a CLIP's sizes and weights by Hub name or folder.

Parameter names and their order are those of transformers' CLIPVisionModel and CLIPTextModel inside
LeRobot's `observation_encoder`, so that optimiser states match by number. The vision feature is the
class token of the last layer *before* post_layernorm, unless the shape says after. The text tower
is frozen; its feature is read at the first EOS and projected.

B batch, S observation steps, N cameras, D vision width, W text width, P projected text width
(= hidden_dim).
"""

from __future__ import annotations

import errno
import math
import os.path
import re
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.transforms.v2.functional import InterpolationMode, center_crop, resize  # type: ignore[import-untyped]

from mtdit.config import MOST_LAYERS, OPENAI_B16, PolicyConfig, input_size, read_json
from mtdit.hub import Hub
from mtdit_robots.errors import UserError
from mtdit_runtime.bundle import MOST, from_json

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


TOKENIZER = "tokenizer.json"
LEGACY_EOS = 2  # eos_token_id in OpenAI's own configs
VISION, TEXT = ".vision_model.", ".text_model."  # part of the names of a tower's weights
_VISION_HEADS = {1280: 16, 1408: 16, 1664: 16}  # OpenCLIP's H, g and G
# OpenAI's CLIPs, or a local copy with the same folder name
_OF_OPENAI = re.compile(r"(openai/|[./~].*/)?clip-vit-(base|large)-patch\d\d(-336)?")
_OPENAI_TEXT = TextShape(eos_token_id=LEGACY_EOS)
_OPENAI: dict[str, ClipShape] = {
    OPENAI_B16: ClipShape(VisionShape(patch_size=16), _OPENAI_TEXT),
    "openai/clip-vit-base-patch32": ClipShape(VisionShape(patch_size=32), _OPENAI_TEXT),
    "openai/clip-vit-large-patch14": ClipShape(
        VisionShape(1024, 4096, 24, 16, patch_size=14),
        TextShape(768, 3072, 12, 12, eos_token_id=LEGACY_EOS),
    ),
}


def clip_shapes(
    config: PolicyConfig, beside: Path | None = None, weights: Mapping[str, Tensor] | None = None
) -> ClipShape:
    """The shape of the towers that a config names.

    beside: a folder whose config.json, if it exists, is used instead of the names. weights: those
    of a trained policy. They are enough for one of OpenAI's CLIPs, so that it need not be looked
    up; for another CLIP they do not give the number of heads and the activation.
    """
    vision, text = (
        shape_of(name, beside, weights)
        for name in (config.vision_encoder_name, config.text_encoder_name)
    )
    return ClipShape(vision.vision, text.text)


def shape_of(
    name: str, beside: Path | None = None, weights: Mapping[str, Tensor] | None = None
) -> ClipShape:
    """The shape of the CLIP with this Hub name or folder; see `clip_shapes`."""
    for folder in (beside, Path(name)):
        # os.path.isfile also accepts a name that is not a valid path
        if folder is not None and os.path.isfile(folder / "config.json"):
            return _shape_from_json(folder / "config.json")
    if name in _OPENAI:
        return _OPENAI[name]
    if weights is not None and _OF_OPENAI.fullmatch(name):
        return ClipShape(vision_shape(weights), text_shape(weights))
    try:
        return _shape_from_json(Hub().file(name, "config.json"))
    except (OSError, ValueError) as error:  # huggingface_hub's errors are subclasses of these
        raise _no_clip(name, error, beside) from None


def vision_shape(weights: Mapping[str, Tensor]) -> VisionShape:
    """The shape of the vision towers, from the weights of a policy; the rest as in OpenAI's CLIPs.

    UserError when the weights are not those of a CLIP. A policy without cameras has no vision
    tower; the default shape is returned.
    """
    tower = _tower(weights, VISION)
    if not tower:
        return VisionShape()
    # (D, 3, patch, patch)
    width, _, patch, _ = _sizes(tower, "vision", "embeddings.patch_embedding.weight", 4)
    # one position for each patch and one for the class token
    places, _ = _sizes(tower, "vision", "embeddings.position_embedding.weight", 2)
    (inner,) = _sizes(tower, "vision", "encoder.layers.0.mlp.fc1.bias", 1)
    heads, side = _heads(width, _VISION_HEADS), patch * math.isqrt(places - 1)
    return VisionShape(width, inner, _layers(tower), heads, image_size=side, patch_size=patch)


def text_shape(weights: Mapping[str, Tensor]) -> TextShape:
    """The shape of the text tower, from the weights of a policy. UserError: not those of a CLIP."""
    tower = _tower(weights, TEXT)
    vocabulary, width = _sizes(tower, "text", "embeddings.token_embedding.weight", 2)
    longest, _ = _sizes(tower, "text", "embeddings.position_embedding.weight", 2)
    (inner,) = _sizes(tower, "text", "encoder.layers.0.mlp.fc1.bias", 1)
    return TextShape(
        width,
        inner,
        _layers(tower),
        _heads(width),
        vocab_size=vocabulary,
        max_position_embeddings=longest,
        eos_token_id=LEGACY_EOS,
    )


def _tower(weights: Mapping[str, Tensor], marker: str) -> dict[str, Tensor]:
    """The weights whose names contain `marker`, under the rest of the name.

    If each camera has its own tower, the last one is used: all have the same shape.
    """
    return {name.partition(marker)[2]: value for name, value in weights.items() if marker in name}


def _sizes(tower: Mapping[str, Tensor], kind: str, name: str, axes: int) -> tuple[int, ...]:
    """The shape of a weight that every CLIP has. UserError: missing, or wrong number of axes."""
    found = tuple(tower[name].shape) if name in tower else ()
    if len(found) != axes or 0 in found:
        what = f"{name} has shape {found}" if name in tower else f"{name} is missing"
        raise UserError(
            f"the weights do not contain a CLIP {kind} tower ({what}); mtdit supports only CLIP: "
            "train a policy with a CLIP"
        )
    return found


def _layers(tower: Mapping[str, Tensor]) -> int:
    return len(
        [name for name in tower if re.fullmatch(r"encoder\.layers\.\d+\.layer_norm1\.weight", name)]
    )


def _heads(width: int, known: Mapping[int, int] | None = None) -> int:
    """The number of heads: a head has width 64 in every CLIP except the `known` ones."""
    if width % 64:
        raise UserError(
            f"the weights contain a CLIP tower of width {width}, which is not a multiple of the "
            "head width 64: put that CLIP's config.json next to them as clip/config.json, or train "
            "with one of OpenAI's CLIPs"
        )
    return (known or {}).get(width, width // 64)


Shape = TypeVar("Shape", VisionShape, TextShape)


def _shape_from_json(path: Path) -> ClipShape:
    """Reads the shape from a CLIP's config.json. UserError when the file does not describe one."""
    raw = read_json(path)
    try:
        if not isinstance(raw, dict):
            raise TypeError("it is not a JSON object")
        vision = _part(VisionShape, raw.get("vision_config", {}), "vision_config")
        return ClipShape(vision, _part(TextShape, raw.get("text_config", {}), "text_config"))
    except (TypeError, ValueError, OverflowError) as error:
        reason = " ".join(str(error).split())[:160]
        raise UserError(
            f"{path} does not describe a CLIP ({reason}); copy the checkpoint again"
        ) from None


# Lowest and highest value; of all other numbers (1, MOST).
_LIMITS = {"num_hidden_layers": (1, MOST_LAYERS), "eos_token_id": (0, MOST)}


def _part(kind: type[Shape], values: Any, where: str) -> Shape:
    """The shape of one tower, with the defaults of `kind`.

    Raises TypeError, ValueError or OverflowError for invalid values.
    """
    if not isinstance(values, dict):
        raise TypeError(f"{where} is not a JSON object")
    own = {f.name: values[f.name] for f in fields(kind) if f.name in values}
    shape: Shape = from_json(kind, {**asdict(kind()), **own}, where)
    for name, value in asdict(shape).items():
        least, most = _LIMITS.get(name, (1, MOST))
        if type(value) is int and not least <= value <= most:
            raise ValueError(f"{where}.{name} is {str(value)[:20]}")
    if shape.hidden_size % shape.num_attention_heads or not 0 < shape.layer_norm_eps < 1:
        heads = f"{shape.num_attention_heads} heads in hidden_size {shape.hidden_size}"
        raise ValueError(f"{where} has {heads}, layer_norm_eps {shape.layer_norm_eps}")
    return shape


def _no_clip(name: str, error: Exception, beside: Path | None = None) -> UserError:
    fix = "give a folder with a CLIP, or a Hub name while online"
    if beside is not None:
        fix = (
            f"copy that CLIP's config.json to {beside / 'config.json'}: the weights alone do not "
            "give the number of heads and the activation"
        )
    return UserError(f"cannot load the CLIP {name!r} ({_gist(error)}); {fix}")


def _gist(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0][:160] if lines else type(error).__name__


# --- the towers


QUICK = 1.702  # slope of quick_gelu


def quick_gelu(x: Tensor) -> Tensor:
    return x * torch.sigmoid(QUICK * x)


_ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {"quick_gelu": quick_gelu, "gelu": F.gelu}


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
        if activation not in _ACTIVATIONS:
            raise UserError(
                f"the CLIP activation {activation!r} is not supported; use a CLIP with "
                f"{' or '.join(_ACTIVATIONS)}"
            )
        self.activation = _ACTIVATIONS[activation]
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


# --- the observation encoder


class VisionEncoder(nn.Module):
    """The vision tower, under LeRobot's parameter names."""

    def __init__(self, shape: VisionShape) -> None:
        super().__init__()
        self.model = nn.ModuleDict({"vision_model": VisionTower(shape)})

    def forward(self, images: Tensor) -> Tensor:
        return self.model["vision_model"](images)


class TextEncoder(nn.Module):
    """The frozen text tower and the learned projection of its feature."""

    def __init__(self, shape: TextShape, projected: int) -> None:
        super().__init__()
        self.text_encoder = nn.ModuleDict({"text_model": TextTower(shape)})
        self.text_encoder.requires_grad_(False)
        self.projection = nn.Linear(shape.hidden_size, projected)

    @torch.no_grad()
    def pooled(self, token_ids: Tensor) -> Tensor:
        return self.text_encoder["text_model"](token_ids)

    def forward(self, pooled: Tensor) -> Tensor:
        return self.projection(pooled)


class ObservationEncoder(nn.Module):
    """Images, state and pooled text -> conditioning (B, S * (J + N * D + P)), oldest step first."""

    def __init__(self, config: PolicyConfig, shape: ClipShape) -> None:
        super().__init__()
        check_image_sizes(config, shape.vision)
        self.config = config
        self.cameras = list(config.cameras)
        if config.use_separate_rgb_encoder_per_camera:
            self.vision_encoders = nn.ModuleList(VisionEncoder(shape.vision) for _ in self.cameras)
        elif self.cameras:
            self.vision_encoder = VisionEncoder(shape.vision)
        self.text_encoder = TextEncoder(shape.text, config.hidden_dim)
        features = len(self.cameras) * shape.vision.hidden_size
        self.conditioning_dim = config.n_obs_steps * (
            config.state_dim + features + config.hidden_dim
        )

    def features(
        self, images: Mapping[str, Tensor], crop: Mapping[str, Tensor] | None = None
    ) -> Tensor | None:
        """Camera -> normalised frames (B, S, 3, H, W) of any size; returns (B, S, N * D).

        None without cameras. crop: camera -> (B, 2) top and left of each sample's crop, for
        training; by default the crop is in the centre.
        """
        if not self.cameras:
            return None
        places = crop or {}
        # N times (B, S, 3, size, size)
        ready = [self.prepare(images[c], places.get(c)) for c in self.cameras]
        batch, steps = ready[0].shape[:2]
        if self.config.use_separate_rgb_encoder_per_camera:
            tokens = [e(x.flatten(0, 1)) for e, x in zip(self.vision_encoders, ready, strict=True)]
            return torch.cat(tokens, dim=-1).unflatten(0, (batch, steps))
        stacked = torch.stack(ready, dim=2)  # (B, S, N, 3, size, size)
        return self.vision_encoder(stacked.flatten(0, 2)).reshape(batch, steps, -1)

    def prepare(self, images: Tensor, crop_at: Tensor | None = None) -> Tensor:
        """Resizes, then crops: at `crop_at` (B, 2), else in the centre."""
        size, crop = self.config.image_resize_shape, self.config.image_crop_shape
        if size is not None:
            batch = images.flatten(0, 1)
            batch = resize(
                batch, list(size), interpolation=InterpolationMode.BILINEAR, antialias=True
            )
            images = batch.unflatten(0, images.shape[:2])
        if crop is None or images.shape[-2:] == crop:
            return images
        return (
            center_crop(images, list(crop)) if crop_at is None else cropped(images, crop, crop_at)
        )

    def forward(self, state: Tensor, features: Tensor | None, pooled_text: Tensor) -> Tensor:
        """Normalised state (B, S, J), features (B, S, N * D), pooled text (B, W) -> (B, C)."""
        projected = self.text_encoder(pooled_text)  # (B, P)
        text = projected.unsqueeze(1).expand(-1, state.shape[1], -1)  # (B, S, P)
        parts = [state, text] if features is None else [state, features, text]
        return torch.cat(parts, dim=-1).flatten(1)


def cropped(images: Tensor, size: tuple[int, int], at: Tensor) -> Tensor:
    """Images (B, S, 3, H, W) cropped to `size`; `at` (B, 2) is each sample's (top, left)."""
    height, width = size
    windows = zip(images, at.tolist(), strict=True)
    return torch.stack([x[..., t : t + height, s : s + width] for x, (t, s) in windows])


def check_image_sizes(config: PolicyConfig, shape: VisionShape) -> None:
    """UserError when a camera's images do not have CLIP's native size after resize and crop.

    CLIP's table of positions has one row per patch, so it accepts no other size.
    """
    for camera in config.cameras:
        size = input_size(config, camera)
        if size != (shape.image_size, shape.image_size):
            raise UserError(
                f"camera {camera!r} has {size[0]}x{size[1]} pixels after resize and crop, but the "
                f"vision tower needs {shape.image_size}x{shape.image_size}; set image_resize_shape "
                "and image_crop_shape to that size"
            )


# --- weights


def load_clip(encoder: ObservationEncoder) -> None:
    """Loads the weights of the CLIPs that the config names. UserError when one cannot be loaded."""
    towers = [module for module in encoder.modules() if isinstance(module, VisionEncoder)]
    if towers:
        weights = _pretrained("CLIPVisionModel", encoder.config.vision_encoder_name)
        for tower in towers:
            tower.model.load_state_dict(weights)
    weights = _pretrained("CLIPTextModel", encoder.config.text_encoder_name)
    encoder.text_encoder.text_encoder.load_state_dict(weights)


def _pretrained(kind: str, name: str) -> dict[str, Tensor]:
    import transformers

    before = transformers.logging.get_verbosity()
    # No warning about the weights of the other tower, which a whole CLIP contains too.
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    try:
        model = getattr(transformers, kind).from_pretrained(name, dtype=torch.float32)
    except (OSError, ValueError, RuntimeError) as error:
        raise _no_clip(name, error) from None
    finally:
        transformers.logging.set_verbosity(before)
    return {k: v for k, v in model.state_dict().items() if not k.endswith("position_ids")}


def load_tokenizer(name: str | Path) -> Any:
    """CLIP's tokenizer, by Hub name or folder. UserError when it cannot be loaded."""
    from transformers import CLIPTokenizer

    try:
        return CLIPTokenizer.from_pretrained(str(name))
    except Exception as error:  # a damaged file can raise anything
        if os.path.isfile(Path(name) / TOKENIZER):
            reason = f"{type(error).__name__}: {_gist(error)}"
            raise UserError(
                f"{name} does not contain a valid CLIP tokenizer ({reason}); "
                "copy its tokenizer files again"
            ) from None
        raise _no_clip(str(name), error) from None


def save_tokenizer(tokenizer: Any, folder: Path) -> None:
    """Writes the tokenizer's files. OSError instead of the bare Exception of `tokenizers`."""
    try:
        tokenizer.save_pretrained(str(folder))
    except Exception as error:
        raise OSError(
            errno.ENOSPC if "os error 28" in str(error) else errno.EIO, str(error), str(folder)
        ) from error


def tokenize(tokenizer: Any, texts: list[str], config: PolicyConfig) -> Tensor:
    """Texts -> ids (len(texts), tokenizer_max_length) int64, padded on the right like LeRobot's.

    UserError for a text that is too long if `tokenizer_truncation` is false.
    """
    for text in texts if not config.tokenizer_truncation else ():
        count = len(tokenizer(text)["input_ids"])
        if count > config.tokenizer_max_length:
            raise UserError(
                f"{text[:40]!r} has {count} tokens, but tokenizer_max_length is "
                f"{config.tokenizer_max_length}; shorten the instruction or set "
                "tokenizer_truncation to true"
            )
    tokens = tokenizer(
        texts,
        padding=config.tokenizer_padding,
        truncation=config.tokenizer_truncation,
        max_length=config.tokenizer_max_length,
        return_tensors="pt",
    )
    return tokens["input_ids"]
