"""Real-time chunking (RTC): guides a new chunk to continue the one that is being executed.

It needs no retraining. Each prediction of the network is corrected before the sampler uses it
(pseudoinverse guidance, arXiv 2506.07339, eq. 2 to 4, after Song et al., "Pseudoinverse-guided
diffusion models", ICLR 2023):

    clean = of_x * x + of_output * output        the actions that x is about to become
    error = (prefix - clean) * weights
    output + strength * J^T error                J = d clean / d x, through the network

This module computes of_x, of_output and strength for both objectives. `guided` wraps a `denoise`
function, so the samplers of `mtdit.policies.objectives` are used unchanged. It is the reference in
torch with which the exported graph is compared. LeRobot's `policies/rtc` differs in two ways: its
time runs from 1 to 0, and in the released version its J is the identity.

B batch, T horizon, A action dim.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from mtdit.policies.multi_task_dit.config import PolicyConfig
from mtdit.policies.multi_task_dit.policy import MultiTaskDiT
from mtdit.policies.objectives import Denoise, Diffusion

# LeRobot's default. It is limited to the number of sampling steps (the paper: 5 for 5 steps).
MAX_WEIGHT = 10.0

Number = float | Tensor


@dataclass(frozen=True)
class Correction:
    """The three numbers at one network time, and the range to which the estimate is clipped."""

    of_x: Number
    of_output: Number
    strength: Number
    clip_range: float = math.inf

    def clean(self, x: Tensor, output: Tensor) -> Tensor:
        """The actions (B, T, A) that result if `x` is denoised in one step."""
        return self.of_x * x + self.of_output * output

    def error(self, clean: Tensor, prefix: Tensor, weights: Tensor) -> Tensor:
        """The weighted difference (B, T, A) of `prefix` and the estimate.

        The estimate is clipped like in the sampler; otherwise the correction would dominate the
        early steps.
        """
        if self.clip_range < math.inf:
            clean = clean.clamp(-self.clip_range, self.clip_range)
        return (prefix - clean) * weights


def correction_at(config: PolicyConfig) -> Callable[[float], Correction]:
    """Network time -> correction, for the sampler of the config."""
    if config.objective == "flow_matching":
        most = min(MAX_WEIGHT, config.num_integration_steps)
        return lambda time: flow_correction(time, most)
    most = min(MAX_WEIGHT, config.inference_steps)
    clip = config.clip_sample_range if config.clip_sample else math.inf
    signal = {step.time: step.alpha_bar for step in Diffusion(config).steps()}
    return lambda time: diffusion_correction(signal[int(time)], config.prediction_type, most, clip)


def flow_correction(time: float, most: float) -> Correction:
    """Eq. 2 and 4 of the paper; noise at time 0, actions at time 1.

    The weight is limited to `most`: it would be infinite at both ends.
    """
    rest = 1.0 - time
    weight = (time**2 + rest**2) / (time * rest) if 0.0 < time < 1.0 else math.inf
    return Correction(1.0, rest, min(weight, most))


def diffusion_correction(
    alpha_bar: float, prediction_type: str, most: float, clip_range: float
) -> Correction:
    """The same posterior mean for x = a * actions + s * noise, where a^2 + s^2 = 1.

    For any a and s it is clean + (a^2 + s^2) / a * J^T error; the paper has a = time, s = 1 - time.
    If the network predicts the noise, its output is corrected so that `clean` moves by that amount.
    """
    a, s = math.sqrt(alpha_bar), math.sqrt(1.0 - alpha_bar)
    weight = min(1.0 / a, most)
    if prediction_type == "epsilon":
        return Correction(1.0 / a, -s / a, -weight * a / s, clip_range)
    return Correction(0.0, 1.0, weight, clip_range)


def guided(denoise: Denoise, config: PolicyConfig, prefix: Tensor, weights: Tensor) -> Denoise:
    """`denoise`, guided towards the normalised `prefix` (B, T, A).

    weights: (B, T, 1) from 0 to 1, one per row; with all weights 0 the result is `denoise`'s. It
    differentiates through `denoise`, also under `torch.no_grad`.
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
    policy: MultiTaskDiT,
    conditioning: Tensor,
    noise: Tensor,
    prefix: Tensor,
    weights: Tensor,
    step_noise: Tensor | None = None,
) -> Tensor:
    """`MultiTaskDiT.sample_from` with guidance: conditioning (B, C), noise (B, T, A) -> actions
    (B, T, A).
    """
    denoise = guided(
        lambda x, time: policy.noise_predictor(x, time, conditioning),
        policy.config,
        prefix,
        weights,
    )
    return policy.objective.sample(denoise, noise, step_noise)
