"""`mtdit calibrate` in a script, and what it refuses."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
from command_line import assert_one_line, mtdit
from hand_moved_arm import CENTRE, QUICKLY, REACH, WANTED, Arm, Refused, values
from repository import EXAMPLE

from mtdit_robots.so101.calibrate import SWEPT
from mtdit_robots.so101.calibration import load, save


def test_calibrate_without_a_terminal(arm: Arm, tmp_path: Path) -> None:
    """--id: into LeRobot's folder, under the name that exists there; the former file goes to the
    history.
    """
    old = tmp_path / "robots" / "so101_follower" / "blue.json"
    save(load(EXAMPLE), old)
    flags = ("--centre-now", "--sweep-seconds", "8", "--yes")
    process = subprocess.Popen(
        [
            sys.executable,
            "-m",
            "mtdit.cli",
            "calibrate",
            "--port",
            arm.port,
            "--id",
            "blue",
            *flags,
        ],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        stdin=subprocess.DEVNULL,
        text=True,
        env={**os.environ, "HF_LEROBOT_CALIBRATION": str(tmp_path), "PYTHONUNBUFFERED": "1"},
    )
    assert process.stdout
    while "move every joint" not in (line := process.stdout.readline()):
        assert line, "ended early"
    while process.poll() is None:
        for joint in SWEPT:
            for part in (-1, 0, 1, 0):
                arm.pose({joint: CENTRE[joint] + part * REACH[joint]})
                time.sleep(0.05)
    assert process.wait() == 0, process.stdout.read()
    process.stdout.close()
    assert values(load(old)) == WANTED
    assert arm.holds() == WANTED
    done = mtdit("calibrate", "--id", "blue", "--history", HF_LEROBOT_CALIBRATION=str(tmp_path))
    assert done.returncode == 0
    assert str(old.parent / "history" / "blue") in done.stdout

    done = mtdit(
        "calibrate",
        "--id",
        "blue",
        "--restore",
        "1",
        "--port",
        arm.port,
        "--yes",
        HF_LEROBOT_CALIBRATION=str(tmp_path),
    )
    assert done.returncode == 0, done.stderr
    assert old.read_bytes() == EXAMPLE.read_bytes()
    assert arm.holds() == values(load(EXAMPLE))


@pytest.mark.parametrize(
    ("flags", "named"),
    [
        ((), "add --yes --centre-now --sweep-seconds 20"),
        (("--yes",), "add --centre-now --sweep-seconds 20"),
        (("--yes", "--sweep-seconds", "5"), "add --centre-now"),
    ],
)
def test_without_a_terminal_the_missing_flags_are_named(
    arm: Arm, tmp_path: Path, refused: Refused, flags: tuple[str, ...], named: str
) -> None:
    line = refused("calibrate", "--port", arm.port, "--file", str(tmp_path / "arm.json"), *flags)
    assert "needs a terminal" in line
    assert line.endswith(named)
    assert all(servo.torque_enabled for servo in arm.servos.values())


def test_a_sweep_that_shows_nothing(arm: Arm, tmp_path: Path) -> None:
    before, file = arm.holds(), tmp_path / "arm.json"
    done = mtdit(
        "calibrate",
        "--port",
        arm.port,
        "--file",
        str(file),
        "--centre-now",
        "--sweep-seconds",
        "1",
        "--yes",
    )
    assert_one_line(done, "shoulder_pan moved only 0 of 220 degrees", "gripper moved only 0")
    assert "torque is off" in done.stdout
    assert arm.holds() == before
    assert not file.exists()


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        (("--file", "a.json"), ("--port", "find-port")),
        (("--port", "/dev/ttyNONE"), ("--id my_arm", "--file")),
        (("--port", "/dev/ttyNONE", "--id", "a", "--file", "b"), ("--id and --file exclude",)),
        (
            ("--port", "/dev/ttyNONE", "--check", "--import", "b"),
            ("--check and --import exclude each other",),
        ),
        (("--port", "/dev/ttyNONE", "--check"), ("no serial port /dev/ttyNONE",)),
        (
            ("--port", "/dev/ttyNONE", "--check", "--id", "nobody"),
            ("no calibration of a robot 'nobody'",),
        ),
        (("--import", "missing.json"), ("no calibration file missing.json",)),
        (("--import", str(EXAMPLE), "--yes"), ("--port",)),
        (("--diff", str(EXAMPLE)), ("--id", "--file")),
        (("--file", "missing.json", "--restore", "1"), ("has no earlier versions",)),
        (("--id", "../x", "--history"), ("is not a valid id",)),
    ],
)
def test_mistakes(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    refused: Refused,
    words: tuple[str, ...],
    parts: tuple[str, ...],
) -> None:
    monkeypatch.setenv("HF_LEROBOT_CALIBRATION", str(tmp_path))
    line = refused("calibrate", *words)
    for part in parts:
        assert part in line


def test_a_place_that_takes_no_file_is_told_before_the_arm_goes_limp(
    arm: Arm, tmp_path: Path, refused: Refused
) -> None:
    scripted = (
        "calibrate",
        "--port",
        arm.port,
        "--centre-now",
        "--sweep-seconds",
        "1",
        "--yes",
        "--file",
    )
    assert f"{tmp_path} is a folder: give a file in it" in refused(*scripted, str(tmp_path))
    assert "cannot write /proc/arm.json" in refused(*scripted, "/proc/arm.json")
    (tmp_path / "file").write_text("")
    below_a_file = str(tmp_path / "file" / "arm.json")
    assert f"cannot write {below_a_file}" in refused(*scripted, below_a_file)
    assert all(servo.torque_enabled for servo in arm.servos.values())


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\xff",
        b'{"shoulder_pan": ' + b"9" * 5000 + b"}",
        b"[" * 100_000,
        b"[]",
        b'{"gripper": 1}',
    ],
)
def test_a_garbled_file_is_named_and_never_written(
    arm: Arm, tmp_path: Path, refused: Refused, content: bytes
) -> None:
    before, file = arm.holds(), tmp_path / "arm.json"
    file.write_bytes(content)
    assert f"calibration file {file}" in refused(
        "calibrate", "--port", arm.port, "--import", str(file), "--yes"
    )
    assert arm.holds() == before


def test_restore_asks_before_it_changes_anything(
    arm: Arm, tmp_path: Path, refused: Refused
) -> None:
    file, before = tmp_path / "arm.json", arm.holds()
    save(load(EXAMPLE), file)
    newer = {joint: replace(c, range_min=c.range_min + 1) for joint, c in load(EXAMPLE).items()}
    save(newer, file)
    restore = ("calibrate", "--file", str(file), "--port", arm.port, "--restore", "1")
    assert "add --yes" in refused(*restore)
    arm.bus.faults.silent = {3}
    assert "elbow_flex (servo 3)" in refused(*restore, "--yes")
    arm.bus.faults.silent = set()
    assert load(file) == newer
    assert arm.holds() == before
    done = mtdit(*restore, "--yes", "--bus", "sdk")
    assert done.returncode == 0, done.stderr
    assert load(file) == load(EXAMPLE)
    assert arm.holds() == values(load(EXAMPLE))


def test_import_check_diff_export(arm: Arm, tmp_path: Path) -> None:
    assert_one_line(mtdit("calibrate", "--port", arm.port, "--import", str(EXAMPLE)), "add --yes")
    assert all(servo.torque_enabled for servo in arm.servos.values())

    done = mtdit("calibrate", "--port", arm.port, "--check", "--file", str(EXAMPLE), "--json", "-")
    assert done.returncode == 1
    report = json.loads(done.stdout)
    assert report["joints"][0]["finding"].startswith(
        "servo holds homing_offset 0, file -137; range_min 0, file 784"
    )
    assert "--import" in report["joints"][0]["remedy"]

    done = mtdit("calibrate", "--port", arm.port, "--diff", str(EXAMPLE))
    assert done.returncode == 1
    assert f"shoulder_pan homing_offset: {EXAMPLE} -137, servo 0" in done.stdout

    done = mtdit("calibrate", "--port", arm.port, "--import", str(EXAMPLE), "--yes")
    assert done.returncode == 0, done.stderr
    assert "torque is off" in done.stdout
    assert arm.holds() == values(load(EXAMPLE))

    arm.pose({joint: 2047 + c.homing_offset for joint, c in load(EXAMPLE).items()})
    done = mtdit("calibrate", "--port", arm.port, "--check", "--file", str(EXAMPLE))
    assert done.returncode == 0, done.stdout
    assert done.stdout.count(" ok ") == 6

    out = tmp_path / "held.json"
    assert mtdit("calibrate", "--port", arm.port, "--export", str(out)).returncode == 0
    assert out.read_bytes() == EXAMPLE.read_bytes()
    done = mtdit("calibrate", "--file", str(out), "--diff", str(EXAMPLE))
    assert (done.returncode, done.stdout) == (0, "no difference\n")


def test_a_gripper_that_is_turned_round_is_a_difference(arm: Arm, tmp_path: Path) -> None:
    """Between files drive_mode is compared; the servos cannot hold it, and every comparison with
    them says so.
    """
    mirrored = tmp_path / "mirrored.json"
    turned = load(EXAMPLE)
    save({**turned, "gripper": replace(turned["gripper"], drive_mode=1)}, mirrored)
    done = mtdit("calibrate", "--file", EXAMPLE, "--diff", mirrored)
    assert (done.returncode, done.stdout) == (
        1,
        f"gripper drive_mode: {mirrored} 1, {EXAMPLE} 0\n",
    )
    assert mtdit("calibrate", "--port", arm.port, "--import", EXAMPLE, "--yes").returncode == 0
    arm.pose({joint: 2047 + c.homing_offset for joint, c in turned.items()})
    said = "not compared: drive_mode, which no servo holds; the file says gripper drive_mode 1"
    port = ("calibrate", "--port", arm.port)
    done = mtdit(*port, "--diff", mirrored)
    assert (done.returncode, done.stdout) == (0, f"no difference\n{said}\n")
    assert said in mtdit(*port, "--check", "--file", mirrored).stdout
    doctor = mtdit(
        "doctor",
        "--port",
        arm.port,
        "--calibration",
        mirrored,
        "--robot",
        "so101",
        *QUICKLY,
        "--cycles",
        "2",
        "--json",
        "-",
    )
    checks = {check["id"]: check["finding"] for check in json.loads(doctor.stdout)["checks"]}
    assert said in checks["calibration"]
    done = mtdit(*port, "--export", mirrored)
    assert "gripper drive_mode: was 1, is now 0: no servo holds it" in done.stdout
    assert load(mirrored) == load(EXAMPLE)
