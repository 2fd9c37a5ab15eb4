"""Our policy against LeRobot's installed one: same weights, same noise."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from lerobot_oracle import batches, lerobot_policy, our_policy

DDIM = {"noise_scheduler_type": "DDIM", "num_inference_steps": 10}
FLOW = {"objective": "flow_matching", "num_integration_steps": 6}
GRID: list[tuple[int, dict[str, Any]]] = [
    (2, {**DDIM, "n_obs_steps": 2}),
    (1, {**DDIM, "n_obs_steps": 1, "prediction_type": "sample"}),
    (2, {"noise_scheduler_type": "DDPM", "n_obs_steps": 1, "use_positional_encoding": True}),
    (1, {"noise_scheduler_type": "DDPM", "num_inference_steps": 10, "n_obs_steps": 3, "prediction_type": "sample"}),
    (2, {**DDIM, "use_rope": False, "use_positional_encoding": True}),
    (3, {**DDIM, "use_rope": False, "clip_sample": False}),
    (0, {**DDIM, "n_obs_steps": 2, "clip_sample_range": 0.7}),
    (2, {**DDIM, "use_separate_rgb_encoder_per_camera": True}),
    (1, {**DDIM, "beta_schedule": "linear", "do_mask_loss_for_padding": True}),
    (2, {**FLOW, "timestep_sampling_strategy": "uniform"}),
    (1, {**FLOW, "integration_method": "rk4", "sigma_min": 0.01, "n_obs_steps": 1, "do_mask_loss_for_padding": True}),
]


@pytest.mark.parametrize(("cameras", "options"), GRID, ids=lambda v: str(v).replace(" ", "")[:70])
def test_equal_to_lerobot(cameras: int, options: dict[str, Any], clip_folder: Path) -> None:
    theirs = lerobot_policy(clip_folder, cameras, **options)
    ours = our_policy(theirs)
    their_batch, batch = batches(ours, clip_folder)
    prepared = theirs._prepare_batch(their_batch)

    conditioning = theirs.observation_encoder.encode(prepared)
    assert_close("conditioning", ours.conditioning(batch), conditioning)

    torch.manual_seed(3)
    their_loss, _ = theirs.forward(their_batch)
    torch.manual_seed(3)
    our_loss = ours.loss(batch)
    assert_close("loss", our_loss, their_loss)
    their_loss.backward()
    our_loss.backward()
    for (name, mine), other in zip(ours.named_parameters(), theirs.parameters(), strict=True):
        if other.grad is not None:
            assert mine.grad is not None, f"no gradient reaches {name}"
            assert_close(f"gradient of {name}", mine.grad, other.grad)

    with torch.no_grad():
        torch.manual_seed(4)
        their_chunk = theirs.objective.conditional_sample(theirs.noise_predictor, 3, conditioning)
        torch.manual_seed(4)
        noise = torch.randn(3, 12, 6)
        assert_close("chunk", ours.sample(batch, noise), their_chunk)


def test_state_dict_has_lerobots_keys_in_its_order(clip_folder: Path) -> None:
    theirs = lerobot_policy(clip_folder, 2, use_separate_rgb_encoder_per_camera=True)
    ours = our_policy(theirs)
    shapes = {k: v.shape for k, v in theirs.state_dict().items()}
    assert {k: v.shape for k, v in ours.state_dict().items()} == shapes
    assert [n for n, _ in ours.named_parameters()] == [n for n, _ in theirs.named_parameters()]


def test_optimizer_groups_are_lerobots(clip_folder: Path) -> None:
    theirs = lerobot_policy(clip_folder, 2)
    ours = our_policy(theirs)
    sizes = [[p.shape for p in group["params"]] for group in ours.parameter_groups()]
    assert sizes == [[p.shape for p in group["params"]] for group in theirs.get_optim_params()]
    assert ours.parameter_groups()[1]["lr"] == pytest.approx(2e-6)


def test_noise_samples_average_independent_draws_of_one_encoding(clip_folder: Path) -> None:
    """K draws per observation equal K copies of the observation, so the expected loss is the same."""
    ours = our_policy(lerobot_policy(clip_folder, 1, **DDIM))
    _, batch = batches(ours, clip_folder)
    conditioning = ours.conditioning(batch)
    assert batch.actions is not None
    torch.manual_seed(5)
    loss = ours.loss(batch, noise_samples=4)
    torch.manual_seed(5)
    actions = batch.actions.repeat_interleave(4, 0)
    noise, time = ours.objective.draw(actions)
    each = [
        ours.objective.loss(
            lambda x, t, i=i: ours.noise_predictor(x, t, conditioning[i // 4][None]),
            actions[i][None], noise[i][None], time[i][None], None,
        )
        for i in range(len(actions))
    ]  # fmt: skip
    assert_close("loss", loss, torch.stack(each).mean())


def test_executed_part_starts_at_the_newest_observation(clip_folder: Path) -> None:
    ours = our_policy(lerobot_policy(clip_folder, 1, n_obs_steps=2))
    chunk = torch.arange(12.0).view(1, 12, 1)
    assert ours.executed(chunk).flatten().tolist() == [1, 2, 3, 4, 5, 6]


def assert_close(what: str, mine: torch.Tensor, theirs: torch.Tensor, tolerance: float = 1e-5) -> None:
    error = float((mine - theirs).abs().max()) / max(1.0, float(theirs.abs().max()))
    assert error <= tolerance, f"{what}: max error {error:.2e} > {tolerance}"
