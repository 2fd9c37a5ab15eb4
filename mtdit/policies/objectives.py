"""Training objectives and samplers: diffusion (DDPM, DDIM) and flow matching.

Both objectives have one interface: `draw` returns the random numbers of a training step, `loss`
uses them, `sample` turns noise into a chunk. Samplers take their noise as an argument, so two
implementations can be compared chunk by chunk. The network is any function `denoise(x, time)`,
(B, T, A), (B,) -> (B, T, A).

A sampler can hold a prefix: rows of the chunk that are already committed (inpainting, arXiv
2011.13456 section 5). Before each call of the network these rows are set to the committed actions
at the noise level of that call, made with the chunk's own noise; at the end they are set to the
committed actions. The network relates all rows, so the free rows are drawn to fit the prefix.

Numerics equal diffusers' DDPMScheduler and DDIMScheduler with the arguments that LeRobot passes
(leading timesteps, eta 0, fixed_small variance), and LeRobot's flow matching.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from mtdit_robots.errors import UserError

Denoise = Callable[[Tensor, Tensor], Tensor]
# x, share of actions, share of noise -> x with its held rows set
Hold = Callable[[Tensor, float, float], Tensor]


class ObjectiveConfig(Protocol):
    """The fields of a policy's configuration that an objective reads; LeRobot's names."""

    @property
    def objective(self) -> str: ...
    @property
    def noise_scheduler_type(self) -> str: ...
    @property
    def num_train_timesteps(self) -> int: ...
    @property
    def inference_steps(self) -> int: ...
    @property
    def beta_schedule(self) -> str: ...
    @property
    def beta_start(self) -> float: ...
    @property
    def beta_end(self) -> float: ...
    @property
    def prediction_type(self) -> str: ...
    @property
    def clip_sample(self) -> bool: ...
    @property
    def clip_sample_range(self) -> float: ...
    @property
    def sigma_min(self) -> float: ...
    @property
    def num_integration_steps(self) -> int: ...
    @property
    def integration_method(self) -> str: ...
    @property
    def timestep_sampling_strategy(self) -> str: ...
    @property
    def timestep_sampling_s(self) -> float: ...
    @property
    def timestep_sampling_alpha(self) -> float: ...
    @property
    def timestep_sampling_beta(self) -> float: ...


def make_objective(config: ObjectiveConfig) -> Diffusion | FlowMatching:
    return Diffusion(config) if config.objective == "diffusion" else FlowMatching(config)


def mean_loss(
    prediction: Tensor, target: Tensor, is_pad: Tensor | None, valid_actions: float | None = None
) -> Tensor:
    """Mean squared error; with `is_pad` (B, T) only over actions that are not padding.

    valid_actions: the number of those actions to divide by. For a shard of a batch it is the whole
    batch's number / shards, so that the mean over the shards is the loss of the whole batch.
    """
    error = (prediction.float() - target) ** 2
    if is_pad is None:
        return error.mean()
    valid = (~is_pad).unsqueeze(-1)  # (B, T, 1)
    count = (
        valid.sum()
        if valid_actions is None
        else torch.as_tensor(valid_actions, device=error.device)
    )
    return (error * valid).sum() / (count * error.shape[-1]).clamp_min(1)


@dataclass(frozen=True)
class DiffusionStep:
    """One denoising step: the network's time, and the share of signal before and after it."""

    time: int
    alpha_bar: float
    alpha_bar_next: float  # 1.0 after the last step


