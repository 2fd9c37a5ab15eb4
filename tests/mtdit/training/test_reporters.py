"""What a training shows and leaves: lines, bars, TensorBoard's curves, and what a tracker that
fails may not do.
"""

from __future__ import annotations

import io
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from mtdit.training.config import TrainConfig
from mtdit.training.reporters import (
    LineReporter,
    Report,
    Silent,
    Validation,
    console_reporter,
    report_line,
)
from mtdit.training.trackers import TENSORBOARD, TensorBoard, TrackedReporter, scalars, tracked
from mtdit_robots.errors import UserError


def report(step: int, steps: int = 100, **changes: float) -> Report:
    plain = Report(step, steps, 0.5, 2e-5, 1.0, 512.3, 0.03, 0.0, 60.0 * step, step / steps)
    return replace(plain, **changes)  # type: ignore[arg-type]


class Clock:
    def __init__(self) -> None:
        self.s = 0.0

    def __call__(self) -> float:
        return self.s


def test_a_line_holds_every_figure() -> None:
    line = report_line(report(50, gpu_memory_gb=12.34))
    for part in (
        "step 50/100",
        "loss 0.5000",
        "lr 2.0e-05",
        "512 samples/s",
        "wait 3%",
        "GPU 12.3 GB",
        "50 min left",
    ):
        assert part in line
    assert "GPU" not in report_line(report(50))
    assert report_line(report(100)).endswith("took 1 h 40 min")
    assert report_line(report(1, elapsed_s=0.8)).endswith("79 s left")
    assert "3.1 samples/s" in report_line(report(1, samples_per_s=3.14))


def test_a_log_file_gets_the_first_line_the_last_and_one_now_and_then() -> None:
    written: list[str] = []
    clock = Clock()
    lines = LineReporter(written.append, clock)
    for step in range(1, 101):
        clock.s = step
        lines.on_report(report(step))
    assert [int(line.split()[1].partition("/")[0]) for line in written] == [1, 31, 61, 91, 100]


def test_what_a_log_file_was_told_last_is_said_before_anything_else() -> None:
    written: list[str] = []
    lines = LineReporter(written.append, Clock())
    lines.on_decode(1, 9)
    lines.on_decode(2, 9)
    lines.say("a word")
    lines.on_report(report(1))
    lines.on_report(report(2))
    lines.on_validation(Validation(2, 0.25, True))
    lines.on_report(report(3))
    lines.close()
    lines.close()
    begins = [" ".join(line.split()[:3]) for line in written]
    assert begins == [
        "decoding 1/9 frames",
        "decoding 2/9 frames",
        "a word",
        "step 1/100 loss",
        "step 2/100 loss",
        "step 2 validation",
        "step 3/100 loss",
    ]
    assert "validation loss 0.2500  best so far" in written[-2]


@pytest.mark.parametrize("terminal", [True, False])
def test_the_console(terminal: bool) -> None:
    """A terminal sees a bar that is drawn anew, a file whole lines without control characters."""
    screen = io.StringIO()
    with console_reporter(
        Console(file=screen, force_terminal=terminal, width=160, highlight=False, markup=False)
    ) as voice:
        voice.on_decode(5, 10)
        voice.on_report(report(50))
        voice.say("a word [of] this")
        voice.on_validation(Validation(50, 0.25, False))
        voice.on_report(report(60))
    shown = screen.getvalue()
    assert ("\x1b" in shown) is terminal
    for part in (
        "5/10 frames",
        "step 60/100",
        "512 samples/s",
        "validation loss 0.2500",
        "40 min left",
        "[of]",
    ):
        assert part in shown
    assert "best" not in shown
    if not terminal:
        assert len(shown.splitlines()) == 5


def points(folder: Path) -> dict[str, list[tuple[int, float]]]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder))
    events.Reload()
    return {
        n: [(e.step, round(e.value, 4)) for e in events.Scalars(n)]
        for n in events.Tags()["scalars"]
    }


def test_tensorboard_goes_on_in_the_same_curves(tmp_path: Path) -> None:
    """A run that died at step 6 goes on from its checkpoint of step 4: no step is in the curves
    twice.
    """
    config = TrainConfig(dataset="d", output_dir=tmp_path)
    for began, steps, loss in ((0, (2, 4, 6), 1.0), (4, (5, 6, 8), 0.5)):
        with tracked(config, LineReporter(print)) as told:
            told.on_start(began)
            for step in steps:
                told.on_report(report(step, loss=loss))
            told.on_validation(Validation(steps[-1], loss, True))
    found = points(tmp_path / TENSORBOARD)
    assert found["train/loss"] == [(2, 1.0), (4, 1.0), (5, 0.5), (6, 0.5), (8, 0.5)]
    assert found["val/loss"] == [(8, 0.5)]
    assert set(found) == {"val/loss", *scalars(report(1))}
    assert set(scalars(report(1, gpu_memory_gb=3.0))) - set(found) == {"train/gpu_memory_gb"}


def test_a_new_run_voids_the_curves_of_one_that_never_saved(tmp_path: Path) -> None:
    for loss in (1.0, 0.5):
        board = TensorBoard(tmp_path)
        board.on_start(0)
        board.on_report(report(1, loss=loss))
        board.close()
    assert points(tmp_path)["train/loss"] == [(1, 0.5)]


