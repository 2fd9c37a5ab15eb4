"""A million garbled replies: none breaks the parser, and no value is taken that its servo did not
send.
"""

from __future__ import annotations

import os
import pty
import random
from collections.abc import Callable

import pytest

from mtdit_robots.bus.feetech import Bus
from mtdit_robots.bus.packets import PACKET_OVERHEAD, Packet, build_packet, take_replies
from mtdit_robots.bus.sdk import SdkBus

SEED = 20251121
STRINGS = 1_000_000
SIX = (1, 2, 3, 4, 5, 6)
N_DATA = 2  # a position
LONGEST = PACKET_OVERHEAD + N_DATA

Garble = Callable[[random.Random, bytearray], None]


def flip(chance: random.Random, stream: bytearray) -> None:
    stream[chance.randrange(len(stream))] ^= 1 << chance.randrange(8)


def drop(chance: random.Random, stream: bytearray) -> None:
    del stream[chance.randrange(len(stream))]


def insert(chance: random.Random, stream: bytearray) -> None:
    stream.insert(
        chance.randrange(len(stream) + 1), chance.choice((0xFF, 0xFF, chance.randrange(256)))
    )


def double(chance: random.Random, stream: bytearray) -> None:
    at = chance.randrange(len(stream))
    stream[at:at] = stream[at : at + chance.randrange(1, 9)]


def truncate(chance: random.Random, stream: bytearray) -> None:
    del stream[chance.randrange(1, len(stream)) :]


def foreign(chance: random.Random, stream: bytearray) -> None:
    """An intact frame of a servo that was not asked."""
    stream[0:0] = build_packet(chance.randrange(7, 254), 0, chance.randbytes(2))


def wrong_length(chance: random.Random, stream: bytearray) -> None:
    """An intact frame of an asked servo, the answer to another question."""
    stream[0:0] = build_packet(
        chance.choice(SIX), 0, chance.randbytes(chance.choice((0, 1, 3, 4, 18)))
    )


def replace(chance: random.Random, stream: bytearray) -> None:
    stream[:] = chance.randbytes(chance.randrange(1, 60))


GARBLES: tuple[Garble, ...] = (
    flip,
    flip,
    drop,
    insert,
    double,
    truncate,
    foreign,
    wrong_length,
    replace,
)


def intact(chance: random.Random) -> dict[int, bytes]:
    """What up to three of the six really send, by id."""
    asked = chance.sample(SIX, chance.randrange(1, 4))
    return {servo: build_packet(servo, 0, chance.randbytes(N_DATA)) for servo in asked}


def parse(stream: bytearray, cut: int) -> dict[int, Packet]:
    """As the bus does: what has arrived is parsed, then the rest behind what was left over."""
    replies: dict[int, Packet] = {}
    left = take_replies(stream, 0, cut, SIX, N_DATA, replies)
    assert cut - left < LONGEST
    left = take_replies(stream, left, len(stream), SIX, N_DATA, replies)
    assert len(stream) - left < LONGEST
    return replies


def test_a_million_garbled_replies() -> None:
    """Whatever is accepted is a whole frame of the wire: an asked servo, the asked length, the
    checksum right.
    """
    print("seed", SEED)
    chance = random.Random(SEED)
    accepted = invented = 0
    replies = [intact(chance) for _ in range(5_000)]
    for _ in range(STRINGS):
        sent = chance.choice(replies)
        stream = bytearray().join(sent.values())
        garble = GARBLES[chance.randrange(len(GARBLES))]
        garble(chance, stream)
        for servo, reply in parse(stream, chance.randrange(len(stream) + 1)).items():
            frame = build_packet(servo, reply.code, reply.data)
            assert servo in SIX
            assert len(reply.data) == N_DATA
            assert frame in stream
            accepted += 1
            if frame != sent.get(servo):
                # one byte changed cannot survive the checksum; a lost or added one may, once in
                # 256, as noise may
                assert garble is not flip, (stream.hex(), reply)
                invented += 1
    print("accepted", accepted, "of which the wire invented", invented)
    assert accepted > STRINGS / 2
    assert invented < accepted / 200


@pytest.mark.parametrize("kind", [Bus, SdkBus])
def test_both_buses_take_nothing_but_what_arrived(kind: type[Bus]) -> None:
    """The whole exchange, the port replaced by memory: whatever comes, it ends and gives asked
    servos' values only.
    """

    class InMemory(kind):  # type: ignore[misc,valid-type]
        arriving: bytes

        def _write(self, packet: bytes) -> None:
            pass

        def _receive(self, deadline: float) -> bool:
            arrived, self.arriving = self.arriving[:13], self.arriving[13:]
            self._input[self._end : self._end + len(arrived)] = arrived
            self._end += len(arrived)
            return bool(arrived)

    print("seed", SEED)
    chance = random.Random(SEED)
    master, slave = pty.openpty()
    with InMemory(os.ttyname(slave), retries=0) as bus:
        for _ in range(20_000):
            stream = bytearray().join(intact(chance).values())
            GARBLES[chance.randrange(len(GARBLES))](chance, stream)
            bus.arriving = bytes(stream)
            for servo, value in bus.sync_read(
                "Goal_Time", SIX
            ).items():  # any two bytes that have no sign
                assert stream.find(bytes((servo, N_DATA + 2))) >= 0
                assert value.to_bytes(2, "little") in stream
    os.close(master)
    os.close(slave)


def test_intact_replies_survive_what_stands_between_them() -> None:
    print("seed", SEED)
    chance = random.Random(SEED)
    for _ in range(20_000):
        sent, stream = intact(chance), bytearray()
        for frame in sent.values():
            stream += chance.randbytes(chance.randrange(12)).replace(b"\xff", b"\xfe") + frame
        foreign(chance, stream)
        wrong_length(chance, stream)
        found = parse(stream, chance.randrange(len(stream) + 1))
        assert {servo: build_packet(*reply) for servo, reply in found.items()} == sent
