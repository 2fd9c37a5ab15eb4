"""Other people's clients on our virtual bus, unmodified: LeRobot's arm, bus and commands, and
Feetech's own SDK.

Both give a servo about 50 ms to answer and do not retry a write. A machine that stalls longer fails
them through no fault of the bus, so each scenario may be played again from the start.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import numpy as np
import pytest
import scservo_sdk as scs
from lerobot.motors.feetech import FeetechMotorsBus
from lerobot.robots.so_follower import SO101Follower, SO101FollowerConfig
from repository import EXAMPLE

from mtdit_robots.bus.feetech import Bus
from mtdit_robots.so101.arm import So101Arm
from mtdit_robots.so101.calibration import Calibration, ranges
from mtdit_robots.so101.joints import IDS, JOINTS

if TYPE_CHECKING:
    from servo_chain import Chain

ATTEMPTS = 4


class StalledError(Exception):
    """The SDK ran out of patience."""


def patiently(scenario: Callable[[], None]) -> None:
    for _ in range(ATTEMPTS - 1):
        # the SDK's ping reads two bytes of a reply that came late, and fails with IndexError
        with contextlib.suppress(ConnectionError, RuntimeError, StalledError, IndexError):
            return scenario()
    return scenario()


def follower(chain: Chain, **settings: object) -> SO101Follower:
    config = SO101FollowerConfig(
        port=chain.port, id=EXAMPLE.stem, calibration_dir=EXAMPLE.parent, cameras={}, **settings
    )
    return SO101Follower(config)


@pytest.mark.parametrize("use_degrees", [True, False])
def test_lerobots_follower_connects_moves_and_leaves(
    chain: Chain, calibration: Calibration, use_degrees: bool
) -> None:
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
    for servo, ticks in zip(
        chain.servos.values(), (900, 1500, 2100, 2900, 4000, 2500), strict=True
    ):
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


def test_lerobot_writes_a_calibration_that_our_arm_accepts(
    factory_chain: Chain, calibration: Calibration
) -> None:
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
def motors_bus(chain: Chain) -> Iterator[FeetechMotorsBus]:
    """LeRobot's own bus, its handshake passed."""
    bus = FeetechMotorsBus(port=chain.port, motors=follower(chain).bus.motors)
    patiently(bus.connect)
    yield bus
    bus.port_handler.closePort()


def test_lerobots_bus_reads_and_writes_signed_registers(
    chain: Chain, motors_bus: FeetechMotorsBus
) -> None:
    chain.servos[2].set_present(
        2047 + chain.servos[2].get("Homing_Offset"), load=-0.25, voltage_v=7.1
    )

    def scenario() -> None:
        motors_bus.write("Homing_Offset", "shoulder_pan", -123, normalize=False)
        assert motors_bus.read("Homing_Offset", "shoulder_pan", normalize=False) == -123
        assert motors_bus.read("Present_Load", "shoulder_lift", normalize=False) == -250
        assert motors_bus.read("Present_Voltage", "shoulder_lift", normalize=False) == 71
        goals = {joint: 1500 + 100 * n for joint, n in IDS.items()}
        motors_bus.sync_write("Goal_Position", goals, normalize=False)
        assert motors_bus.sync_read("Goal_Position", normalize=False) == goals

    patiently(scenario)
    assert chain.servos[1].get("Homing_Offset") == -123


def test_lerobots_bus_switches_torque_and_homes(chain: Chain, motors_bus: FeetechMotorsBus) -> None:
    actual = {joint: 1200 + 300 * n for joint, n in IDS.items()}
    for joint, n in IDS.items():
        chain.servos[n].set_present(actual[joint])

    def scenario() -> None:
        motors_bus.enable_torque()
        assert all(
            servo.torque_enabled and servo.get("Lock") == 1 for servo in chain.servos.values()
        )
        motors_bus.disable_torque()
        assert not any(servo.torque_enabled or servo.get("Lock") for servo in chain.servos.values())
        offsets = motors_bus.set_half_turn_homings()
        assert offsets == {joint: ticks - 2047 for joint, ticks in actual.items()}
        assert set(motors_bus.sync_read("Present_Position", normalize=False).values()) == {2047}

    patiently(scenario)


