"""A session's phases: what a key, a timer, a slow disk and an interruption do to episodes. No
robot, no clock.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from mtdit_robots.errors import UserError
from mtdit_robots.robot import Observation
from mtdit_robots.so101.joints import JOINTS
from mtdit_runtime.control.report import Tick
from mtdit_runtime.control.safety import Stop
from mtdit_runtime.recording.dataset_layout import DatasetLayout
from mtdit_runtime.recording.dataset_writer import DatasetWriter
from mtdit_runtime.recording.session import Session, SessionConfig

FPS = 10
PLAN = SessionConfig("open the drawer", episodes=2, episode_s=1.0, reset_s=0.5, ready_s=0.3)


class Rehearsal:
    """A session fed by hand: one tick after the other, keys where the test says so."""

    def __init__(self, root: Path, plan: SessionConfig = PLAN) -> None:
        self.keys: list[str] = []
        self.said: list[str] = []
        self.recording = DatasetWriter(
            root, DatasetLayout(FPS, JOINTS, {"top": (16, 16)}), resume=True, wait=True
        )
        self.session = Session(
            self.recording, plan, lambda: self.keys.pop(0) if self.keys else None, self.said.append
        )
        self.ticks = 0

    def tick(self, count: int = 1, fresh: bool = True) -> None:
        for _ in range(count):
            frames = {"top": np.full((16, 16, 3), self.ticks % 250, np.uint8)}
            pose = np.full(6, float(self.ticks))
            seen = Observation(pose, frames, {"top": 0.0}, 0.0)
            self.session(
                Tick(self.ticks, self.ticks / FPS, seen, pose, pose + 1, -1, -1, -1, fresh, 0.0)
            )
            self.ticks += 1

    def key(self, name: str) -> None:
        self.keys.append(name)
        self.tick()

    def until(self, words: str) -> None:
        """Tick until the screen's line begins so; writing an episode takes as long as it takes."""
        for _ in range(100_000):
            if self.session.status().startswith(words):
                return
            self.tick()
            if self.session._writing is not None:
                self.session._writing.exception()  # a real tick would take its time
        raise AssertionError(self.session.status())

    def finish(self) -> None:
        with pytest.raises(Stop, match="duration"):
            self.until("never")
        self.session.close()


@pytest.fixture
def rehearsal(tmp_path: Path) -> Iterator[Rehearsal]:
    return Rehearsal(tmp_path / "set")


def lengths(root: Path) -> list[int]:
    import pyarrow.parquet as pq

    files = sorted((root / "data").glob("chunk-*/file-*.parquet"))
    return [pq.read_metadata(file).num_rows for file in files]


def test_timers_alone(rehearsal: Rehearsal, tmp_path: Path) -> None:
    rehearsal.finish()
    stats = rehearsal.session.stats
    assert (stats.kept, stats.frames, stats.discarded, stats.interrupted) == (
        2,
        20,
        0,
        False,
    )
    assert lengths(tmp_path / "set") == [10, 10]
    assert [line for line in rehearsal.said if "saved" in line] == [
        "episode 1 saved: 1.0 s, 10 frames",
        "episode 2 saved: 1.0 s, 10 frames",
    ]
    assert json.loads((tmp_path / "set/meta/info.json").read_text())["total_frames"] == 20


def test_a_dataset_keeps_one_task_for_both_forms_of_an_accent(tmp_path: Path) -> None:
    """Recorded on a computer whose keyboard writes accents as characters of their own."""
    stored, typed = "ouvre le caf\u0065\u0301", "ouvre le caf\u00e9"
    for task in (stored, typed):
        plan = SessionConfig(task, episodes=1, episode_s=0.5, reset_s=0.1, ready_s=0.1)
        session = Rehearsal(tmp_path / "set", plan)
        session.finish()
        assert list(session.recording.tasks) == [stored]


def test_nothing_is_recorded_before_the_arm_has_arrived(rehearsal: Rehearsal) -> None:
    rehearsal.key("enter")
    assert rehearsal.session.status().startswith("pause before episode 1")
    rehearsal.until("RECORDING")
    assert rehearsal.ticks == 4
    rehearsal.session.close()
    assert rehearsal.session.stats.interrupted


def test_a_key_ends_an_episode_and_a_pause(rehearsal: Rehearsal, tmp_path: Path) -> None:
    rehearsal.until("RECORDING episode 1")
    rehearsal.tick(4)
    rehearsal.key("right")
    rehearsal.until("pause before episode 2")
    rehearsal.key("enter")
    assert rehearsal.session.status().startswith("RECORDING episode 2")
    rehearsal.finish()
    assert lengths(tmp_path / "set") == [5, 10]


