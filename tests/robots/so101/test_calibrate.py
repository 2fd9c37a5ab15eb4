"""Calibrating over the virtual bus: LeRobot's own procedure is the oracle, and whatever goes wrong
is put back.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from lerobot.robots.so_follower import SO101Follower, SO101FollowerConfig

from mtdit_robots.errors import UserError
from mtdit_robots.so101 import servos
from mtdit_robots.so101.calibrate import (
    CENTRE_TICKS,
    SWEPT,
    Calibrator,
    PoseError,
    Sweep,
    homing_offsets,
    opened,
    write,
)
from mtdit_robots.so101.calibration import Calibration, JointCalibration, load, save
from mtdit_robots.so101.joints import IDS, JOINTS
from mtdit_robots.twin.registers import ServoRegisters

if TYPE_CHECKING:
    from servo_chain import Chain


PATIENT_S = 2.0
ATTEMPTS = 4
LEROBOT = """
import sys
from pathlib import Path
from lerobot.robots.so_follower import SO101Follower, SO101FollowerConfig
folder = Path(sys.argv[3])
config = SO101FollowerConfig(
    port=sys.argv[1], id=sys.argv[2], calibration_dir=folder, cameras={}
)
robot = SO101Follower(config)
robot.bus.connect()
robot.configure()
robot.calibrate()
robot.bus.disconnect()
"""
# Encoder ticks: where the arm stands mid-range, and the two stops of each joint.
CENTRE = {
    "shoulder_pan": 1900,
    "shoulder_lift": 3100,
    "elbow_flex": 1010,
    "wrist_flex": 2047,
    "wrist_roll": 3000,
    "gripper": 2222,
}
REACH = {
    "shoulder_pan": 1250,
    "shoulder_lift": 1130,
    "elbow_flex": 1100,
    "wrist_flex": 1077,
    "gripper": 700,
}


def pose(chain: Chain, ticks: dict[str, int]) -> None:
    for joint, tick in ticks.items():
        chain.servos[IDS[joint]].set_present(tick)


def seen(chain: Chain) -> None:
    """Wait until the client has read what is there now, whole."""
    before, deadline = chain.n_reads, time.monotonic() + 30
    while chain.n_reads < before + 2:
        assert time.monotonic() < deadline, "the client reads no more"
        time.sleep(0.005)


def swept(joint: str, share: float = 1.0) -> list[int]:
    """Encoder ticks of a joint that goes from stop to stop and back."""
    reach = round(REACH[joint] * share)
    return [
        CENTRE[joint] + at
        for at in (-reach // 2, -reach, -reach // 2, 0, reach // 2, reach, reach // 3, 0)
    ]


def sweep(chain: Chain, calibrator: Calibrator, share: float = 1.0) -> None:
    for joint in SWEPT:
        for tick in swept(joint, share):
            chain.servos[IDS[joint]].set_present(tick)
            calibrator.sample()


def eeprom(chain: Chain) -> dict[int, tuple[int, ...]]:
    """What a power cycle brings back."""
    for servo in chain.servos.values():
        servo.power_cycle()
    names = ("Homing_Offset", "Min_Position_Limit", "Max_Position_Limit", "Operating_Mode")
    return {n: tuple(servo.get(name) for name in names) for n, servo in chain.servos.items()}


def test_the_result_is_lerobots_file_and_eeprom_to_the_byte(
    factory_chain: Chain, terminal: Callable[..., Any], tmp_path: Path
) -> None:
    """The same arm, moved the same way: once under LeRobot's `calibrate`, once under ours."""
    theirs = tmp_path / "theirs.json"
    for _ in range(ATTEMPTS):  # LeRobot repeats no write, and a stalled computer loses replies
        if lerobot_calibrated(factory_chain, terminal, theirs):
            break
    else:
        pytest.fail("LeRobot did not get through its calibration")
    held = eeprom(factory_chain)
    for servo in factory_chain.servos.values():
        for register in ("Homing_Offset", "Min_Position_Limit"):
            servo.set(register, 7)
    pose(factory_chain, CENTRE)
    with (
        opened(factory_chain.port, PATIENT_S) as bus,
        Calibrator(bus, say=lambda words: None) as calibrator,
    ):
        calibrator.centre()
        sweep(factory_chain, calibrator)
        calibrator.finish(lambda made: save(made, tmp_path / "ours.json"))
    assert (tmp_path / "ours.json").read_bytes() == theirs.read_bytes()
    assert eeprom(factory_chain) == held
    assert load(theirs)["wrist_roll"] == JointCalibration(
        5, 0, CENTRE["wrist_roll"] - CENTRE_TICKS, 0, 4095
    )


