"""The schedule of the learning rate is LeRobot's; the average of weights."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from mtdit.policies.multi_task_dit.config import PolicyConfig
from mtdit.training.optim import EMA, learning_rate_factor


@pytest.mark.parametrize(
    "name",
    ["cosine", "cosine_with_restarts", "linear", "polynomial", "constant", "constant_with_warmup"],
)
def test_schedule_is_lerobots(name: str) -> None:
    from diffusers.optimization import get_scheduler

    optimizer = torch.optim.Adam([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    theirs = get_scheduler(name, optimizer, num_warmup_steps=5, num_training_steps=40)
    config = PolicyConfig(scheduler_name=name, scheduler_warmup_steps=5)
    for step in range(40):
        assert learning_rate_factor(config, step, 40) == pytest.approx(
            theirs.get_last_lr()[0], abs=2e-7
        )
        optimizer.step()
        theirs.step()


def test_schedule_follows_the_time_when_that_is_further() -> None:
    config = PolicyConfig()
    assert learning_rate_factor(config, 10, 1000, fraction=0.5) == pytest.approx(0.5)
    assert learning_rate_factor(config, 500, 1000, fraction=0.1) == pytest.approx(0.5)
    assert learning_rate_factor(config, 10, 1000, fraction=1.2) == pytest.approx(0.0)
    assert learning_rate_factor(PolicyConfig(scheduler_name="constant"), 999, 1000) == 1.0


def test_schedule_does_not_depend_on_the_time_if_all_steps_fit() -> None:
    config = PolicyConfig(scheduler_warmup_steps=100)
    for step in range(1, 1001, 9):
        without = learning_rate_factor(config, step, 1000)
        for speed in (0.99, 0.7, 0.01):  # share of the time that all steps need
            assert learning_rate_factor(config, step, 1000, speed * step / 1000) == without
    late = [learning_rate_factor(config, step, 1000, step / 400) for step in range(100, 401, 50)]
    assert late == sorted(late, reverse=True)
    assert late[-1] == pytest.approx(0.0)


def test_average_is_short_at_first(clip_folder: Path) -> None:
    from lerobot_oracle import lerobot_policy, our_policy

    policy = our_policy(lerobot_policy(clip_folder, 0))
    average = EMA(policy, max_decay=0.99)
    name = "noise_predictor.output_proj.bias"
    with torch.no_grad():
        policy.get_parameter(name).fill_(1.0)
    average.weights[name].zero_()
    average.update(step=0)
    assert average.weights[name].tolist() == [1.0] * 6, "decay 0: takes the weights as they are"
    average.weights[name].zero_()
    average.update(step=10**9)
    torch.testing.assert_close(average.weights[name], torch.full((6,), 0.01))