class Diffusion:
    """Denoising diffusion (DDPM) training, with DDPM or DDIM sampling."""

    def __init__(self, config: ObjectiveConfig) -> None:
        self.config = config
        self.alpha_bar = torch.cumprod(1.0 - betas(config), dim=0)  # (num_train_timesteps,) float32
        if not self.alpha_bar[-1] > 0:
            raise UserError(
                f"with beta_end {config.beta_end} no signal of an action is left at the last "
                "timestep; lower beta_end or num_train_timesteps"
            )
        self._alpha_bar = self.alpha_bar.tolist()  # numbers: constants in a traced sampler
        # Noise tensors per chunk: the initial one, and one per DDPM step except the last.
        self.draws = config.inference_steps if config.noise_scheduler_type == "DDPM" else 1

    def draw(
        self, actions: Tensor, generator: torch.Generator | None = None
    ) -> tuple[Tensor, Tensor]:
        """Noise (B, T, A) and timesteps (B,), from `generator` or torch's global one."""
        noise = torch.randn(actions.shape, device=actions.device, generator=generator)
        most = self.config.num_train_timesteps
        return noise, torch.randint(
            0, most, actions.shape[:1], device=actions.device, generator=generator
        )

    def loss(
        self,
        denoise: Denoise,
        actions: Tensor,
        noise: Tensor,
        time: Tensor,
        is_pad: Tensor | None,
        valid_actions: float | None = None,
    ) -> Tensor:
        alpha_bar = self.alpha_bar.to(actions.device)[time].view(-1, 1, 1)
        noisy = alpha_bar.sqrt() * actions + (1 - alpha_bar).sqrt() * noise
        target = noise if self.config.prediction_type == "epsilon" else actions
        return mean_loss(denoise(noisy, time), target, is_pad, valid_actions)

    def sample(
        self,
        denoise: Denoise,
        noise: Tensor,
        step_noise: Tensor | Sequence[Tensor] | None = None,
        prefix: Tensor | None = None,
        mask: Tensor | None = None,
    ) -> Tensor:
        """Noise (B, T, A) -> actions (B, T, A).

        step_noise: (steps - 1, B, T, A), added by DDPM after each step; drawn here if None. Rows of
        `prefix` (B, T, A) are held where `mask` (B, T, 1) is 1; a mask of zeros changes no bit.
        """
        x, hold = noise, holding(noise, prefix, mask)
        for i, step in enumerate(self.steps()):
            x = hold(x, math.sqrt(step.alpha_bar), math.sqrt(1.0 - step.alpha_bar))
            output = denoise(x, x.new_full(x.shape[:1], step.time, dtype=torch.long))
            if self.config.noise_scheduler_type == "DDIM":
                x = self.ddim_step(step, x, output)
                continue
            x = self.ddpm_mean(step, x, output)
            if step.alpha_bar_next < 1.0:
                fresh = torch.randn_like(x) if step_noise is None else step_noise[i]
                x = x + math.sqrt(ddpm_variance(step)) * fresh
        return hold(x, 1.0, 0.0)

    def steps(self) -> list[DiffusionStep]:
        """The `inference_steps` steps: evenly spaced timesteps from high to low, ending at 0."""
        stride = self.config.num_train_timesteps // self.config.inference_steps
        times = [i * stride for i in reversed(range(self.config.inference_steps))]
        signal = [self._alpha_bar[t] for t in times] + [1.0]
        return [DiffusionStep(t, signal[i], signal[i + 1]) for i, t in enumerate(times)]

    def clean_and_noise(
        self, step: DiffusionStep, x: Tensor, output: Tensor
    ) -> tuple[Tensor, Tensor]:
        """The clean actions (clipped) and the noise that follow from the network's output."""
        signal, rest = math.sqrt(step.alpha_bar), math.sqrt(1.0 - step.alpha_bar)
        if self.config.prediction_type == "epsilon":
            clean, noise = (x - rest * output) / signal, output
        else:
            clean, noise = output, (x - signal * output) / rest
        if self.config.clip_sample:
            clean = clean.clamp(-self.config.clip_sample_range, self.config.clip_sample_range)
        return clean, noise

    def ddim_step(self, step: DiffusionStep, x: Tensor, output: Tensor) -> Tensor:
        """Deterministic step (arXiv 2010.02502, eta 0); noise is not recomputed after clipping."""
        clean, noise = self.clean_and_noise(step, x, output)
        return math.sqrt(step.alpha_bar_next) * clean + math.sqrt(1.0 - step.alpha_bar_next) * noise

    def ddpm_mean(self, step: DiffusionStep, x: Tensor, output: Tensor) -> Tensor:
        """Mean of the posterior (arXiv 2006.11239, eq. 7)."""
        clean, _ = self.clean_and_noise(step, x, output)
        alpha = step.alpha_bar / step.alpha_bar_next
        of_clean = math.sqrt(step.alpha_bar_next) * (1.0 - alpha) / (1.0 - step.alpha_bar)
        of_x = math.sqrt(alpha) * (1.0 - step.alpha_bar_next) / (1.0 - step.alpha_bar)
        return of_clean * clean + of_x * x


def ddpm_variance(step: DiffusionStep) -> float:
    alpha = step.alpha_bar / step.alpha_bar_next
    return max((1.0 - step.alpha_bar_next) / (1.0 - step.alpha_bar) * (1.0 - alpha), 1e-20)


def betas(config: ObjectiveConfig) -> Tensor:
    """Noise added per timestep, (num_train_timesteps,) float32."""
    n, start, end = config.num_train_timesteps, config.beta_start, config.beta_end
    if config.beta_schedule == "linear":
        return torch.linspace(start, end, n)
    if config.beta_schedule == "scaled_linear":
        return torch.linspace(start**0.5, end**0.5, n) ** 2
    if config.beta_schedule == "sigmoid":
        return torch.sigmoid(torch.linspace(-6, 6, n)) * (end - start) + start
    kept = _cosine if config.beta_schedule == "squaredcos_cap_v2" else _laplace
    signal = [kept(i / n) for i in range(n + 1)]
    return torch.tensor(
        [min(1 - signal[i + 1] / signal[i], 0.999) for i in range(n)], dtype=torch.float32
    )


