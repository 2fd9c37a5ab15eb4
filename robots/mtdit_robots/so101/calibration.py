"""LeRobot's calibration files: read, check, write, and keep earlier versions.

Where they are is in `calibration_places`. The values in the servos are read by `servos`; here they
are only compared. Source: LeRobot
`motors_bus.py` (MotorCalibration), `robot.py`.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from datetime import datetime, timezone
from pathlib import Path

import numpy as np

from mtdit_robots.errors import UserError
from mtdit_robots.files import new_file, part_of
from mtdit_robots.so101.calibration_places import near
from mtdit_robots.so101.joints import IDS, JOINTS, MAX_TICK, Ranges
from mtdit_robots.so101.other_calibrations import other_calibration

MAX_HOMING_OFFSET = 2047  # 11-bit magnitude in the servo
# 18 degrees, less than any joint can move: a smaller range means the joint was not swept
MIN_SPAN_TICKS = 200
# 9 degrees beyond the range: more than play in the joint and the flex of an end stop, so the joint
# has turned past the encoder's zero or the file is wrong
OUTSIDE_TICKS = 100
HISTORY = "history"  # the folder beside a calibration file that keeps its earlier versions


@dataclass(frozen=True)
class JointCalibration:
    """One joint, as LeRobot stores it.

    Ranges are raw ticks with the homing offset applied. drive_mode 1 reverses the joint.
    """

    id: int
    drive_mode: int
    homing_offset: int
    range_min: int
    range_max: int

    def allows(self, ticks: int) -> bool:
        """Whether a position lies in the range, or less than 9 degrees outside it."""
        return self.range_min - OUTSIDE_TICKS <= ticks <= self.range_max + OUTSIDE_TICKS


Calibration = Mapping[str, JointCalibration]  # one entry per joint of so101.JOINTS

KEYS = tuple(field.name for field in fields(JointCalibration))
FILE_KEYS = ("drive_mode",)  # no register of a servo holds it; LeRobot too has it in the file only
HELD_KEYS = tuple(key for key in KEYS if key not in FILE_KEYS)

_STAMP = "%Y%m%dT%H%M%S.%fZ"  # sorts by time


def load(path: str | Path) -> dict[str, JointCalibration]:
    """The calibration in a LeRobot JSON file, in joint order.

    UserError names the joint, the key and the fix.
    """
    path = Path(path)
    try:
        content = json.loads(path.read_text())
    except FileNotFoundError as error:
        raise UserError(
            f"there is no calibration file {path}: run `mtdit calibrate`, or correct the path"
        ) from error
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(
            f"cannot read the calibration file {path} ({error}): restore it from a copy"
        ) from error
    try:
        return _parse(content)
    except ValueError as error:
        raise UserError(f"calibration file {path}: {error}") from error


def save(calibration: Calibration, path: str | Path) -> None:
    """Write LeRobot's JSON (4-space indent). A file there that differs moves to the history first.

    Both files are written atomically. OSError when the folder is not writable.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    content = json.dumps({joint: asdict(calibration[joint]) for joint in JOINTS}, indent=4).encode()
    if path.is_file() and (before := path.read_bytes()) != content:
        folder = _history_folder(path)
        folder.mkdir(parents=True, exist_ok=True)
        _write_whole(folder / datetime.now(timezone.utc).strftime(f"{_STAMP}.json"), before)
    _write_whole(path, content)


