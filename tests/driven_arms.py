"""A leader and a follower of virtual servos, and a film as camera."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from repository import EXAMPLE

from mtdit_runtime.recording.video_encoder import CODECS, VideoSink

if TYPE_CHECKING:
    from servo_chain import Chain

TIMEOUT_S = 300.0
HEIGHT, WIDTH = 48, 64
TASK = "put the cube into the box"
EPISODE_S = 1.5  # before a key: long enough to be an episode

Start = Callable[..., Any]
Refused = Callable[..., str]


@pytest.fixture
def film(tmp_path: Path) -> Path:
    """A second of a brightening picture, 30 frames."""
    path = tmp_path / "clip.mp4"
    sink = VideoSink(path, 30, HEIGHT, WIDTH, CODECS["h264"])
    for i in range(30):
        sink.write(np.full((HEIGHT, WIDTH, 3), 60 + 4 * i, np.uint8))
    sink.close()
    return path


@dataclass(frozen=True)
class Words:
    """The options every command here shares."""

    leader: Chain
    follower: Chain
    film: Path

    def arms(self) -> tuple[str, ...]:
        leading = ("--leader-port", self.leader.port, "--leader-calibration", str(EXAMPLE))
        return (*leading, *self.arm(), "--bus-timeout", "2")

    def arm(self) -> tuple[str, ...]:
        return (
            "--port",
            self.follower.port,
            "--calibration",
            str(EXAMPLE),
            "--home-seconds",
            "0.2",
        )

    def camera(self) -> tuple[str, ...]:
        return ("--camera", f"top=file:{self.film}", "--height", str(HEIGHT), "--width", str(WIDTH))


@pytest.fixture
def words(leader: Chain, chain: Chain, film: Path) -> Words:
    return Words(leader, chain, film)


def assert_limp(*chains: Chain) -> None:
    assert not any(servo.torque_enabled for each in chains for servo in each.servos.values())


def wait_for(happened: Callable[[], bool]) -> None:
    for _ in range(900):
        if happened():
            return
        time.sleep(0.1)
    raise AssertionError("it did not happen in 90 s")
