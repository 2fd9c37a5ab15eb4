"""Feetech "protocol 0" (STS/SMS): packets over a byte stream, and the bus that exchanges them.

Knows frames, timeouts, retries and registers by name. Refuses to know joints, degrees and
calibration. Frame: FF FF ID LEN CODE DATA.. CHECKSUM, where CODE is the instruction on the way out
and the error bits on the way back, LEN = len(DATA) + 2 and CHECKSUM = ~(sum from ID) & 0xFF. Words
are little-endian.
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
from collections.abc import Collection, Mapping, Sequence
from typing import NamedTuple, TypeVar

import serial

from mtdit_robots.errors import UserError
from mtdit_robots.processes import holders
from mtdit_robots.sts3215 import REGISTERS, Register, decode, encode, error_words

PING, READ, WRITE, REG_WRITE, ACTION, SYNC_READ, SYNC_WRITE = 1, 2, 3, 4, 5, 0x82, 0x83
BROADCAST = 0xFE
MAX_ID = 0xFD
MAX_LENGTH = 250
HEADER = b"\xff\xff"
FRAME_OVERHEAD = 6  # bytes of a frame without data

_ROOM = 8192  # bytes of the receive buffer; what waits in it unparsed is never longer than a frame
_STALE_READS = 64  # of up to _ROOM bytes: a port that babbles without end must not keep us

SomeBus = TypeVar("SomeBus", bound="Bus")


class Frame(NamedTuple):
    """One frame in either direction. `code` is the instruction of a request or the error bits of a
    status reply.
    """

    servo: int
    code: int
    data: bytes = b""


def build(servo: int, code: int, data: bytes = b"") -> bytes:
    """The bytes of a frame."""
    body = bytes((servo, len(data) + 2, code)) + data
    return HEADER + body + bytes((~sum(body) & 0xFF,))


def find_frame(
    buffer: bytearray,
    begin: int,
    end: int,
    max_id: int = MAX_ID,
    max_code: int = 0x7F,
    max_length: int = MAX_LENGTH,
) -> tuple[Frame | None, int]:
    """The first whole, intact frame in buffer[begin:end], and where the bytes after it begin. None:
    more are needed.

    Whatever cannot be a frame (id, code or length out of bounds, bad checksum) costs one byte, and
    the search goes on behind it: a frame that follows garbage, or hides in it, is found.
    """
    at = begin
    while True:
        at = buffer.find(HEADER, at, end)
        if at < 0:
            half_a_header = end > begin and buffer[end - 1] == HEADER[0]
            return None, end - half_a_header
        if end - at < FRAME_OVERHEAD:
            return None, at
        servo, length, code = buffer[at + 2], buffer[at + 3], buffer[at + 4]
        last = at + length + 3  # where the checksum is
        if servo <= max_id and code <= max_code and 2 <= length <= max_length:
            if last >= end:
                return None, at
            if (sum(buffer[at + 2 : last]) + buffer[last]) & 0xFF == 0xFF:
                return Frame(servo, code, bytes(buffer[at + 5 : last])), last + 1
        at += 1


def take_frame(
    buffer: bytearray, max_id: int = MAX_ID, max_code: int = 0x7F, max_length: int = MAX_LENGTH
) -> Frame | None:
    """Remove the first whole, intact frame from `buffer`, and everything before it. None: more
    bytes are needed.
    """
    frame, behind = find_frame(buffer, 0, len(buffer), max_id, max_code, max_length)
    del buffer[:behind]
    return frame


def take_replies(
    buffer: bytearray,
    begin: int,
    end: int,
    servos: Collection[int],
    n_data: int,
    replies: dict[int, Frame],
) -> int:
    """Put the replies of `servos` with `n_data` bytes found in buffer[begin:end] into `replies`, by
    servo id.

    Everything else is passed over. Returns where a reply may still be on its way; the bytes before
    it are done with.
    """
    while True:
        frame, begin = find_frame(buffer, begin, end, max_length=n_data + 2)
        if frame is None:
            return begin
        if frame.servo in servos and len(frame.data) == n_data:
            replies[frame.servo] = frame


class BusError(OSError):
    """The bus failed after connect: servos that stay silent, or a port that went away."""


class Bus:
    """Registers of the servos on one serial port, read and written by name.

    Every exchange drops stale input, sends one request and waits at most `timeout_s` plus wire
    time; what did not answer is asked again `retries` times. A servo that stayed silent through all
    of that is asked but once per call until it answers again: from then on it costs one timeout,
    not `retries` more. Time is spent in poll(2), never spinning. Not thread-safe: one owner.

    port: device path. baud: bits/s. timeout_s: 50 ms as in LeRobot; an operating system may stall
    longer, so retry. errors: servo id -> how often it was silent ("no answer") and how often each
    error bit came with a reply.
    """

    def __init__(
        self, port: str, baud: int = 1_000_000, timeout_s: float = 0.05, retries: int = 2
    ) -> None:
        self.port, self.timeout_s, self.retries = port, timeout_s, retries
        self.errors: defaultdict[int, Counter[str]] = defaultdict(Counter)
        self._byte_s = 10 / baud  # 8N1
        self._silent: set[int] = set()  # asked in vain, retries and all
        self._input = bytearray(_ROOM)
        self._view = memoryview(self._input)
        self._begin = self._end = 0  # what is received and not looked at yet
        self._late = False  # past the deadline, last look taken
        self._serial = open_serial(port, baud)
        self._fd = self._serial.fileno()
        self._poll = select.poll()
        self._poll.register(self._fd, select.POLLIN)

    def close(self) -> None:
        """Close the port. Safe to call twice."""
        self._serial.close()

    def __enter__(self: SomeBus) -> SomeBus:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def ping(self, servo: int) -> tuple[str, ...]:
        """Error words of the servo's status, usually none. BusError when it does not answer."""
        return error_words(self._ask_one(servo, PING).code)

    def read(self, servo: int, name: str) -> int:
        """One register of one servo. BusError when it does not answer."""
        register = find_register(name)
        reply = self._ask_one(
            servo, READ, bytes((register.address, register.width)), register.width
        )
        return decode(register, reply.data)

    def write(self, servo: int, name: str, value: int) -> None:
        """Write one register and wait for the servo's status reply. BusError when it does not
        answer.
        """
        register = find_register(name)
        self._ask_one(servo, WRITE, bytes((register.address,)) + encode(register, value))

    def sync_read(self, name: str, servos: Collection[int]) -> dict[int, int]:
        """One register of many servos in one exchange: id -> value, in the order asked.

        A servo that stays silent is absent from the result and loses nobody else's reply; it costs
        one timeout per attempt, and only the missing ones are asked again.
        """
        register = find_register(name)
        replies = self._ask(
            SYNC_READ, bytes((register.address, register.width)), servos, register.width
        )
        return {
            servo: decode(register, replies[servo].data) for servo in servos if servo in replies
        }

    def sync_read_many(
        self, names: Sequence[str], servos: Collection[int]
    ) -> dict[int, tuple[int, ...]]:
        """Several registers of many servos in one exchange, everything between them included: id ->
        values.
        """
        registers = [find_register(name) for name in names]
        first = min(register.address for register in registers)
        width = max(register.address + register.width for register in registers) - first
        replies = self._ask(SYNC_READ, bytes((first, width)), servos, width)
        return {
            servo: tuple(
                decode(register, replies[servo].data[register.address - first :])
                for register in registers
            )
            for servo in servos
            if servo in replies
        }

    def sync_write(self, name: str, values: Mapping[int, int]) -> None:
        """One register of many servos in one packet. No servo replies to it."""
        register = find_register(name)
        data = bytearray((register.address, register.width))
        for servo, value in values.items():
            data.append(servo)
            data += encode(register, value)
        self._send(Frame(BROADCAST, SYNC_WRITE, bytes(data)))

    def _ask_one(self, servo: int, instruction: int, data: bytes = b"", n_data: int = 0) -> Frame:
        replies = self._ask(instruction, data, (servo,), n_data)
        if servo not in replies:
            raise BusError(f"servo {servo} on {self.port} does not answer")
        return replies[servo]

    def _ask(
        self, instruction: int, data: bytes, servos: Collection[int], n_data: int
    ) -> dict[int, Frame]:
        """Status replies with `n_data` bytes by servo id. The missing are asked again, unless
        silent before.
        """
        replies = self._exchange(_request(instruction, data, servos), servos, n_data)
        for _ in range(self.retries):
            missing = [
                servo for servo in servos if servo not in replies and servo not in self._silent
            ]
            if not missing:
                break
            replies |= self._exchange(_request(instruction, data, missing), missing, n_data)
        self._silent.difference_update(replies)
        self._silent.update(servo for servo in servos if servo not in replies)
        return replies

    def _exchange(self, request: Frame, servos: Collection[int], n_data: int) -> dict[int, Frame]:
        """Send `request`; collect one reply of `n_data` bytes per servo, in any order, until the
        deadline.
        """
        self._discard_input()
        self._send(request)
        deadline = self._deadline(request, servos, n_data)
        replies: dict[int, Frame] = {}
        while len(replies) < len(servos) and self._receive(deadline):
            self._begin = take_replies(self._input, self._begin, self._end, servos, n_data, replies)
        self._count(servos, replies)
        return replies

    def _deadline(self, request: Frame, servos: Collection[int], n_data: int) -> float:
        n_bytes = FRAME_OVERHEAD + len(request.data) + (FRAME_OVERHEAD + n_data) * len(servos)
        return time.monotonic() + self.timeout_s + n_bytes * self._byte_s

    def _count(self, servos: Collection[int], replies: Mapping[int, Frame]) -> None:
        for servo in servos:
            if servo not in replies:
                self.errors[servo]["no answer"] += 1
            elif replies[servo].code:
                self.errors[servo].update(error_words(replies[servo].code))

    def _receive(self, deadline: float) -> bool:
        """Take what arrives before `deadline`; False when that is nothing.

        After a stall it still looks once, the reply may already be there; then it is over, whoever
        goes on talking.
        """
        left_s = deadline - time.monotonic()
        if left_s < 0 and self._late:
            return False
        self._late = left_s < 0
        if not self._poll.poll(max(0.0, left_s) * 1000):
            return False
        self._make_room()
        self._end += self._read_into(self._view[self._end :])
        return True

    def _make_room(self) -> None:
        """Move what is left, less than a frame, to the front once the buffer is half full."""
        if self._end > _ROOM // 2:
            left = self._input[self._begin : self._end]
            self._input[: len(left)] = left
            self._begin, self._end = 0, len(left)

    def _discard_input(self) -> None:
        self._begin = self._end = 0
        self._late = False
        for _ in range(_STALE_READS):
            if not self._poll.poll(0):
                break
            self._read_into(self._view)

    def _read_into(self, room: memoryview) -> int:
        try:
            n_bytes = os.readv(self._fd, (room,))
        except OSError as error:
            raise BusError(
                f"{self.port} went away while reading ({error.strerror}): check the USB cable"
            ) from error
        if not n_bytes:
            raise BusError(f"{self.port} went away: check the USB cable")
        return n_bytes

    def _send(self, request: Frame) -> None:
        self._write(build(*request))

    def _write(self, packet: bytes) -> None:
        try:
            sent = os.write(self._fd, packet)
        except OSError as error:
            raise BusError(
                f"{self.port} took no data ({error.strerror}): check the USB cable"
            ) from error
        if sent != len(packet):
            raise BusError(
                f"{self.port} took {sent} of {len(packet)} bytes: is another program using it?"
            )


