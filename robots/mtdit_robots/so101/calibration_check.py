"""Compares an arm's servos with a calibration file and with the arm's mechanical limits."""

from __future__ import annotations

from dataclasses import dataclass

from mtdit_robots.bus.feetech import Bus
from mtdit_robots.so101 import servos
from mtdit_robots.so101.calibrate import (
    DEG,
    FULL_TURN,
    MAX_SHARE,
    MIN_SHARE,
    NOMINAL_TRAVEL_DEG,
)
from mtdit_robots.so101.calibration import (
    HELD_KEYS,
    MAX_TICK,
    Calibration,
    JointCalibration,
)
from mtdit_robots.so101.joints import IDS, JOINTS


@dataclass(frozen=True)
class Finding:
    """What `inspect` found on one joint. status: ok, warn or fail. remedy: the fix, if any."""

    joint: str
    status: str
    finding: str
    remedy: str = ""


def inspect(bus: Bus, file: Calibration | None = None) -> list[Finding]:
    """Compare the servos' EEPROM with `file`, with the joints' positions, and with an SO-101's
    travel. Returns one finding per joint.

    Only reads: an arm that holds a pose keeps holding it. Raises as `servos.handshake`.
    """
    servos.handshake(bus)
    held = servos.read_calibration(bus)
    present = servos.read(bus, "Present_Position")
    return [
        judge(joint, held[joint], present[IDS[joint]], file[joint] if file else None)
        for joint in JOINTS
    ]


def judge(
    joint: str, held: JointCalibration, present: int, file: JointCalibration | None = None
) -> Finding:
    """The most serious finding on one joint. Checked in this order: file, position, travel."""
    wrong = _mismatch(held, file) if file else ""
    if wrong:
        return Finding(
            joint,
            "fail",
            wrong,
            "pass this arm's own file, or write this one to the servos with --import",
        )
    span = f"{held.range_min}..{held.range_max}"
    if held.range_max <= held.range_min:
        return Finding(
            joint,
            "fail",
            f"range {span} is empty",
            "calibrate, or write this arm's file to the servos with --import",
        )
    if not held.allows(present):
        return Finding(
            joint,
            "fail",
            f"is at {present}, outside {span}",
            "move it inside by hand, or calibrate again",
        )
    return _judge_travel(joint, held, f"({span}), now at {present}")


def _mismatch(held: JointCalibration, file: JointCalibration) -> str:
    wrong = [
        f"{key} {getattr(held, key)}, file {getattr(file, key)}"
        for key in HELD_KEYS
        if getattr(held, key) != getattr(file, key)
    ]
    return f"servo holds {'; '.join(wrong)}" if wrong else ""


def _judge_travel(joint: str, held: JointCalibration, finding: str) -> Finding:
    span = (held.range_max - held.range_min) * DEG
    finding = f"{span:.0f} degrees {finding}"
    if joint == FULL_TURN:
        if (held.range_min, held.range_max) == (0, MAX_TICK):
            return Finding(joint, "ok", finding)
        return Finding(
            joint,
            "warn",
            f"{finding}; LeRobot gives it 0..{MAX_TICK} since 0.4.3",
            "its zero position differs: keep this range only for older policies",
        )
    nominal = NOMINAL_TRAVEL_DEG[joint]
    if span > MAX_SHARE * nominal:
        return Finding(
            joint,
            "warn",
            f"{finding}; an SO-101 has {nominal:.0f} degrees",
            "check its horn, then calibrate again",
        )
    if span < MIN_SHARE * nominal:
        return Finding(
            joint,
            "warn",
            f"{finding}; an SO-101 has {nominal:.0f} degrees",
            "calibrate again and move it from stop to stop",
        )
    return Finding(joint, "ok", finding)
