"""Trackers of a training: TensorBoard, curves.png and wandb.

A resumed training continues the same curves. A tracker that fails does not end the training: one
line says so, and the training continues without it. Only a missing package, which is known before
the first step, is a UserError.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

from mtdit.training.config import TrainConfig
from mtdit.training.plots import plot_curves
from mtdit.training.reporters import Report, Reporter, Silent, Validation
from mtdit_robots.errors import UserError

TENSORBOARD, CURVES, WANDB_RUN = "tensorboard", "curves.png", "wandb_run.json"
LOG = "train_log.jsonl"  # mtdit.training.metrics writes it


def scalars(r: Report) -> dict[str, float]:
    """The values of a Report under the names of the curves; GPU memory only if there is a GPU."""
    memory = {"train/gpu_memory_gb": r.gpu_memory_gb} if r.gpu_memory_gb else {}
    return {
        "train/loss": r.loss,
        "train/lr": r.lr,
        "train/grad_norm": r.grad_norm,
        "train/samples_per_s": r.samples_per_s,
        "train/data_wait": r.data_wait,
        **memory,
    }


class Tracker(Protocol):
    """Records the values of a training; the methods are those of a Reporter."""

    name: str

    def on_start(self, step: int) -> None: ...

    def on_report(self, report: Report) -> None: ...

    def on_validation(self, validation: Validation) -> None: ...

    def on_save(self, checkpoint: Path) -> None: ...

    def close(self) -> None: ...


class TensorBoard(Silent):
    """TensorBoard event files. A resumed training purges the points after its checkpoint."""

    name = "TensorBoard"

    def __init__(self, folder: Path) -> None:
        # The CLI turns the ImportError into a line that says what to install.
        from torch.utils.tensorboard import SummaryWriter

        self.folder, self.open = folder, SummaryWriter
        self.writer: Any = None

    def on_start(self, step: int) -> None:
        self.writer = self.open(str(self.folder), purge_step=step + 1)

    def on_report(self, report: Report) -> None:
        self._add(scalars(report), report.step)

    def on_validation(self, validation: Validation) -> None:
        self._add({"val/loss": validation.loss}, validation.step)

    def on_save(self, checkpoint: Path) -> None:
        self.writer.flush()

    def close(self) -> None:
        if self.writer is not None:
            self.writer.close()

    def _add(self, figures: Mapping[str, float], step: int) -> None:
        for name, value in figures.items():
            self.writer.add_scalar(name, value, step)


class Wandb(Silent):
    """A wandb run. Its id is stored in the output folder, so a resumed training continues it."""

    name = "wandb"

    def __init__(self, config: TrainConfig) -> None:
        if find_spec("wandb") is None:
            raise UserError("--wandb needs wandb, which is not installed: pip install wandb")
        self.config = config
        self.run: Any = None

    def on_start(self, step: int) -> None:
        import wandb  # type: ignore[import-not-found, unused-ignore]

        out, kept = self.config.output_dir, self.config.output_dir / WANDB_RUN
        run_id = (
            json.loads(kept.read_text())["id"] if step and kept.is_file() else secrets.token_hex(4)
        )
        try:
            self.run = wandb.init(
                project=self.config.wandb,
                id=run_id,
                resume="allow",
                dir=str(out),
                name=out.absolute().name,
                config=json.loads(json.dumps(asdict(self.config), default=str)),
            )
        except wandb.Error as error:
            raise UserError(
                f"wandb: {str(error).rstrip('.')}; run `wandb login`, or set WANDB_MODE=offline"
            ) from None
        kept.write_text(json.dumps({"project": self.config.wandb, "id": run_id}) + "\n")

    def on_report(self, report: Report) -> None:
        self.run.log(scalars(report), step=report.step)

    def on_validation(self, validation: Validation) -> None:
        self.run.log({"val/loss": validation.loss}, step=validation.step)

    def close(self) -> None:
        if self.run is not None:
            self.run.finish()


class Curves(Silent):
    """curves.png, redrawn at each checkpoint and at the end."""

    name = CURVES

    def __init__(self, folder: Path) -> None:
        self.folder, self.drawn = folder, 0

    def on_save(self, checkpoint: Path) -> None:
        log = self.folder / LOG
        size = log.stat().st_size if log.is_file() else 0
        if size != self.drawn:
            plot_curves(log, self.folder / CURVES)
            self.drawn = size

    def close(self) -> None:
        self.on_save(self.folder)


class TrackedReporter:
    """Passes events to the console and to the trackers.

    A tracker that fails is reported once and removed.
    """

    def __init__(self, reporter: Reporter, trackers: list[Tracker]) -> None:
        self.reporter, self.trackers = reporter, trackers
        self.say, self.on_decode = reporter.say, reporter.on_decode

    def on_start(self, step: int) -> None:
        self.reporter.on_start(step)
        self._each(lambda t: t.on_start(step))

    def on_report(self, report: Report) -> None:
        self.reporter.on_report(report)
        self._each(lambda t: t.on_report(report))

    def on_validation(self, validation: Validation) -> None:
        self.reporter.on_validation(validation)
        self._each(lambda t: t.on_validation(validation))

    def on_save(self, checkpoint: Path) -> None:
        self.reporter.on_save(checkpoint)
        self._each(lambda t: t.on_save(checkpoint))

    def close(self) -> None:
        self._each(lambda t: t.close())

    def _each(self, call: Callable[[Tracker], None]) -> None:
        for tracker in tuple(self.trackers):
            try:
                call(tracker)
            except UserError:
                raise
            except Exception as error:
                self.trackers.remove(tracker)
                why = " ".join(str(error).split()) or type(error).__name__
                self.say(f"{tracker.name} failed ({why}); the training continues without it")


@contextmanager
def tracked(config: TrainConfig, reporter: Reporter) -> Iterator[Reporter]:
    """The console and the trackers of the config. UserError when a tracker is not installed."""
    trackers: list[Tracker] = [Curves(config.output_dir)]
    if config.tensorboard:
        trackers.append(TensorBoard(config.output_dir / TENSORBOARD))
    if config.wandb:
        trackers.append(Wandb(config))
    tracked_reporter = TrackedReporter(reporter, trackers)
    try:
        yield tracked_reporter
    finally:
        tracked_reporter.close()
