"""The whole arm over the virtual bus: what it checks, in which order it acts, and that it always
lets go.
"""

from __future__ import annotations

import dataclasses
import logging
import re
import time
from typing import TYPE_CHECKING

import numpy as np
import pytest

from mtdit_robots.bus.packets import SYNC_WRITE, WRITE
from mtdit_robots.bus.sts3215 import REGISTERS
from mtdit_robots.errors import UserError
from mtdit_robots.so101.arm import So101Arm
from mtdit_robots.so101.calibration import Calibration
from mtdit_robots.so101.joints import IDS, JOINTS
from mtdit_robots.twin.registers import ServoRegisters

if TYPE_CHECKING:
    from servo_chain import Chain

    from mtdit_robots.cameras.images import Frame

PATIENT_S = 2.0
TORQUE, GOAL, LOCK = 40, 42, 55


class StillCamera:
    """A camera whose picture never changes."""

    name, height, width = "top", 4, 6

    def __init__(self) -> None:
        self.closed = False

    def read(self) -> tuple[Frame, float]:
        return np.full((self.height, self.width, 3), 7, dtype=np.uint8), 0.25

    def close(self) -> None:
        self.closed = True


class ForgetsItsGain(ServoRegisters):
    def write(self, address: int, data: bytes) -> bool:
        return address != REGISTERS["P_Coefficient"].address and super().write(address, data)


def arm_on(chain: Chain, calibration: Calibration, **settings: object) -> So101Arm:
    return So101Arm(chain.port, calibration, **{"timeout_s": PATIENT_S, **settings})  # type: ignore[arg-type]


def fails_to_connect(
    chain: Chain, calibration: Calibration, message: str, **settings: object
) -> None:
    arm = arm_on(chain, calibration, **settings)
    with pytest.raises(UserError, match=message) as raised:
        arm.connect()
    assert "\n" not in str(raised.value)
    assert not any(servo.torque_enabled for servo in chain.servos.values())


def test_a_camera_without_a_picture_is_told_before_torque_comes_on(
    chain: Chain, calibration: Calibration
) -> None:
    class Dark(StillCamera):
        def read(self) -> tuple[Frame, float]:
            raise OSError("camera 'top' (0) gave no frame within 5 s; check its USB cable")

    camera = Dark()
    fails_to_connect(chain, calibration, "check its USB cable, then try again", cameras=[camera])
    assert not chain.writes(GOAL)
    assert camera.closed


@pytest.mark.parametrize("bus", ["own", "sdk"])
def test_connect_observe_command_hold_close(
    chain: Chain, calibration: Calibration, bus: str
) -> None:
    camera = StillCamera()
    arm = arm_on(chain, calibration, cameras=[camera], bus=bus)
    assert (arm.joints, arm.cameras) == (JOINTS, ("top",))
    arm.connect()
    assert all(servo.torque_enabled and servo.get("Lock") == 1 for servo in chain.servos.values())

    n_reads = chain.n_reads
    before_s = time.monotonic()
    seen = arm.observe()
    assert chain.n_reads == n_reads + 1
    assert before_s <= seen.time_s <= time.monotonic()
    np.testing.assert_allclose(seen.positions[0], (2047 - (784 + 3296) / 2) * 360 / 4095)
    assert seen.frames["top"].shape == (4, 6, 3)
    assert seen.frame_age_s == {"top": 0.25}

    goals = np.array([10.0, -20.0, 30.0, -40.0, 50.0, 60.0])
    n_goals = chain.n_goals
    assert arm.command(goals).tolist() == goals.tolist()
    seen = arm.observe()
    np.testing.assert_allclose(seen.positions[:5], goals[:5], atol=360 / 4095)
    np.testing.assert_allclose(seen.positions[5], 60, atol=100 / (3487 - 2021))
    arm.hold()
    arm.observe()
    _, sent = zip(*chain.writes(GOAL), strict=True)
    assert sent[-1] == sent[-2]
    assert chain.n_goals == n_goals + 2

    arm.close()
    arm.close()
    assert camera.closed
    assert not any(servo.torque_enabled for servo in chain.servos.values())
    assert arm.errors == {}


