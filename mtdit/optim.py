"""How weights move: Adam, its learning rate over time, and the average of the weights.

Knows the recipe of LeRobot's trainer and diffusers' rules. Refuses to know losses, batches and
files.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from mtdit.config import PolicyConfig
from mtdit.policy import Policy

# CLIP has it, LeRobot numbers it, the policy does not compute it
UNUSED = ".vision_model.post_layernorm."


def make_optimizer(policy: Policy, device: torch.device) -> torch.optim.Adam:
    """Adam over all that learns, in LeRobot's two groups and its order, so that its states fit by
    number.
    """
    c = policy.config
    optimizer = torch.optim.Adam(
        policy.parameter_groups(),
        betas=(
            float(c.optimizer_betas[0]),
            float(c.optimizer_betas[1]),
        ),  # 0 may be whole, torch wants floats
        eps=c.optimizer_eps,
        weight_decay=c.optimizer_weight_decay,
        fused=device.type in ("cuda", "cpu"),
    )
    for name, parameter in policy.named_parameters():
        if UNUSED in name:
            parameter.requires_grad_(False)  # numbered above; no process may wait for its gradient
    return optimizer


def load_adam(optimizer: torch.optim.Optimizer, states: Mapping[int, Mapping[str, Tensor]]) -> None:
    """Parameter number -> step, exp_avg, exp_avg_sq, as `adam_tensors` names them."""
    optimizer.load_state_dict(
        {**optimizer.state_dict(), "state": {i: dict(s) for i, s in states.items()}}
    )


def adam_tensors(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Adam's state as LeRobot keeps it: state/<parameter number>/<name>."""
    state = optimizer.state_dict()["state"]
    return {
        f"state/{i}/{n}": v.detach().cpu().contiguous()
        for i, values in state.items()
        for n, v in values.items()
    }


# --- the learning rate
# --------------------------------------------------------------------------------------------


def set_learning_rate(
    optimizer: torch.optim.Optimizer, config: PolicyConfig, step: int, steps: int, fraction: float
) -> float:
    """Sets both groups' rates for this step and returns the first group's."""
    factor = learning_rate_factor(config, step, steps, fraction)
    rates = (config.optimizer_lr, config.optimizer_lr * config.vision_encoder_lr_multiplier)
    for group, rate in zip(optimizer.param_groups, rates, strict=True):
        group["lr"] = rate * factor
    return rates[0] * factor


def learning_rate_factor(
    config: PolicyConfig, step: int, steps: int, fraction: float = 0.0
) -> float:
    """Linear warm-up, then half a cosine to zero at `steps`, or at fraction 1 of the time,
    whichever is sooner.

    With fraction 0 equal to diffusers' get_cosine_schedule_with_warmup, which LeRobot uses.
    """
    warmup = config.scheduler_warmup_steps
    if step < warmup and config.scheduler_name != "constant":
        return step / warmup
    if config.scheduler_name.startswith("constant"):
        return 1.0
    done = min(1.0, max((step - warmup) / max(1, steps - warmup), fraction))
    if config.scheduler_name in (
        "linear",
        "polynomial",
    ):  # LeRobot's polynomial is of degree 1 and ends at 1e-7
        return 1.0 - done
    return 0.5 * (1.0 + math.cos(math.pi * done))  # one restart, as LeRobot counts them, is none


# --- the average
# --------------------------------------------------------------------------------------------------


class Average:
    """Exponential moving average of the learned weights. Short at first, longer as training goes
    on.

    Decay after n updates: 1 - (1 + n) ** -0.75, at most `max_decay` (the rule of diffusers'
    EMAModel).
    """

    def __init__(self, policy: Policy, max_decay: float) -> None:
        self.max_decay = max_decay
        self.live = {n: p for n, p in policy.named_parameters() if p.requires_grad}
        self.weights = {n: p.detach().clone() for n, p in self.live.items()}

    def load(self, weights: Mapping[str, Tensor]) -> None:
        """Goes on from these instead; more names than the average's own may be there."""
        self.weights = {n: weights[n].to(p.device, copy=True) for n, p in self.live.items()}

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Takes in the weights after the optimiser's step number `step`, from 0."""
        decay = min(self.max_decay, 1.0 - (1.0 + step) ** -0.75)
        live = [p.detach() for p in self.live.values()]
        torch._foreach_lerp_(list(self.weights.values()), live, 1.0 - decay)

    @contextmanager
    def in_use(self) -> Iterator[None]:
        """Inside, the policy computes with the averaged weights. Nothing is copied: the two change
        places.
        """
        self._swap()
        try:
            yield
        finally:
            self._swap()

    def _swap(self) -> None:
        for name, parameter in self.live.items():
            parameter.data, self.weights[name] = self.weights[name], parameter.data


def weights_in_use(policy: nn.Module, average: Average | None) -> dict[str, Tensor]:
    """What the policy shall act with, under the names of its state_dict."""
    live = {k: v.detach() for k, v in policy.state_dict().items()}
    return {**live, **average.weights} if average is not None else live
