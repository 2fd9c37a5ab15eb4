"""The training loop, `fit`.

Batches are made in mtdit.data.loader, the loss in mtdit.policies.multi_task_dit.policy; the optimiser is in mtdit.training.optim, the log
in mtdit.training.metrics, checkpoints in mtdit.training.checkpoints.

Step n depends only on the weights before it, the seed and n: random numbers come with the batch,
and dropout from a generator that is seeded for the step. So a resumed run has the losses of an
uninterrupted one. Without dropout the result does not depend on how many processes and
accumulation parts share the samples of a step.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from mtdit.data.loader import Loader
from mtdit.data.prefetch import Batches
from mtdit.policies.multi_task_dit.clip import VisionTower
from mtdit.policies.multi_task_dit.denoiser import Denoiser
from mtdit.policies.multi_task_dit.policy import Batch, MultiTaskDiT
from mtdit.training.checkpoints import CheckpointManager, TrainState
from mtdit.training.config import TrainConfig
from mtdit.training.distributed import ProcessGroup, Stop
from mtdit.training.metrics import TrainLog
from mtdit.training.optim import set_learning_rate
from mtdit.training.reporters import Reporter, Validation


def fit(
    config: TrainConfig,
    learner: TrainState,
    loader: Loader,
    keeper: CheckpointManager,
    team: ProcessGroup,
    stop: Stop,
    reporter: Reporter,
) -> Path:
    """Trains from the learner's step to the last step; returns the folder of the last checkpoint.

    It ends earlier when max_minutes are over, or on SIGINT or SIGTERM.
    """
    policy, accelerator = learner.policy, team.accelerator
    journal = TrainLog(config, team, loader, reporter, learner.step, learner.elapsed_s)
    if config.compile:
        compile_in_place(policy)
    model, optimizer = accelerator.prepare(policy, learner.optimizer)
    model.train()

    with Batches(
        loader, learner.step, config.grad_accumulation, team.rank, team.world, config.workers
    ) as source:
        while learner.step < config.steps:
            stopping, fraction = team.agree(stop.wanted, journal.fraction)
            if fraction >= 1.0:
                validate(learner, loader, team, journal)
            if stopping or fraction >= 1.0:
                break

            lr = set_learning_rate(optimizer, policy.config, learner.step, config.steps, fraction)
            torch.manual_seed((config.seed * 1_000_003 + learner.step) * team.world + team.rank)
            loss = backward(accelerator, model, source.next(), config.noise_samples)
            grad_norm = accelerator.clip_grad_norm_(model.parameters(), config.grad_clip_norm)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            if learner.average is not None:
                learner.average.update(learner.step)
            learner.step += 1

            last = learner.step == config.steps
            journal.add(learner.step, loss, lr, grad_norm)
            if last or learner.step % config.log_every == 0:
                journal.report(source.wait_s)
            best = (last or learner.step % config.val_every == 0) and validate(
                learner, loader, team, journal
            )
            if best or learner.step % config.save_every == 0:
                journal.check()
                with journal.aside():
                    reporter.saved(keeper.save(learner, journal.elapsed_s))
        journal.report(source.wait_s)
    checkpoint = keeper.save(learner, journal.elapsed_s)
    reporter.saved(checkpoint)
    return checkpoint


def backward(
    accelerator: Accelerator, model: nn.Module, parts: Sequence[Batch], noise_samples: int
) -> Tensor:
    """Accumulates the gradients of the parts' mean loss over all processes.

    Returns this process' mean loss, detached.
    """
    losses = []
    for i, batch in enumerate(parts, start=1):
        with nullcontext() if i == len(parts) else accelerator.no_sync(model):
            loss = model(batch, noise_samples) / len(parts)
            accelerator.backward(loss)
        losses.append(loss.detach())
    return torch.stack(losses).sum()


def validate(learner: TrainState, loader: Loader, team: ProcessGroup, journal: TrainLog) -> bool:
    """Measures the validation loss, if episodes are held out; returns whether it is the lowest.

    It uses the averaged weights if there is an average.
    """
    if journal.validated_step == learner.step:
        return False
    with journal.aside():
        loss = held_out_loss(learner, loader, team, journal.config.noise_samples)
    if loss is None:
        return False
    best = learner.is_best(loss)
    journal.validated(Validation(learner.step, loss, best))
    return best


@torch.no_grad()
def held_out_loss(
    learner: TrainState, loader: Loader, team: ProcessGroup, noise_samples: int
) -> float | None:
    """Mean loss over the held-out samples of all processes; None if there are none.

    Noise and times come with the batches, the same every time.
    """
    total = torch.zeros(2, device=loader.device)  # loss times samples, samples
    learner.policy.eval()
    with (
        learner.average.in_use() if learner.average else nullcontext(),
        team.accelerator.autocast(),
    ):
        for batch in loader.validation(team.rank, team.world):
            samples = len(batch.state)
            total += torch.stack(
                [learner.policy.loss(batch, noise_samples) * samples, total.new_tensor(samples)]
            )
    learner.policy.train()
    loss, samples = team.mean(total).tolist()
    return loss / samples if samples else None


def compile_in_place(policy: MultiTaskDiT, backend: str | Callable[..., Any] = "inductor") -> None:
    """Compiles vision towers and denoiser at their first call; state_dict names do not change."""
    for module in policy.modules():
        if isinstance(module, VisionTower | Denoiser):
            module.compile(dynamic=False, backend=backend)
