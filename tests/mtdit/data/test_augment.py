"""Shifts and generators."""

from __future__ import annotations

import numpy as np
import torch

from mtdit.data.augment import generator, random_offsets, shift


def padded_and_cut(frames: np.ndarray, down: int, right: int) -> np.ndarray:
    """The paper's way: pad by repeating edges, cut out."""
    p = 4
    height, width = frames.shape[1:3]
    padded = np.pad(frames, ((0, 0), (p, p), (p, p), (0, 0)), mode="edge")
    return padded[:, p - down : p - down + height, p - right : p - right + width]


def test_shift_is_padding_and_cutting() -> None:
    rng = np.random.default_rng(0)
    frames = rng.integers(0, 256, (81, 2, 9, 7, 3), dtype=np.uint8)
    offsets = torch.cartesian_prod(torch.arange(-4, 5), torch.arange(-4, 5))
    moved = frames.copy()
    shift(moved, offsets)
    for before, after, (down, right) in zip(frames, moved, offsets.tolist(), strict=True):
        np.testing.assert_array_equal(
            after, padded_and_cut(before, down, right), err_msg=f"{down}, {right}"
        )


def test_offsets_reach_every_place_and_no_other() -> None:
    offsets = random_offsets(2000, (3, 5), generator(0, 0, "crop"))
    assert {tuple(o) for o in offsets.tolist()} == {(a, b) for a in range(4) for b in range(6)}


def test_generators_are_independent_and_leave_the_global_one_alone() -> None:
    torch.manual_seed(7)
    before = torch.get_rng_state()
    drawn = {
        (seed, step, what): torch.rand(4, generator=generator(seed, step, what)).tolist()
        for seed in (0, 1)
        for step in (0, 1)
        for what in ("crop", "noise")
    }
    assert len({tuple(d) for d in drawn.values()}) == 8
    assert torch.rand(4, generator=generator(1, 0, "crop")).tolist() == drawn[1, 0, "crop"]
    assert torch.equal(before, torch.get_rng_state())
