"""`feetech.Bus` with the packets built and parsed by Feetech's own `feetech-servo-sdk`.

The SDK gets our port in place of its `PortHandler`, which fixes four problems of that one: ours
sleeps instead of spinning, waits 50 ms instead of 34 (LeRobot patches that too), uses a monotonic
clock, and drops stale input before a request instead of reading it as the reply. Registers, retries
and counters stay in `feetech.Bus`.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass

import scservo_sdk as scs

from mtdit_robots.bus.feetech import Bus, BusError
from mtdit_robots.bus.packets import PACKET_OVERHEAD, Packet

_CODE, _DATA = 4, 5  # index of the instruction or error bits in a packet, and of its data


class SdkBus(Bus):
    """`feetech.Bus` whose requests are built and whose replies are parsed by the SDK.

    Interface, errors, timeouts and retries are those of `Bus`.
    """

    def __init__(
        self, port: str, baud: int = 1_000_000, timeout_s: float = 0.05, retries: int = 2
    ) -> None:
        super().__init__(port, baud, timeout_s, retries)
        self._until = 0.0
        self._link = _Link(self._discard_input, self._write, self._take)
        self._packets = scs.PacketHandler(0)  # 0: STS, little-endian

    def _exchange(self, request: Packet, servos: Collection[int], n_data: int) -> dict[int, Packet]:
        self._send(request)
        self._until = self._deadline(request, servos, n_data)
        replies: dict[int, Packet] = {}
        while len(replies) < len(servos):
            packet, result = self._packets.rxPacket(self._link)
            if (
                result == scs.COMM_SUCCESS
                and packet[2] in servos
                and len(packet) == PACKET_OVERHEAD + n_data
            ):
                replies[packet[2]] = Packet(packet[2], packet[_CODE], bytes(packet[_DATA:-1]))
            elif self._link.timed_out:
                break
        self._count(servos, replies)
        return replies

    def _send(self, request: Packet) -> None:
        n_data = len(request.data) + 2
        # the SDK fills in the header (the first two) and the checksum (the last)
        packet = [0, 0, request.servo, n_data, request.code, *request.data, 0]
        self._link.is_using = self._link.timed_out = False
        result = self._packets.txPacket(self._link, packet)
        if result != scs.COMM_SUCCESS:
            raise BusError(f"cannot write to {self.port}: {self._packets.getTxRxResult(result)}")

    def _take(self, n_bytes: int) -> bytes:
        """Up to `n_bytes` of the bytes that arrive before the deadline."""
        while self._end - self._begin < n_bytes and self._receive(self._until):
            pass
        begin, self._begin = self._begin, min(self._begin + max(0, n_bytes), self._end)
        return bytes(self._view[begin : self._begin])


@dataclass
class _Link:
    """The methods of a `PortHandler` that the SDK's packet handler calls."""

    discard: Callable[[], None]
    write: Callable[[bytes], None]
    take: Callable[[int], bytes]
    is_using: bool = False
    timed_out: bool = False

    def clearPort(self) -> None:  # noqa: N802
        self.discard()

    def writePort(self, packet: list[int]) -> int:  # noqa: N802
        self.write(bytes(packet))
        return len(packet)

    def readPort(self, length: int) -> bytes:  # noqa: N802
        taken = self.take(length)
        self.timed_out = len(taken) < length
        return taken

    def isPacketTimeout(self) -> bool:  # noqa: N802
        return self.timed_out
