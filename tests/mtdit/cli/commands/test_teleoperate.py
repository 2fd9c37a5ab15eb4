"""`mtdit teleoperate` as typed, with a leader and a follower of virtual servos."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
from command_line import mtdit
from driven_arms import (
    TASK,
    TIMEOUT_S,
    Refused,
    Start,
    Words,
    assert_limp,
    wait_for,
)
from repository import EXAMPLE

if TYPE_CHECKING:
    pass


@pytest.mark.parametrize("bus", ["own", "sdk"])
def test_teleoperate_follows_without_a_jump_and_lets_go(
    words: Words, tmp_path: Path, bus: str
) -> None:
    where = words.follower.servos[1].get("Present_Position")
    report = tmp_path / "report.json"
    done = mtdit(
        "teleoperate", *words.arms(), "--bus", bus, "--duration", "4", "--json", str(report)
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert_limp(words.leader, words.follower)
    told = json.loads(report.read_text())
    assert told["reason"] == "duration"
    assert told["ticks"] > 10
    assert set(told["stages"]) >= {"observe", "leader", "command"}
    goals = [int.from_bytes(frame.data[3:5], "little") for _, frame in words.follower.writes(42)]
    assert abs(goals[0] - where) <= 1, "torque comes on where the arm stands"
    steps = np.abs(np.diff(goals))
    assert steps[: len(steps) // 8].max(initial=0) < 60, "the way to the leader is a ramp"
    assert max(goals) - min(goals) > 100, "then it follows"


def test_ctrl_c_leaves_both_arms_limp(words: Words, terminal: Start) -> None:
    screen = terminal("-m", "mtdit.cli", "teleoperate", *words.arms())
    screen.expect("keep clear")
    screen.expect("shoulder_pan")
    screen.expect("Hz")
    screen.send("\x03")
    assert screen.exit_code() == 130
    assert "interrupted" in screen.screen
    assert_limp(words.leader, words.follower)


def test_a_lost_terminal_ends_it_too(words: Words) -> None:
    command = [sys.executable, "-m", "mtdit.cli", "teleoperate", *words.arms()]
    process = subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    wait_for(lambda: any(servo.torque_enabled for servo in words.follower.servos.values()))
    process.send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=TIMEOUT_S)
    assert process.returncode == 130, output.decode()
    assert_limp(words.leader, words.follower)


def driven(words: Words, *more: str) -> subprocess.Popen[str]:
    """A follower that has left its start pose."""
    command = [sys.executable, "-m", "mtdit.cli", "teleoperate", *words.arms(), *more]
    process = subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    start = words.follower.servos[1].get("Present_Position")
    wait_for(lambda: abs(words.follower.servos[1].get("Present_Position") - start) > 60)
    return process


def test_a_servo_that_loses_torque_in_mid_run_ends_it_and_is_named(words: Words) -> None:
    """A brown-out: it restarts, answers as before, and follows no goal."""
    process = driven(words)
    words.follower.servos[3].power_cycle()
    output, _ = process.communicate(timeout=TIMEOUT_S)
    assert process.returncode == 1, output
    told = " ".join(output.split())
    assert "ended bus: elbow_flex (servo 3)" in told
    assert "lost torque because it restarted or protects itself: check the power supply" in told
    assert "Traceback" not in output
    assert_limp(words.leader, words.follower)


def test_a_leader_that_falls_silent_does_not_drop_the_follower(words: Words) -> None:
    """The follower is sound: it rides back to where it stood, and only then lets go."""
    start = words.follower.servos[1].get("Present_Position")
    process = driven(words, "--home-seconds", "1", "--bus-timeout", "0.2")
    words.leader.servos.clear()
    output, _ = process.communicate(timeout=TIMEOUT_S)
    assert process.returncode == 1, output
    assert "ended leader: shoulder_pan (servo 1)" in " ".join(output.split())
    assert abs(words.follower.servos[1].get("Present_Position") - start) <= 2
    assert_limp(words.follower)


def test_what_is_missing_or_wrong_is_named(words: Words, refused: Refused) -> None:
    assert "--leader-port" in refused("teleoperate")
    alone = ("teleoperate", "--leader-port", words.leader.port)
    for part in ("--leader-calibration", "mtdit calibrate"):
        assert part in refused(*alone)
    leading = words.arms()[:4]
    for part in ("--port", "mtdit find-port"):
        assert part in refused("teleoperate", *leading)
    assert "--calibration" in refused("teleoperate", *leading, "--port", words.follower.port)
    itself = refused(
        "teleoperate", *leading, "--port", words.leader.port, "--calibration", str(EXAMPLE)
    )
    assert "an arm cannot lead itself" in itself
    record = ("record", "--out", "x", *words.arms())
    assert "--task" in refused(*record)
    assert "no file none.mp4" in refused(*record, "--task", TASK, "--camera", "top=file:none.mp4")
    assert "the task is empty" in refused(*record, "--task", "")
    assert "is too short" in refused(*record, "--task", TASK, "--episode-seconds", "0.1")
    for option in ("--home-seconds", "--bus-timeout", "--max-speed"):
        for value in ("inf", "nan", "-1"):
            assert option in refused("teleoperate", *words.arms(), option, value)
    assert "--port is for a real arm" in refused("teleoperate", *words.arms(), "--robot", "twin")
    assert_limp(words.leader, words.follower)
