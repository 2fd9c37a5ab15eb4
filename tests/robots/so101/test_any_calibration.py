"""Any calibration file is read as LeRobot reads it, and moves each joint as LeRobot's bus does, or
is refused by the joint and the remedy.
"""

from __future__ import annotations

import re
from dataclasses import astuple, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
from drawn_calibrations import Drawn, drawn, sound, written
from lerobot.robots.so_follower import SO101Follower, SO101FollowerConfig

from mtdit_robots.errors import UserError
from mtdit_robots.so101 import servos
from mtdit_robots.so101.calibrate import opened
from mtdit_robots.so101.calibration import (
    HELD_KEYS,
    KEYS,
    Calibration,
    differences,
    load,
    lost,
    not_compared,
    ranges,
    servo_differences,
)
from mtdit_robots.so101.joints import IDS, JOINTS

if TYPE_CHECKING:
    from servo_chain import Chain

REGISTERS = {
    "homing_offset": "Homing_Offset",
    "range_min": "Min_Position_Limit",
    "range_max": "Max_Position_Limit",
}
SHORT, LONG = 300, 60_000  # files


def lerobots(folder: Path, use_degrees: bool) -> SO101Follower:
    """LeRobot's own arm, which reads folder/arm.json; never connected."""
    config = SO101FollowerConfig(
        port="/dev/null", id="arm", calibration_dir=folder, use_degrees=use_degrees
    )
    return SO101Follower(config)


def ticks_to_try(rng: np.random.Generator, calibration: Calibration) -> np.ndarray:
    """(N, 6): ends and middle of each range and what is beside them, the encoder's ends, others."""
    low, high = (np.array([getattr(calibration[j], k) for j in JOINTS]) for k in KEYS[3:])
    middle = (low + high) // 2
    near = [at + step for at in (low, high, middle) for step in (-1, 0, 1)]
    ends = np.repeat([[-4096], [-1], [0], [2047], [4095], [4096], [32767]], 6, axis=1)
    return np.concatenate([near, ends, rng.integers(-500, 4600, (8, 6))])


def positions_to_try(rng: np.random.Generator, exact: np.ndarray) -> np.ndarray:
    """(N, 6): what whole ticks read as and the floats beside it, the ends of each unit, far
    outside, and what a policy gives in float32.
    """
    ends = np.repeat(
        [[-100.0], [-0.0], [0.0], [100.0], [-180.0], [180.0], [-1e9], [1e9]], 6, axis=1
    )
    numbers = np.concatenate([exact, ends])
    beside = [np.nextafter(numbers, towards) for towards in (-np.inf, np.inf)]
    policys = rng.uniform(-250, 250, (8, 6)).astype(np.float32).astype(np.float64)
    return np.concatenate([numbers, *beside, policys, rng.normal(0, 60, (8, 6))])


def bits(rows: object) -> list[str]:
    """Every number to the last bit, the sign of zero included."""
    return [float(number).hex() for number in np.asarray(rows, dtype=np.float64).ravel()]


def assert_moves_as_lerobots(folder: Path, ours: Calibration, rng: np.random.Generator) -> None:
    ticks = ticks_to_try(rng, ours)
    for use_degrees in (True, False):
        robot = lerobots(folder, use_degrees)
        assert {j: astuple(c) for j, c in ours.items()} == {
            j: astuple(c) for j, c in robot.calibration.items()
        }
        found = ranges(ours, use_degrees)
        read = [robot.bus._normalize(dict(zip(IDS.values(), row, strict=True)))
                for row in ticks.tolist()]  # fmt: skip
        assert bits(found.positions(ticks)) == bits([list(row.values()) for row in read])
        wanted = positions_to_try(rng, found.positions(ticks))
        goals = [robot.bus._unnormalize(dict(zip(IDS.values(), row, strict=True)))
                 for row in wanted.tolist()]  # fmt: skip
        assert found.ticks(wanted).tolist() == [list(row.values()) for row in goals]


def refusal(path: Path) -> str | None:
    try:
        load(path)
    except UserError as error:
        return str(error)
    return None


def check(case: Drawn, folder: Path, rng: np.random.Generator) -> None:
    """A sound file moves as in LeRobot; a damaged one is refused in one line, by its fault."""
    path = folder / "arm.json"
    path.write_text(case.text)
    said = refusal(path)
    assert (said is None) == (not case.faults), f"{said}, though its faults are {case.faults}"
    if said is None:
        return assert_moves_as_lerobots(folder, load(path), rng)
    assert "\n" not in said
    assert any(re.search(fault, said) for fault in case.faults), f"{said}: {case.faults}"


def try_files(count: int, seed: int, folder: Path) -> None:
    print("seed", seed)
    rng = np.random.default_rng(seed)
    for number in range(count):
        case = drawn(rng)
        try:
            check(case, folder, rng)
        except Exception as error:  # an oracle that fails is a finding too
            raise AssertionError(f"file {number}: {error}\n{case.text}") from error


def test_any_file_moves_as_in_lerobot_or_is_refused(tmp_path: Path) -> None:
    try_files(SHORT, 14, tmp_path)


@pytest.mark.slow(minutes=4)
def test_very_many_files_move_as_in_lerobot_or_are_refused(tmp_path: Path) -> None:
    try_files(LONG, int(np.random.default_rng().integers(1 << 32)), tmp_path)


def test_a_comparison_names_what_differs_and_nothing_else(tmp_path: Path) -> None:
    """Any fields of any joints changed: two files in all that they hold, a file and servos in all
    that servos hold.
    """
    rng = np.random.default_rng(7)
    for number in range(200):
        (tmp_path / "arm.json").write_text(written(rng, sound(rng)))
        one = load(tmp_path / "arm.json")
        places = {(str(j), str(k)) for j in rng.choice(JOINTS, 2) for k in rng.choice(KEYS, 2)}
        other = dict(one)
        for joint, key in places:
            value = getattr(other[joint], key)
            other[joint] = replace(
                other[joint], **{key: 1 - value if value in (0, 1) else value + 1}
            )
        expected = {f"{j} {k}: a {getattr(one[j], k)}, b {getattr(other[j], k)}" for j, k in places}
        assert set(differences(one, other, ("a", "b"))) == expected, f"file {number}"
        held = {line.split(":")[0] for line in servo_differences(one, other)}
        assert held == {f"{j} {k}" for j, k in places if k in HELD_KEYS}, f"file {number}"
        said = {line.split(":")[0] for line in lost(one, other)}
        assert said == {f"{j} {k}" for j, k in places if k not in HELD_KEYS}, f"file {number}"
        assert "drive_mode, which no servo holds" in not_compared(one)
        assert all(
            (f"{j} drive_mode 1" in not_compared(one)) == (one[j].drive_mode == 1) for j in one
        )


def test_any_register_of_any_servo_is_compared(chain: Chain, calibration: Calibration) -> None:
    """What a servo holds, each value another one in turn, against the file."""
    with opened(chain.port, timeout_s=2.0) as bus:
        assert servo_differences(calibration, servos.read_calibration(bus)) == []
        for joint, number in IDS.items():
            for key, register in REGISTERS.items():
                before = chain.servos[number].get(register)
                chain.servos[number].set(register, before + 1)
                (line,) = servo_differences(calibration, servos.read_calibration(bus))
                assert line == f"{joint} {key}: file {before}, servo {before + 1}"
                chain.servos[number].set(register, before)
