"""How a training tells what it does: figures now and then, a live bar, a line for the log.

Knows what a figure is called and how it is shown. Refuses to know how it came about.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn


@dataclass(frozen=True)
class Report:
    """One line of the log: the state after `step` steps. Loss is the mean since the line before."""

    step: int
    steps: int
    loss: float
    lr: float
    grad_norm: float
    samples_per_s: float  # of all processes
    data_wait: float  # 0..1, share of the time spent waiting for batches
    gpu_memory_gb: float  # most that was allocated so far; 0 without a GPU
    elapsed_s: float  # of training, earlier runs that this one resumes included
    progress: float  # 0..1, of steps or of max_minutes, whichever is further


@dataclass(frozen=True)
class Validation:
    """Loss of the weights in use on the held-out episodes, after `step` steps."""

    step: int
    loss: float
    best: bool  # the lowest so far


class Reporter(Protocol):
    """Who watches a training: lines to say, frames decoded so far, a report or a validation now and then."""

    def say(self, line: str) -> None: ...

    def decoded(self, done: int, total: int) -> None: ...

    def stepped(self, report: Report) -> None: ...

    def validated(self, validation: Validation) -> None: ...


class ConsoleReporter:
    """A live bar on a terminal, a line now and then in a log file."""

    def __init__(self, progress: Progress) -> None:
        self.progress = progress
        self.task: Any = None
        self.stage = ""

    def say(self, line: str) -> None:
        self.progress.console.print(line, highlight=False)

    def decoded(self, done: int, total: int) -> None:
        self._show("decoding", done / total, f"{done}/{total} frames")

    def stepped(self, r: Report) -> None:
        left_s = r.elapsed_s / r.progress * (1 - r.progress) if r.progress else 0.0
        left = f"{left_s / 60:.0f} min left" if left_s >= 90 else f"{left_s:.0f} s left"
        text = f"step {r.step}  loss {r.loss:.4f}  lr {r.lr:.1e}  {r.samples_per_s:.0f} samples/s  {left}"
        self._show("training", r.progress, text)
        if not self.progress.console.is_terminal and r.step % 500 == 0:
            self.say(text)

    def validated(self, v: Validation) -> None:
        self.say(f"step {v.step}  held-out loss {v.loss:.4f}{'  best so far' if v.best else ''}")

    def _show(self, stage: str, done: float, text: str) -> None:
        if stage != self.stage:
            self.stage, self.task = stage, self.progress.add_task(stage, total=1.0, text=text)
        self.progress.update(self.task, completed=done, text=text)


@contextmanager
def console_reporter() -> Iterator[ConsoleReporter]:
    columns = (TextColumn("{task.description:>9}"), BarColumn(), TextColumn("{task.fields[text]}"), TimeElapsedColumn())
    with Progress(*columns) as progress:
        yield ConsoleReporter(progress)
