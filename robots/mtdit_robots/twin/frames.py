"""Camera frames in memory that two processes share, without locks and files.

Each camera has two slots that are written alternately, so the newest frame stays intact while the
next one is written.
"""

from __future__ import annotations

import mmap
import os
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

Frame = NDArray[np.uint8]  # (H, W, 3) RGB

FIRST_FRAME_S = 30.0


def new_memory() -> int:
    """A file descriptor of anonymous memory, freed with the last process that holds it."""
    return os.memfd_create("mtdit-twin-frames")


class SharedFrames:
    """The frames of several cameras of one size. One process publishes, any number may read.

    fd: from `new_memory`, possibly inherited. image_size: (height, width).
    """

    def __init__(self, fd: int, cameras: Sequence[str], image_size: tuple[int, int]) -> None:
        slot = [("tick", "<i8"), ("time_s", "<f8"), ("pixels", "u1", (*image_size, 3))]
        layout = np.dtype(
            [("count", "<i8"), ("slots", np.dtype(slot, align=True), (2,))], align=True
        )
        size = layout.itemsize * len(cameras)
        if os.fstat(fd).st_size < size:
            os.ftruncate(fd, size)
        self.cameras, self.image_size = tuple(cameras), image_size
        self._records: NDArray[Any] = np.frombuffer(mmap.mmap(fd, size), layout)

    def publish(self, camera: str, pixels: Frame, tick: int, time_s: float) -> None:
        """Make this frame the latest one. time_s: `time.monotonic()` of its capture, which is the
        same clock in every process.
        """
        record = self._records[self.cameras.index(camera)]
        count = int(record["count"])
        record["slots"][count % 2] = (tick, time_s, pixels)
        record["count"] = count + 1

    def read(self, camera: str) -> tuple[Frame, int, float]:
        """The latest frame, its tick and its capture time.

        Waits for the very first frame; OSError if none arrives.
        """
        record = self._records[self.cameras.index(camera)]
        deadline_s = time.monotonic() + FIRST_FRAME_S
        while time.monotonic() < deadline_s:
            count = int(record["count"])
            if count == 0:
                time.sleep(0.005)
                continue
            slot = record["slots"][(count - 1) % 2].copy()
            if int(record["count"]) == count:  # otherwise the writer may be in this slot again
                return slot["pixels"], int(slot["tick"]), float(slot["time_s"])
        raise OSError(f"twin camera {camera!r} gave no frame within {FIRST_FRAME_S:g} s")


class TwinCamera:
    """A `Camera` that reads shared frames. In lock-step the age is 0, because the simulation waits
    for the client. called: the camera's name in observations; None: its own.
    """

    def __init__(
        self, name: str, frames: SharedFrames, lockstep: bool, called: str | None = None
    ) -> None:
        self.name, self._source = called or name, name
        self.height, self.width = frames.image_size
        self._frames, self._lockstep = frames, lockstep

    def read(self) -> tuple[Frame, float]:
        pixels, _, time_s = self._frames.read(self._source)
        return pixels, 0.0 if self._lockstep else time.monotonic() - time_s

    def close(self) -> None:
        """Nothing to release: the memory belongs to the twin."""
