"""Resize, crop and normalisation of camera frames as constant matrices, and the vision graph."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from mtdit.policies.multi_task_dit.config import PolicyConfig
from mtdit_export.fold.clip import FoldedTower
from mtdit_export.fold.layers import fixed

# (offset, scale), (3,) each: a pixel x in 0..1 becomes (x - offset) / scale
Scaling = tuple[NDArray[np.float32], NDArray[np.float32]]


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
