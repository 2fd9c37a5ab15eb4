"""An arm's calibration is inspected, and what is wrong with a joint is said."""

from __future__ import annotations

import dataclasses
import re
from typing import TYPE_CHECKING

import pytest

from mtdit_robots.so101.calibrate import opened
from mtdit_robots.so101.calibration import Calibration, JointCalibration
from mtdit_robots.so101.calibration_check import inspect, judge
from mtdit_robots.so101.joints import JOINTS

if TYPE_CHECKING:
    from servo_chain import Chain


def test_inspect_finds_a_good_arm_good_and_writes_nothing(
    chain: Chain, calibration: Calibration
) -> None:
    for servo in chain.servos.values():
        servo.set("Torque_Enable", 1)
    with opened(chain.port, timeout_s=2.0) as bus:
        findings = inspect(bus, calibration)
    assert [(finding.joint, finding.status) for finding in findings] == [
        (joint, "ok") for joint in JOINTS
    ]
    assert all(servo.torque_enabled for servo in chain.servos.values())
    assert {frame.code for frame in chain.log} <= {1, 2, 0x82}


GOOD = JointCalibration(3, 0, 10, 941, 3145)


@pytest.mark.parametrize(
    ("held", "present", "file", "status", "words"),
    [
        (GOOD, 2047, GOOD, "ok", r"194 degrees \(941\.\.3145\), now at 2047"),
        (GOOD, 2047, None, "ok", "194 degrees"),
        (GOOD, 2047, dataclasses.replace(GOOD, drive_mode=1), "ok", "194 degrees"),
        (GOOD, 2047, dataclasses.replace(GOOD, id=5), "fail", "servo holds id 3, file 5"),
        (
            GOOD,
            2047,
            dataclasses.replace(GOOD, homing_offset=0),
            "fail",
            "servo holds homing_offset 10, file 0",
        ),
        (GOOD, 3300, GOOD, "fail", r"is at 3300, outside 941\.\.3145"),
        (GOOD, 800, GOOD, "fail", "is at 800, outside"),
        (dataclasses.replace(GOOD, range_max=900), 900, None, "fail", r"range 941\.\.900 is empty"),
        (
            dataclasses.replace(GOOD, range_max=1900),
            1000,
            None,
            "warn",
            "84 degrees .*; an SO-101 has 194 degrees",
        ),
        (
            dataclasses.replace(GOOD, range_max=4095),
            1000,
            None,
            "warn",
            "277 degrees .*; an SO-101 has 194 degrees",
        ),
    ],
)
def test_judge(
    held: JointCalibration, present: int, file: JointCalibration | None, status: str, words: str
) -> None:
    finding = judge("elbow_flex", held, present, file)
    assert finding.status == status
    assert re.search(words, finding.finding)
    assert bool(finding.remedy) == (status != "ok")


def test_a_swept_wrist_roll_is_pointed_out() -> None:
    assert judge("wrist_roll", JointCalibration(5, 0, 0, 0, 4095), 9).status == "ok"
    assert judge("wrist_roll", JointCalibration(5, 0, 0, 100, 3900), 200).status == "warn"
