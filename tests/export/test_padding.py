"""Wider hidden layers: where, and that nothing else changes."""

from __future__ import annotations

from typing import Any

import torch

from mtdit_export.fold.fold import fold
from mtdit_export.padding import PADDING, pad_mlps


@torch.no_grad()
def test_rows_of_whole_pages_are_widened_and_the_actions_stay(workshop: Any) -> None:
    config = workshop.config(hidden_dim=256)  # 1024 hidden numbers, 4096 bytes
    denoiser = fold(workshop.policy(config), workshop.scaling(config)).denoiser
    torch.manual_seed(1)
    x, modulation = (
        torch.randn(1, config.horizon, 6),
        torch.randn(6 * config.num_layers * config.hidden_dim),
    )
    before = denoiser.network(x, modulation)
    pad_mlps(denoiser)
    block = denoiser.network.blocks[0]
    assert block.up.weight.shape == (256, 1024 + PADDING)
    assert block.down.weight.shape == (1024 + PADDING, 256)
    torch.testing.assert_close(denoiser.network(x, modulation), before, atol=1e-5, rtol=0)


def test_other_widths_stay(workshop: Any) -> None:
    config = workshop.config()
    folded = fold(workshop.policy(config), workshop.scaling(config))
    before = {
        name: [tuple(p.shape) for p in module.parameters()]
        for name, module in folded.modules().items()
    }
    for module in folded.modules().values():
        pad_mlps(module)
    assert before == {
        name: [tuple(p.shape) for p in m.parameters()] for name, m in folded.modules().items()
    }
