"""Camera frames as the policy sees them: uint8 to normalised float."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


def normalized_images(
    frames: Tensor,
    offset: NDArray[np.float32],
    scale: NDArray[np.float32],
    brightness: Tensor | None = None,
) -> Tensor:
    """uint8 (..., H, W, 3) -> float (..., 3, H, W), (pixel / 255 - offset) / scale.

    The memory layout is channels last. brightness (B,) multiplies each sample's pixels first.
    """
    width = frames.shape[-2]
    pixels = frames.to(torch.float32, copy=True, memory_format=torch.contiguous_format).div_(255)
    if brightness is not None:
        pixels.mul_(brightness.view(-1, *(1,) * (frames.dim() - 1)))
    rows = pixels.flatten(-2)  # (..., H, W * 3): whole rows are faster than three values at a time
    offset_, scale_ = (torch.from_numpy(v).to(frames.device).repeat(width) for v in (offset, scale))
    rows.sub_(offset_).div_(scale_)
    return pixels.movedim(-1, -3)
