"""Progress of a training on the console: a live bar on a terminal, single lines in a file or pipe.

`mtdit.training.metrics` computes the reports and writes the log; `mtdit.training.trackers` writes
TensorBoard, wandb and curves.png.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn

LINE_EVERY_S = 30.0  # between two lines in a file or pipe


@dataclass(frozen=True)
class Report:
    """The state after `step` steps, one line of the log. Loss is the mean since the last report."""

    step: int
    steps: int
    loss: float
    lr: float
    grad_norm: float
    samples_per_s: float  # of all processes
    data_wait: float  # 0..1, share of the time spent waiting for batches
    gpu_memory_gb: float  # highest allocation so far; 0 without a GPU
    elapsed_s: float  # training time, including the runs that this one resumes
    progress: float  # 0..1, share of steps or of max_minutes, whichever is larger


@dataclass(frozen=True)
class Validation:
    """The loss on the held-out episodes after `step` steps; of the averaged weights, if any."""

    step: int
    loss: float
    best: bool  # whether it is the lowest so far


class Reporter(Protocol):
    """Receives the events of a training."""

    def say(self, line: str) -> None: ...

    def on_decode(self, done: int, total: int) -> None:
        """Number of decoded frames, before the training."""

    def on_start(self, step: int) -> None:
        """The training starts after `step` steps, 0 for a new run. When it resumes, earlier events
        of later steps are invalid.
        """

    def on_report(self, report: Report) -> None: ...

    def on_validation(self, validation: Validation) -> None: ...

    def on_save(self, checkpoint: Path) -> None:
        """A checkpoint is complete; so is the log up to its step."""


class Silent:
    """A reporter that does nothing, for all processes except the main one."""

    def say(self, line: str) -> None: ...

    def on_decode(self, done: int, total: int) -> None: ...

    def on_start(self, step: int) -> None: ...

    def on_report(self, report: Report) -> None: ...

    def on_validation(self, validation: Validation) -> None: ...

    def on_save(self, checkpoint: Path) -> None: ...


def report_line(r: Report) -> str:
    """A Report as a line of text."""
    words = [
        f"step {r.step}/{r.steps}",
        f"loss {r.loss:.4f}",
        f"lr {r.lr:.1e}",
        f"{r.samples_per_s:.{0 if r.samples_per_s >= 10 else 1}f} samples/s",
        f"data wait {r.data_wait:.0%}",
        *([f"GPU {r.gpu_memory_gb:.1f} GB"] if r.gpu_memory_gb else []),
        *(
            [f"{_duration(left_s(r))} left"]
            if 0.0 < r.progress < 1.0
            else [f"took {_duration(r.elapsed_s)}"]
        ),
    ]
    return "  ".join(words)


def left_s(r: Report) -> float:
    """Estimated seconds to the end, at the average speed so far."""
    return r.elapsed_s / r.progress * (1.0 - r.progress)


def _duration(seconds: float) -> str:
    if seconds < 90.0:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60.0)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60:02d} min"


def validation_line(v: Validation) -> str:
    return f"step {v.step}  validation loss {v.loss:.4f}{'  best so far' if v.best else ''}"


class BarReporter(Silent):
    """For a terminal: a live bar, first for decoding, then for training."""

    def __init__(self, progress: Progress) -> None:
        self.progress = progress
        self.bars: dict[str, TaskID] = {}

    def say(self, line: str) -> None:
        self.progress.console.print(line)

    def on_decode(self, done: int, total: int) -> None:
        self._show("decoding", done / total, f"{done}/{total} frames")

    def on_report(self, report: Report) -> None:
        self._show("training", report.progress, report_line(report))

    def on_validation(self, validation: Validation) -> None:
        self.say(validation_line(validation))

    def _show(self, stage: str, done: float, text: str) -> None:
        if stage not in self.bars:
            self.bars[stage] = self.progress.add_task(stage, total=1.0, text=text)
        self.progress.update(self.bars[stage], completed=done, text=text)


class LineReporter(Silent):
    """For a file or pipe: the first and the last line of each stage, and one every LINE_EVERY_S."""

    def __init__(
        self, write: Callable[[str], None], now_s: Callable[[], float] = time.monotonic
    ) -> None:
        self.write, self.now_s = write, now_s
        self.stage = ""
        self.pending: str | None = None  # the newest line, if it is not written yet
        self.written_s = 0.0

    def say(self, line: str) -> None:
        self.close()
        self.write(line)

    def on_decode(self, done: int, total: int) -> None:
        self._show("decoding", f"decoding {done}/{total} frames", last=done == total)

    def on_report(self, report: Report) -> None:
        self._show("training", report_line(report), last=report.progress >= 1.0)

    def on_validation(self, validation: Validation) -> None:
        self.say(validation_line(validation))

    def close(self) -> None:
        """Writes the pending line."""
        if self.pending is not None:
            self.write(self.pending)
            self.pending, self.written_s = None, self.now_s()

    def _show(self, stage: str, line: str, last: bool) -> None:
        due = stage != self.stage or last or self.now_s() - self.written_s >= LINE_EVERY_S
        self.stage, self.pending = stage, line
        if due:
            self.close()


@contextmanager
def console_reporter(console: Console) -> Iterator[Reporter]:
    """A bar if the console is a terminal, single lines if it is a file or a pipe."""
    if not console.is_terminal:
        lines = LineReporter(console.print)
        try:
            yield lines
        finally:
            lines.close()
        return
    bar = BarColumn(bar_width=20)
    columns = (
        TextColumn("{task.description}"),
        bar,
        TextColumn("{task.percentage:>3.0f} %  {task.fields[text]}"),
    )
    with Progress(*columns, console=console) as progress:
        yield BarReporter(progress)
