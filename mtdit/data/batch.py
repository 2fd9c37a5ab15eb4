"""One training batch on the CPU, and the random draws that shape it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor


@dataclass(frozen=True)
class RandomDraws:
    """The random numbers of a global batch of G samples; None where nothing is random."""

    noise: Tensor  # (G * K, T, A)
    time: Tensor  # (G * K,)
    crop: Mapping[str, Tensor] | None = None  # camera -> (G, 2) top, left in px
    shift: Mapping[str, Tensor] | None = None  # camera -> (G, 2) down, right in px
    brightness: Mapping[str, Tensor] | None = None  # camera -> (G,) factor
    transforms: Mapping[str, Tensor] | None = None  # camera -> (G, U) uniform numbers


@dataclass(frozen=True)
class HostBatch:
    """A batch on the CPU with uint8 frames, as a thread makes it; pinned if the device is a GPU."""

    frames: Mapping[str, Tensor]  # camera -> (B, S, H, W, 3) uint8
    state: Tensor  # (B, S, J) normalised
    task: Tensor  # (B,)
    actions: Tensor  # (B, T, A) normalised
    is_pad: Tensor  # (B, T)
    crop: Mapping[str, Tensor] | None  # camera -> (B, 2); stays on the CPU
    brightness: Mapping[str, Tensor] | None  # camera -> (B,)
    noise: Tensor  # (B * K, T, A)
    time: Tensor  # (B * K,)
    valid_actions: float | None


def pinned(value: Any) -> Any:
    """A tensor, or a mapping of tensors, in pinned memory; other values unchanged."""
    if isinstance(value, Mapping):
        return {key: pinned(v) for key, v in value.items()}
    return value.pin_memory() if isinstance(value, Tensor) else value
