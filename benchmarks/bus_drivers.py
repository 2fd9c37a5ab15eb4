"""The drivers of the servo bus that are compared, behind one interface."""

from __future__ import annotations

import importlib.util
import os
import select
from collections.abc import Callable, Mapping
from typing import Protocol

from virtual_servos import SIX

from mtdit_robots.bus.feetech import Bus, open_serial
from mtdit_robots.bus.packets import BROADCAST, SYNC_READ, SYNC_WRITE, build_packet
from mtdit_robots.bus.sdk import SdkBus
from mtdit_robots.bus.sts3215 import REGISTERS

BAUD = 1_000_000
REPLY_BYTES = 6 * 8
PRESENT, GOAL = REGISTERS["Present_Position"].address, REGISTERS["Goal_Position"].address


class Driver(Protocol):
    """The interface of all drivers. `read` returns servo id -> position of those that answered."""

    def read(self) -> dict[int, int]: ...

    def write(self, goals: dict[int, int]) -> None: ...

    def close(self) -> None: ...


class Bare:
    """No driver: writes and reads the bytes of a cycle without decoding them."""

    def __init__(self, port: str) -> None:
        self._serial = open_serial(port, BAUD)
        self._fd = self._serial.fileno()
        self._poll = select.poll()
        self._poll.register(self._fd, select.POLLIN)
        self._request = build_packet(BROADCAST, SYNC_READ, bytes((PRESENT, 2, *SIX)))
        self._goals: dict[int, int] = {}

    def read(self) -> dict[int, int]:
        os.write(self._fd, self._request)
        seen = 0
        while seen < REPLY_BYTES and self._poll.poll(1000):
            seen += len(os.read(self._fd, 256))
        return self._goals if seen == REPLY_BYTES else {}

    def write(self, goals: dict[int, int]) -> None:
        self._goals = goals
        os.write(self._fd, _goal_packet(goals))

    def close(self) -> None:
        self._serial.close()


class Ours:
    def __init__(self, port: str, bus: type[Bus] = Bus) -> None:
        self._bus = bus(port)

    def read(self) -> dict[int, int]:
        return self._bus.sync_read("Present_Position", SIX)

    def write(self, goals: dict[int, int]) -> None:
        self._bus.sync_write("Goal_Position", goals)

    def close(self) -> None:
        self._bus.close()


class Sdk:
    """feetech-servo-sdk's group operations, used as in its examples."""

    def __init__(self, port: str) -> None:
        import scservo_sdk as scs

        self._scs, self._port, packets = scs, scs.PortHandler(port), scs.PacketHandler(0)
        if not self._port.openPort():
            raise OSError(f"the SDK cannot open {port}")
        self._reader = scs.GroupSyncRead(self._port, packets, PRESENT, 2)
        self._writer = scs.GroupSyncWrite(self._port, packets, GOAL, 2)
        for servo in SIX:
            self._reader.addParam(servo)

    def read(self) -> dict[int, int]:
        if self._reader.txRxPacket() != self._scs.COMM_SUCCESS:
            return {}
        return {servo: self._reader.getData(servo, PRESENT, 2) for servo in SIX}

    def write(self, goals: dict[int, int]) -> None:
        self._writer.clearParam()
        for servo, goal in goals.items():
            self._writer.addParam(servo, [goal & 0xFF, goal >> 8])
        self._writer.txPacket()

    def close(self) -> None:
        self._port.closePort()


class LeRobot:
    """LeRobot's Feetech bus, in ticks instead of degrees, with the retries of its follower."""

    def __init__(self, port: str) -> None:
        from lerobot.motors import Motor, MotorNormMode
        from lerobot.motors.feetech import FeetechMotorsBus

        motors = {str(servo): Motor(servo, "sts3215", MotorNormMode.DEGREES) for servo in SIX}
        self._bus = FeetechMotorsBus(port, motors)
        self._bus.connect(handshake=False)

    def read(self) -> dict[int, int]:
        try:
            values = self._bus.sync_read("Present_Position", normalize=False, num_retry=2)
        except ConnectionError:
            return {}
        return {int(name): int(value) for name, value in values.items()}

    def write(self, goals: dict[int, int]) -> None:
        self._bus.sync_write(
            "Goal_Position", {str(servo): goal for servo, goal in goals.items()}, normalize=False
        )

    def close(self) -> None:
        self._bus.disconnect(disable_torque=False)


class Rustypot:
    """Pollen Robotics' driver in Rust. Like LeRobot's it returns nothing if a servo is missing."""

    def __init__(self, port: str) -> None:
        from rustypot import Sts3215PyController

        self._bus = Sts3215PyController(port, BAUD, 0.05)

    def read(self) -> dict[int, int]:
        try:
            return dict(zip(SIX, self._bus.sync_read_raw_present_position(list(SIX)), strict=True))
        except (OSError, RuntimeError):
            return {}

    def write(self, goals: dict[int, int]) -> None:
        self._bus.sync_write_raw_goal_position(list(goals), list(goals.values()))

    def close(self) -> None:
        del self._bus


def _goal_packet(goals: Mapping[int, int]) -> bytes:
    shares = b"".join(bytes((servo, goal & 0xFF, goal >> 8)) for servo, goal in goals.items())
    return build_packet(BROADCAST, SYNC_WRITE, bytes((GOAL, 2)) + shares)


def drivers() -> dict[str, Callable[[str], Driver]]:
    """Name -> function that opens the driver on a port; rustypot only if it is installed."""
    found: dict[str, Callable[[str], Driver]] = {
        "bare": Bare,
        "mtdit": Ours,
        "mtdit --bus sdk": lambda port: Ours(port, SdkBus),
        "SDK": Sdk,
        "LeRobot": LeRobot,
    }
    if importlib.util.find_spec("rustypot"):
        found["rustypot (Rust)"] = Rustypot
    return found
