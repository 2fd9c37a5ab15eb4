"""curves.png: drawn from a log alone, whatever state the log is in."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from mtdit.training.plots import plot_curves, read_log, smoothed


def report(step: int, **changes: Any) -> dict[str, Any]:
    return {
        "step": step,
        "loss": 1.0 / step,
        "lr": 1e-5,
        "samples_per_s": 9.0,
        "data_wait": 0.1,
        **changes,
    }


def write(log: Path, rows: list[dict[str, Any]], tail: str = "") -> Path:
    log.write_text("".join(json.dumps(row) + "\n" for row in rows) + tail)
    return log


def colours(png: Path, hex_colour: str) -> int:
    """Pixels of about this colour."""
    image = cv2.imread(str(png))
    want = np.array([int(hex_colour[i : i + 2], 16) for i in (5, 3, 1)])
    return int((np.abs(image.astype(int) - want).max(axis=-1) < 12).sum())


def test_every_curve_is_in_the_picture(tmp_path: Path) -> None:
    from mtdit.training.plots import HELD_OUT, LOSS, RATE, SPEED, WAIT

    rows = [report(step) for step in range(1, 60)] + [
        {"step": 20, "val_loss": 0.3, "best": True},
        {"step": 40, "val_loss": 0.5, "best": False},
    ]
    plot_curves(write(tmp_path / "log", rows), tmp_path / "all.png")
    for colour in (LOSS, HELD_OUT, RATE, SPEED, WAIT):
        assert colours(tmp_path / "all.png", colour) > 200, colour
    plot_curves(write(tmp_path / "log", rows[:59]), tmp_path / "none.png")
    assert colours(tmp_path / "none.png", HELD_OUT) == 0
    assert [p.name for p in tmp_path.glob(".*")] == []


def test_the_best_validation_is_marked(tmp_path: Path) -> None:
    from mtdit.training.plots import HELD_OUT

    rows = [report(step) for step in range(1, 60)]
    for name, best in (("marked", True), ("plain", False)):
        at = {"step": 20, "val_loss": 0.3, "best": best}
        plot_curves(write(tmp_path / name, [*rows, at]), tmp_path / f"{name}.png")
    assert (
        colours(tmp_path / "marked.png", HELD_OUT) > colours(tmp_path / "plain.png", HELD_OUT) + 30
    )


@pytest.mark.parametrize(
    "rows",
    [
        [report(1)],
        [report(1, loss=0.0), report(2, loss=0.0)],
        [report(1), report(2, loss=math.nan), report(3, loss=math.inf)],
        [report(s, lr=0.0, data_wait=0.0) for s in (1, 2)],
        [{"step": 1, "loss": 0.5}],
    ],
    ids=["one", "zero", "not finite", "flat", "only the loss"],
)
def test_odd_logs_are_drawn_too(rows: list[dict[str, Any]], tmp_path: Path) -> None:
    plot_curves(write(tmp_path / "log", rows), tmp_path / "odd.png")
    assert cv2.imread(str(tmp_path / "odd.png")).std() > 1


def test_nothing_to_draw_nothing_written(tmp_path: Path) -> None:
    plot_curves(tmp_path / "missing", tmp_path / "no.png")
    plot_curves(
        write(tmp_path / "log", [{"step": 1, "val_loss": 0.5, "best": True}]), tmp_path / "no.png"
    )
    assert not (tmp_path / "no.png").exists()


def test_a_line_cut_short_is_left_out_a_broken_one_is_not(tmp_path: Path) -> None:
    log = write(tmp_path / "log", [report(1), report(2)], tail='{"step": 3, "lo')
    assert [row["step"] for row in read_log(log)] == [1, 2]
    log.write_text("no log\n")
    with pytest.raises(ValueError, match="Expecting value"):
        plot_curves(log, tmp_path / "no.png")


def test_smoothing_keeps_a_constant_and_passes_over_gaps() -> None:
    level = np.array([2.0, math.nan, 2.0, 2.0, math.inf, 2.0])
    assert np.allclose(smoothed(level, 1.0), 2.0)
    wave = np.tile([0.0, 1.0], 50)
    assert smoothed(wave, 4.0)[20:80].std() < 0.01
    ramp = np.arange(100.0)
    assert np.allclose(smoothed(ramp, 3.0)[10:90], ramp[10:90])  # no lag
    assert np.isnan(smoothed(np.array([math.nan]), 1.0)).all()
