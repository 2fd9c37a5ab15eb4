"""Real-time chunking: a chunk drawn so that it continues the one being executed, without
retraining.

Every prediction of the network is corrected before the sampler uses it (pseudoinverse guidance,
arXiv 2506.07339, eq. 2 to 4, after Song et al., "Pseudoinverse-guided diffusion models", ICLR
2023):

    clean = of_x * x + of_output * output        the actions that x is about to become
    error = (prefix - clean) * weights
    output + strength * J^T error                J = d clean / d x, through the network

Knows these three numbers for either objective. Refuses to know samplers: `guided` wraps a `denoise`
and is one. This is the reference in torch that the exported graph is held against. LeRobot's
`policies/rtc` differs in two ways: its time runs from 1 to 0, and as shipped its J is the identity.

B batch, T horizon, A action dim.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from mtdit.config import PolicyConfig
from mtdit.objectives import Denoise, Diffusion
from mtdit.policy import Policy

MAX_WEIGHT = (
    10.0  # LeRobot's default; never more than the sampler's steps, which is the paper's 5 for 5
)


Number = float | Tensor


@dataclass(frozen=True)
class Correction:
    """The three numbers at one time of the network, and the range that the estimate is clipped to."""

    of_x: Number
    of_output: Number
    strength: Number
    clip_range: float = math.inf

    def clean(self, x: Tensor, output: Tensor) -> Tensor:
        """What the actions (B, T, A) would be if `x` were denoised at once."""
        return self.of_x * x + self.of_output * output

    def error(self, clean: Tensor, prefix: Tensor, weights: Tensor) -> Tensor:
        """(B, T, A). The estimate is clipped as the sampler does it, or early steps would be all
        correction.
        """
        if self.clip_range < math.inf:
            clean = clean.clamp(-self.clip_range, self.clip_range)
        return (prefix - clean) * weights


def correction_at(config: PolicyConfig) -> Callable[[float], Correction]:
    """Network time -> its correction, for the policy sampled as its config says."""
    if config.objective == "flow_matching":
        most = min(MAX_WEIGHT, config.num_integration_steps)
        return lambda time: flow_correction(time, most)
    most, clip = (
        min(MAX_WEIGHT, config.inference_steps),
        config.clip_sample_range if config.clip_sample else math.inf,
    )
    signal = {step.time: step.alpha_bar for step in Diffusion(config).steps()}
    return lambda time: diffusion_correction(signal[int(time)], config.prediction_type, most, clip)


def flow_correction(time: float, most: float) -> Correction:
    """Eq. 2 and 4 of the paper; noise at time 0, actions at time 1. The weight is infinite at both
    ends: `most`.
    """
    rest = 1.0 - time
    weight = (time**2 + rest**2) / (time * rest) if 0.0 < time < 1.0 else math.inf
    return Correction(1.0, rest, min(weight, most))


def diffusion_correction(
    alpha_bar: float, prediction_type: str, most: float, clip_range: float
) -> Correction:
    """The same posterior mean for x = a * actions + s * noise, a^2 + s^2 = 1.

    For any a and s it is clean + (a^2 + s^2) / a * J^T error; a = time, s = 1 - time is the
    paper's. A network that predicts the noise is corrected by what moves `clean` that far.
    """
    a, s = math.sqrt(alpha_bar), math.sqrt(1.0 - alpha_bar)
    weight = min(1.0 / a, most)
    if prediction_type == "epsilon":
        return Correction(1.0 / a, -s / a, -weight * a / s, clip_range)
    return Correction(0.0, 1.0, weight, clip_range)


def guided(denoise: Denoise, config: PolicyConfig, prefix: Tensor, weights: Tensor) -> Denoise:
    """`denoise`, drawn towards `prefix` (B, T, A) normalised, row by row as `weights` (B, T, 1) of
    0..1 say.

    With weights 0 it is `denoise` itself. Differentiates through it, also under `torch.no_grad`.
    """
    at = correction_at(config)

    def corrected(x: Tensor, time: Tensor) -> Tensor:
        now = at(float(time[0]))
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            output = denoise(x, time)
            clean = now.clean(x, output)
        (pull,) = torch.autograd.grad(clean, x, now.error(clean.detach(), prefix, weights))
        return output.detach() + now.strength * pull

    return corrected


@torch.no_grad()
def sample_guided(
    policy: Policy, conditioning: Tensor, noise: Tensor, prefix: Tensor, weights: Tensor,
    step_noise: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """`Policy.sample_from`, guided: conditioning (B, C), noise (B, T, A) -> actions (B, T, A)."""
    denoise = guided(
        lambda x, time: policy.noise_predictor(x, time, conditioning),
        policy.config,
        prefix,
        weights,
    )
    if isinstance(policy.objective, Diffusion):
        return policy.objective.sample(denoise, noise, step_noise)
    return policy.objective.sample(denoise, noise)
