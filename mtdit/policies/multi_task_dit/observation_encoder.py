"""The observation encoder: camera frames, joint states and task text become one conditioning vector
per observation history.

Parameter names and their order are those of LeRobot's `observation_encoder`.

B batch, S observation steps, N cameras, J joints, D vision width, W text width, P projected text
width (= hidden_dim), C conditioning.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torchvision.transforms.v2.functional import InterpolationMode, center_crop, resize  # type: ignore[import-untyped]

from mtdit.policies.multi_task_dit.clip import (
    ClipShape,
    TextShape,
    TextTower,
    VisionShape,
    VisionTower,
)
from mtdit.policies.multi_task_dit.config import PolicyConfig, input_size
from mtdit_robots.errors import UserError


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