def test_connect_configures_like_lerobot(chain: Chain, calibration: Calibration) -> None:
    chain.servos[4].set("Phase", 28)
    arm = arm_on(chain, calibration)
    arm.connect()
    arm.close()
    for servo in chain.servos.values():
        servo.power_cycle()
        kept = {
            "Return_Delay_Time": 0,
            "Maximum_Acceleration": 254,
            "Phase": 12,
            "Operating_Mode": 0,
        }
        kept |= {"P_Coefficient": 16, "I_Coefficient": 0, "D_Coefficient": 32}
        assert {name: servo.get(name) for name in kept} == kept
    limits = ("Max_Torque_Limit", "Protection_Current", "Overload_Torque")
    assert [chain.servos[6].get(name) for name in limits] == [500, 250, 25]
    assert [chain.servos[5].get(name) for name in limits] == [1000, 500, 80]


def test_a_second_connect_finds_no_eeprom_to_write(chain: Chain, calibration: Calibration) -> None:
    for _ in range(2):
        chain.log.clear()
        arm = arm_on(chain, calibration)
        arm.connect()
        arm.close()
    addresses = {frame.data[0] for frame in chain.log if frame.code in (WRITE, SYNC_WRITE)}
    assert addresses == {TORQUE, GOAL, LOCK}


def test_a_stale_goal_does_not_move_the_arm(chain: Chain, calibration: Calibration) -> None:
    """Goal := present comes before torque on, on the wire and in every servo."""
    for servo in chain.servos.values():
        servo.set("Goal_Position", 2500)
    before = {n: servo.get("Present_Position") for n, servo in chain.servos.items()}
    arm = arm_on(chain, calibration)
    arm.connect()
    assert {n: servo.get("Present_Position") for n, servo in chain.servos.items()} == before
    assert {n: servo.get("Goal_Position") for n, servo in chain.servos.items()} == before
    first_torque = min(n for n, frame in chain.writes(TORQUE) if frame.data[-1] == 1)
    goals = [n for n, _ in chain.writes(GOAL)]
    assert len(goals) == 1
    assert goals[0] < first_torque
    arm.close()


def test_goals_stay_inside_the_calibrated_range(chain: Chain, calibration: Calibration) -> None:
    arm = arm_on(chain, calibration)
    arm.connect()
    sent = arm.command(np.array([500.0, -500.0, 0.0, 0.0, 500.0, 120.0]))
    np.testing.assert_allclose(
        sent[[0, 1, 4, 5]], [1256 * 360 / 4095, -1138 * 360 / 4095, 180, 100]
    )
    arm.observe()
    goals = [servo.get("Goal_Position") for servo in chain.servos.values()]
    assert goals == [3296, 902, 2043, 2048, 4095, 3487]
    arm.close()


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_position_that_is_no_number_is_not_sent(
    chain: Chain, calibration: Calibration, bad: float
) -> None:
    arm = arm_on(chain, calibration)
    arm.connect()
    n_goals = len(chain.writes(GOAL))
    with pytest.raises(ValueError, match="not all finite"):
        arm.command(np.array([0, 0, bad, 0, 0, 50]))
    assert len(chain.writes(GOAL)) == n_goals
    arm.close()


def test_signed_percent_units(chain: Chain, calibration: Calibration) -> None:
    arm = arm_on(chain, calibration, use_degrees=False)
    arm.connect()
    arm.command(np.array([100.0, -100.0, 0.0, 50.0, -50.0, 25.0]))
    np.testing.assert_allclose(arm.observe().positions, [100, -100, 0, 50, -50, 25], atol=0.1)
    arm.close()


