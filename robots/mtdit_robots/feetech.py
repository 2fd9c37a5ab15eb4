"""Feetech "protocol 0" (STS/SMS): packets over a byte stream, and the bus that exchanges them.

Knows frames, timeouts, retries and registers by name. Refuses to know joints, degrees and calibration.
Frame: FF FF ID LEN CODE DATA.. CHECKSUM, where CODE is the instruction on the way out and the error bits on the way
back, LEN = len(DATA) + 2 and CHECKSUM = ~(sum from ID) & 0xFF. Words are little-endian.
"""

from __future__ import annotations

import contextlib
import difflib
import errno
import glob
import os
import select
import time
from collections import Counter, defaultdict
from collections.abc import Collection, Mapping
from dataclasses import dataclass

import serial

from mtdit_robots.errors import UserError
from mtdit_robots.sts3215 import REGISTERS, Register, decode, encode, error_words

PING, READ, WRITE, REG_WRITE, ACTION, SYNC_READ, SYNC_WRITE = 1, 2, 3, 4, 5, 0x82, 0x83
BROADCAST = 0xFE
MAX_ID = 0xFD
MAX_LENGTH = 250
HEADER = b"\xff\xff"
FRAME_OVERHEAD = 6  # bytes of a frame without data


@dataclass(frozen=True)
class Frame:
    """One frame in either direction. `code` is the instruction of a request or the error bits of a status reply."""

    servo: int
    code: int
    data: bytes = b""


def build(servo: int, code: int, data: bytes = b"") -> bytes:
    """The bytes of a frame."""
    body = bytes((servo, len(data) + 2, code)) + data
    return HEADER + body + bytes((~sum(body) & 0xFF,))


def take_frame(
    buffer: bytearray, max_id: int = MAX_ID, max_code: int = 0x7F, max_length: int = MAX_LENGTH
) -> Frame | None:
    """Remove the first whole, intact frame from `buffer`, and everything before it. None: more bytes are needed.

    Whatever cannot be a frame (id, code or length out of bounds, bad checksum) costs one byte, and the search goes on
    behind it: a frame that follows garbage, or hides in it, is found.
    """
    while True:
        start = buffer.find(HEADER)
        if start < 0:
            del buffer[: len(buffer) - buffer.endswith(HEADER[:1])]
            return None
        del buffer[:start]
        if len(buffer) < FRAME_OVERHEAD:
            return None
        servo, length, code = buffer[2:5]
        end = length + 4
        plausible = servo <= max_id and code <= max_code and 2 <= length <= max_length
        if plausible and len(buffer) < end:
            return None
        if plausible and ~sum(buffer[2 : end - 1]) & 0xFF == buffer[end - 1]:
            frame = Frame(servo, code, bytes(buffer[5 : end - 1]))
            del buffer[:end]
            return frame
        del buffer[:1]


class BusError(OSError):
    """The bus failed after connect: servos that stay silent, or a port that went away."""


