"""The training loop, `fit`.

Batches are made in mtdit.data.loader, the loss in mtdit.policies.multi_task_dit.policy; the
optimiser is in mtdit.training.optim, the log in mtdit.training.metrics, checkpoints in
mtdit.training.checkpoints.

Step n depends only on the weights before it, the seed and n: random numbers come with the batch,
and dropout from a generator that is seeded for the step. So a resumed run has the losses of an
uninterrupted one. Without dropout the result does not depend on how many processes and
accumulation parts share the samples of a step.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from mtdit.data.loader import Loader
from mtdit.data.prefetch import Prefetcher
from mtdit.policies.multi_task_dit.clip import VisionTower
from mtdit.policies.multi_task_dit.denoiser import Denoiser
from mtdit.policies.multi_task_dit.policy import Batch, MultiTaskDiT
from mtdit.training.checkpoints import CheckpointManager, TrainState
from mtdit.training.config import TrainConfig
from mtdit.training.distributed import ProcessGroup, StopRequest
from mtdit.training.metrics import TrainLog
from mtdit.training.optim import set_learning_rate
from mtdit.training.reporters import Reporter, Validation


@dataclass(frozen=True)
class Run:
    """A prepared run: its state, new or resumed, its batches and its checkpoints."""

    state: TrainState
    loader: Loader
    checkpoints: CheckpointManager


def fit(
    config: TrainConfig, group: ProcessGroup, run: Run, stop: StopRequest, reporter: Reporter
) -> Path:
    """Trains from the run's step to the last step; returns the folder of the last checkpoint.

    It ends earlier when max_minutes are over, or on SIGINT or SIGTERM.
    """
    state, loader, checkpoints = run.state, run.loader, run.checkpoints
    policy, accelerator = state.policy, group.accelerator

    def samples_of(step: int) -> str:
        return loader.describe_rows(loader.rows_of(step, group.world, config.grad_accumulation))

    log = TrainLog(config, group, reporter, state, samples_of)
    if config.compile:
        compile_in_place(policy)
    model, optimizer = accelerator.prepare(policy, state.optimizer)
    model.train()

    with Prefetcher(
        loader, state.step, config.grad_accumulation, group.rank, group.world, config.workers
    ) as batches:
        while state.step < config.steps:
            stopping, fraction = group.all_reduce_max(stop.requested, log.fraction)
            if fraction >= 1.0:
                validate(run, group, log)
                reporter.say(
                    f"stopped after {state.step} of {config.steps} steps: the time limit of "
                    f"{config.max_minutes:g} minutes is over"
                )
            if stopping or fraction >= 1.0:
                break

            lr = set_learning_rate(optimizer, policy.config, state.step, config.steps, fraction)
            torch.manual_seed((config.seed * 1_000_003 + state.step) * group.world + group.rank)
            loss = backward(accelerator, model, batches.next(), config.noise_samples)
            grad_norm = accelerator.clip_grad_norm_(model.parameters(), config.grad_clip_norm)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            if state.ema is not None:
                state.ema.update(state.step)
            state.step += 1

            last = state.step == config.steps
            log.add(state.step, loss, lr, grad_norm)
            if last or state.step % config.log_every == 0:
                log.report(batches.wait_s)
            best = (last or state.step % config.val_every == 0) and validate(run, group, log)
            if best or state.step % config.save_every == 0:
                log.check()
                with log.not_counted():
                    reporter.on_save(checkpoints.save(state, log.elapsed_s))
        log.report(batches.wait_s)
    checkpoint = checkpoints.save(state, log.elapsed_s)
    reporter.on_save(checkpoint)
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


def validate(run: Run, group: ProcessGroup, log: TrainLog) -> bool:
    """Measures the validation loss, if episodes are held out; returns whether it is the lowest.

    It uses the averaged weights if there is an average.
    """
    state = run.state
    if log.validated_step == state.step:
        return False
    with log.not_counted():
        loss = validation_loss(run, group, log.config.noise_samples)
    if loss is None:
        return False
    best = state.is_best(loss)
    log.add_validation(Validation(state.step, loss, best))
    return best


@torch.no_grad()
def validation_loss(run: Run, group: ProcessGroup, noise_samples: int) -> float | None:
    """Mean loss over the held-out samples of all processes; None if there are none.

    Noise and times come with the batches, the same every time.
    """
    state, loader = run.state, run.loader
    total = torch.zeros(2, device=loader.device)  # loss times samples, samples
    state.policy.eval()
    with state.ema.in_use() if state.ema else nullcontext(), group.accelerator.autocast():
        for batch in loader.validation(group.rank, group.world):
            samples = len(batch.state)
            total += torch.stack(
                [state.policy.loss(batch, noise_samples) * samples, total.new_tensor(samples)]
            )
    state.policy.train()
    loss, samples = group.mean(total).tolist()
    return loss / samples if samples else None


def compile_in_place(policy: MultiTaskDiT, backend: str | Callable[..., Any] = "inductor") -> None:
    """Compiles vision towers and denoiser at their first call; state_dict names do not change."""
    for module in policy.modules():
        if isinstance(module, VisionTower | Denoiser):
            module.compile(dynamic=False, backend=backend)