def _cosine(t: float) -> float:
    """Share of signal at time t from 0 to 1 (arXiv 2102.09672, eq. 17)."""
    return math.cos((t + 0.008) / 1.008 * math.pi / 2) ** 2


def _laplace(t: float) -> float:
    """Most steps are near a signal-to-noise ratio of 1 (arXiv 2407.03297); as in diffusers."""
    log_snr = -0.5 * math.copysign(1.0, 0.5 - t) * math.log(1 - 2 * abs(0.5 - t) + 1e-6)
    return math.sqrt(1.0 / (1.0 + math.exp(-log_snr)))


class FlowMatching:
    """A velocity field from noise at time 0 to actions at time 1 (arXiv 2210.02747)."""

    def __init__(self, config: ObjectiveConfig) -> None:
        self.config, self.draws = config, 1
        grid = torch.linspace(0, 1, config.num_integration_steps + 1)
        # (time, dt) of each step
        self._grid = list(zip(grid[:-1].tolist(), grid.diff().tolist(), strict=True))

    def draw(
        self, actions: Tensor, generator: torch.Generator | None = None
    ) -> tuple[Tensor, Tensor]:
        """Noise (B, T, A) and times in [0, 1] (B,), from `generator` or torch's global one."""
        c, count, device = self.config, actions.shape[0], actions.device
        noise = torch.randn(actions.shape, device=device, generator=generator)
        if c.timestep_sampling_strategy == "uniform":
            return noise, torch.rand(count, device=device, generator=generator)
        alpha_beta = [c.timestep_sampling_alpha, c.timestep_sampling_beta]
        shape = torch.tensor(alpha_beta, device=device).expand(count, 2)
        # A Beta sample; torch.distributions.Beta does not accept a generator.
        late = torch._sample_dirichlet(shape, generator=generator)[:, 0]
        return noise, c.timestep_sampling_s * (1.0 - late)

    def loss(
        self,
        denoise: Denoise,
        actions: Tensor,
        noise: Tensor,
        time: Tensor,
        is_pad: Tensor | None,
        valid_actions: float | None = None,
    ) -> Tensor:
        t, keep = time.view(-1, 1, 1), 1 - self.config.sigma_min
        between = t * actions + (1 - keep * t) * noise
        return mean_loss(denoise(between, time), actions - keep * noise, is_pad, valid_actions)

    def sample(
        self,
        denoise: Denoise,
        noise: Tensor,
        step_noise: Tensor | Sequence[Tensor] | None = None,
        prefix: Tensor | None = None,
        mask: Tensor | None = None,
    ) -> Tensor:
        """Integrates the velocity from noise (B, T, A) to actions (B, T, A), without clipping.

        step_noise is ignored; it is here because all samplers have one signature. Rows of `prefix`
        (B, T, A) are held where `mask` (B, T, 1) is 1; a mask of zeros changes no bit.
        """
        hold, keep = holding(noise, prefix, mask), 1 - self.config.sigma_min

        def velocity(x: Tensor, time: float) -> Tensor:
            x = hold(x, time, 1 - keep * time)
            return denoise(x, x.new_full(x.shape[:1], time))

        step = euler_step if self.config.integration_method == "euler" else rk4_step
        x = noise
        for time, dt in self._grid:
            x = step(velocity, x, time, dt)
        return hold(x, 1.0, 0.0)


def euler_step(
    velocity: Callable[[Tensor, float], Tensor], x: Tensor, time: float, dt: float
) -> Tensor:
    return x + dt * velocity(x, time)


def rk4_step(
    velocity: Callable[[Tensor, float], Tensor], x: Tensor, time: float, dt: float
) -> Tensor:
    k1 = velocity(x, time)
    k2 = velocity(x + dt / 2 * k1, time + dt / 2)
    k3 = velocity(x + dt / 2 * k2, time + dt / 2)
    k4 = velocity(x + dt * k3, time + dt)
    return x + dt / 6 * (k1 + 2 * k2 + 2 * k3 + k4)


def holding(noise: Tensor, prefix: Tensor | None, mask: Tensor | None) -> Hold:
    """`hold(x, signal, rest)` is (1 - mask) * x + mask * (signal * prefix + rest * noise).

    Without a prefix or a mask it is x.
    """
    if prefix is None or mask is None:
        return lambda x, signal, rest: x
    free, held, held_noise = 1 - mask, mask * prefix, mask * noise
    return lambda x, signal, rest: free * x + signal * held + rest * held_noise
