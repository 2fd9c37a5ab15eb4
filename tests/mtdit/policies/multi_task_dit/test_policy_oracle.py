"""Our policy against LeRobot's installed one: same weights, same noise.

The grid covers every pair of values of what decides the network (positions, encoders, cameras,
observation steps), each with everything that is computed with it (objective, sampler, prediction).
LeRobot 0.6.1 builds all of it, separate encoders too. The full product is among the slow tests.
"""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest
import torch
from covering import assert_covered, covering
from lerobot.policies.multi_task_dit.modeling_multi_task_dit import MultiTaskDiTPolicy
from lerobot_oracle import (
    DDIM,
    SIZES,
    assert_close,
    batches,
    lerobot_policy,
    our_policy,
    set_objective,
)

from mtdit.policies.multi_task_dit.config import BETA_SCHEDULES, DDPM_SCHEDULES
from mtdit.policies.multi_task_dit.policy import Batch, MultiTaskDiT

POSITIONS = {
    "rope": (True, False),
    "absolute": (False, True),
    "both": (True, True),
    "neither": (False, False),
}
DDPM = {"objective": "diffusion", "noise_scheduler_type": "DDPM", "num_inference_steps": 6}
FLOW = {"objective": "flow_matching", "num_integration_steps": 6}
OBJECTIVES: list[dict[str, Any]] = [
    *(
        {**sampler, "prediction_type": kind}
        for sampler in (DDPM, DDIM)
        for kind in ("epsilon", "sample")
    ),
    {**FLOW, "integration_method": "euler", "timestep_sampling_strategy": "beta"},
    {**FLOW, "integration_method": "rk4", "timestep_sampling_strategy": "uniform"},
]
HUNDRED = {"num_train_timesteps": 100, "num_inference_steps": 100, "num_integration_steps": 100}
AXES: dict[str, tuple[Any, ...]] = {
    "positions": tuple(POSITIONS),
    "separate": (False, True),
    "cameras": (0, 1, 2, 3),
    "n_obs_steps": (1, 2, 3),
}
CASES = covering(AXES, seed=0)
PRODUCT = [dict(zip(AXES, values, strict=True)) for values in itertools.product(*AXES.values())]


def label(case: dict[str, Any]) -> str:
    towers = "separate" if case["separate"] else "shared"
    return f"{case['positions']}-{towers}-{case['cameras']}-{case['n_obs_steps']}"


def test_every_pair_of_values_is_covered() -> None:
    assert_covered(AXES, CASES)


@pytest.mark.parametrize("case", CASES, ids=label)
def test_equal_to_lerobot(case: dict[str, Any], clip: Path) -> None:
    compare_networks(**case, clip=clip)


@pytest.mark.slow(minutes=4)  # all of them together
@pytest.mark.parametrize("case", [case for case in PRODUCT if case not in CASES], ids=label)
def test_equal_to_lerobot_in_the_rest_of_the_product(case: dict[str, Any], clip: Path) -> None:
    compare_networks(**case, clip=clip)


def compare_networks(
    positions: str, separate: bool, cameras: int, n_obs_steps: int, clip: Path
) -> None:
    """One network, every objective."""
    use_rope, absolute = POSITIONS[positions]
    options = {"use_separate_rgb_encoder_per_camera": separate, "n_obs_steps": n_obs_steps, **SIZES}
    theirs = lerobot_policy(
        clip, cameras, use_rope=use_rope, use_positional_encoding=absolute, **options
    )
    ours = our_policy(theirs)
    data = batches(ours, clip)
    for objective in OBJECTIVES:
        compare(theirs, ours, data, objective)