def test_an_arm_takes_the_unit_it_is_told(chain: Chain, calibration: Calibration) -> None:
    """The pose is the same in either; a reversed joint changes its sign in -100..100 only."""
    turned = dataclasses.replace(calibration["elbow_flex"], drive_mode=1)
    arm = arm_on(chain, {**calibration, "elbow_flex": turned})
    assert arm.use_units("degrees").tolist() == [1.0] * 6
    arm.connect()
    before = arm.observe().positions
    scale = arm.use_units("normalized")
    sign = np.array([1, 1, -1, 1, 1, 1])
    np.testing.assert_allclose(
        arm.observe().positions[:5], np.clip(before * scale * sign, -100, 100)[:5], atol=1e-6
    )
    arm.command(np.array([100.0, -100.0, 50.0, 0.0, 0.0, 25.0]))
    arm.observe()  # goals have no reply: they are there once something is answered
    lift, elbow = calibration["shoulder_lift"], calibration["elbow_flex"]
    assert chain.servos[2].get("Goal_Position") == lift.range_min
    quarter = elbow.range_min + (elbow.range_max - elbow.range_min) / 4
    assert abs(chain.servos[3].get("Goal_Position") - quarter) <= 1
    arm.close()


def test_another_arms_calibration_is_refused(chain: Chain, calibration: Calibration) -> None:
    other = {
        **calibration,
        "elbow_flex": dataclasses.replace(calibration["elbow_flex"], homing_offset=5),
    }
    fails_to_connect(
        chain,
        other,
        r"elbow_flex homing_offset: file 5, servo -1011\): "
        r".*mtdit calibrate --port \S+ --import FILE",
    )
    assert all(frame.code != WRITE or frame.data[0] == TORQUE for frame in chain.log)


def test_write_calibration_lasts(factory_chain: Chain, calibration: Calibration) -> None:
    fails_to_connect(
        factory_chain,
        calibration,
        "shoulder_pan homing_offset: file -137, servo 0; .*; and 13 more",
    )
    arm = arm_on(factory_chain, calibration)
    arm.write_calibration()
    for servo in factory_chain.servos.values():
        servo.power_cycle()
        servo.set_present(2047 + servo.get("Homing_Offset"))
    arm.connect()
    with pytest.raises(UserError, match="already connected: close it first"):
        arm.write_calibration()
    arm.close()


def test_write_calibration_makes_what_was_written_locked_last(
    chain: Chain, calibration: Calibration
) -> None:
    """LeRobot's ENTER path writes while Lock is 1: the values are there, and gone after the next
    power cycle.
    """
    servo = chain.servos[2]
    held = servo.get("Homing_Offset")
    servo.write(LOCK, b"\0")
    servo.write(REGISTERS["Homing_Offset"].address, b"\0\0")
    servo.set("Homing_Offset", held)
    arm_on(chain, calibration).write_calibration()
    servo.power_cycle()
    assert servo.get("Homing_Offset") == held


def test_no_servo_answers(chain: Chain, calibration: Calibration) -> None:
    chain.servos.clear()
    fails_to_connect(
        chain,
        calibration,
        "no servo answers on .*: switch on the arm's power",
        timeout_s=0.02,
        retries=0,
    )


def test_one_servo_does_not_answer(chain: Chain, calibration: Calibration) -> None:
    del chain.servos[3]
    fails_to_connect(
        chain, calibration, r"elbow_flex \(servo 3\) on .* does not answer", timeout_s=0.3
    )


def test_a_foreign_model_is_named(chain: Chain, calibration: Calibration) -> None:
    chain.servos[6].set("Model_Number", 2825)
    fails_to_connect(
        chain, calibration, r"gripper \(servo 6\) is not an STS3215 \(model 2825, not 777\)"
    )


def test_mixed_firmware_is_refused(chain: Chain, calibration: Calibration) -> None:
    chain.servos[2].set("Firmware_Minor_Version", 9)
    fails_to_connect(
        chain, calibration, r"different firmware \(.*shoulder_lift 3\.9, elbow_flex 3\.10"
    )