def lerobot_calibrated(chain: Chain, terminal: Callable[..., Any], file: Path) -> bool:
    pose(chain, CENTRE)
    screen = terminal("-c", LEROBOT, chain.port, file.stem, str(file.parent))
    try:
        screen.expect("middle of its range of motion")
        screen.send("\n")
        screen.expect("Press ENTER to stop")
        for joint in SWEPT:
            for tick in swept(joint):
                chain.servos[IDS[joint]].set_present(tick)
                seen(chain)
        screen.send("\n")
        screen.expect("Calibration saved")
    except AssertionError as error:
        print(error)
        return False
    return bool(screen.exit_code() == 0)


def test_a_file_made_by_us_is_loaded_by_lerobot_and_passes_its_mismatch_check(
    factory_chain: Chain, tmp_path: Path
) -> None:
    calibrate(factory_chain, tmp_path / "arm.json")
    for servo in factory_chain.servos.values():
        servo.power_cycle()
    for attempt in range(ATTEMPTS):
        robot = SO101Follower(
            SO101FollowerConfig(
                port=factory_chain.port, id="arm", calibration_dir=tmp_path, cameras={}
            )
        )
        try:
            robot.connect(calibrate=False)
            assert robot.is_calibrated
            robot.disconnect()
            return
        except (ConnectionError, RuntimeError):
            assert attempt < ATTEMPTS - 1


def calibrate(chain: Chain, file: Path) -> dict[str, JointCalibration]:
    pose(chain, CENTRE)
    with (
        opened(chain.port, PATIENT_S) as bus,
        Calibrator(bus, say=lambda words: None) as calibrator,
    ):
        calibrator.centre()
        sweep(chain, calibrator)
        return calibrator.finish(lambda made: save(made, file))


def test_torque_is_off_throughout_and_the_eeprom_locked_at_the_end(
    factory_chain: Chain, tmp_path: Path
) -> None:
    for servo in factory_chain.servos.values():
        servo.set("Torque_Enable", 1)
    factory_chain.servos[2].set("Phase", 28)
    calibrate(factory_chain, tmp_path / "arm.json")
    enabled = [frame for _, frame in factory_chain.writes(40) if any(frame.data[1:])]
    assert not enabled or all(frame.code == 0x83 for frame in enabled)
    assert not any(servo.torque_enabled for servo in factory_chain.servos.values())
    assert all(servo.get("Lock") == 1 for servo in factory_chain.servos.values())
    assert factory_chain.servos[2].get("Phase") == 12


def attempt(
    chain: Chain, act: Callable[[Calibrator], object], said: list[str], timeout_s: float = PATIENT_S
) -> None:
    pose(chain, CENTRE)
    with opened(chain.port, timeout_s) as bus, Calibrator(bus, say=said.append) as calibrator:
        act(calibrator)


def refused(chain: Chain, act: Callable[[Calibrator], object], message: str) -> None:
    """Leaving by the PoseError that `act` raises restores the former calibration and says so."""
    before, said = eeprom(chain), list[str]()
    with pytest.raises(PoseError, match=message) as raised:
        attempt(chain, act, said)
    assert "\n" not in str(raised.value)
    assert eeprom(chain) == before
    assert said == ["torque is off", "the servos still have their former calibration"]


def no_save(made: Calibration) -> None:
    raise AssertionError("must not be saved")


def test_joints_that_were_not_moved_are_named_with_their_span(chain: Chain) -> None:
    def spoil(calibrator: Calibrator) -> None:
        calibrator.centre()
        sweep(chain, calibrator, share=0.3)
        for tick in swept("gripper"):
            pose(chain, {"gripper": tick})
            calibrator.sample()
        calibrator.finish(no_save)

    refused(
        chain,
        spoil,
        "shoulder_pan moved only 66 of 220 degrees: move it from stop to stop; shoulder_lift moved",
    )


