"""Guided sampling against LeRobot's formula, closed forms, and actions whose distribution is
known.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from lerobot.policies.rtc.configuration_rtc import RTCConfig
from lerobot.policies.rtc.modeling_rtc import RTCProcessor
from torch import Tensor

from mtdit.policies.multi_task_dit.config import PolicyConfig
from mtdit.policies.multi_task_dit.rtc import (
    Correction,
    correction_at,
    diffusion_correction,
    flow_correction,
    guided,
)
from mtdit.policies.objectives import Denoise, Diffusion, make_objective
from mtdit_runtime.policy.rtc import prefix_weights

T, A = 8, 2
STEPS = 20
SAMPLERS: dict[str, dict[str, Any]] = {
    "ddim": {"noise_scheduler_type": "DDIM", "num_inference_steps": STEPS},
    "ddim of the sample": {
        "noise_scheduler_type": "DDIM",
        "num_inference_steps": STEPS,
        "prediction_type": "sample",
    },
    "ddpm": {"noise_scheduler_type": "DDPM", "num_inference_steps": 100},
    "euler": {"objective": "flow_matching", "num_integration_steps": STEPS},
    "rk4": {
        "objective": "flow_matching",
        "num_integration_steps": STEPS,
        "integration_method": "rk4",
    },
}


def at_time(time: float, count: int = 1) -> Tensor:
    return torch.full((count,), time)


@pytest.mark.parametrize("time", [0.0, 0.1, 0.5, 0.9])
def test_a_flow_step_is_lerobots(time: float) -> None:
    """Their Jacobian is the identity, and so is that of a velocity that ignores x. Their time and
    sign are mirrored.
    """
    torch.manual_seed(0)
    velocity, x, previous = torch.randn(3, 1, 16, A)
    theirs = RTCProcessor(RTCConfig(execution_horizon=10, max_guidance_weight=10.0))
    wanted = -theirs.denoise_step(
        x, previous, 3, 1 - time, lambda x: -velocity, execution_horizon=10
    )
    config = PolicyConfig(objective="flow_matching", num_integration_steps=10)
    weights = torch.from_numpy(prefix_weights(16, 3, 10))[None, :, None]
    ours = guided(lambda x, time: velocity + 0 * x, config, previous, weights)(x, at_time(time))
    torch.testing.assert_close(ours, wanted, atol=1e-5, rtol=0)


def test_strength_over_time() -> None:
    """LeRobot's golden numbers; the paper's limit of 5 for 5 steps."""
    at = correction_at(PolicyConfig(objective="flow_matching", num_integration_steps=10))
    assert [at(t).strength for t in (0.0, 0.1, 0.5, 0.9, 1.0)] == pytest.approx(
        [10, 82 / 9, 2, 82 / 9, 10]
    )
    few = correction_at(PolicyConfig(objective="flow_matching", num_integration_steps=5))
    assert [few(t).strength for t in (0.0, 0.4)] == pytest.approx([5, 0.52 / 0.24])


def test_the_jacobian_is_the_networks() -> None:
    torch.manual_seed(0)
    mix, x, prefix = torch.randn(T, T), torch.randn(1, T, A), torch.randn(1, T, A)
    weights, rest = torch.rand(1, T, 1), 0.75
    config = PolicyConfig(objective="flow_matching", num_integration_steps=10)
    got = guided(lambda x, time: mix @ x, config, prefix, weights)(x, at_time(0.25))
    jacobian = torch.eye(T) + rest * mix
    pull = jacobian.T @ ((prefix - jacobian @ x) * weights)
    torch.testing.assert_close(
        got, mix @ x + (0.0625 + 0.5625) / 0.1875 * pull, atol=1e-4, rtol=1e-5
    )


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_weight_zero_changes_nothing(sampler: str) -> None:
    config, (noise, prefix) = PolicyConfig(**SAMPLERS[sampler]), torch.randn(2, 3, T, A)
    objective, denoise = make_objective(config), gaussian(config)
    step_noise = torch.randn(99, 3, T, A)
    free = guided(denoise, config, prefix, torch.zeros(3, T, 1))
    assert torch.equal(
        objective.sample(free, noise, step_noise), objective.sample(denoise, noise, step_noise)
    )


@pytest.mark.parametrize("time", [10, 50, 90])
def test_one_posterior_whatever_the_network_predicts(time: int) -> None:
    """Diffusion as noise, as sample, and as a flow at the same signal-to-noise ratio: the corrected
    actions agree.
    """
    alpha_bar = float(Diffusion(PolicyConfig()).alpha_bar[time])
    a, s = math.sqrt(alpha_bar), math.sqrt(1 - alpha_bar)
    torch.manual_seed(0)
    x, prefix, weights = torch.randn(1, T, A), torch.randn(1, T, A), torch.rand(1, T, 1)

    def estimate(x: Tensor) -> Tensor:
        return torch.tanh(torch.ones(T, T).tril() / T @ x)

    def corrected(x: Tensor, output_of: Callable[[Tensor], Tensor], by: Correction) -> Tensor:
        clean, pull = torch.func.vjp(lambda x: by.clean(x, output_of(x)), x)
        guided_output = output_of(x) + by.strength * pull(by.error(clean, prefix, weights))[0]
        return by.clean(x, guided_output)

    none = math.inf
    as_noise = corrected(
        x,
        lambda x: (x - a * estimate(x)) / s,
        diffusion_correction(alpha_bar, "epsilon", none, none),
    )
    as_sample = corrected(x, estimate, diffusion_correction(alpha_bar, "sample", none, none))
    flow, scale = flow_correction(a / (a + s), none), a + s
    as_flow = corrected(x / scale, lambda x: (estimate(x * scale) - x) / flow.of_output, flow)
    torch.testing.assert_close(as_noise, as_sample, atol=1e-4, rtol=0)
    torch.testing.assert_close(as_flow, as_sample, atol=1e-4, rtol=0)


# Actions that are jointly Gaussian, smooth in time: the best network is known in closed form.
SMOOTH = 0.1 * torch.exp(
    -((torch.arange(T)[:, None] - torch.arange(T)) ** 2) / 32.0
) + 1e-3 * torch.eye(T)


def gaussian(config: PolicyConfig) -> Denoise:
    def denoise(x: Tensor, time: Tensor) -> Tensor:
        now = float(time[0])
        if config.objective == "flow_matching":
            a, s = now, max(1 - now, 1e-3)
        else:
            a, s = (math.sqrt(float(part)) for part in signal(config, int(now)))
        clean = a * SMOOTH @ torch.linalg.inv(a**2 * SMOOTH + s**2 * torch.eye(T)) @ x
        if config.objective == "flow_matching":
            return (clean - x) / s
        return clean if config.prediction_type == "sample" else (x - a * clean) / s

    return denoise


def signal(config: PolicyConfig, time: int) -> tuple[Tensor, Tensor]:
    alpha_bar = Diffusion(config).alpha_bar[time]
    return alpha_bar, 1 - alpha_bar


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_a_guided_chunk_continues_the_prefix(sampler: str) -> None:
    """Three rows are given; the others must follow as the distribution demands: near the
    conditional mean.
    """
    config = PolicyConfig(**SAMPLERS[sampler])
    torch.manual_seed(0)
    count, given = 64, 3
    truth = torch.linalg.cholesky(SMOOTH) @ torch.randn(count, T, A)
    weights = torch.zeros(1, T, 1)
    weights[:, :given] = 1.0
    objective, denoise, noise = make_objective(config), gaussian(config), torch.randn(count, T, A)
    plain = objective.sample(denoise, noise)
    drawn = objective.sample(guided(denoise, config, truth * weights, weights), noise)
    follows = SMOOTH[given:, :given] @ torch.linalg.inv(SMOOTH[:given, :given]) @ truth[:, :given]

    def miss(chunk: Tensor, row: int) -> float:
        wanted = torch.cat([truth[:, :given], follows], dim=1)
        return float((chunk - wanted)[:, row].square().mean().sqrt())

    assert all(miss(drawn, row) < 0.3 * miss(plain, row) for row in range(given))
    assert miss(drawn, given) < 0.5 * miss(plain, given)