DETAILS: list[dict[str, Any]] = [
    *({**DDPM, "beta_schedule": name} for name in BETA_SCHEDULES),
    *({**DDIM, "beta_schedule": name} for name in BETA_SCHEDULES if name not in DDPM_SCHEDULES),
    {
        **DDPM,
        "beta_schedule": "linear",
        "beta_start": 0.001,
        "beta_end": 0.2,
        "prediction_type": "sample",
    },
    *(
        {**s, "prediction_type": k, "clip_sample": False}
        for s in (DDPM, DDIM)
        for k in ("epsilon", "sample")
    ),
    *(
        {**s, "prediction_type": k, "clip_sample_range": 0.7}
        for s in (DDPM, DDIM)
        for k in ("epsilon", "sample")
    ),
    {**DDIM, "num_inference_steps": 7},
    {**DDPM, "num_inference_steps": None},
    {**DDIM, "num_train_timesteps": 1, "num_inference_steps": 1},
    *({**o, "do_mask_loss_for_padding": True} for o in (DDPM, FLOW)),
    *(
        {
            **FLOW,
            "timestep_sampling_strategy": strategy,
            "sigma_min": sigma,
            "integration_method": method,
        }
        for strategy in ("uniform", "beta")
        for sigma in (0.0, 0.05)
        for method in ("euler", "rk4")
    ),
    {
        **FLOW,
        "timestep_sampling_s": 0.5,
        "timestep_sampling_alpha": 3.0,
        "timestep_sampling_beta": 2.0,
    },
]


@pytest.mark.parametrize("options", DETAILS, ids=lambda o: "-".join(str(v) for v in o.values()))
def test_details_of_the_objectives(options: dict[str, Any], clip: Path) -> None:
    theirs = lerobot_policy(clip, 1, **SIZES)
    ours = our_policy(theirs)
    for seed in (0, 1):
        compare(theirs, ours, batches(ours, clip, seed=seed), options, seed)


@pytest.mark.parametrize("options", OBJECTIVES, ids=lambda o: "-".join(str(v) for v in o.values()))
def test_a_hundred_steps(options: dict[str, Any], clip: Path) -> None:
    theirs = lerobot_policy(clip, 2, **SIZES)
    ours = our_policy(theirs)
    compare(theirs, ours, batches(ours, clip), {**options, **HUNDRED}, chunk_tolerance=1e-4)


def compare(
    theirs: MultiTaskDiTPolicy,
    ours: MultiTaskDiT,
    data: tuple[dict[str, torch.Tensor], Batch],
    options: dict[str, Any],
    seed: int = 0,
    chunk_tolerance: float = 1e-5,
) -> None:
    """Conditioning, loss, every gradient and a sampled chunk."""
    set_objective(theirs, ours, **options)
    their_batch, batch = data
    label = f"seed {seed}, {options}"
    conditioning = theirs.observation_encoder.encode(theirs._prepare_batch(their_batch))
    assert_close(f"conditioning, {label}", ours.conditioning(batch), conditioning)

    theirs.zero_grad(set_to_none=True)
    ours.zero_grad(set_to_none=True)
    torch.manual_seed(seed)
    their_loss, _ = theirs.forward(their_batch)
    torch.manual_seed(seed)
    our_loss = ours.loss(batch)
    assert_close(f"loss, {label}", our_loss, their_loss)
    their_loss.backward()
    our_loss.backward()
    for (name, mine), other in zip(ours.named_parameters(), theirs.parameters(), strict=True):
        assert_close(f"gradient of {name}, {label}", gradient(mine), gradient(other))

    torch.manual_seed(seed)
    with torch.no_grad():
        their_chunk = theirs.objective.conditional_sample(theirs.noise_predictor, 3, conditioning)
    torch.manual_seed(seed)
    with torch.no_grad():
        chunk = ours.sample_from(ours.conditioning(batch), torch.randn(3, 12, 6))
    assert_close(f"chunk, {label}", chunk, their_chunk, chunk_tolerance)


def gradient(parameter: torch.Tensor) -> torch.Tensor:
    """Zero where none arrives: LeRobot runs some of what does not matter, we leave it out."""
    return torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
