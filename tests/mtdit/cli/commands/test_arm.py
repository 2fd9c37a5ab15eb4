"""What a person types who prepares an arm: find its port, set up its servos, ask the doctor."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from command_line import assert_one_line, mtdit
from hand_moved_arm import (
    CTRL_C,
    ENTER,
    QUICKLY,
    Arm,
    Refused,
    Start,
)
from repository import EXAMPLE

from mtdit.cli.terminal.keys import split
from mtdit_robots.so101.calibration import load, save
from mtdit_robots.twin.registers import ServoRegisters


def test_the_doctor_by_id_and_as_json(arm: Arm, tmp_path: Path) -> None:
    """An arm is called by its file or by LeRobot's id of it; with --json - standard output is JSON
    alone.
    """
    save(load(EXAMPLE), tmp_path / "robots" / "so_follower" / "blue.json")
    look = (
        "doctor",
        "--robot",
        "so101",
        "--port",
        arm.port,
        "--cycles",
        "3",
        "--bus-timeout",
        "2",
        "--json",
        "-",
    )
    done = mtdit(
        *look, "--calibration", "blue", "--bus", "sdk", HF_LEROBOT_CALIBRATION=str(tmp_path)
    )
    assert done.returncode == 1
    checks = {check["id"]: check for check in json.loads(done.stdout)["checks"]}
    assert (
        "values differ: shoulder_pan homing_offset: file -137, servo 0"
        in checks["calibration"]["finding"]
    )
    assert "what to do" in done.stderr
    assert_one_line(mtdit(*look, "--calibration", "green"), "no calibration of a robot 'green'")


# -- setup-motors


def plug(arm: Arm, *servos: ServoRegisters) -> None:
    arm.servos.clear()
    arm.servos.update(enumerate(servos))


def test_setup_motors_in_a_terminal(arm: Arm, terminal: Start) -> None:
    whole = list(arm.servos.values())
    gripper, roll = ServoRegisters(1), ServoRegisters(5)
    gripper.set("Baud_Rate", 4)
    plug(arm)
    screen = terminal("-m", "mtdit.cli", "setup-motors", "--port", arm.port, *QUICKLY)
    screen.expect(
        "connect only the gripper servo (gear 1/345) of the arm and switch its power on: ENTER"
    )
    screen.send("x" + ENTER)
    screen.expect("no servo answers")
    screen.expect("connect only the gripper")
    plug(arm, gripper, ServoRegisters(9))
    screen.send(ENTER)
    screen.expect("2 servos answer")
    assert (gripper.get("ID"), gripper.get("Baud_Rate")) == (1, 4)
    screen.expect("connect only the gripper")
    plug(arm, gripper)
    screen.send(ENTER)
    screen.expect("found id 1 at 115200 baud, model 777, firmware 3.10, 7.4 V")
    screen.expect("gripper is now id 6 at 1000000 baud")
    gripper.power_cycle()
    assert (gripper.get("ID"), gripper.get("Baud_Rate"), gripper.get("Lock")) == (6, 0, 1)

    screen.expect("connect only the wrist_roll")
    plug(arm, roll)
    screen.send(ENTER)
    screen.expect("wrist_roll is already set up")
    screen.expect("connect only the wrist_flex")
    screen.send("s")
    screen.expect("connect only the elbow_flex")
    plug(arm, *whole)
    screen.send(ENTER)
    screen.expect("all six servos answer with their ids at 1000000 baud: nothing to do")
    screen.expect("next: connect all six servos in a chain, then run mtdit calibrate")
    assert screen.exit_code() == 0


@pytest.mark.parametrize(("key", "code"), [(CTRL_C, 130), ("q", 1)])
def test_leaving_setup_motors_changes_nothing(
    arm: Arm, terminal: Start, key: str, code: int
) -> None:
    one = ServoRegisters(1)
    plug(arm, one)
    screen = terminal("-m", "mtdit.cli", "setup-motors", "--port", arm.port, "--leader")
    screen.expect("connect only the gripper servo (gear 1/147) of the leader")
    screen.send(key)
    assert screen.exit_code() == code
    assert "Traceback" not in screen.screen
    assert one.get("ID") == 1


def test_setup_motors_in_a_script(arm: Arm, refused: Refused) -> None:
    one = ServoRegisters(1)
    plug(arm, one)
    command = ("setup-motors", "--port", arm.port, *QUICKLY)
    assert "to run without one add --motor gripper --yes" in refused(*command)
    assert "--motor 'griper' is not a joint" in refused(*command, "--motor", "griper", "--yes")
    for said in ("wrist_flex is now id 4 at 1000000 baud", "wrist_flex is already set up"):
        done = mtdit(*command, "--motor", "wrist_flex", "--yes")
        assert (done.returncode, said in done.stdout) == (0, True), done.stdout + done.stderr
        assert one.get("ID") == 4
    plug(arm)
    assert "no servo answers" in refused(*command, "--motor", "gripper", "--yes")


# -- find-port


def test_find_port(arm: Arm, tmp_path: Path) -> None:
    (tmp_path / "serial" / "by-id").mkdir(parents=True)
    (tmp_path / "ttyACM0").symlink_to(arm.port)
    by_id = tmp_path / "serial" / "by-id" / "usb-1a86_USB_Single_Serial_58FA-if00"
    by_id.symlink_to("../../ttyACM0")
    look = ("find-port", "--dev", str(tmp_path), "--bus-timeout", "0.5")
    done = mtdit(*look)
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{by_id}  ({arm.port})" in done.stdout
    assert "id 6 at 1000000 baud, model 777, firmware 3.10, 7.4 V" in done.stdout
    report = json.loads(mtdit(*look, "--json", "-").stdout)
    assert [servo["id"] for servo in report["ports"][0]["servos"]] == [1, 2, 3, 4, 5, 6]

    before = arm.n_reads
    assert mtdit("find-port", "--dev", str(tmp_path), "--no-probe").returncode == 0
    assert arm.n_reads == before
    plug(arm)
    done = mtdit("find-port", "--dev", str(tmp_path), "--bus-timeout", "0.01")
    assert done.returncode == 1
    assert "no servo answered: check the arm's power" in done.stdout


def test_find_port_without_ports(tmp_path: Path) -> None:
    assert_one_line(mtdit("find-port", "--dev", str(tmp_path)), "no USB serial port", "plug in")


def test_keys_by_name() -> None:
    assert list(split("\x1b[Cq\r\x1b[DX \x1b")) == [
        "right",
        "q",
        "enter",
        "left",
        "x",
        "space",
        "escape",
    ]
    assert list(split("\x1bOA\x1b[3~\x1b[1;5Cz")) == ["up", "z"]