class Bus:
    """Registers of the servos on one serial port, read and written by name.

    Every exchange drops stale input, sends one request and waits at most `timeout_s` plus wire time; what did not
    answer is asked again `retries` times. Time is spent in poll(2), never spinning. Not thread-safe: one owner.

    port: device path. baud: bits/s. timeout_s: 50 ms as in LeRobot; an operating system may stall longer, so retry.
    errors: servo id -> how often it was silent ("no answer") and how often each error bit came with a reply.
    """

    def __init__(self, port: str, baud: int = 1_000_000, timeout_s: float = 0.05, retries: int = 2) -> None:
        self.port, self.timeout_s, self.retries = port, timeout_s, retries
        self.errors: defaultdict[int, Counter[str]] = defaultdict(Counter)
        self._byte_s = 10 / baud  # 8N1
        self._input = bytearray()
        self._serial = open_serial(port, baud)
        self._fd = self._serial.fileno()
        self._poll = select.poll()
        self._poll.register(self._fd, select.POLLIN)

    def close(self) -> None:
        """Close the port. Safe to call twice."""
        self._serial.close()

    def __enter__(self) -> Bus:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def ping(self, servo: int) -> tuple[str, ...]:
        """Error words of the servo's status, usually none. BusError when it does not answer."""
        return error_words(self._ask(servo, PING).code)

    def read(self, servo: int, name: str) -> int:
        """One register of one servo. BusError when it does not answer."""
        register = find_register(name)
        reply = self._ask(servo, READ, bytes((register.address, register.width)), register.width)
        return decode(register, reply.data)

    def write(self, servo: int, name: str, value: int) -> None:
        """Write one register and wait for the servo's status reply. BusError when it does not answer."""
        register = find_register(name)
        self._ask(servo, WRITE, bytes((register.address,)) + encode(register, value))

    def sync_read(self, name: str, servos: Collection[int]) -> dict[int, int]:
        """One register of many servos in one exchange: id -> value, in the order asked.

        A servo that stays silent is absent from the result and loses nobody else's reply; it costs one timeout per
        attempt, and only the missing ones are asked again.
        """
        register = find_register(name)
        replies: dict[int, Frame] = {}
        for _ in range(1 + self.retries):
            missing = [servo for servo in servos if servo not in replies]
            if not missing:
                break
            request = build(BROADCAST, SYNC_READ, bytes((register.address, register.width, *missing)))
            replies |= self._exchange(request, missing, register.width)
        return {servo: decode(register, replies[servo].data) for servo in servos if servo in replies}

    def sync_write(self, name: str, values: Mapping[int, int]) -> None:
        """One register of many servos in one packet. No servo replies to it."""
        register = find_register(name)
        data = b"".join(bytes((servo,)) + encode(register, value) for servo, value in values.items())
        self._send(build(BROADCAST, SYNC_WRITE, bytes((register.address, register.width)) + data))

    def _ask(self, servo: int, instruction: int, data: bytes = b"", n_data: int = 0) -> Frame:
        """The status reply of one servo, asked up to 1 + retries times."""
        for _ in range(1 + self.retries):
            replies = self._exchange(build(servo, instruction, data), (servo,), n_data)
            if servo in replies:
                return replies[servo]
        raise BusError(f"servo {servo} on {self.port} does not answer")

    def _exchange(self, request: bytes, servos: Collection[int], n_data: int) -> dict[int, Frame]:
        """Send `request`; collect one reply of `n_data` bytes per servo, in any order, until the deadline."""
        self._discard_input()
        self._send(request)
        n_bytes = len(request) + (FRAME_OVERHEAD + n_data) * len(servos)
        deadline = time.monotonic() + self.timeout_s + n_bytes * self._byte_s
        replies: dict[int, Frame] = {}
        while len(replies) < len(servos):
            while frame := take_frame(self._input, max_length=n_data + 2):
                if frame.servo in servos and len(frame.data) == n_data:
                    replies[frame.servo] = frame
            if len(replies) < len(servos) and not self._receive(deadline):
                break
        self._count(servos, replies)
        return replies

    def _count(self, servos: Collection[int], replies: Mapping[int, Frame]) -> None:
        for servo in servos:
            words = error_words(replies[servo].code) if servo in replies else ("no answer",)
            if words:
                self.errors[servo].update(words)

    def _receive(self, deadline: float) -> bool:
        """Append what arrives before `deadline`. After a stall it still looks once: the reply may already be there."""
        left_ms = max(0.0, deadline - time.monotonic()) * 1000
        if not self._poll.poll(left_ms):
            return False
        self._input += self._read_available()
        return True

    def _discard_input(self) -> None:
        self._input.clear()
        while self._poll.poll(0):
            self._read_available()

    def _read_available(self) -> bytes:
        try:
            data = os.read(self._fd, 4096)
        except OSError as error:
            raise BusError(f"{self.port} went away while reading ({error.strerror}): check the USB cable") from error
        if not data:
            raise BusError(f"{self.port} went away: check the USB cable")
        return data

    def _send(self, request: bytes) -> None:
        try:
            sent = os.write(self._fd, request)
        except OSError as error:
            raise BusError(f"{self.port} took no data ({error.strerror}): check the USB cable") from error
        if sent != len(request):
            raise BusError(f"{self.port} took {sent} of {len(request)} bytes: is another program using it?")


def find_register(name: str) -> Register:
    """The register called `name`. KeyError naming the nearest one."""
    if name not in REGISTERS:
        near = difflib.get_close_matches(name, REGISTERS, n=1)
        raise KeyError(f"no register {name!r}" + (f", did you mean {near[0]!r}?" if near else ""))
    return REGISTERS[name]


def open_serial(port: str, baud: int) -> serial.Serial:
    """Open `port` exclusively, 8N1, non-blocking. UserError with the fix when that fails."""
    try:
        handle = serial.Serial(port, baud, timeout=0, exclusive=True)
    except (OSError, ValueError) as error:
        raise UserError(_open_failure(port, error)) from error
    with contextlib.suppress(OSError, ValueError, NotImplementedError, AttributeError):
        handle.set_low_latency_mode(True)  # FTDI adapters only; CDC-ACM and pseudo-terminals refuse
    return handle


def _open_failure(port: str, error: Exception) -> str:
    code = getattr(error, "errno", None)
    if code == errno.ENOENT:
        return f"no serial port {port}: {_candidates()}"
    if code in (errno.EACCES, errno.EPERM):
        return f"no permission for {port}: run `sudo usermod -aG dialout $USER`, then log in again"
    if code in (errno.EBUSY, errno.EAGAIN):
        return f"{port} is in use by another program: stop it (`fuser {port}` shows which) and try again"
    return f"cannot open {port} as a serial port ({error}): {_candidates()}"


def _candidates() -> str:
    ports = [*sorted(glob.glob("/dev/serial/by-id/*")), *sorted(glob.glob("/dev/ttyACM*") + glob.glob("/dev/ttyUSB*"))]
    if ports:
        return f"found {', '.join(ports)}; pass one of these"
    return "found no USB serial port at all; plug in the arm's USB cable and its power supply"
