"""The optimiser: Adam, its learning-rate schedule, and the moving average of the weights (EMA).

They follow LeRobot's trainer and diffusers' rules.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from mtdit.policies.multi_task_dit.config import PolicyConfig
from mtdit.policies.multi_task_dit.policy import MultiTaskDiT

# LeRobot's optimiser counts this layer of CLIP, but the policy does not use it.
UNUSED = ".vision_model.post_layernorm."


def make_optimizer(policy: MultiTaskDiT, device: torch.device) -> torch.optim.Adam:
    """Adam over all trained parameters, in LeRobot's two groups and in its order.

    So Adam's states match LeRobot's by parameter number.
    """
    c = policy.config
    optimizer = torch.optim.Adam(
        policy.parameter_groups(),
        # torch needs floats; a config may say 0
        betas=(float(c.optimizer_betas[0]), float(c.optimizer_betas[1])),
        eps=c.optimizer_eps,
        weight_decay=c.optimizer_weight_decay,
        fused=device.type in ("cuda", "cpu"),
    )
    for name, parameter in policy.named_parameters():
        if UNUSED in name:
            # It has its number now; without a gradient no process waits for one.
            parameter.requires_grad_(False)
    return optimizer


def load_adam(optimizer: torch.optim.Optimizer, states: Mapping[int, Mapping[str, Tensor]]) -> None:
    """Loads Adam's states: parameter number -> step, exp_avg, exp_avg_sq."""
    optimizer.load_state_dict(
        {**optimizer.state_dict(), "state": {i: dict(s) for i, s in states.items()}}
    )


def adam_tensors(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Adam's states under LeRobot's names: state/<parameter number>/<name>."""
    state = optimizer.state_dict()["state"]
    return {
        f"state/{i}/{n}": v.detach().cpu().contiguous()
        for i, values in state.items()
        for n, v in values.items()
    }


# --- the learning rate


def set_learning_rate(
    optimizer: torch.optim.Optimizer, config: PolicyConfig, step: int, steps: int, fraction: float
) -> float:
    """Sets the learning rates of both groups for this step and returns the first group's."""
    factor = learning_rate_factor(config, step, steps, fraction)
    rates = (config.optimizer_lr, config.optimizer_lr * config.vision_encoder_lr_multiplier)
    for group, rate in zip(optimizer.param_groups, rates, strict=True):
        group["lr"] = rate * factor
    return rates[0] * factor


def learning_rate_factor(
    config: PolicyConfig, step: int, steps: int, fraction: float = 0.0
) -> float:
    """Factor of the learning rate at `step`: linear warm-up, then half a cosine down to zero.

    It reaches zero at `steps`. If the time is used up earlier, it reaches zero then: `fraction` is
    the used share of the training time, so about step / fraction steps fit in. As long as all steps
    fit, it does not depend on the time and equals diffusers' get_cosine_schedule_with_warmup, which
    LeRobot uses. The config can choose a linear or a constant schedule instead.
    """
    warmup = config.scheduler_warmup_steps
    if step < warmup and config.scheduler_name != "constant":
        return step / warmup
    if config.scheduler_name.startswith("constant"):
        return 1.0
    end = min(steps, step / fraction) if fraction else steps
    done = min(1.0, (step - warmup) / max(1, end - warmup))
    # LeRobot's polynomial has degree 1 and ends at 1e-7
    if config.scheduler_name in ("linear", "polynomial"):
        return 1.0 - done
    # Also cosine_with_restarts: LeRobot leaves num_cycles at 1, which means no restart.
    return 0.5 * (1.0 + math.cos(math.pi * done))


# --- the moving average


class EMA:
    """Exponential moving average (EMA) of the trained weights.

    The decay grows with the number n of updates: 1 - (1 + n) ** -0.75, at most `max_decay` (the
    rule of diffusers' EMAModel).
    """

    def __init__(self, policy: MultiTaskDiT, max_decay: float) -> None:
        self.max_decay = max_decay
        self.live = {n: p for n, p in policy.named_parameters() if p.requires_grad}
        self.weights = {n: p.detach().clone() for n, p in self.live.items()}

    def load(self, weights: Mapping[str, Tensor]) -> None:
        """Continues from these averaged weights; names that are not trained are ignored."""
        self.weights = {n: weights[n].to(p.device, copy=True) for n, p in self.live.items()}

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Adds the weights after the optimiser's step number `step`, counted from 0."""
        decay = min(self.max_decay, 1.0 - (1.0 + step) ** -0.75)
        live = [p.detach() for p in self.live.values()]
        torch._foreach_lerp_(list(self.weights.values()), live, 1.0 - decay)

    @contextmanager
    def in_use(self) -> Iterator[None]:
        """Inside the block the policy uses the averaged weights. They are swapped, not copied."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    def _swap(self) -> None:
        for name, parameter in self.live.items():
            parameter.data, self.weights[name] = self.weights[name], parameter.data


def weights_in_use(policy: nn.Module, ema: EMA | None) -> dict[str, Tensor]:
    """The weights to use for acting (averaged, if there is an average), named as in state_dict."""
    live = {k: v.detach() for k, v in policy.state_dict().items()}
    return {**live, **ema.weights} if ema is not None else live