def test_a_joint_that_crosses_the_seam_is_named(chain: Chain) -> None:
    def spoil(calibrator: Calibrator) -> None:
        pose(chain, {"elbow_flex": 3900})  # centred at one stop: the travel runs over 4095
        calibrator.centre()
        sweep(chain, calibrator)
        calibrator.finish(no_save)

    refused(
        chain, spoil, "elbow_flex crossed its encoder's wrap-around from 4095 to 0: put it in the"
    )


def test_an_offset_beyond_the_register_is_named(chain: Chain) -> None:
    def spoil(calibrator: Calibrator) -> None:
        pose(chain, {"wrist_flex": 4095})
        calibrator.centre()

    refused(
        chain,
        spoil,
        r"wrist_flex is at encoder tick 4095, which needs an offset of 2048, .* \+-2047: turn it",
    )


def test_finish_wants_a_centre_first(chain: Chain) -> None:
    refused(chain, lambda calibrator: calibrator.finish(no_save), "has not been centred")


def test_a_joint_that_moves_while_centring_is_named(chain: Chain) -> None:
    class Falls(ServoRegisters):
        def write(self, address: int, data: bytes) -> bool:
            wrote = super().write(address, data)
            if address == 31 and any(data):
                self.set_present(self.get("Present_Position") + self.get("Homing_Offset") + 300)
            return wrote

    chain.servos[3].__class__ = Falls
    refused(
        chain,
        lambda calibrator: calibrator.centre(),
        "elbow_flex reads 2347 after centring, not 2047",
    )


def test_a_file_that_cannot_be_written_leaves_the_servos_as_they_were(
    chain: Chain, tmp_path: Path
) -> None:
    before, said = eeprom(chain), list[str]()
    (tmp_path / "file").touch()

    def act(calibrator: Calibrator) -> None:
        calibrator.centre()
        sweep(chain, calibrator)
        calibrator.finish(lambda made: save(made, tmp_path / "file" / "arm.json"))

    with pytest.raises(OSError, match="file"):
        attempt(chain, act, said)
    assert eeprom(chain) == before
    assert "the servos still have their former calibration" in said


def test_a_servo_that_dies_midway_is_told_with_what_became_of_the_others(chain: Chain) -> None:
    said: list[str] = []

    def act(calibrator: Calibrator) -> None:
        calibrator.centre()
        del chain.servos[6]
        calibrator.sample()

    with pytest.raises(
        UserError, match=r"gripper \(servo 6\) on .* does not answer: check the arm's cables"
    ):
        attempt(chain, act, said, timeout_s=0.3)
    assert said[0] == "gripper did not confirm torque off: cut the arm's power"
    assert "could not be restored" in said[1]
    assert not any(servo.torque_enabled for servo in chain.servos.values())


def test_wrist_roll_may_turn_over_the_seam() -> None:
    turning = Sweep()
    for tick in (2047, 4000, 60, 2047):
        turning.add({"wrist_roll": tick})
    assert not turning.wrapped
    assert turning.enough("wrist_roll")


@pytest.mark.parametrize("seed", range(20))
def test_every_centre_pose_but_one_has_an_offset(seed: int) -> None:
    print(f"seed {seed}")
    ticks = {joint: random.Random(seed).randrange(4095) for joint in JOINTS}
    assert all(abs(offset) <= 2047 for offset in homing_offsets(ticks).values())
    with pytest.raises(PoseError, match="gripper is at encoder tick 4095"):
        homing_offsets({**ticks, "gripper": 4095})


def test_write_takes_torque_away_and_lasts(factory_chain: Chain, calibration: Calibration) -> None:
    said: list[str] = []
    for servo in factory_chain.servos.values():
        servo.set("Torque_Enable", 1)
    with opened(factory_chain.port, PATIENT_S) as bus:
        write(bus, calibration, said.append)
        assert servos.read_calibration(bus) == calibration
    assert said == ["torque is off"]
    assert {n: held[0] for n, held in eeprom(factory_chain).items()} == {
        c.id: c.homing_offset for c in calibration.values()
    }
