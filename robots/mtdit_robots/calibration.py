"""LeRobot's calibration file, read and written unchanged.

Knows the JSON, where LeRobot keeps it, and what a sane one looks like. Refuses to know the bus: whoever reads the
servos' own values hands them over for comparison. Source: LeRobot `motors_bus.py` (MotorCalibration), `robot.py`.
"""

from __future__ import annotations

import difflib
import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import numpy as np

from mtdit_robots.errors import UserError
from mtdit_robots.so101 import IDS, JOINTS, Ranges

MAX_HOMING_OFFSET = 2047  # 11-bit magnitude in the servo
MAX_TICK = 4095
MIN_SPAN_TICKS = 200  # 18 degrees: less than any joint moves, so the joint was not moved while recording
DIRECTORIES = ("so_follower", "so101_follower")  # LeRobot >= 0.4.3, and before


@dataclass(frozen=True)
class JointCalibration:
    """One joint, as LeRobot stores it. Ranges are raw ticks with the homing offset applied; drive_mode 1 reverses."""

    id: int
    drive_mode: int
    homing_offset: int
    range_min: int
    range_max: int


Calibration = Mapping[str, JointCalibration]  # one entry per joint of so101.JOINTS

_KEYS = tuple(field.name for field in fields(JointCalibration))


def load(path: str | Path) -> dict[str, JointCalibration]:
    """The calibration in a LeRobot JSON file, in joint order. UserError names the joint, the key and the fix."""
    path = Path(path)
    try:
        content = json.loads(path.read_text())
    except FileNotFoundError as error:
        raise UserError(f"no calibration file {path}: run `lerobot-calibrate`, or correct the path") from error
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise UserError(f"cannot read the calibration file {path} ({error}): restore it from a copy") from error
    try:
        return _parse(content)
    except ValueError as error:
        raise UserError(f"calibration file {path}: {error}") from error


def save(calibration: Calibration, path: str | Path) -> None:
    """Write LeRobot's JSON (4-space indent). The file appears whole or not at all."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    content = {joint: asdict(calibration[joint]) for joint in JOINTS}
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(json.dumps(content, indent=4))
    temporary.replace(path)


def search_directories() -> tuple[Path, ...]:
    """Where LeRobot keeps follower calibrations: both of its directory names, below the HF_* variables."""
    cache = Path(os.environ.get("XDG_CACHE_HOME", "~/.cache"))
    home = Path(os.environ.get("HF_HOME", cache / "huggingface"))
    lerobot = Path(os.environ.get("HF_LEROBOT_HOME", home / "lerobot"))
    root = Path(os.environ.get("HF_LEROBOT_CALIBRATION", lerobot / "calibration")).expanduser()
    return tuple(root / "robots" / name for name in DIRECTORIES)


def find(robot_id: str) -> Path:
    """The calibration file LeRobot made for `--robot.id=robot_id`. UserError lists the ids that exist."""
    places = [directory / f"{robot_id}.json" for directory in search_directories()]
    for place in places:
        if place.is_file():
            return place
    known = sorted({file.stem for place in places for file in place.parent.glob("*.json")})
    near = _near(robot_id, known) or (f", there is {', '.join(known)}" if known else "")
    raise UserError(
        f"no calibration of a robot {robot_id!r} in {' or '.join(str(place.parent) for place in places)}{near}: "
        "run `lerobot-calibrate`, or pass the file's path"
    )


def differences(calibration: Calibration, servos: Calibration) -> list[str]:
    """What the servos' EEPROM holds otherwise than the file: one line per joint and field, empty when they agree.

    As LeRobot does, ids and drive modes are not compared.
    """
    return [
        f"{joint} {key}: file {getattr(calibration[joint], key)}, servo {getattr(servos[joint], key)}"
        for joint in JOINTS
        for key in ("homing_offset", "range_min", "range_max")
        if getattr(calibration[joint], key) != getattr(servos[joint], key)
    ]


def check(calibration: Calibration) -> None:
    """UserError unless all six joints are there with values an SO-101 can have."""
    try:
        _check_names(calibration, JOINTS, "joint")
        for joint in JOINTS:
            _check_values(joint, calibration[joint])
    except ValueError as error:
        raise UserError(f"calibration: {error}") from error


def ranges(calibration: Calibration, use_degrees: bool = True) -> Ranges:
    """The arrays the unit conversions work on. UserError as `check`."""
    check(calibration)
    joints = [calibration[joint] for joint in JOINTS]
    return Ranges(
        low=np.array([joint.range_min for joint in joints]),
        high=np.array([joint.range_max for joint in joints]),
        reverse=np.array([joint.drive_mode == 1 for joint in joints]),
        use_degrees=use_degrees,
    )


def _parse(content: object) -> dict[str, JointCalibration]:
    """ValueError with what is wrong and what to do about it."""
    if not isinstance(content, dict):
        raise ValueError("it holds no object of joints; use the file `lerobot-calibrate` wrote")
    _check_names(content, JOINTS, "joint")
    calibration = {joint: _parse_joint(joint, content[joint]) for joint in JOINTS}
    for joint in JOINTS:
        _check_values(joint, calibration[joint])
    return calibration


def _parse_joint(joint: str, entry: object) -> JointCalibration:
    if not isinstance(entry, dict):
        raise ValueError(f"{joint} holds no object with {', '.join(_KEYS)}; run `lerobot-calibrate` again")
    _check_names(entry, _KEYS, f"key of {joint}")
    for key in _KEYS:
        if type(entry[key]) is not int:
            raise ValueError(f"{joint} {key} is {entry[key]!r}, must be an integer; run `lerobot-calibrate` again")
    return JointCalibration(**entry)


def _check_names(found: Iterable[str], wanted: tuple[str, ...], what: str) -> None:
    found = tuple(found)
    for name in found:
        if name not in wanted:
            hint = _near(name, wanted) or f", known: {', '.join(wanted)}"
            raise ValueError(f"unknown {what} {name!r}{hint}")
    missing = [name for name in wanted if name not in found]
    if missing:
        raise ValueError(f"missing {what}: {', '.join(missing)}; run `lerobot-calibrate` again")


def _check_values(joint: str, values: JointCalibration) -> None:
    span = f"range {values.range_min}..{values.range_max}"
    if values.id != IDS[joint]:
        problem = f"id is {values.id}, an SO-101 has {IDS[joint]} there"
    elif values.drive_mode not in (0, 1):
        problem = f"drive_mode is {values.drive_mode}, must be 0 or 1"
    elif abs(values.homing_offset) > MAX_HOMING_OFFSET:
        problem = f"homing_offset {values.homing_offset} is beyond +-{MAX_HOMING_OFFSET}"
    elif values.range_min < 0 or values.range_max > MAX_TICK:
        problem = f"{span} leaves 0..{MAX_TICK}"
    elif values.range_max - values.range_min < MIN_SPAN_TICKS:
        problem = f"{span} is narrower than {MIN_SPAN_TICKS} ticks, was the joint moved while recording?"
    else:
        return
    raise ValueError(f"{joint} {problem}; run `lerobot-calibrate` again")


def _near(name: str, known: Iterable[str]) -> str:
    near = difflib.get_close_matches(name, list(known), n=1)
    return f", did you mean {near[0]!r}?" if near else ""
