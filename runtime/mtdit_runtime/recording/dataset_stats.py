"""Statistics of a dataset as LeRobot stores them: per episode, and merged over episodes.

They are min, max, mean, std, count and five quantiles, of vectors and of images. Images are not
kept: 256 bins per channel hold all that is needed. Source: LeRobot `datasets/compute_stats.py`.
Its quantiles come from 5000 bins, these are exact within one episode; over episodes both are
averages of the episodes' quantiles, weighted by count.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

# min, max, mean, std and q01 .. q99, all of one shape, and count (1,)
Stats = dict[str, NDArray[np.float64]]
Counts = NDArray[np.int64]  # (3, 256) per channel, how many pixels have each value

QUANTILES = {"q01": 0.01, "q10": 0.10, "q50": 0.50, "q90": 0.90, "q99": 0.99}
NAMES = ("min", "max", "mean", "std", "count", *QUANTILES)
NEEDED = {"min", "max", "mean", "std", "count"}  # LeRobot wrote no quantiles before 0.4
LONG_SIDE, SHORT_TARGET = 300, 150  # pixels: larger images are subsampled


def vector_stats(rows: ArrayLike) -> Stats:
    """Statistics of (N, D) or (N,) numbers; each of shape (D,) or (1,)."""
    table = np.asarray(rows, np.float64).reshape(len(np.asarray(rows)), -1)  # (N, D)
    low, high = table.min(0), table.max(0)
    stats = {
        "min": low,
        "max": high,
        "mean": table.mean(0),
        "std": table.std(0),
        "count": np.array([len(table)]),
    }
    quantiles = np.quantile(table, list(QUANTILES.values()), axis=0, method="inverted_cdf")
    return stats | dict(zip(QUANTILES, quantiles, strict=True))


def pixel_counts(frame: NDArray[np.uint8]) -> Counts:
    """Histogram per channel, (H, W, 3) -> (3, 256). Large images are subsampled as in LeRobot."""
    height, width = frame.shape[:2]
    if max(height, width) >= LONG_SIDE:
        step = (width if width > height else height) // SHORT_TARGET
        frame = frame[::step, ::step]
    return np.stack(
        [np.bincount(frame[..., channel].ravel(), minlength=256) for channel in range(3)]
    )


def sampled_rows(n_frames: int) -> list[int]:
    """Frames used for the statistics: all of a short episode, LeRobot's sample of a long one."""
    n_samples = max(min(n_frames, 100), min(int(n_frames**0.75), 10_000))
    return [int(row) for row in np.round(np.linspace(0, n_frames - 1, n_samples))]


def image_stats(counts: Sequence[Counts]) -> Stats:
    """Statistics of one episode's frames, each (3, 1, 1), in 0..1. count: sampled frames."""
    rows = sampled_rows(len(counts))
    histogram = np.sum([counts[row] for row in rows], axis=0)  # (3, 256)
    channels = [_histogram_stats(channel) for channel in histogram]
    stats = {name: np.array([c[name] for c in channels]).reshape(3, 1, 1) for name in channels[0]}
    return stats | {"count": np.array([len(rows)])}


def _histogram_stats(histogram: NDArray[np.int64]) -> dict[str, float]:
    values = np.arange(256) / 255
    total, seen = histogram.sum(), np.flatnonzero(histogram)
    mean = float(histogram @ values / total)
    std = float(np.sqrt(histogram @ (values - mean) ** 2 / total))
    below = np.cumsum(histogram)
    quantiles = {
        name: values[np.searchsorted(below, share * total)] for name, share in QUANTILES.items()
    }
    return {"min": values[seen[0]], "max": values[seen[-1]], "mean": mean, "std": std, **quantiles}


def merged(parts: Sequence[Stats]) -> Stats:
    """Statistics of several episodes: min, max, mean and std are exact, quantiles are averages
    weighted by count.
    """
    count = np.array([float(part["count"][0]) for part in parts])

    def weighted(name: str) -> NDArray[np.float64]:
        return np.average(
            np.stack([np.asarray(part[name], np.float64) for part in parts]), axis=0, weights=count
        )

    mean = weighted("mean")
    spread = [
        np.asarray(part["std"]) ** 2 + (np.asarray(part["mean"]) - mean) ** 2 for part in parts
    ]
    return {
        "min": np.min([part["min"] for part in parts], axis=0),
        "max": np.max([part["max"] for part in parts], axis=0),
        "mean": mean,
        "std": np.sqrt(np.average(np.stack(spread), axis=0, weights=count)),
        "count": np.array([int(count.sum())]),
        **{name: weighted(name) for name in QUANTILES if all(name in part for part in parts)},
    }


def to_lists(stats: Mapping[str, Stats]) -> dict[str, dict[str, list[object]]]:
    """As lists for JSON and parquet: count as int, everything else as float."""
    return {
        feature: {
            name: np.asarray(values[name], np.int64 if name == "count" else np.float64).tolist()
            for name in NAMES
            if name in values
        }
        for feature, values in stats.items()
    }
