"""Terminal output: progress bars, tables and a small picture for people, JSON for scripts."""

from __future__ import annotations

import json
import math
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.text import Text


def rank() -> int:
    """Rank of this training process, as `accelerate launch` and `torchrun` set it; only rank 0
    prints.
    """
    return int(os.environ.get("RANK", 0))


console = Console(markup=False, highlight=False, soft_wrap=True)
COLOURS = {"ok": "green", "warn": "yellow", "fail": "red"}


def progress(words: str = "{task.description}") -> Progress:
    """A progress bar with count, elapsed time and remaining time."""
    columns = (
        TextColumn(words),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    return Progress(*columns, console=console)


def write_json(where: Path | None, value: Any) -> None:
    """Write `value` as JSON to the file, to standard output for "-", or nowhere for None. NaN and
    infinity become null, because JSON has neither.
    """
    if where is None:
        return
    text = json.dumps(_finite(value), indent=2, allow_nan=False) + "\n"
    if str(where) == "-":
        sys.stdout.write(text)
    else:
        where.parent.mkdir(parents=True, exist_ok=True)
        where.write_text(text)


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def picture(frame: NDArray[np.uint8], columns: int = 72) -> Text:
    """A picture of half-block characters from (H, W, 3) uint8. Each character shows two pixels, one
    above the other, which keeps the aspect ratio.
    """
    height, width, _ = frame.shape
    rows = max(2, round(columns * height / width)) // 2 * 2
    y, x = np.arange(rows) * height // rows, np.arange(columns) * width // columns
    small = frame[y][:, x]  # (rows, columns, 3)
    text = Text()
    for upper, lower in zip(small[0::2], small[1::2], strict=True):
        for above, below in zip(upper, lower, strict=True):
            text.append("▀", style=f"rgb({_rgb(above)}) on rgb({_rgb(below)})")
        text.append("\n")
    return text


def _rgb(pixel: NDArray[np.uint8]) -> str:
    return ",".join(str(int(v)) for v in pixel)
