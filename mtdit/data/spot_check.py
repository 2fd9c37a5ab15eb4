"""Whether decoded frames look as the dataset's statistics say: a few of some episodes.

The mean of each colour over an episode survives lossy video; frames of another scene, or black
ones, have another mean. It is compared with the episode's own statistics in meta/episodes, else
with those of the whole dataset in meta/stats.json, which are often made up and only cause a line.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray

from mtdit.data.lerobot_dataset import Dataset
from mtdit.data.video_frames import SeekingFrames
from mtdit_robots.errors import UserError
from mtdit_runtime.recording.dataset_layout import STATS
from mtdit_runtime.recording.dataset_reader import EPISODES, table_files
from mtdit_runtime.recording.dataset_stats import sampled_rows

N_EPISODES, N_FRAMES = 24, 4  # at most so many episodes, and frames of each: a second of decoding
# Of 1. Compression, colour matrices and ranges change a mean by up to 0.03.
TOLERANCE = 0.08
# The mean of N_FRAMES frames misses that of the episode by a part of their spread.
OF_SPREAD = 0.25

Colour = NDArray[np.float64]  # (3,) means of red, green, blue, 0 to 1


def spot_check(dataset: Dataset, camera: str, frames: SeekingFrames) -> list[str]:
    """Lines about frames that do not look as meta/stats.json says. UserError when an episode's
    frames do not look as its own statistics say.

    PNGs are in the row that they belong to, so there is nothing to check.
    """
    if not dataset.is_video(camera):
        return []
    chosen = _evenly(len(dataset.episodes))
    known = _episode_means(dataset, camera)
    whole = _colour(dataset.stats.get(dataset.image_keys[camera], {}).get("mean"))
    if not known and whole is None:
        return []
    if known:
        for episode in filter(known.__contains__, chosen):
            _compare_episode(
                dataset, camera, episode, known[episode], _seen(frames, dataset, episode)
            )
        return []
    assert whole is not None
    return _compare_whole(dataset, camera, whole, [_seen(frames, dataset, e) for e in chosen])


@dataclass(frozen=True)
class _Seen:
    """What a few frames of an episode show."""

    mean: Colour
    spread: float  # of the means of these frames, the widest colour's

    def differs(self, expected: Colour) -> bool:
        away = float(np.abs(self.mean - expected).max())
        return away > TOLERANCE + OF_SPREAD * self.spread


def _seen(frames: SeekingFrames, dataset: Dataset, episode: int) -> _Seen:
    first, end = _rows(dataset, episode)
    middles = (np.arange(N_FRAMES) + 0.5) / N_FRAMES
    rows = np.unique(first + (middles * (end - first)).astype(np.int64))
    means = frames[rows].reshape(len(rows), -1, 3).mean(axis=1) / 255  # (F, 3)
    return _Seen(means.mean(axis=0), float(np.ptp(means, axis=0).max()))


def _compare_episode(
    dataset: Dataset, camera: str, episode: int, expected: Colour, seen: _Seen
) -> None:
    if seen.differs(expected):
        number = dataset.episodes[episode]["episode_index"]
        raise UserError(
            f"{dataset.root}: camera {camera!r} of episode {number} has a mean colour of "
            f"{_text(seen.mean)} in its video, but {_text(expected)} in {EPISODES}, so the frames "
            "may be another episode's; copy or merge the dataset again, or, if the videos were "
            "changed on purpose, add --no-check-frames"
        )


def _compare_whole(
    dataset: Dataset, camera: str, expected: Colour, seen: Sequence[_Seen]
) -> list[str]:
    means = np.stack([s.mean for s in seen])
    whole = _Seen(means.mean(axis=0), max(float(np.ptp(means, axis=0).max()), seen[0].spread))
    if not whole.differs(expected):
        return []
    return [
        f"warning: camera {camera!r} has a mean colour of {_text(whole.mean)} in its videos, but "
        f"{_text(expected)} in {dataset.root / STATS}: look at the videos, or correct that file"
    ]


def _evenly(count: int) -> list[int]:
    """At most N_EPISODES of `count` episodes, the first and the last included."""
    return np.unique(np.linspace(0, count - 1, min(count, N_EPISODES)).round().astype(int)).tolist()


def _rows(dataset: Dataset, episode: int) -> tuple[int, int]:
    ends = dataset.episode_ends
    return int(ends[episode - 1]) if episode else 0, int(ends[episode])


def _episode_means(dataset: Dataset, camera: str) -> dict[int, Colour]:
    """Position of an episode -> its mean in meta/episodes, where it is that of these frames."""
    key = f"stats/{dataset.image_keys[camera]}"
    found: dict[int, Mapping[str, Any]] = {}
    for file in table_files(dataset.root, EPISODES):
        names = pq.read_schema(file).names
        wanted = [n for n in ("episode_index", f"{key}/mean", f"{key}/count") if n in names]
        for line in pq.read_table(file, columns=wanted).to_pylist():
            found[int(line["episode_index"])] = line
    means: dict[int, Colour] = {}
    for position, episode in enumerate(dataset.episodes):
        line = found.get(int(episode["episode_index"]), {})
        first, end = _rows(dataset, position)
        mean = _colour(line.get(f"{key}/mean"))
        if mean is not None and _of_all(line.get(f"{key}/count"), end - first):
            means[position] = mean
    made_up = len(means) > 1 and all(
        np.array_equal(m, next(iter(means.values()))) for m in means.values()
    )
    return {} if made_up else means


def _of_all(count: Any, n_frames: int) -> bool:
    """Whether statistics are those of an episode with so many frames: those of a longer one were
    made before rows were cut out of the tables.
    """
    if count is None:
        return True
    counted = int(np.asarray(count).reshape(-1)[0])
    return counted in (n_frames, len(sampled_rows(n_frames)))


def _colour(mean: Any) -> Colour | None:
    """A mean of statistics as (3,), 0 to 1; None when there is none that can be used."""
    try:
        values = np.array([float(v) for v in np.ravel(np.array(mean, dtype=object))], np.float64)
    except (TypeError, ValueError):
        return None
    if values.shape != (3,) or not np.isfinite(values).all():
        return None
    return values / 255 if values.max() > 1 else values


def _text(colour: Colour) -> str:
    return "(" + ", ".join(f"{value:.2f}" for value in colour) + ")"
