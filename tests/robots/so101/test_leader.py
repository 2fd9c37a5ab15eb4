"""The leader over the virtual bus: read, never energised; refused with another calibration."""

from __future__ import annotations

import contextlib
import dataclasses
from typing import TYPE_CHECKING

import numpy as np
import pytest
from repository import EXAMPLE

from mtdit_robots.errors import UserError
from mtdit_robots.so101.calibration import Calibration, ranges
from mtdit_robots.so101.joints import JOINTS
from mtdit_robots.so101.leader import So101Leader

if TYPE_CHECKING:
    from servo_chain import Chain

PATIENT_S = 2.0
TORQUE = 40
ATTEMPTS = 4


def test_a_leader_is_read_and_stays_limp(chain: Chain, calibration: Calibration) -> None:
    chain.servos[2].set("Torque_Enable", 1)  # somebody left it stiff
    chain.servos[4].set("Phase", 28)
    with So101Leader(chain.port, calibration, timeout_s=PATIENT_S) as leader:
        assert leader.joints == JOINTS
        assert not any(servo.torque_enabled for servo in chain.servos.values())
        for servo, ticks in zip(
            chain.servos.values(), (900, 1500, 2100, 2900, 4000, 2500), strict=True
        ):
            servo.set_present(ticks + servo.get("Homing_Offset"))
        wanted = ranges(calibration).positions([900, 1500, 2100, 2900, 4000, 2500])
        np.testing.assert_array_equal(leader.read(), wanted)
    leader.close()
    assert all(frame.data[-1] == 0 for _, frame in chain.writes(TORQUE)), "torque was switched on"
    assert chain.servos[4].get("Phase") == 12
    assert all(servo.get("Lock") == 1 for servo in chain.servos.values())


def test_what_lerobots_leader_reads_ours_reads(chain: Chain, calibration: Calibration) -> None:
    from lerobot.teleoperators.so_leader import SO101Leader, SO101LeaderConfig

    for servo, ticks in zip(
        chain.servos.values(), (1000, 1300, 2300, 2500, 300, 3000), strict=True
    ):
        servo.set_present(ticks + servo.get("Homing_Offset"))
    config = SO101LeaderConfig(port=chain.port, id=EXAMPLE.stem, calibration_dir=EXAMPLE.parent)
    theirs: list[float] = []
    for _ in range(ATTEMPTS):
        with contextlib.suppress(
            ConnectionError, RuntimeError
        ):  # a stalled machine exhausts its 50 ms
            theirs_arm = SO101Leader(config)
            theirs_arm.connect(calibrate=False)
            theirs[:] = theirs_arm.get_action().values()
            theirs_arm.disconnect()
            break
    with So101Leader(chain.port, calibration, timeout_s=PATIENT_S) as ours:
        assert ours.read().tolist() == theirs


def test_another_arms_calibration_is_refused(chain: Chain, calibration: Calibration) -> None:
    other = {**calibration, "gripper": dataclasses.replace(calibration["gripper"], range_max=3000)}
    leader = So101Leader(chain.port, other, timeout_s=PATIENT_S)
    with pytest.raises(
        UserError, match=r"leader: the servos .*gripper range_max: file 3000, servo 3487.*--leader"
    ):
        leader.connect()
    So101Leader(chain.port, calibration, timeout_s=PATIENT_S).connect()


def test_a_silent_servo_is_named(chain: Chain, calibration: Calibration) -> None:
    leader = So101Leader(chain.port, calibration, timeout_s=0.3)
    leader.connect()
    with pytest.raises(UserError, match="already connected"):
        leader.connect()
    del chain.servos[3]
    with pytest.raises(OSError, match=r"elbow_flex \(servo 3\) on .* does not answer"):
        leader.read()
    assert leader.errors["elbow_flex"]["no answer"] >= 1
    leader.close()
    with pytest.raises(OSError, match="is not connected"):
        leader.read()
    with pytest.raises(UserError, match=r"leader: .*elbow_flex"):
        So101Leader(chain.port, calibration, timeout_s=0.3).connect()
