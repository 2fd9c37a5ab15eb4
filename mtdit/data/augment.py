"""Random numbers and random shifts for image augmentation.

Each draw is made for the whole global batch, from a generator that is seeded by the seed and the
number of the step, so it does not matter which process or thread makes which part of the batch.
"""

from __future__ import annotations

import zlib

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Frames = NDArray[np.uint8]


def generator(seed: int, step: int, what: str) -> torch.Generator:
    """A CPU generator for one kind of draw in one step, e.g. "noise", independent of all others."""
    state = np.random.SeedSequence((seed, step, zlib.crc32(what.encode()))).generate_state(
        1, np.uint64
    )
    return torch.Generator().manual_seed(int(state[0] >> 1))


def random_offsets(count: int, most: tuple[int, int], draw: torch.Generator) -> Tensor:
    """(count, 2) int64: down from 0 to most[0], right from 0 to most[1], both inclusive."""
    return torch.stack([torch.randint(0, m + 1, (count,), generator=draw) for m in most], dim=1)


def shift(frames: Frames, offsets: Tensor) -> None:
    """Shifts each sample of frames (B, S, H, W, 3) in place by its (down, right) px of `offsets`.

    Edge pixels are repeated. Source: arXiv 2004.13649, which pads and crops.
    """
    for sample, (down, right) in zip(frames, offsets.tolist(), strict=True):
        if down or right:
            _shift(sample, sample.copy(), down, right)


def _shift(out: Frames, frames: Frames, down: int, right: int) -> None:
    """out[y, x] = frames[y - down, x - right], clamped to the frame; (S, H, W, 3)."""
    height, width = frames.shape[1:3]
    top, bottom = max(down, 0), height + min(down, 0)
    left, rest = max(right, 0), width + min(right, 0)
    out[:, top:bottom, left:rest] = frames[
        :, top - down : bottom - down, left - right : rest - right
    ]
    if right > 0:
        out[:, top:bottom, :left] = out[:, top:bottom, left : left + 1]
    if right < 0:
        out[:, top:bottom, rest:] = out[:, top:bottom, rest - 1 : rest]
    if down > 0:
        out[:, :top] = out[:, top : top + 1]
    if down < 0:
        out[:, bottom:] = out[:, bottom - 1 : bottom]