def open_bus(
    kind: str, port: str, baud: int = 1_000_000, timeout_s: float = 0.05, retries: int = 2
) -> Bus:
    """A bus by name: "own", or "sdk" for the one over feetech-servo-sdk. UserError for another name
    or a bad port.
    """
    if kind == "own":
        return Bus(port, baud, timeout_s, retries)
    if kind == "sdk":
        from mtdit_robots.sdk_bus import SdkBus

        return SdkBus(port, baud, timeout_s, retries)
    raise UserError(f"there is no bus {kind!r}: use own or sdk")


def _request(instruction: int, data: bytes, servos: Collection[int]) -> Frame:
    if instruction == SYNC_READ:
        return Frame(BROADCAST, SYNC_READ, data + bytes(servos))
    (servo,) = servos
    return Frame(servo, instruction, data)


def find_register(name: str) -> Register:
    """The register called `name`. KeyError naming the nearest one."""
    if name not in REGISTERS:
        near = difflib.get_close_matches(name, REGISTERS, n=1)
        raise KeyError(f"no register {name!r}" + (f", did you mean {near[0]!r}?" if near else ""))
    return REGISTERS[name]


def open_serial(port: str, baud: int) -> serial.Serial:
    """Open `port` exclusively, 8N1, non-blocking. UserError with the fix when that fails.

    LeRobot and the SDK lock no port: who already has it open is looked up. Two programs on one wire
    garble each other.
    """
    others = holders(os.path.realpath(port))
    if others:
        raise UserError(f"{port} is in use by {', '.join(others)}: stop it and try again")
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
    ports = [
        *sorted(glob.glob("/dev/serial/by-id/*")),
        *sorted(glob.glob("/dev/ttyACM*") + glob.glob("/dev/ttyUSB*")),
    ]
    if ports:
        return f"found {', '.join(ports)}; pass one of these"
    return "found no USB serial port at all; plug in the arm's USB cable and its power supply"