def test_a_fault_is_reported_in_words(chain: Chain, calibration: Calibration) -> None:
    chain.servos[5].error = 1 | 4
    fails_to_connect(chain, calibration, r"wrist_roll \(servo 5\) reports voltage and overheat: ")


def test_a_joint_far_outside_its_range_is_not_energised(
    chain: Chain, calibration: Calibration
) -> None:
    chain.servos[2].set_present(4000 + calibration["shoulder_lift"].homing_offset)
    fails_to_connect(
        chain,
        calibration,
        r"shoulder_lift is at 4000 ticks, outside its calibrated range 902\.\.3178",
    )


def test_a_register_that_does_not_stick_is_named(chain: Chain, calibration: Calibration) -> None:
    chain.servos[1].__class__ = ForgetsItsGain
    fails_to_connect(
        chain, calibration, r"shoulder_pan \(servo 1\) did not keep P_Coefficient = 16 \(reads 32\)"
    )


@pytest.mark.parametrize("bus", ["own", "sdk"])
def test_close_releases_the_others_when_one_servo_died(
    chain: Chain, calibration: Calibration, caplog: pytest.LogCaptureFixture, bus: str
) -> None:
    arm = arm_on(chain, calibration, timeout_s=0.3, retries=1, bus=bus)
    arm.connect()
    dead = chain.servos.pop(2)
    with pytest.raises(OSError, match=r"shoulder_lift \(servo 2\) on .* does not answer"):
        arm.observe()
    with caplog.at_level(logging.WARNING):
        arm.close()
    assert not any(servo.torque_enabled for servo in chain.servos.values())
    assert dead.torque_enabled
    assert "shoulder_lift did not confirm torque off" in caplog.text
    assert arm.errors["shoulder_lift"]["no answer"] >= 2


@pytest.mark.parametrize("joint", ["gripper", "elbow_flex"])
@pytest.mark.parametrize("bus", ["own", "sdk"])
def test_a_servo_that_lost_its_torque_is_noticed(
    chain: Chain, calibration: Calibration, joint: str, bus: str, caplog: pytest.LogCaptureFixture
) -> None:
    """A brown-out: the servo restarts within a tick and answers as before, but follows no goal."""
    arm = arm_on(chain, calibration, bus=bus)
    arm.connect()
    arm.observe()
    chain.servos[IDS[joint]].power_cycle()
    for _ in range(2):
        with pytest.raises(
            OSError,
            match=rf"{joint} \(servo {IDS[joint]}\) on .* lost torque .*check the power supply",
        ):
            arm.observe()
    arm.hold()
    others = [servo for n, servo in chain.servos.items() if n != IDS[joint]]
    assert all(servo.torque_enabled for servo in others)
    arm.close()
    assert not any(servo.torque_enabled for servo in chain.servos.values())
    assert not caplog.records


def test_an_arm_released_on_purpose_is_still_observed(
    chain: Chain, calibration: Calibration
) -> None:
    arm = arm_on(chain, calibration)
    arm.connect()
    assert arm.torque_off() == ()
    arm.observe()
    arm.close()


def test_an_unknown_bus_is_refused(calibration: Calibration) -> None:
    with pytest.raises(UserError, match="there is no bus 'usb': use own or sdk"):
        So101Arm("/dev/ttyNONE", calibration, bus="usb").connect()


def test_errors_are_counted_per_joint_while_running(chain: Chain, calibration: Calibration) -> None:
    arm = arm_on(chain, calibration)
    arm.connect()
    chain.servos[IDS["gripper"]].error = 32
    arm.observe()
    arm.observe()
    assert arm.errors == {"gripper": {"overload": 2}}
    arm.close()


def test_an_arm_that_is_not_connected_says_so(calibration: Calibration) -> None:
    arm = So101Arm("/dev/ttyNONE", calibration)
    arm.hold()
    arm.close()
    with pytest.raises(OSError, match="/dev/ttyNONE is not connected"):
        arm.observe()
    with pytest.raises(UserError, match=re.escape("no serial port /dev/ttyNONE")):
        arm.connect()
