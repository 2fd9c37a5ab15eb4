"""What a training leaves to look at, in its output folder: TensorBoard's files, curves.png, a run
of wandb.

Knows those tools and how a resumed training goes on in the same curves. Refuses to know how a
figure came about. None of it ends a training: what fails there is said in one line, and the
training goes on without it. Only what can be known before the first step, a package that is
missing, is a UserError.
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

from mtdit.curves import curves
from mtdit.report import Report, Reporter, Silent, Validation, console_reporter
from mtdit.terminal import console
from mtdit.train_config import TrainConfig
from mtdit_robots.errors import UserError

TENSORBOARD, CURVES, WANDB, WANDB_RUN = "tensorboard", "curves.png", "wandb", "wandb_run.json"
LOG = "train_log.jsonl"  # mtdit.journal writes it


def scalars(r: Report) -> dict[str, float]:
    """A Report in the names of the curves; the GPU's memory only where there is a GPU."""
    memory = {"train/gpu_memory_gb": r.gpu_memory_gb} if r.gpu_memory_gb else {}
    return {
        "train/loss": r.loss, "train/lr": r.lr, "train/grad_norm": r.grad_norm,
        "train/samples_per_s": r.samples_per_s, "train/data_wait": r.data_wait, **memory,
    }  # fmt: skip


class Tracker(Protocol):
    """What keeps a training's figures somewhere."""

    name: str

    def began(self, step: int) -> None: ...

    def stepped(self, report: Report) -> None: ...

    def validated(self, validation: Validation) -> None: ...

    def saved(self, checkpoint: Path) -> None: ...

    def close(self) -> None: ...


class TensorBoard(Silent):
    """Event files; a resumed training voids the points after its checkpoint and goes on."""

    name = "TensorBoard"

    def __init__(self, folder: Path) -> None:
        from torch.utils.tensorboard import (
            SummaryWriter,
        )  # UserError by its name where it is not installed

        self.folder, self.open = folder, SummaryWriter
        self.writer: Any = None

    def began(self, step: int) -> None:
        self.writer = self.open(str(self.folder), purge_step=step + 1)

    def stepped(self, report: Report) -> None:
        self._add(scalars(report), report.step)

    def validated(self, validation: Validation) -> None:
        self._add({"val/loss": validation.loss}, validation.step)

    def saved(self, checkpoint: Path) -> None:
        self.writer.flush()

    def close(self) -> None:
        if self.writer is not None:
            self.writer.close()

    def _add(self, figures: Mapping[str, float], step: int) -> None:
        for name, value in figures.items():
            self.writer.add_scalar(name, value, step)


class Wandb(Silent):
    """A run of wandb. Its id is kept in the output folder, so that a resumed training goes on in
    the same run.
    """

    name = "wandb"

    def __init__(self, config: TrainConfig) -> None:
        if find_spec("wandb") is None:
            raise UserError("--wandb needs wandb, which is not installed: pip install wandb")
        self.config = config
        self.run: Any = None

    def began(self, step: int) -> None:
        import wandb  # type: ignore[import-not-found, unused-ignore]

        out, kept = self.config.output_dir, self.config.output_dir / WANDB_RUN
        run_id = (
            json.loads(kept.read_text())["id"] if step and kept.is_file() else secrets.token_hex(4)
        )
        try:
            self.run = wandb.init(
                project=self.config.wandb, id=run_id, resume="allow", dir=str(out), name=out.absolute().name,
                config=json.loads(json.dumps(asdict(self.config), default=str)),
            )  # fmt: skip
        except wandb.Error as error:
            raise UserError(
                f"wandb: {str(error).rstrip('.')}; run `wandb login`, or set WANDB_MODE=offline"
            ) from None
        kept.write_text(json.dumps({"project": self.config.wandb, "id": run_id}) + "\n")

    def stepped(self, report: Report) -> None:
        self.run.log(scalars(report), step=report.step)

    def validated(self, validation: Validation) -> None:
        self.run.log({"val/loss": validation.loss}, step=validation.step)

    def close(self) -> None:
        if self.run is not None:
            self.run.finish()


class Curves(Silent):
    """curves.png, drawn anew at each checkpoint and at the end."""

    name = CURVES

    def __init__(self, folder: Path) -> None:
        self.folder, self.drawn = folder, 0

    def saved(self, checkpoint: Path) -> None:
        log = self.folder / LOG
        size = log.stat().st_size if log.is_file() else 0
        if size != self.drawn:
            curves(log, self.folder / CURVES)
            self.drawn = size

    def close(self) -> None:
        self.saved(self.folder)


class Several:
    """Tells whoever speaks to the user, and the trackers. A tracker that fails is said once and
    left alone.
    """

    def __init__(self, voice: Reporter, trackers: list[Tracker]) -> None:
        self.voice, self.trackers = voice, trackers
        self.say, self.decoded = voice.say, voice.decoded

    def began(self, step: int) -> None:
        self.voice.began(step)
        self._tell(lambda t: t.began(step))

    def stepped(self, report: Report) -> None:
        self.voice.stepped(report)
        self._tell(lambda t: t.stepped(report))

    def validated(self, validation: Validation) -> None:
        self.voice.validated(validation)
        self._tell(lambda t: t.validated(validation))

    def saved(self, checkpoint: Path) -> None:
        self.voice.saved(checkpoint)
        self._tell(lambda t: t.saved(checkpoint))

    def close(self) -> None:
        self._tell(lambda t: t.close())

    def _tell(self, about: Callable[[Tracker], None]) -> None:
        for tracker in tuple(self.trackers):
            try:
                about(tracker)
            except UserError:
                raise
            except Exception as error:
                self.trackers.remove(tracker)
                why = " ".join(str(error).split()) or type(error).__name__
                self.say(f"{tracker.name} failed ({why}); the training goes on without it")


@contextmanager
def reporters(config: TrainConfig) -> Iterator[Reporter]:
    """The console, and the trackers that the config asks for. UserError when one of them is not
    installed.
    """
    trackers: list[Tracker] = [Curves(config.output_dir)]
    if config.tensorboard:
        trackers.append(TensorBoard(config.output_dir / TENSORBOARD))
    if config.wandb:
        trackers.append(Wandb(config))
    with console_reporter(console) as voice:
        several = Several(voice, trackers)
        try:
            yield several
        finally:
            several.close()
