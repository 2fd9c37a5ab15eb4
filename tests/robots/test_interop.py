"""Other people's clients on our virtual bus: LeRobot's SO-101 follower and Feetech's own SDK, both unmodified.

Both give a servo about 50 ms to answer and do not retry a write. A machine that stalls longer fails them through no
fault of the bus, so each scenario may be played again from the start.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
import scservo_sdk as scs
from lerobot.motors.feetech import FeetechMotorsBus
from lerobot.robots.so_follower import SO101Follower, SO101FollowerConfig

from mtdit_robots.arm import So101Arm
from mtdit_robots.calibration import Calibration, ranges
from mtdit_robots.so101 import IDS, JOINTS

if TYPE_CHECKING:
    from conftest import Chain

EXAMPLE = Path(__file__).parents[2] / "calibration" / "example_so101.json"
ATTEMPTS = 4


class StalledError(Exception):
    """The SDK ran out of patience."""


def patiently(scenario: Callable[[], None]) -> None:
    for _ in range(ATTEMPTS - 1):
        with contextlib.suppress(ConnectionError, RuntimeError, StalledError):
            return scenario()
    return scenario()


def follower(chain: Chain, **settings: object) -> SO101Follower:
    config = SO101FollowerConfig(
        port=chain.port, id=EXAMPLE.stem, calibration_dir=EXAMPLE.parent, cameras={}, **settings
    )
    return SO101Follower(config)


@pytest.mark.parametrize("use_degrees", [True, False])
def test_lerobots_follower_connects_moves_and_leaves(chain: Chain, calibration: Calibration, use_degrees: bool) -> None:
    goals = dict(zip(JOINTS, [10.0, -20.0, 30.0, -40.0, 50.0, 60.0], strict=True))

    def scenario() -> None:
        robot = follower(chain, use_degrees=use_degrees)
        robot.connect(calibrate=False)
        assert robot.is_connected
        assert robot.is_calibrated
        sent = robot.send_action({f"{joint}.pos": goal for joint, goal in goals.items()})
        assert list(sent.values()) == list(goals.values())
        seen = robot.get_observation()
        ticks = [servo.get("Goal_Position") for servo in chain.servos.values()]
        assert ticks == ranges(calibration, use_degrees).ticks(list(goals.values())).tolist()
        np.testing.assert_allclose(list(seen.values()), list(goals.values()), atol=0.1)
        robot.disconnect()
        assert not any(servo.torque_enabled for servo in chain.servos.values())

    patiently(scenario)


def test_what_lerobot_reads_our_arm_reads(chain: Chain, calibration: Calibration) -> None:
    for servo, ticks in zip(chain.servos.values(), (900, 1500, 2100, 2900, 4000, 2500), strict=True):
        servo.set_present(ticks + servo.get("Homing_Offset"))
    theirs: list[float] = []

    def scenario() -> None:
        robot = follower(chain)
        robot.connect(calibrate=False)
        theirs[:] = robot.get_observation().values()
        robot.disconnect()

    patiently(scenario)
    arm = So101Arm(chain.port, calibration, timeout_s=2.0)
    arm.connect()
    assert arm.observe().positions.tolist() == theirs
    arm.close()


def test_lerobot_writes_a_calibration_that_our_arm_accepts(factory_chain: Chain, calibration: Calibration) -> None:
    def scenario() -> None:
        robot = follower(factory_chain)
        robot.connect(calibrate=False)
        robot.bus.disable_torque()  # and Lock=0, so that it lasts
        robot.bus.write_calibration(robot.calibration)
        assert robot.is_calibrated
        robot.disconnect()

    patiently(scenario)
    for servo in factory_chain.servos.values():
        servo.power_cycle()
        servo.set_present(2047 + servo.get("Homing_Offset"))
    arm = So101Arm(factory_chain.port, calibration, timeout_s=2.0)
    arm.connect()
    arm.close()


def test_lerobots_broadcast_ping_finds_all_six(chain: Chain) -> None:
    def scenario() -> None:
        bus = FeetechMotorsBus(port=chain.port, motors=follower(chain).bus.motors)
        bus.connect(handshake=False)
        found = bus.broadcast_ping()
        bus.disconnect(disable_torque=False)
        if found != dict.fromkeys(range(1, 7), 777):
            raise StalledError(f"found {found}")

    patiently(scenario)


@pytest.fixture
def sdk(chain: Chain) -> Iterator[tuple[scs.PortHandler, scs.PacketHandler]]:
    port = scs.PortHandler(chain.port)
    assert port.openPort()
    yield port, scs.PacketHandler(0)
    port.closePort()


def succeeded(result: int) -> None:
    if result != scs.COMM_SUCCESS:
        raise StalledError(f"result {result}")


def test_the_sdk_pings_reads_and_writes(chain: Chain, sdk: tuple[scs.PortHandler, scs.PacketHandler]) -> None:
    port, packets = sdk

    def scenario() -> None:
        model, result, error = packets.ping(port, 3)
        succeeded(result)
        assert (model, error) == (777, 0)
        result, error = packets.write2ByteTxRx(port, 3, 46, 300)
        succeeded(result)
        value, result, error = packets.read2ByteTxRx(port, 3, 46)
        succeeded(result)
        assert (value, error) == (300, 0)

    patiently(scenario)


def test_the_sdk_group_operations(chain: Chain, sdk: tuple[scs.PortHandler, scs.PacketHandler]) -> None:
    port, packets = sdk

    def scenario() -> None:
        write = scs.GroupSyncWrite(port, packets, 42, 2)
        for n in IDS.values():
            write.addParam(n, [scs.SCS_LOBYTE(2000 + n), scs.SCS_HIBYTE(2000 + n)])
        succeeded(write.txPacket())
        read = scs.GroupSyncRead(port, packets, 42, 2)
        for n in IDS.values():
            read.addParam(n)
        succeeded(read.txRxPacket())
        assert [read.getData(n, 42, 2) for n in IDS.values()] == [2000 + n for n in IDS.values()]

    patiently(scenario)
