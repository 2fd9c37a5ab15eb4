"""Calibration files: LeRobot's bytes, and every mistake a hand can make in one."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from lerobot.robots.so_follower import SO101Follower, SO101FollowerConfig
from repository import EXAMPLE

from mtdit_robots.errors import UserError
from mtdit_robots.so101.calibration import (
    Calibration,
    JointCalibration,
    check,
    differences,
    history,
    load,
    not_compared,
    ranges,
    restore,
    save,
    servo_differences,
)
from mtdit_robots.so101.joints import IDS, JOINTS, Ranges


def test_lerobot_reads_and_writes_the_very_same_file(
    tmp_path: Path, calibration: Calibration
) -> None:
    save(calibration, tmp_path / "arm.json")
    assert (tmp_path / "arm.json").read_bytes() == EXAMPLE.read_bytes()
    robot = SO101Follower(SO101FollowerConfig(port="/dev/null", id="arm", calibration_dir=tmp_path))
    assert {joint: dataclasses.asdict(c) for joint, c in calibration.items()} == {
        joint: dataclasses.asdict(c) for joint, c in robot.calibration.items()
    }
    robot._save_calibration()
    assert (tmp_path / "arm.json").read_bytes() == EXAMPLE.read_bytes()


def renamed(old: str, new: str) -> Callable[[Any], Any]:
    return lambda content: {
        new if joint == old else joint: value for joint, value in content.items()
    }


def changed(joint: str, **values: object) -> Callable[[Any], Any]:
    return lambda content: {**content, joint: {**content[joint], **values}}


def dropped(joint: str, key: str) -> Callable[[Any], Any]:
    return lambda content: {**content, joint: {k: v for k, v in content[joint].items() if k != key}}


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (
            renamed("wrist_flex", "wrist_flx"),
            "unknown joint 'wrist_flx' (did you mean 'wrist_flex'?)",
        ),
        (
            renamed("wrist_flex", "xyz"),
            "unknown joint 'xyz', known are shoulder_pan, shoulder_lift",
        ),
        (
            lambda c: {j: v for j, v in c.items() if j != "gripper"},
            "missing joint: gripper; run `mtdit calibrate`",
        ),
        (lambda c: {**c, "left_arm": c["gripper"]}, "'left_arm' is not one of its joints"),
        (lambda c: list(c), "is not a JSON object with one entry per joint"),
        (lambda c: {**c, "gripper": 5}, "gripper is not an object with the keys id, drive_mode"),
        (
            changed("gripper", rang_min=3),
            "unknown key of gripper 'rang_min' (did you mean 'range_min'?)",
        ),
        (dropped("elbow_flex", "range_max"), "missing key of elbow_flex: range_max"),
        (
            changed("elbow_flex", range_max=3000.5),
            "elbow_flex range_max is 3000.5, must be an integer",
        ),
        (
            changed("elbow_flex", range_max="3000"),
            "elbow_flex range_max is '3000', must be an integer",
        ),
        (
            changed("elbow_flex", drive_mode=True),
            "elbow_flex drive_mode is True, must be an integer",
        ),
        (changed("elbow_flex", drive_mode=2), "elbow_flex has drive_mode 2, must be 0 or 1"),
        (changed("gripper", id=5), "gripper has id 5, but on an SO-101 it is 6"),
        (changed("gripper", homing_offset=-2048), "gripper homing_offset -2048 is beyond +-2047"),
        (changed("gripper", range_max=4096), "gripper range 2021..4096 is not within 0..4095"),
        (changed("gripper", range_min=-1), "gripper range -1..3487 is not within 0..4095"),
        (changed("gripper", range_min=3400), "gripper range 3400..3487 is narrower than 200 ticks"),
        (changed("gripper", range_min=3500), "gripper range 3500..3487 runs backwards"),
    ],
)
def test_a_damaged_file_is_refused_by_name(
    tmp_path: Path, damage: Callable[[Any], Any], message: str
) -> None:
    place = tmp_path / "arm.json"
    place.write_text(json.dumps(damage(json.loads(EXAMPLE.read_text()))))
    with pytest.raises(UserError, match=re.escape(message)) as raised:
        load(place)
    assert str(place) in str(raised.value)
    assert "\n" not in str(raised.value)


def test_a_missing_file_and_no_json(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no calibration file .*arm.json: run `mtdit calibrate`"):
        load(tmp_path / "arm.json")
    (tmp_path / "arm.json").write_text("{")
    with pytest.raises(UserError, match="cannot read the calibration file"):
        load(tmp_path / "arm.json")
    with pytest.raises(UserError, match="cannot read the calibration file"):
        load(tmp_path)


def test_check_and_ranges_refuse_a_calibration_made_in_code(calibration: Calibration) -> None:
    check(calibration)
    assert ranges(calibration).low.tolist() == [784, 902, 941, 968, 0, 2021]
    wrong = {**calibration, "gripper": dataclasses.replace(calibration["gripper"], range_max=2022)}
    for refuse in (check, ranges):
        with pytest.raises(UserError, match=r"gripper range 2021\.\.2022 is narrower"):
            refuse(wrong)


def with_offset(calibration: Calibration, offset: int) -> dict[str, JointCalibration]:
    return {
        **calibration,
        "gripper": dataclasses.replace(calibration["gripper"], homing_offset=offset),
    }


def test_every_save_keeps_the_former_file(tmp_path: Path, calibration: Calibration) -> None:
    place = tmp_path / "arm.json"
    for offset in (1, 1, 2, 3):  # the same content again is no new version
        save(with_offset(calibration, offset), place)
    assert [load(version.path)["gripper"].homing_offset for version in history(place)] == [2, 1]
    assert [version.number for version in history(place)] == [1, 2]
    assert history(place)[0].replaced > history(place)[1].replaced
    assert history(tmp_path / "other.json") == []
    assert not list(tmp_path.rglob("*.part"))

    restore(place, 2)
    assert load(place)["gripper"].homing_offset == 1
    assert [load(version.path)["gripper"].homing_offset for version in history(place)] == [3, 2, 1]
    restore(place)
    assert load(place)["gripper"].homing_offset == 3


def test_a_version_that_is_not_there(tmp_path: Path, calibration: Calibration) -> None:
    place = tmp_path / "arm.json"
    with pytest.raises(UserError, match="has no earlier versions"):
        restore(place)
    save(with_offset(calibration, 1), place)
    save(with_offset(calibration, 2), place)
    for number in (0, 2, -1):
        with pytest.raises(
            UserError, match=rf"no earlier version {number}, only 1\.\.1: `--history` lists them"
        ):
            restore(place, number)
    history(place)[0].path.write_text("{")
    with pytest.raises(UserError, match="cannot read the calibration file"):
        restore(place)
    assert load(place)["gripper"].homing_offset == 2


def test_lerobot_does_not_see_the_history(tmp_path: Path, calibration: Calibration) -> None:
    save(with_offset(calibration, 1), tmp_path / "arm.json")
    save(calibration, tmp_path / "arm.json")
    robot = SO101Follower(SO101FollowerConfig(port="/dev/null", id="arm", calibration_dir=tmp_path))
    assert robot.calibration["gripper"].homing_offset == calibration["gripper"].homing_offset


def random_calibration(generator: np.random.Generator) -> dict[str, JointCalibration]:
    lows, spans = generator.integers(0, 2000, 6), generator.integers(200, 2095, 6)
    return {
        joint: JointCalibration(
            IDS[joint], int(generator.integers(2)), 0, int(low), int(low + span)
        )
        for joint, low, span in zip(JOINTS, lows, spans, strict=True)
    }


@pytest.mark.parametrize("use_degrees", [True, False], ids=["degrees", "-100..100"])
def test_a_file_lerobot_wrote_gives_its_positions_for_10000_random_ticks(
    tmp_path: Path, use_degrees: bool
) -> None:
    """Every body joint in either unit, the gripper in 0..100, both drive modes; there and back, to
    the last bit.
    """
    seed = 20260401
    print(f"seed {seed}")
    generator = np.random.default_rng(seed)
    save(random_calibration(generator), tmp_path / "arm.json")
    config = SO101FollowerConfig(
        port="/dev/null", id="arm", calibration_dir=tmp_path, use_degrees=use_degrees
    )
    robot = SO101Follower(config)
    robot._save_calibration()  # LeRobot's own bytes from here on
    ours: Ranges = ranges(load(tmp_path / "arm.json"), use_degrees)
    ticks = generator.integers(0, 4096, (10_000, 6))
    positions = ours.positions(ticks)
    back = ours.ticks(positions)
    for row, values, returned in zip(
        ticks.tolist(), positions.tolist(), back.tolist(), strict=True
    ):
        theirs = robot.bus._normalize(dict(zip(IDS.values(), row, strict=True)))
        assert list(theirs.values()) == values
        assert list(robot.bus._unnormalize(theirs).values()) == returned


def test_differences_name_joint_and_field(calibration: Calibration) -> None:
    assert differences(calibration, calibration, ("one", "other")) == []
    held = dataclasses.replace(
        calibration["gripper"], homing_offset=0, range_min=1, id=3, drive_mode=1
    )
    other = {**calibration, "gripper": held}
    assert differences(calibration, other, ("one", "other")) == [
        "gripper id: one 6, other 3",
        "gripper drive_mode: one 0, other 1",
        "gripper homing_offset: one 1163, other 0",
        "gripper range_min: one 2021, other 1",
    ]


@pytest.mark.parametrize("key", [field.name for field in dataclasses.fields(JointCalibration)])
def test_every_field_of_every_joint_is_compared(calibration: Calibration, key: str) -> None:
    """Files in all that LeRobot's class holds; file and servos in all that LeRobot's bus reads."""
    for joint, values in calibration.items():
        changed = dataclasses.replace(values, **{key: getattr(values, key) + 1})
        other = {**calibration, joint: changed}
        assert len(differences(calibration, other, ("a", "b"))) == 1
        seen = servo_differences(calibration, other)
        assert [line.split(":")[0] for line in seen] == (
            [] if key == "drive_mode" else [f"{joint} {key}"]
        )


def test_what_no_servo_holds_is_said(calibration: Calibration) -> None:
    mirrored = dataclasses.replace(calibration["gripper"], drive_mode=1)
    said = not_compared({**calibration, "gripper": mirrored})
    assert (
        said == "not compared: drive_mode, which no servo holds; the file says gripper drive_mode 1"
    )
    assert not_compared(calibration).endswith("it is 0 in the file")


OLD = {"homing_offset": [1], "drive_mode": [0], "motor_names": ["gripper"], "calib_mode": ["X"]}


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda good: OLD, "lists of a LeRobot before 0.2"),
        (lambda good: {f"main_{k}": v for k, v in good.items()}, "name of a LeRobot before 0.2"),
        (lambda good: {**good, "wrist_yaw": good["gripper"]}, "7 motors, and an SO-101 has 6"),
        (lambda good: {f"left_{k}": v for k, v in good.items()}, "of another arm, with the motors"),
        (
            lambda good: {
                **good,
                "gripper": good["gripper"] | {"range_min": 3000, "range_max": 9},
            },
            "range 3000..9 runs backwards",
        ),
    ],
)
def test_calibrations_of_another_arm_or_time(change: Any, says: str, tmp_path: Path) -> None:
    """Called what they are, with no name offered that would make them pass."""
    good = {
        joint: {
            "id": number,
            "drive_mode": 0,
            "homing_offset": 0,
            "range_min": 900,
            "range_max": 3000,
        }
        for number, joint in enumerate(JOINTS, start=1)
    }
    path = tmp_path / "arm.json"
    path.write_text(json.dumps(good))
    load(path)
    path.write_text(json.dumps(change(good)))
    with pytest.raises(UserError, match=re.escape(says)) as refused:
        load(path)
    assert "mtdit calibrate" in str(refused.value)
    assert "did you mean" not in str(refused.value)
