"""The same bus over Feetech's own `feetech-servo-sdk`: for whoever trusts the vendor's packets more
than ours.

Knows which of the SDK's calls send a request and read a reply, and gives it a port that mends its
own: it sleeps instead of spinning, waits 50 ms instead of 34 (LeRobot mends that too), by a steady
clock, and drops stale input before a request instead of taking it for the reply. Refuses to know
registers, retries and counters: those are `feetech.Bus`.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass

import scservo_sdk as scs

from mtdit_robots.feetech import FRAME_OVERHEAD, Bus, BusError, Frame

_CODE, _DATA = 4, 5  # where a packet has its instruction or error bits, and its data


class SdkBus(Bus):
    """`feetech.Bus` with the SDK between it and the wire: it builds every request and takes every
    reply apart.

    Interface, errors and patience are those of `Bus`.
    """

    def __init__(
        self, port: str, baud: int = 1_000_000, timeout_s: float = 0.05, retries: int = 2
    ) -> None:
        super().__init__(port, baud, timeout_s, retries)
        self._until = 0.0
        self._link = _Link(self._discard_input, self._write, self._take)
        self._packets = scs.PacketHandler(0)  # 0: STS, little-endian

    def _exchange(self, request: Frame, servos: Collection[int], n_data: int) -> dict[int, Frame]:
        self._send(request)
        self._until = self._deadline(request, servos, n_data)
        replies: dict[int, Frame] = {}
        while len(replies) < len(servos):
            packet, result = self._packets.rxPacket(self._link)
            if (
                result == scs.COMM_SUCCESS
                and packet[2] in servos
                and len(packet) == FRAME_OVERHEAD + n_data
            ):
                replies[packet[2]] = Frame(packet[2], packet[_CODE], bytes(packet[_DATA:-1]))
            elif self._link.timed_out:
                break
        self._count(servos, replies)
        return replies

    def _send(self, request: Frame) -> None:
        packet = [
            0,
            0,
            request.servo,
            len(request.data) + 2,
            request.code,
            *request.data,
            0,
        ]  # header, checksum: SDK
        self._link.is_using = self._link.timed_out = False
        result = self._packets.txPacket(self._link, packet)
        if result != scs.COMM_SUCCESS:
            raise BusError(f"{self.port} took no data: {self._packets.getTxRxResult(result)}")

    def _take(self, n_bytes: int) -> bytes:
        """`n_bytes` of what arrives before the deadline, or fewer."""
        while self._end - self._begin < n_bytes and self._receive(self._until):
            pass
        begin, self._begin = self._begin, min(self._begin + max(0, n_bytes), self._end)
        return bytes(self._view[begin : self._begin])


@dataclass
class _Link:
    """What the SDK's packet handler asks of a `PortHandler`, under its names."""

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
