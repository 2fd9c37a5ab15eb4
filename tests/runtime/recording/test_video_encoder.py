"""An encoder that lags or fails."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import numpy as np
import pytest

from mtdit_runtime.recording.video_encoder import Encoding, PngSink


class Slow:
    """Writes nothing until told to."""

    def __init__(self) -> None:
        self.go, self.written = threading.Event(), list[int]()

    def write(self, frame: np.ndarray) -> None:
        self.go.wait(60)
        self.written.append(int(frame[0, 0, 0]))

    def close(self) -> None:
        return None


@pytest.fixture
def slow() -> Iterator[Slow]:
    sink = Slow()
    yield sink
    sink.go.set()


def frame(value: int) -> np.ndarray:
    return np.full((16, 16, 3), value, np.uint8)


def test_frames_that_find_no_room_are_counted_and_their_places_filled(slow: Slow) -> None:
    encoding = Encoding(lambda: slow, waiting=3)
    for i in range(10):
        encoding.add(frame(i))
    assert encoding.repeated >= 6
    slow.go.set()
    encoding.finish()
    assert len(slow.written) == len(encoding.counts) == 10, "row i is frame i"
    shown = slow.written[: 10 - encoding.repeated]
    assert shown == list(range(len(shown)))
    assert slow.written[len(shown) :] == [shown[-1]] * encoding.repeated


def test_what_encoding_raises_reaches_whoever_records() -> None:
    def broken() -> PngSink:
        raise OSError("no space left")

    encoding = Encoding(broken)
    encoding.add(frame(1))
    with pytest.raises(OSError, match="no space left"):
        encoding.finish()
