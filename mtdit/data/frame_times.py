"""Which frame of a video belongs to which row: the one at the row's own time, as in LeRobot.

LeRobot takes the frame nearest to from_timestamp + timestamp if it is within `tolerance_s`
(lerobot/datasets/video_utils.py). It compares in float32, which is coarser than its tolerance after
an hour; here the rounding of float32 and of the container's clock is allowed for.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mtdit_robots.errors import UserError
from mtdit_runtime.recording.dataset_videos import open_video

TOLERANCE_S = 1e-4  # LeRobot's
# A container that counts milliseconds rounds by up to half of one. A coarser clock, as that of AVI
# files, counts frames and rounds nothing.
COARSEST_ROUNDING_S = 5e-4


@dataclass(frozen=True)
class Clock:
    """The times at which a video shows its frames."""

    stamps: NDArray[np.int64]  # (F,) ascending, in ticks
    tick_s: float

    @property
    def times(self) -> NDArray[np.float64]:
        """(F,) in seconds."""
        return self.stamps.astype(np.float64) * self.tick_s

    @property
    def period(self) -> float:
        """Usual number of ticks from one frame to the next."""
        return float(np.median(np.diff(self.stamps))) if len(self.stamps) > 1 else math.inf


@dataclass(frozen=True)
class Match:
    """The frames nearest to the wanted times."""

    number: NDArray[np.int64]  # (R,) of the frame in the video
    away_s: NDArray[np.float64]  # (R,) how far it is from the wanted time
    found: NDArray[np.bool_]  # (R,) within the tolerance


def read_clock(path: Path) -> Clock:
    """Reads the packets of a video; decodes nothing. UserError when there is no video."""
    import av

    try:
        with open_video(path) as file:
            stream = file.streams.video[0]
            stamps = [p.pts for p in file.demux(stream) if p.pts is not None and not p.is_discard]
            tick = stream.time_base
    except (av.error.FFmpegError, OSError, IndexError) as error:
        raise not_decodable(path, error) from None
    if not stamps or tick is None:
        raise UserError(f"{path} cannot be decoded (it has no frames); copy the dataset again")
    return Clock(np.unique(np.array(stamps, np.int64)), float(tick))


def match(clock: Clock, wanted: NDArray[np.float64], tolerance_s: float) -> Match:
    """The frame nearest to each time (R,), in seconds; of two as near, the earlier."""
    times = clock.times
    after = np.searchsorted(times, wanted).clip(0, len(times) - 1)
    before = (after - 1).clip(0)
    number = np.where(wanted - times[before] <= times[after] - wanted, before, after)
    away = np.abs(times[number] - wanted)
    with np.errstate(invalid="ignore", over="ignore"):
        rounding = np.spacing(np.abs(wanted).astype(np.float32)).astype(np.float64)
    allowed = tolerance_s + rounding + min(clock.tick_s / 2, COARSEST_ROUNDING_S)
    return Match(number.astype(np.int64), away, away <= allowed)


def not_decodable(path: Path, error: Any) -> UserError:
    """The error for a video that PyAV cannot read."""
    return UserError(f"{path} cannot be decoded ({error}); copy the dataset again")
