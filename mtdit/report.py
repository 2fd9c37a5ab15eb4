"""How a training tells what it does: figures now and then, a live bar on a terminal, a line now and
then in a log file.

Knows what a figure is called and how it is shown. Refuses to know how it came about, and what is
kept of it on disk (`mtdit.journal` writes the log, `mtdit.trackers` the curves).
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

LINE_EVERY_S = 30.0  # in a log file


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
    """Who watches a training."""

    def say(self, line: str) -> None: ...

    def decoded(self, done: int, total: int) -> None:
        """Frames, before the training."""

    def began(self, step: int) -> None:
        """The training goes on from here, 0 for a new one: what an earlier run told of later steps
        is void.
        """

    def stepped(self, report: Report) -> None: ...

    def validated(self, validation: Validation) -> None: ...

    def saved(self, checkpoint: Path) -> None:
        """A checkpoint is complete; so is the log up to its step."""


class Silent:
    """The reporter of all processes but the main one."""

    def say(self, line: str) -> None: ...

    def decoded(self, done: int, total: int) -> None: ...

    def began(self, step: int) -> None: ...

    def stepped(self, report: Report) -> None: ...

    def validated(self, validation: Validation) -> None: ...

    def saved(self, checkpoint: Path) -> None: ...


def report_line(r: Report) -> str:
    """A Report as a person reads it."""
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
    """Seconds to the end, if the rest goes like what was done."""
    return r.elapsed_s / r.progress * (1.0 - r.progress)


def _duration(seconds: float) -> str:
    if seconds < 90.0:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60.0)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60:02d} min"


def validation_line(v: Validation) -> str:
    return f"step {v.step}  held-out loss {v.loss:.4f}{'  best so far' if v.best else ''}"


class BarReporter(Silent):
    """For a terminal: one live bar, first for the frames, then for the steps."""

    def __init__(self, progress: Progress) -> None:
        self.progress = progress
        self.bars: dict[str, TaskID] = {}

    def say(self, line: str) -> None:
        self.progress.console.print(line)

    def decoded(self, done: int, total: int) -> None:
        self._show("decoding", done / total, f"{done}/{total} frames")

    def stepped(self, report: Report) -> None:
        self._show("training", report.progress, report_line(report))

    def validated(self, validation: Validation) -> None:
        self.say(validation_line(validation))

    def _show(self, stage: str, done: float, text: str) -> None:
        if stage not in self.bars:
            self.bars[stage] = self.progress.add_task(stage, total=1.0, text=text)
        self.progress.update(self.bars[stage], completed=done, text=text)


class LineReporter(Silent):
    """For a log file: the first line of a stage, its last one, and one every LINE_EVERY_S between
    them.
    """

    def __init__(
        self, write: Callable[[str], None], now_s: Callable[[], float] = time.monotonic
    ) -> None:
        self.write, self.now_s = write, now_s
        self.stage = ""
        self.unsaid: str | None = None
        self.said_s = 0.0

    def say(self, line: str) -> None:
        self.close()
        self.write(line)

    def decoded(self, done: int, total: int) -> None:
        self._show("decoding", f"decoding {done}/{total} frames", last=done == total)

    def stepped(self, report: Report) -> None:
        self._show("training", report_line(report), last=report.progress >= 1.0)

    def validated(self, validation: Validation) -> None:
        self.say(validation_line(validation))

    def close(self) -> None:
        """Nothing comes after what was shown last, so it is worth its line."""
        if self.unsaid is not None:
            self.write(self.unsaid)
            self.unsaid, self.said_s = None, self.now_s()

    def _show(self, stage: str, line: str, last: bool) -> None:
        due = stage != self.stage or last or self.now_s() - self.said_s >= LINE_EVERY_S
        self.stage, self.unsaid = stage, line
        if due:
            self.close()


@contextmanager
def console_reporter(console: Console) -> Iterator[Reporter]:
    """A bar if the console is a terminal, lines if it is a file or a pipe."""
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