@pytest.mark.parametrize("key", ["left", "r"])
def test_an_episode_once_more(rehearsal: Rehearsal, tmp_path: Path, key: str) -> None:
    rehearsal.until("RECORDING episode 1")
    rehearsal.tick(4)
    rehearsal.key(key)
    rehearsal.until("RECORDING episode 1")
    rehearsal.finish()
    assert lengths(tmp_path / "set") == [10, 10]
    assert rehearsal.session.stats.discarded == 1


def test_the_last_episode_taken_back_in_the_pause(rehearsal: Rehearsal, tmp_path: Path) -> None:
    rehearsal.until("RECORDING episode 1")
    rehearsal.tick(4)
    rehearsal.key("n")
    rehearsal.keys.append("r")
    rehearsal.until("pause before episode 1")
    rehearsal.finish()
    assert lengths(tmp_path / "set") == [10, 10]
    assert (rehearsal.session.stats.kept, rehearsal.session.stats.discarded) == (2, 1)


def test_enough_keeps_the_episode_under_way(rehearsal: Rehearsal, tmp_path: Path) -> None:
    rehearsal.until("RECORDING episode 1")
    rehearsal.tick(5)
    rehearsal.key("escape")
    rehearsal.finish()
    assert lengths(tmp_path / "set") == [6]


def test_a_key_hit_twice_is_no_episode(rehearsal: Rehearsal) -> None:
    rehearsal.until("RECORDING episode 1")
    rehearsal.key("right")
    assert rehearsal.session.status().startswith("pause before episode 1")
    rehearsal.session.close()
    assert "episode 1 discarded: 1 frames are too few" in rehearsal.said
    assert not rehearsal.recording.root.exists()


def test_old_pictures_are_told(rehearsal: Rehearsal) -> None:
    rehearsal.until("RECORDING episode 1")
    rehearsal.tick(3, fresh=False)
    rehearsal.finish()
    assert rehearsal.session.stats.stale_frames == 3
    assert any("3 frames were stale" in line for line in rehearsal.said)


@pytest.mark.parametrize(
    ("plan", "words"),
    [
        (SessionConfig("  ", 1), "the task is empty"),
        (
            SessionConfig("open", 1, episode_s=0.2),
            "an episode of 0.2 s at 10 Hz is too short: use 0.3 s or more",
        ),
        (SessionConfig("open", 1, episode_s=0.0), "use 0.3 s or more"),
    ],
)
def test_a_plan_that_keeps_nothing_is_refused(
    tmp_path: Path, plan: SessionConfig, words: str
) -> None:
    with pytest.raises(UserError, match=words):
        Rehearsal(tmp_path / "set", plan)
    assert plan.fewest_frames(1) == 2, "one frame has no spread"


def test_a_loop_that_is_too_slow_is_told(rehearsal: Rehearsal) -> None:
    """Frames are marked with the asked rate: at half of it, a policy would learn to move twice as
    fast.
    """
    rehearsal.until("RECORDING episode 1")
    for _ in range(6):
        rehearsal.tick()
        rehearsal.ticks += 1  # the next one comes a period late
    rehearsal.finish()
    assert rehearsal.session.stats.slow_episodes == 1
    (line,) = (line for line in rehearsal.said if "the loop ran at" in line)
    assert "the loop ran at 6.3 Hz instead of 10 Hz" in line


def test_an_encoder_that_fails_in_an_episode_is_told_at_once(
    rehearsal: Rehearsal, tmp_path: Path
) -> None:
    rehearsal.until("pause before episode 2")
    (
        tmp_path / "set/.recording/top.mp4"
    ).mkdir()  # where the next film would go: as good as no room
    with pytest.raises(
        UserError, match=r"cannot write to .*: free some disk space, then continue with --resume"
    ):
        rehearsal.until("pause before episode 3")
    rehearsal.session.close()
    assert json.loads((tmp_path / "set/meta/info.json").read_text())["total_episodes"] == 1


def test_a_full_disk_ends_the_session_and_leaves_what_was_there(
    rehearsal: Rehearsal, tmp_path: Path
) -> None:
    rehearsal.until("RECORDING episode 2")
    (
        tmp_path / "set/data/chunk-000/file-001.parquet"
    ).mkdir()  # where the next file would go: as good as no room
    with pytest.raises(
        UserError, match=r"cannot write to .*: free some disk space, then continue with --resume"
    ):
        rehearsal.until("pause before episode 3")
    rehearsal.session.close()
    assert json.loads((tmp_path / "set/meta/info.json").read_text())["total_episodes"] == 1
