"""The log of one training run, as `lerobot-train` prints it and as `mtdit train` writes it."""

from __future__ import annotations

import json
import re
import statistics
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

LOG_EVERY = 5  # steps
SKIP = 20  # steps: LeRobot's 4 workers have 16 batches ready when training starts


@dataclass(frozen=True)
class Run:
    """The log of one training process. The three lists have one entry per log line."""

    steps: list[int]
    loss: list[float]  # mean since the line before
    at_s: list[float]  # seconds since the first log line
    wait: float  # 0..1, fraction of the time spent waiting for batches
    first_step_s: float  # from the start of the process to the first log line
    total_s: float

    def counted_from(self, skip: int) -> int:
        """The step of the first log line at or after `skip`, or of the last line but one if the run
        is shorter.
        """
        return next(step for step in self.steps if step >= min(skip, self.steps[-2]))

    def rate(self, batch: int, skip: int) -> float:
        """Samples per second from `counted_from` to the end."""
        first = self.steps.index(self.counted_from(skip))
        return batch * (self.steps[-1] - self.steps[first]) / (self.at_s[-1] - self.at_s[first])


def read_lerobot(lines: Iterator[str], _out: Path, began: float) -> Run:
    """Read lerobot-train's progress. Its log lines have full seconds only, so each line is timed
    when it arrives. RuntimeError if there are none.
    """
    stamped = [
        (time.perf_counter(), figures) for line in lines if (figures := lerobot_figures(line))
    ]
    ended = time.perf_counter()
    if not stamped:
        raise RuntimeError("lerobot-train printed no figures")
    waited = [f["data_s"] / max(f["data_s"] + f["updt_s"], 1e-9) for _, f in stamped]
    return Run(
        steps=[LOG_EVERY * (i + 1) for i in range(len(stamped))],  # the line itself says "step:1K"
        loss=[f["loss"] for _, f in stamped],
        at_s=[at - stamped[0][0] for at, _ in stamped],
        wait=settled(waited),
        first_step_s=stamped[0][0] - began,
        total_s=ended - began,
    )


_FIGURE = re.compile(r"\b(loss|updt_s|data_s):([0-9.]+|nan|inf)(?=\s|$)")


def lerobot_figures(line: str) -> dict[str, float] | None:
    """loss, updt_s and data_s of one of lerobot-train's progress lines; None for any other line."""
    found = {name: float(value) for name, value in _FIGURE.findall(line)}
    return found if {"loss", "updt_s", "data_s"} <= found.keys() else None


def read_mtdit(lines: Iterator[str], out: Path, began: float) -> Run:
    """Read mtdit's log when the process has ended. The file's modification time is that of the last
    line.
    """
    began_at = time.time() - (time.perf_counter() - began)
    for _ in lines:  # until it ends
        pass
    log = out / "train_log.jsonl"
    return mtdit_run(
        log.read_text().splitlines(), log.stat().st_mtime - began_at, time.perf_counter() - began
    )


def mtdit_run(log: Sequence[str], written_s: float, total_s: float) -> Run:
    """A Run from the lines of train_log.jsonl. written_s: seconds from the start of the process to
    the last line; total_s: to its end.
    """
    reports = [r for r in map(json.loads, log) if "samples_per_s" in r]
    at_s = [r["elapsed_s"] - reports[0]["elapsed_s"] for r in reports]
    return Run(
        steps=[r["step"] for r in reports],
        loss=[r["loss"] for r in reports],
        at_s=at_s,
        wait=settled([r["data_wait"] for r in reports]),
        first_step_s=written_s - at_s[-1],
        total_s=total_s,
    )


def settled(waits: Sequence[float]) -> float:
    """Median over the log lines after step SKIP, or over all if there are none."""
    return statistics.median(waits[SKIP // LOG_EVERY :] or waits)
