"""The cost of a graph, against shapes multiplied by hand."""

from __future__ import annotations

from typing import Any

import torch

from mtdit_export.export import example_inputs
from mtdit_export.flops import Cost, cost
from mtdit_export.fold.denoiser import with_sampler
from mtdit_export.fold.fold import Folded, fold
from mtdit_export.fold.layers import Dense

BYTES = 4


def folded(workshop: Any, steps: int) -> tuple[Folded, Any]:
    config = with_sampler(workshop.config(), "ddim", steps)
    return fold(workshop.policy(config), workshop.scaling(config)), config


def test_a_product_is_a_multiplication_and_an_addition() -> None:
    dense = Dense(torch.zeros(5, 7), torch.zeros(5))
    assert cost(dense, {"x": torch.zeros(3, 7)}) == Cost(2 * 3 * 7 * 5, BYTES * (7 * 5 + 5))


def test_the_network_counts_once_per_step_and_the_observation_once_per_chunk(workshop: Any) -> None:
    per_steps = {}
    for steps in (1, 3, 5):
        parts, config = folded(workshop, steps)
        per_steps[steps] = cost(parts.denoiser, example_inputs("denoiser", parts, config))
    one, three, five = (per_steps[steps].flops for steps in (1, 3, 5))
    assert five - three == three - one > 0

    rows, width, layers, actions = (
        config.horizon,
        config.hidden_dim,
        config.num_layers,
        config.action_dim,
    )
    block = (
        rows * 12 * width**2 + 2 * rows * rows * width
    )  # qkv, out, up and down; scores and their sum
    network = 2 * (layers * block + 2 * rows * actions * width)
    assert (five - one) // 4 == network
    observation = config.state_dim + parts.denoiser.feature_dim
    assert one - network == 2 * observation * 6 * width * layers
    before = cost(parts.history, example_inputs("history", parts, config))
    assert before.flops == 2 * (width + (config.n_obs_steps - 1) * observation) * 6 * width * layers


def test_guidance_reads_the_network_twice(workshop: Any) -> None:
    parts, config = folded(workshop, 4)
    plain = cost(parts.denoiser, example_inputs("denoiser", parts, config))
    guided = cost(parts.denoiser, example_inputs("guided", parts, config))
    network = sum(weight.numel() for weight in parts.denoiser.network.parameters())
    assert guided.weight_bytes - plain.weight_bytes == 4 * BYTES * network
    assert guided.flops > plain.flops


def test_the_towers_are_counted(workshop: Any) -> None:
    parts, config = folded(workshop, 1)
    assert parts.vision is not None
    one_camera = workshop.config(cameras=("top",))
    alone = fold(workshop.policy(one_camera), workshop.scaling(one_camera))
    both = cost(parts.vision, example_inputs("vision", parts, config))
    single = cost(alone.vision, example_inputs("vision", alone, one_camera))
    assert both.flops == 2 * single.flops
    assert cost(parts.text, example_inputs("text", parts, config)).weight_bytes > 0
