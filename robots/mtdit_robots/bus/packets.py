"""Packets of Feetech's protocol 0 (STS and SMS servos): build one, find one in received bytes.

Frame: FF FF ID LEN CODE DATA.. CHECKSUM. CODE is the instruction in a request and the error bits in
a reply, LEN = len(DATA) + 2, CHECKSUM = ~(sum from ID) & 0xFF. Words are little-endian.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import NamedTuple

PING, READ, WRITE, REG_WRITE, ACTION, SYNC_READ, SYNC_WRITE = 1, 2, 3, 4, 5, 0x82, 0x83
BROADCAST = 0xFE
MAX_ID = 0xFD
MAX_LENGTH = 250
HEADER = b"\xff\xff"
PACKET_OVERHEAD = 6  # bytes of a frame without data

BUFFER_BYTES = 8192  # receive buffer; the bytes in it that are not parsed yet are at most a frame


class Packet(NamedTuple):
    """One frame. `code` is the instruction of a request, or the error bits of a status reply."""

    servo: int
    code: int
    data: bytes = b""


def build_packet(servo: int, code: int, data: bytes = b"") -> bytes:
    """The bytes of a frame."""
    body = bytes((servo, len(data) + 2, code)) + data
    return HEADER + body + bytes((~sum(body) & 0xFF,))


def find_packet(
    buffer: bytearray,
    begin: int,
    end: int,
    max_id: int = MAX_ID,
    max_code: int = 0x7F,
    max_length: int = MAX_LENGTH,
) -> tuple[Packet | None, int]:
    """The first complete, valid frame in buffer[begin:end], and the index of the byte after it.

    The frame is None when more bytes are needed. Where the bytes cannot be a frame (id, code or
    length out of bounds, bad checksum) the search continues one byte further, so a frame after or
    inside garbage is found.
    """
    at = begin
    while True:
        at = buffer.find(HEADER, at, end)
        if at < 0:
            half_a_header = end > begin and buffer[end - 1] == HEADER[0]
            return None, end - half_a_header
        if end - at < PACKET_OVERHEAD:
            return None, at
        servo, length, code = buffer[at + 2], buffer[at + 3], buffer[at + 4]
        last = at + length + 3  # where the checksum is
        if servo <= max_id and code <= max_code and 2 <= length <= max_length:
            if last >= end:
                return None, at
            if (sum(buffer[at + 2 : last]) + buffer[last]) & 0xFF == 0xFF:
                return Packet(servo, code, bytes(buffer[at + 5 : last])), last + 1
        at += 1


def take_packet(
    buffer: bytearray, max_id: int = MAX_ID, max_code: int = 0x7F, max_length: int = MAX_LENGTH
) -> Packet | None:
    """Remove the first complete, valid frame from `buffer`, and everything before it.

    None when more bytes are needed.
    """
    frame, behind = find_packet(buffer, 0, len(buffer), max_id, max_code, max_length)
    del buffer[:behind]
    return frame


def take_replies(
    buffer: bytearray,
    begin: int,
    end: int,
    servos: Collection[int],
    n_data: int,
    replies: dict[int, Packet],
) -> int:
    """Find replies of `servos` with `n_data` bytes in buffer[begin:end]; add them to `replies`, by
    servo id.

    All other bytes are skipped. Returns the index from which bytes must be kept, because an
    incomplete reply may begin there.
    """
    while True:
        frame, begin = find_packet(buffer, begin, end, max_length=n_data + 2)
        if frame is None:
            return begin
        if frame.servo in servos and len(frame.data) == n_data:
            replies[frame.servo] = frame
