"""`mtdit calibrate` as a person at an arm types it in a terminal."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest
from hand_moved_arm import CENTRE, CTRL_C, ENTER, ESCAPE, WANTED, Arm, Start, values
from repository import EXAMPLE

from mtdit_robots.so101.calibrate import SWEPT
from mtdit_robots.so101.calibration import load


def test_calibrate_in_a_terminal(arm: Arm, terminal: Start, tmp_path: Path) -> None:
    file = tmp_path / "new" / "arm.json"
    screen = terminal("-m", "mtdit.cli", "calibrate", "--port", arm.port, "--file", str(file))
    screen.expect("torque goes off and the arm drops: hold it: ENTER to continue, q to quit")
    assert all(servo.torque_enabled for servo in arm.servos.values())
    screen.send("x")
    screen.expect("press ENTER or q")
    screen.send(ENTER)
    screen.expect("torque is off")
    assert not any(servo.torque_enabled for servo in arm.servos.values())

    screen.expect("middle of its travel: ENTER")
    arm.pose({"elbow_flex": 4095})  # nobody can hold that offset
    screen.send(ENTER)
    screen.expect("elbow_flex is at encoder tick 4095")
    screen.expect("middle of its travel: ENTER")
    arm.pose(CENTRE)
    screen.send(ENTER)
    screen.expect("centred: shoulder_pan -147, shoulder_lift +1053")

    screen.expect("move every joint except wrist_roll")
    screen.expect("ENTER: finish, when every joint has its tick")
    arm.sweep("shoulder_pan")
    screen.expect("220 of 220 degrees  ✓")
    screen.send("x" + ENTER)
    screen.expect("shoulder_lift moved only 0 of 200 degrees: move it from stop to stop")
    for beyond in (1200, 2200):  # its horn slips, and the travel runs over the seam
        arm.pose({"elbow_flex": CENTRE["elbow_flex"] + beyond})
        arm.await_reads(2)
    screen.expect("crossed tick 0")
    arm.pose(CENTRE)
    arm.await_reads(2)
    screen.send("c")
    screen.expect("centred again")
    arm.sweep(*SWEPT)
    screen.send(ENTER)
    screen.expect(f"saved to {file} and to the servos")
    assert screen.exit_code() == 0
    assert values(load(file)) == WANTED
    assert arm.is_limp_and_locked()
    assert arm.holds() == WANTED


@pytest.mark.parametrize(
    ("moment", "key", "code"),
    [
        ("the arm drops", CTRL_C, 130),
        ("ENTER: finish", signal.SIGTERM, 130),
        ("ENTER: finish", signal.SIGHUP, 130),
        ("middle of its travel", CTRL_C, 130),
        ("middle of its travel", ESCAPE, 1),
        ("ENTER: finish", CTRL_C, 130),
        ("ENTER: finish", "q", 1),
    ],
)
def test_leaving_puts_everything_back(
    arm: Arm, terminal: Start, tmp_path: Path, moment: str, key: str | signal.Signals, code: int
) -> None:
    before = arm.holds()
    for servo in arm.servos.values():
        servo.set("Torque_Enable", 1)
    file = tmp_path / "arm.json"
    screen = terminal("-m", "mtdit.cli", "calibrate", "--port", arm.port, "--file", str(file))
    for step in ("the arm drops", "middle of its travel", "ENTER: finish"):
        screen.expect(step)
        if step == moment:
            break
        screen.send(ENTER)
    if isinstance(key, signal.Signals):
        screen.kill(key)
    else:
        screen.send(key)
    assert screen.exit_code() == code
    assert code == 130 or "stopped; nothing was saved" in screen.screen
    assert "Traceback" not in screen.screen
    if moment == "the arm drops":  # nothing was sent yet: the arm holds its pose
        assert all(servo.torque_enabled for servo in arm.servos.values())
    else:
        assert "the servos still have their former calibration" in screen.screen
        assert arm.is_limp_and_locked()
    assert arm.holds() == before
    assert not file.exists()


def test_a_port_that_fails_midway(arm: Arm, terminal: Start, tmp_path: Path) -> None:
    screen = terminal(
        "-m",
        "mtdit.cli",
        "calibrate",
        "--port",
        arm.port,
        "--file",
        str(tmp_path / "arm.json"),
        "--yes",
    )
    screen.expect("middle of its travel")
    screen.send(ENTER)
    screen.expect("ENTER: finish")
    arm.bus.faults.silent = {4}
    assert screen.exit_code() == 2
    assert "wrist_flex did not confirm torque off: cut the arm's power" in screen.screen
    assert "wrist_flex (servo 4)" in screen.screen
    assert "check the arm's cables and power supply" in screen.screen
    assert not any(servo.torque_enabled for servo in arm.servos.values())


def test_import_asks_in_a_terminal(arm: Arm, terminal: Start) -> None:
    before = arm.holds()
    for key, code, after in (
        (CTRL_C, 130, before),
        ("q", 1, before),
        (ENTER, 0, values(load(EXAMPLE))),
    ):
        screen = terminal(
            "-m", "mtdit.cli", "calibrate", "--port", arm.port, "--import", str(EXAMPLE)
        )
        screen.expect("lay it down: ENTER")
        screen.send(key)
        assert screen.exit_code() == code, screen.screen
        assert arm.holds() == after
