"""Recording from Python, on the twin: what `mtdit record` does, without a terminal."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from repository import EXAMPLE

from mtdit_robots.errors import UserError
from mtdit_robots.so101.calibration import load
from mtdit_robots.so101.joints import JOINTS
from mtdit_robots.so101.leader import So101Leader
from mtdit_robots.twin.client import Twin
from mtdit_runtime.record import RecordOptions, record
from mtdit_runtime.recording.dataset_layout import RECORDER
from mtdit_runtime.recording.dataset_reader import RecordedEpisode, read_episode
from mtdit_runtime.replay import replay
from mtdit_runtime.teleoperate import DriveOptions, LiveStatus, teleoperate

TASK = "open the drawer"
OPTIONS = RecordOptions(episodes=2, episode_s=0.5, reset_s=0.1, lockstep=True, home_s=0.0)


class Nodding:
    """A leader arm that sways by 5 degrees."""

    joints = JOINTS

    def __init__(self) -> None:
        self.ticks, self.closed = 0, False

    def connect(self) -> None:
        self.pose = np.array([0.0, -90.0, 90.0, 60.0, 0.0, 20.0])

    def read(self) -> Any:
        self.ticks += 1
        return self.pose + 5 * np.sin(self.ticks / 10)

    def close(self) -> None:
        self.closed = True


def test_record_and_play_from_python(tmp_path: Path, capfd: Any) -> None:
    leader, status = Nodding(), LiveStatus(JOINTS)
    headlines: set[str] = set()

    def watch(tick: Any, headline: str) -> None:
        status(tick, headline)
        headlines.add(status.headline.split()[0].rstrip(","))

    with Twin(image_size=(64, 64), clock="lockstep") as twin:
        twin.reset(TASK, 3)
        robot = twin.robot()
        report, session = record(robot, leader, tmp_path / "set", TASK, OPTIONS, status=watch)
        assert (report.reason, session.kept, session.frames) == ("duration", 2, 30)
        assert session.episodes == 2
        assert leader.closed
        assert headlines == {"RECORDING", "pause"}
        assert [row[0] for row in status.rows()] == list(JOINTS)

        episode = read_episode(tmp_path / "set", 1)
        twin.reset(TASK, 3)
        replayed = replay(twin.robot(), episode, DriveOptions(lockstep=True, home_s=0.0))
    assert replayed.ticks == 15
    assert max(error["max"] for error in replayed.limited.values()) < 1e-4
    assert capfd.readouterr() == ("", "")


class NoddingInPercent(Nodding):
    def connect(self) -> None:
        self.pose = np.array([0.0, -70.0, 60.0, 50.0, 0.0, 20.0])


def test_record_and_play_normalized(tmp_path: Path) -> None:
    """As a LeRobot with use_degrees=false: the dataset says so, is played in that unit, and goes on
    in it.
    """
    options = replace(OPTIONS, episodes=1, units="normalized")
    root, again = tmp_path / "set", replace(options, resume=True, units=None)
    with Twin(image_size=(64, 64), clock="lockstep") as twin:
        twin.reset(TASK, 3)
        record(twin.robot(), NoddingInPercent(), root, TASK, options)
        assert json.loads((root / RECORDER).read_text()) == {"units": "normalized"}
        twin.reset(TASK, 3)
        played = replay(
            twin.robot(), read_episode(root, 0), DriveOptions(lockstep=True, home_s=0.0)
        )
        with pytest.raises(UserError, match=r"the recording is in normalized .*, not degrees"):
            replay(twin.robot(), read_episode(root, 0), DriveOptions(units="degrees"))
        with pytest.raises(UserError, match=r"is in normalized .*, not degrees: leave"):
            record(twin.robot(), NoddingInPercent(), root, TASK, replace(again, units="degrees"))
        _, session = record(twin.robot(), NoddingInPercent(), root, TASK, again)
    assert session.kept == 1
    assert played.ticks == 15
    assert max(error["max"] for error in played.limited.values()) < 1e-4
    assert max(error["mean"] for error in played.recorded.values()) < 2.0


def test_a_leader_arm_in_another_unit_is_refused(tmp_path: Path) -> None:
    leader = So101Leader("/dev/null", load(EXAMPLE))
    with Twin(image_size=(64, 64), clock="lockstep") as twin:
        options = replace(OPTIONS, units="normalized")
        with pytest.raises(UserError, match=r"leader reads in degrees.*use_degrees=False"):
            record(twin.robot(), leader, tmp_path / "set", TASK, options)


@pytest.mark.parametrize(
    ("task", "options", "message"),
    [
        (" ", OPTIONS, "the task is empty"),
        ("open\x1b[2J", OPTIONS, "contains the control character"),
        (TASK, RecordOptions(episode_s=0.1), "use 0.3 s or more"),
    ],
)
def test_a_session_that_cannot_be_recorded(
    task: str, options: RecordOptions, message: str, tmp_path: Path
) -> None:
    with Twin(image_size=(64, 64), clock="lockstep") as twin:
        leader = Nodding()
        with pytest.raises(UserError, match=message):
            record(twin.robot(), leader, tmp_path / "set", task, options)
    assert leader.closed
    assert not (tmp_path / "set").exists()


def test_a_task_is_recorded_in_one_form() -> None:
    """However the keyboard makes an accent; Persian needs its invisible joiner."""
    for typed in ("caf\u00e9", " cafe\u0301 "):
        assert RecordOptions().session(typed).task == "caf\u00e9"
    assert RecordOptions().session("می\u200cروم").task == "می\u200cروم"


class Unplugged(Nodding):
    def connect(self) -> None:
        raise UserError("the leader does not answer")


def test_both_arms_are_closed_when_the_leader_cannot_be_connected(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The follower's cameras have been open since it was made."""
    leader, closed = Unplugged(), []
    with Twin(image_size=(64, 64), clock="lockstep") as twin:
        robot = twin.robot()
        monkeypatch.setattr(robot, "close", lambda: closed.append(robot))
        with pytest.raises(UserError, match="does not answer"):
            teleoperate(robot, leader, DriveOptions(lockstep=True))
    assert leader.closed
    assert closed == [robot]


def test_an_episode_that_cannot_be_replayed_closes_the_robot(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    episode, closed = RecordedEpisode(30, JOINTS, TASK, *np.zeros((2, 1, 6))), []
    with Twin(image_size=(64, 64), clock="lockstep") as twin:
        robot = twin.robot()
        monkeypatch.setattr(robot, "close", lambda: closed.append(robot))
        with pytest.raises(
            UserError, match="fps is 20, but the recording was made at 30 Hz: use 30"
        ):
            replay(robot, episode, DriveOptions(fps=20, lockstep=True))
    assert closed == [robot]


def test_a_recorded_arm_is_no_faster_than_max_speed(tmp_path: Path) -> None:
    """Nodding asks for 0.5 degrees per tick."""
    options = replace(OPTIONS, episodes=1, max_speed=6.0)
    with Twin(image_size=(64, 64), clock="lockstep") as twin:
        record(twin.robot(), Nodding(), tmp_path / "set", TASK, options)
    steps = np.abs(np.diff(read_episode(tmp_path / "set", 0).actions, axis=0))
    assert 0.0 < steps.max() <= 6.0 / 30 + 0.1  # a servo's tick is 0.09 degrees
