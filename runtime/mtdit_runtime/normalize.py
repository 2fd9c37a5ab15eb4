"""Normalisation of states and actions, shared by training, export and the robot.

Follows LeRobot's three modes and their exact numerics; source: LeRobot
`processor/normalize_processor.py`. Images are normalised inside the vision graph.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike, NDArray

from mtdit_robots.errors import UserError
from mtdit_runtime.text import first_line

Array = NDArray[np.float32]
MODES = ("MIN_MAX", "MEAN_STD", "IDENTITY")
EPS = 1e-8  # LeRobot's value; also used as the range of a dimension that never moved


@dataclass(frozen=True)
class Stats:
    """Normalisation of one feature. `low`, `high` are (min, max) for MIN_MAX and (mean, std) for
    MEAN_STD, (D,) each.

    The arithmetic is float32 as in LeRobot, so a round trip has float32 error. Inputs outside the
    training range are not clamped.
    """

    mode: str
    low: Array  # (D,)
    high: Array  # (D,)

    def __post_init__(self) -> None:
        if self.mode not in MODES:
            raise UserError(
                f"normalisation mode {self.mode!r} is unknown: use one of {', '.join(MODES)}"
            )
        if self.low.shape != self.high.shape:
            raise UserError(
                f"normalisation statistics differ in shape: {self.low.shape} and {self.high.shape}"
            )

    @classmethod
    def of(cls, mode: str, stats: Mapping[str, ArrayLike]) -> Stats:
        """From LeRobot's statistics of one feature, {"min": (D,), "max": (D,), "mean": (D,), "std":
        (D,)}. UserError when one that the mode needs is missing.
        """
        names = {"MIN_MAX": ("min", "max"), "MEAN_STD": ("mean", "std")}.get(mode, ("min", "min"))
        missing = [name for name in names if name not in stats]
        if missing:
            raise UserError(
                f"statistics lack {missing[0]!r}, which {mode} needs: "
                "recompute the dataset's meta/stats.json"
            )
        low, high = (np.atleast_1d(np.asarray(stats[name], np.float32)) for name in names)
        return cls(mode, low, high)

    @property
    def is_finite(self) -> bool:
        """Whether `low` and `high` are finite; IDENTITY does not use them."""
        return self.mode == "IDENTITY" or bool(np.isfinite([self.low, self.high]).all())

    def normalize(self, x: ArrayLike) -> Array:
        """(..., D) in units -> (..., D) normalised."""
        x = np.asarray(x, np.float32)
        if self.mode == "MIN_MAX":
            return np.float32(2) * (x - self.low) / self._span() - np.float32(1)
        if self.mode == "MEAN_STD":
            return (x - self.low) / (self.high + np.float32(EPS))
        return x

    def unnormalize(self, x: ArrayLike) -> Array:
        """(..., D) normalised -> (..., D) in units. MEAN_STD has no eps here, as in LeRobot."""
        x = np.asarray(x, np.float32)
        if self.mode == "MIN_MAX":
            return (x + np.float32(1)) / np.float32(2) * self._span() + self.low
        if self.mode == "MEAN_STD":
            return x * self.high + self.low
        return x

    def _span(self) -> Array:
        span = self.high - self.low
        return np.where(span == 0, np.float32(EPS), span)


def save_stats(path: Path, stats: Mapping[str, Stats]) -> None:
    """Write feature -> Stats as safetensors, with the modes in the file's metadata."""
    from safetensors.numpy import save

    arrays = {
        f"{name}.{side}": getattr(s, side) for name, s in stats.items() for side in ("low", "high")
    }
    path.write_bytes(save(arrays, metadata={name: s.mode for name, s in stats.items()}))


def load_stats(path: Path) -> dict[str, Stats]:
    """Read what `save_stats` wrote. UserError when the file is malformed."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(str(path), framework="numpy") as file:
            modes = file.metadata() or {}
            return {
                n: Stats(m, file.get_tensor(f"{n}.low"), file.get_tensor(f"{n}.high"))
                for n, m in modes.items()
            }
    except SafetensorError as error:
        raise UserError(
            f"{path} is malformed ({first_line(error)}): re-run `mtdit export`"
        ) from None