def check_place(path: Path) -> None:
    """UserError when `save` could not write `path`. Call it before the user sweeps the joints."""
    if path.is_dir():
        raise UserError(f"{path} is a folder: give a file in it, e.g. {path / 'my_arm.json'}")
    probe = part_of(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise UserError(
            f"cannot write {path} ({error.strerror}): choose another file with --file"
        ) from error


@dataclass(frozen=True)
class Version:
    """An earlier version of a calibration file. number: 1 is the newest. replaced: when it was
    replaced, UTC.
    """

    number: int
    path: Path
    replaced: datetime


def history(path: str | Path) -> list[Version]:
    """The earlier versions of the file at `path`, newest first."""
    kept = sorted(_history_folder(Path(path)).glob("*Z.json"), reverse=True)
    return [
        Version(n, file, datetime.strptime(file.stem, _STAMP).replace(tzinfo=timezone.utc))
        for n, file in enumerate(kept, start=1)
    ]


def restore(path: str | Path, number: int = 1) -> Version:
    """Put an earlier version back at `path`; the present file moves to the history.

    Raises as `former`.
    """
    version = former(path, number)
    save(load(version.path), path)
    return version


def former(path: str | Path, number: int = 1) -> Version:
    """The `number`-th newest earlier version of the file at `path`.

    UserError when there is none of that number.
    """
    versions = history(path)
    if not versions:
        raise UserError(f"{path} has no earlier versions: it was never replaced")
    if not 1 <= number <= len(versions):
        raise UserError(
            f"{path} has no earlier version {number}, only 1..{len(versions)}: "
            "`--history` lists them"
        )
    return versions[number - 1]


def differences(
    one: Calibration, other: Calibration, names: tuple[str, str], keys: Sequence[str] = KEYS
) -> list[str]:
    """The differences between two calibrations, one line per joint and key; empty when they agree.

    names: what the lines call the two sides. keys: what is compared, by default all that a file
    holds.
    """
    return [
        f"{joint} {key}: {names[0]} {first}, {names[1]} {second}"
        for joint in JOINTS
        for key in keys
        if (first := getattr(one[joint], key)) != (second := getattr(other[joint], key))
    ]


def servo_differences(file: Calibration, held: Calibration, name: str = "file") -> list[str]:
    """The differences between a file and what the servos hold, as `differences`, in every key that
    a servo has a register for. name: what the lines call the file.
    """
    return differences(file, held, (name, "servo"), HELD_KEYS)


def not_compared(file: Calibration) -> str:
    """What a comparison of this file with servos leaves out, in a line, and what the file says."""
    said = [f"{joint} {key} {value}" for joint, key, value in _unheld(file) if value]
    values = f"the file says {', '.join(said)}" if said else "it is 0 in the file"
    return f"not compared: {', '.join(FILE_KEYS)}, which no servo holds; {values}"


def lost(before: Calibration, after: Calibration) -> list[str]:
    """What a file knew and servos cannot hold, and that its successor says otherwise: one line per
    joint and key.
    """
    return differences(before, after, ("was", "is now"), FILE_KEYS)


def _unheld(file: Calibration) -> list[tuple[str, str, int]]:
    return [(joint, key, getattr(file[joint], key)) for joint in JOINTS for key in FILE_KEYS]


def check(calibration: Calibration) -> None:
    """UserError unless all six joints are present with values an SO-101 can have."""
    try:
        _check_names(calibration, JOINTS, "joint")
        for joint in JOINTS:
            _check_values(joint, calibration[joint])
    except ValueError as error:
        raise UserError(f"calibration: {error}") from error


def ranges(calibration: Calibration, use_degrees: bool = True) -> Ranges:
    """The arrays that the unit conversions use. Raises as `check`."""
    check(calibration)
    joints = [calibration[joint] for joint in JOINTS]
    return Ranges(
        low=np.array([joint.range_min for joint in joints]),
        high=np.array([joint.range_max for joint in joints]),
        reverse=np.array([joint.drive_mode == 1 for joint in joints]),
        use_degrees=use_degrees,
    )


def _parse(content: object) -> dict[str, JointCalibration]:
    """ValueError says what is wrong and what to do about it."""
    if not isinstance(content, dict):
        raise ValueError(
            "it is not a JSON object with one entry per joint; use the file that "
            "`mtdit calibrate` wrote"
        )
    if wrong := other_calibration(content, JOINTS):
        raise ValueError(wrong)
    _check_names(content, JOINTS, "joint")
    calibration = {joint: _parse_joint(joint, content[joint]) for joint in JOINTS}
    for joint in JOINTS:
        _check_values(joint, calibration[joint])
    return calibration


def _parse_joint(joint: str, entry: object) -> JointCalibration:
    if not isinstance(entry, dict):
        raise ValueError(
            f"{joint} is not an object with the keys {', '.join(KEYS)}; run `mtdit calibrate` again"
        )
    _check_names(entry, KEYS, f"key of {joint}")
    for key in KEYS:
        if type(entry[key]) is not int:
            raise ValueError(
                f"{joint} {key} is {entry[key]!r}, must be an integer; run `mtdit calibrate` again"
            )
    return JointCalibration(**entry)


def _check_names(found: Iterable[str], wanted: tuple[str, ...], what: str) -> None:
    found = tuple(found)
    missing = [name for name in wanted if name not in found]
    for name in found:
        if name not in wanted:
            known = f", known are {', '.join(wanted)}; run `mtdit calibrate` again"
            raise ValueError(f"unknown {what} {name!r}{near(name, missing or wanted) or known}")
    if missing:
        raise ValueError(f"missing {what}: {', '.join(missing)}; run `mtdit calibrate` again")


def _check_values(joint: str, values: JointCalibration) -> None:
    span = f"range {values.range_min}..{values.range_max}"
    if values.id != IDS[joint]:
        problem = f"has id {values.id}, but on an SO-101 it is {IDS[joint]}"
    elif values.drive_mode not in (0, 1):
        problem = f"has drive_mode {values.drive_mode}, must be 0 or 1"
    elif abs(values.homing_offset) > MAX_HOMING_OFFSET:
        problem = f"homing_offset {values.homing_offset} is beyond +-{MAX_HOMING_OFFSET}"
    elif values.range_min < 0 or values.range_max > MAX_TICK:
        problem = f"{span} is not within 0..{MAX_TICK}"
    elif values.range_max < values.range_min:
        problem = f"{span} runs backwards: range_min is above range_max"
    elif values.range_max - values.range_min < MIN_SPAN_TICKS:
        problem = f"{span} is narrower than {MIN_SPAN_TICKS} ticks, was it moved from stop to stop?"
    else:
        return
    raise ValueError(f"{joint} {problem}; run `mtdit calibrate` again")


def _history_folder(path: Path) -> Path:
    return path.parent / HISTORY / path.stem


def _write_whole(path: Path, content: bytes) -> None:
    with new_file(path, sync=True) as part:
        part.write_bytes(content)