def test_no_tensorboard(tmp_path: Path) -> None:
    with tracked(
        TrainConfig(dataset="d", output_dir=tmp_path, tensorboard=False), LineReporter(print)
    ) as told:
        told.on_start(0)
        told.on_report(report(1))
    assert not (tmp_path / TENSORBOARD).exists()


def test_curves_are_drawn_at_each_checkpoint(tmp_path: Path) -> None:
    """Also when a run ends otherwise: the picture then shows the whole log."""
    log, png = tmp_path / "train_log.jsonl", tmp_path / "curves.png"
    line = (
        json.dumps({"step": 1, "loss": 0.5, "lr": 1e-5, "samples_per_s": 9.0, "data_wait": 0.1})
        + "\n"
    )
    with tracked(
        TrainConfig(dataset="d", output_dir=tmp_path, tensorboard=False), LineReporter(print)
    ) as told:
        told.on_start(0)
        told.on_save(tmp_path)
        assert not png.exists()
        log.write_text(line)
        told.on_save(tmp_path)
        first = png.read_bytes()
        log.write_text(line + line.replace("0.5", "0.1").replace('"step": 1', '"step": 2'))
        assert png.read_bytes() == first
    assert png.read_bytes() != first


class Broken(Silent):
    name = "the broken one"

    def __init__(self, error: Exception) -> None:
        self.error, self.calls = error, 0

    def on_report(self, report: Report) -> None:
        self.calls += 1
        raise self.error

    def close(self) -> None: ...


def test_a_tracker_that_fails_is_said_once_and_left_alone() -> None:
    written: list[str] = []
    broken = Broken(OSError("no space left"))
    reporter = TrackedReporter(LineReporter(written.append), [broken])
    reporter.on_report(report(1))
    reporter.on_report(report(2))
    assert broken.calls == 1
    said = [line for line in written if "broken" in line]
    assert said == ["the broken one failed (no space left); the training continues without it"]


def test_a_mistake_of_the_users_is_not_swallowed() -> None:
    reporter = TrackedReporter(LineReporter([].append), [Broken(UserError("log in first"))])
    with pytest.raises(UserError, match="log in first"):
        reporter.on_report(report(1))


def test_wandb_that_is_not_installed(tmp_path: Path) -> None:
    """In a process of its own that cannot find wandb, installed or not."""
    done = subprocess.run(
        [
            sys.executable,
            "-c",
            "import sys; sys.modules['wandb'] = None\n"
            "from mtdit.training.trackers import Wandb; "
            "from mtdit.training.config import TrainConfig; "
            "from pathlib import Path\n"
            "Wandb(TrainConfig(dataset='d', output_dir=Path('o'), wandb='p'))",
        ],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert "UserError: --wandb needs wandb" in done.stderr
    assert "pip install wandb" in done.stderr


FAKE_WANDB = '''
"""Stands in for the package: writes down what it is told."""
import json, pathlib
class Error(Exception): ...
class Run:
    def __init__(self, **said): self.said, self.rows = said, []
    def log(self, row, step): self.rows.append([step, sorted(row)])
    def finish(self):
        n = len(list(pathlib.Path(".").glob("told*")))
        said = {k: self.said[k] for k in ("project", "id", "resume", "name")}
        pathlib.Path(f"told{n}.json").write_text(json.dumps({**said, "rows": self.rows}))
def init(**said):
    if said["project"] == "locked": raise Error("no API key")
    return Run(**said)
'''
TRAIN_TWICE = """
import sys
from pathlib import Path
from mtdit.training.reporters import LineReporter, Report, Validation
from mtdit.training.trackers import tracked
from mtdit.training.config import TrainConfig
Path("run").mkdir(exist_ok=True)
config = TrainConfig(dataset="d", output_dir=Path("run"), tensorboard=False, wandb=sys.argv[1])
for began in (0, 4, 0):
    with tracked(config, LineReporter(print)) as told:
        told.on_start(began)
        told.on_report(Report(began + 2, 10, 0.5, 2e-5, 1.0, 9.0, 0.0, 0.0, 1.0, 0.5))
        told.on_validation(Validation(began + 2, 0.4, True))
"""


def test_wandb_goes_on_in_the_same_run(tmp_path: Path) -> None:
    """Resumed: the id of before. Begun anew in the same folder: another."""
    (tmp_path / "wandb.py").write_text(FAKE_WANDB)

    def train(project: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-c", TRAIN_TWICE, project]
        return subprocess.run(command, capture_output=True, text=True, timeout=120, cwd=tmp_path)

    done = train("arms")
    assert done.returncode == 0, done.stderr
    told = [json.loads((tmp_path / f"told{n}.json").read_text()) for n in range(3)]
    assert {(t["project"], t["name"]) for t in told} == {("arms", "run")}
    assert told[0]["id"] == told[1]["id"] != told[2]["id"]
    assert [row[0] for row in told[1]["rows"]] == [6, 6]
    assert told[1]["rows"][1] == [6, ["val/loss"]]
    assert "UserError: wandb: no API key" in train("locked").stderr
