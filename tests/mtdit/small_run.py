"""Short trainings of a small policy on the frame cache written by hand."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from mtdit.training.config import TrainConfig
from mtdit.training.reporters import Report, Silent, Validation
from mtdit.training.run import train

SMALL = {
    "hidden_dim": 32,
    "num_layers": 1,
    "num_heads": 2,
    "timestep_embed_dim": 16,
    "scheduler_warmup_steps": 2,
}


class Watcher(Silent):
    """Keeps what it is told; `at` is called with every step that was reported."""

    def __init__(self, at: Callable[[int], None] = lambda step: None) -> None:
        self.reports: list[Report] = []
        self.validations: list[Validation] = []
        self.lines: list[str] = []
        self.at = at

    def say(self, line: str) -> None:
        self.lines.append(line)

    def on_report(self, report: Report) -> None:
        self.reports.append(report)
        self.at(report.step)

    def on_validation(self, validation: Validation) -> None:
        self.validations.append(validation)


def config_for(frames: Path, out: Path, clip: Path, **options: Any) -> TrainConfig:
    policy = {
        **SMALL,
        "vision_encoder_name": str(clip),
        "text_encoder_name": str(clip),
        **options.pop("policy", {}),
    }
    chosen = {
        "steps": 6,
        "batch_size": 4,
        "log_every": 1,
        "save_every": 3,
        "random_shift_px": 2,
        "device": "cpu",
    }
    return TrainConfig(str(frames), out, preset="tiny", policy=policy, **{**chosen, **options})


def run(config: TrainConfig) -> tuple[Path, list[float]]:
    watcher = Watcher()
    checkpoint = train(config, watcher)
    return checkpoint, [r.loss for r in watcher.reports]
