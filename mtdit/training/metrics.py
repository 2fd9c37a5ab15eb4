"""The training log: collects losses, checks them, and writes one JSON line per report.

Losses stay on the device until they are checked, every `log_every` steps and before every
checkpoint. The error about a loss that is not finite still names its step and the samples of that
step. `mtdit.training.reporters` prints the reports.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mtdit.training.checkpoints import TrainState
from mtdit.training.config import TrainConfig
from mtdit.training.distributed import ProcessGroup
from mtdit.training.reporters import Report, Reporter, Validation

LOG = "train_log.jsonl"


class TrainLog:
    """The log of one process. Checking losses involves all processes; only the main one writes."""

    def __init__(
        self,
        config: TrainConfig,
        group: ProcessGroup,
        reporter: Reporter,
        state: TrainState,
        samples_of: Callable[[int], str],  # number of a step from 0 -> its samples as text
    ) -> None:
        self.config, self.group, self.reporter = config, group, reporter
        self.samples_of = samples_of
        self.step, self.earlier_s, self.lr = state.step, state.elapsed_s, 0.0
        self.began = self.last_s = time.perf_counter()
        self.waited_s = 0.0
        self.validated_step = -1  # step of the last validation
        self.losses: list[Tensor] = []  # of this process, since the last report
        self.grad_norms: list[Tensor] = []  # over all processes, since the last report
        self.file = _continued(config.output_dir / LOG, state.step) if group.main else None

    @property
    def elapsed_s(self) -> float:
        return self.earlier_s + time.perf_counter() - self.began

    @property
    def fraction(self) -> float:
        """Used share of max_minutes on the main process' clock; 0 without a limit, 0 elsewhere."""
        if not self.config.max_minutes or not self.group.main:
            return 0.0
        return self.elapsed_s / (60.0 * self.config.max_minutes)

    @contextmanager
    def not_counted(self) -> Iterator[None]:
        """The time inside the block does not count in the samples per second."""
        began = time.perf_counter()
        yield
        self.last_s += time.perf_counter() - began

    def add(self, step: int, loss: Tensor, lr: float, grad_norm: Tensor) -> None:
        self.step, self.lr = step, lr
        self.losses.append(loss)
        self.grad_norms.append(grad_norm)

    def report(self, waited_s: float) -> None:
        """Checks the losses since the last report and reports their mean.

        waited_s: time spent waiting for batches since the start.
        """
        if not self.losses:
            return
        loss = float(self.check().mean())
        now, steps = time.perf_counter(), len(self.losses)
        spent_s = max(now - self.last_s, 1e-9)
        made = Report(
            step=self.step,
            steps=self.config.steps,
            loss=loss,
            lr=self.lr,
            grad_norm=float(self.grad_norms[-1]),
            samples_per_s=steps * self.config.samples_per_step(self.group.world) / spent_s,
            data_wait=min(1.0, (waited_s - self.waited_s) / spent_s),
            gpu_memory_gb=_gpu_memory_gb(self.group.device),
            elapsed_s=self.elapsed_s,
            progress=min(1.0, max(self.step / self.config.steps, self.fraction)),
        )
        self.last_s, self.waited_s = now, waited_s
        self.losses, self.grad_norms = [], []
        self._write(asdict(made))
        self.reporter.on_report(made)

    def add_validation(self, v: Validation) -> None:
        self.validated_step = v.step
        self._write({"step": v.step, "val_loss": v.loss, "best": v.best})
        self.reporter.on_validation(v)

    def check(self) -> Tensor:
        """The losses since the last report (steps,), as means over the processes.

        Ends the run if a loss or a gradient is not finite. A gradient may overflow in fp16, where
        the scaler skips the step; in other precisions it would destroy the weights.
        """
        if not self.losses:
            return torch.empty(0)
        losses = self.group.mean(torch.stack(self.losses)).cpu()
        norms = torch.stack(self.grad_norms).cpu()
        good = (
            losses.isfinite() if self.config.amp == "fp16" else losses.isfinite() & norms.isfinite()
        )
        if not good.all():
            at = int((~good).nonzero()[0])
            what = "loss" if not losses[at].isfinite() else "gradient"
            self.group.fail(self._not_finite(what, self.step - len(losses) + at))
        return losses

    def _not_finite(self, what: str, before: int) -> str:
        """The error message. before: number of steps before the one that failed."""
        lower = (
            "a lower optimizer_lr" if self.config.amp == "no" else "a lower optimizer_lr or amp no"
        )
        return (
            f"the {what} is not finite at step {before + 1}, trained on {self.samples_of(before)}: "
            "check these samples; the last checkpoint, if there is one, is not affected: "
            f"resume from it with {lower}"
        )

    def _write(self, line: Mapping[str, Any]) -> None:
        if self.file is not None:
            with self.file.open("a") as file:
                file.write(json.dumps(line) + "\n")


def _continued(file: Path, step: int) -> Path:
    """The log file, without the lines that an interrupted run wrote after its last checkpoint."""
    file.parent.mkdir(parents=True, exist_ok=True)
    kept = file.read_text().splitlines(keepends=True) if step and file.is_file() else []
    file.write_text("".join(line for line in kept if _is_until(line, step)))
    return file


def _is_until(line: str, step: int) -> bool:
    """Whether a line is of `step` or earlier; False for a line that a crash cut off."""
    try:
        return json.loads(line)["step"] <= step
    except (json.JSONDecodeError, KeyError, TypeError):
        return False


def _gpu_memory_gb(device: torch.device) -> float:
    return torch.cuda.max_memory_allocated(device) / 1e9 if device.type == "cuda" else 0.0
