"""Draws curves.png from a training log.

It reads only train_log.jsonl, so any log can be drawn, also that of a run in progress.
"""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mtdit_robots.files import new_file

LOSS, HELD_OUT, RATE, SPEED, WAIT = "#2a6fbb", "#d1603d", "#555555", "#3a8f6b", "#b0892b"
GRID, INK, FAINT = "#e6e6e6", "#333333", 0.28
Row = dict[str, Any]
Floats = NDArray[np.float64]


def plot_curves(log: Path, png: Path) -> None:
    """Draws loss, validation loss, learning rate, samples/s and data wait of a log.

    An empty log writes nothing; an incomplete picture is never visible. OSError when the picture
    cannot be written, ValueError when the file is not a log.
    """
    rows = read_log(log)
    reports = [row for row in rows if "loss" in row]
    validations = [row for row in rows if "val_loss" in row]
    if not reports:
        return
    logging.getLogger("matplotlib").setLevel(logging.ERROR)  # no messages about the font cache
    with new_file(png) as part:
        _figure(reports, validations).savefig(part, format="png", dpi=110)


def read_log(log: Path) -> list[Row]:
    """The lines as dicts. A last line without a newline is incomplete and is left out."""
    lines = log.read_text().splitlines(keepends=True) if log.is_file() else []
    return [json.loads(line) for line in lines if line.endswith("\n")]


def smoothed(values: Floats, width: float) -> Floats:
    """Values (N,) smoothed with a Gaussian of this width; NaN and infinite values are skipped."""
    reach = np.arange(-math.ceil(3.0 * width), math.ceil(3.0 * width) + 1)
    bell = np.exp(-0.5 * (reach / width) ** 2)
    there = np.isfinite(values)
    middle = slice(len(reach) // 2, len(reach) // 2 + len(values))
    sums = np.convolve(np.where(there, values, 0.0), bell)[middle]
    weights = np.convolve(there.astype(np.float64), bell)[middle]
    return np.divide(sums, weights, out=np.full(len(values), math.nan), where=weights > 0.0)


def _figure(reports: Sequence[Row], validations: Sequence[Row]) -> Any:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11.0, 7.0), layout="constrained", facecolor="white")
    grid = figure.add_gridspec(2, 3, height_ratios=(1.9, 1.0))
    _draw_loss(figure.add_subplot(grid[0, :]), reports, validations)
    steps = _column(reports, "step")
    for place, (title, values, colour, raw) in enumerate(_small(reports)):
        axes = figure.add_subplot(grid[1, place])
        _dress(axes, title)
        _line(axes, steps, values, colour, raw)
        axes.set_ylim(0.0, 1.1 * max(np.nanmax(values, initial=0.0), 1e-9))
        axes.locator_params(axis="x", nbins=4)
        axes.yaxis.set_major_formatter(_plain)
    return figure


def _small(reports: Sequence[Row]) -> Iterable[tuple[str, Floats, str, bool]]:
    """Title, values, colour, and whether the values are noisy and need smoothing."""
    yield "learning rate", _column(reports, "lr"), RATE, False
    yield "samples / s", _column(reports, "samples_per_s"), SPEED, True
    yield "waiting for data, % of the time", 100.0 * _column(reports, "data_wait"), WAIT, True


def _draw_loss(axes: Any, reports: Sequence[Row], validations: Sequence[Row]) -> None:
    steps, losses = _column(reports, "step"), _column(reports, "loss")
    _dress(axes, "loss")
    if (losses > 0).any():
        axes.set_yscale("log", nonpositive="mask")
    axes.set_xlabel("step", color=INK)
    _line(axes, steps, losses, LOSS, True, "training")
    if validations:
        at, held_out = _column(validations, "step"), _column(validations, "val_loss")
        axes.plot(at, held_out, color=HELD_OUT, lw=1.6, marker="o", ms=3.5, label="validation")
        _mark_best(axes, validations)
    axes.yaxis.set_major_formatter(_plain)
    axes.yaxis.set_minor_formatter(_few(axes))
    axes.legend(loc="upper right", frameon=False, labelcolor=INK)


def _mark_best(axes: Any, validations: Sequence[Row]) -> None:
    best = [row for row in validations if row.get("best")]
    if best:
        step, loss = best[-1]["step"], best[-1]["val_loss"]
        label = f"best: {loss:.4g} at step {step}"
        star = {"marker": "*", "ms": 13, "mec": "white", "mew": 0.8, "ls": "none"}
        axes.plot([step], [loss], color=HELD_OUT, zorder=5, label=label, **star)


def _line(
    axes: Any, x: Floats, y: Floats, colour: str, noisy: bool, label: str | None = None
) -> None:
    """Plots the values; noisy ones are faint, with the smoothed curve on top."""
    dot = "o" if len(x) == 1 else None
    axes.plot(x, y, color=colour, lw=1.0, alpha=FAINT if noisy else 1.0, marker=dot, ms=4)
    if noisy:
        axes.plot(x, smoothed(y, max(0.5, len(y) / 80)), color=colour, lw=1.8, label=label)


def _dress(axes: Any, title: str) -> None:
    axes.set_title(title, loc="left", fontsize=11, color=INK)
    axes.grid(True, which="both", color=GRID, lw=0.7)
    axes.set_axisbelow(True)
    axes.margins(x=0.01)
    axes.xaxis.set_major_formatter(_thousands)
    axes.tick_params(which="both", colors=INK, labelsize=9, length=0)
    for name, spine in axes.spines.items():
        spine.set_visible(name in ("left", "bottom"))
        spine.set_color("#bbbbbb")


def _plain(value: float, _position: float = 0.0) -> str:
    return f"{value:g}"


def _thousands(value: float, _position: float = 0.0) -> str:
    return f"{value / 1000:g}k" if abs(value) >= 10_000 else f"{value:g}"


def _few(axes: Any) -> Any:
    """A formatter with labels between the powers of ten, if few powers of ten are in view."""

    def label(value: float, _position: float = 0.0) -> str:
        low, high = axes.get_ylim()
        lead = round(value / 10.0 ** math.floor(math.log10(value)))
        shown = (2, 5) if high / low > 10.0 else (2, 3, 4, 5, 6, 8)
        return f"{value:g}" if lead in shown and high / low < 300.0 else ""

    return label


def _column(rows: Sequence[Row], name: str) -> Floats:
    return np.asarray([row.get(name, math.nan) for row in rows], dtype=np.float64)