def test_lerobots_handshake_finds_what_is_wrong(chain: Chain) -> None:
    chain.servos[4].set("Firmware_Minor_Version", 9)
    bus = FeetechMotorsBus(port=chain.port, motors=follower(chain).bus.motors)
    with pytest.raises(RuntimeError, match="different firmware"):
        patiently(lambda: reconnect(bus))
    chain.servos[4].set("Firmware_Minor_Version", 10)
    del chain.servos[5]
    with pytest.raises(RuntimeError, match="Missing motor IDs:\n  - 5"):
        patiently(lambda: reconnect(bus))
    bus.port_handler.closePort()


def reconnect(bus: FeetechMotorsBus) -> None:
    if bus.is_connected:
        bus.port_handler.closePort()
    bus.connect()


@pytest.fixture
def sdk(chain: Chain) -> Iterator[tuple[scs.PortHandler, scs.PacketHandler]]:
    port = scs.PortHandler(chain.port)
    assert port.openPort()
    yield port, scs.PacketHandler(0)
    port.closePort()


def succeeded(result: int) -> None:
    if result != scs.COMM_SUCCESS:
        raise StalledError(f"result {result}")


def test_the_sdk_pings_reads_and_writes(
    chain: Chain, sdk: tuple[scs.PortHandler, scs.PacketHandler]
) -> None:
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


def test_the_sdk_stages_writes_and_lets_them_act(
    chain: Chain, sdk: tuple[scs.PortHandler, scs.PacketHandler]
) -> None:
    port, packets = sdk

    def scenario() -> None:
        result, error = packets.regWriteTxRx(port, 2, 42, 2, [0xD0, 0x07])
        succeeded(result)
        assert error == 0
        assert chain.servos[2].get("Goal_Position") != 2000
        succeeded(packets.action(port, 2))
        assert chain.servos[2].get("Goal_Position") == 2000
        chain.servos[2].set("Goal_Position", 1)

    patiently(scenario)


def test_the_sdk_is_told_of_faults(
    chain: Chain, sdk: tuple[scs.PortHandler, scs.PacketHandler]
) -> None:
    port, packets = sdk
    chain.servos[3].error = 32

    def scenario() -> None:
        value, result, error = packets.read2ByteTxRx(port, 3, 56)
        succeeded(result)
        assert (value, error, packets.getRxPacketError(error)) == (
            2047,
            32,
            "[RxPacketError] Overload error!",
        )

    patiently(scenario)


def test_both_send_the_same_bytes(
    chain: Chain, sdk: tuple[scs.PortHandler, scs.PacketHandler]
) -> None:
    port, packets = sdk

    def scenario() -> None:
        chain.log.clear()
        read, write = (
            scs.GroupSyncRead(port, packets, 56, 2),
            scs.GroupSyncWrite(port, packets, 42, 2),
        )
        for n in IDS.values():
            read.addParam(n)
            write.addParam(n, [0xFF, 0x07])
        succeeded(read.txRxPacket())
        succeeded(write.txPacket())
        for result in (
            packets.write1ByteTxRx(port, 6, 40, 1)[0],
            packets.write2ByteTxRx(port, 1, 31, 0x087B)[0],
        ):
            succeeded(result)
        succeeded(packets.read2ByteTxRx(port, 1, 56)[1])

    patiently(scenario)
    theirs = chain.log[:]
    chain.log.clear()
    with Bus(chain.port, timeout_s=2.0) as bus:
        bus.sync_read("Present_Position", tuple(IDS.values()))
        bus.sync_write("Goal_Position", dict.fromkeys(IDS.values(), 2047))
        bus.write(6, "Torque_Enable", 1)
        bus.write(1, "Homing_Offset", -123)
        bus.read(1, "Present_Position")
    assert chain.log == theirs


def test_the_sdk_group_operations(
    chain: Chain, sdk: tuple[scs.PortHandler, scs.PacketHandler]
) -> None:
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
