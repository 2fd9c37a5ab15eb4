"""The servo bus: reads and writes the servos' registers over a serial port.

The format of the packets (Feetech's protocol 0) is in `packets`, the registers are in `sts3215`.
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
from typing import TypeVar

import serial

from mtdit_robots.bus.packets import (
    BROADCAST,
    BUFFER_BYTES,
    PACKET_OVERHEAD,
    PING,
    READ,
    SYNC_READ,
    SYNC_WRITE,
    WRITE,
    Packet,
    build_packet,
    take_replies,
)
from mtdit_robots.bus.sts3215 import REGISTERS, Register, decode, encode, error_words
from mtdit_robots.errors import UserError
from mtdit_robots.processes import holders

_MAX_STALE_READS = 64  # so that a port that never stops sending does not block us

SomeBus = TypeVar("SomeBus", bound="Bus")


class BusError(OSError):
    """The bus failed: a servo does not answer, or the port was unplugged."""


class Bus:
    """Registers of the servos on one serial port, read and written by name.

    Every exchange drops stale input, sends one request and waits at most `timeout_s` plus wire
    time. Servos that did not answer are asked again up to `retries` times. A servo that did not
    answer any of these is asked only once per call until it answers again, so it costs one timeout
    per call and no retries. Waiting is done in poll(2), without spinning. Not thread-safe.

    port: device path. baud: bits/s. timeout_s: 50 ms as in LeRobot; the operating system may stall
    longer than that, hence the retries. errors: servo id -> counts of "no answer" and of each error
    bit that came with a reply.
    """

    def __init__(
        self, port: str, baud: int = 1_000_000, timeout_s: float = 0.05, retries: int = 2
    ) -> None:
        self.port, self.timeout_s, self.retries = port, timeout_s, retries
        self.errors: defaultdict[int, Counter[str]] = defaultdict(Counter)
        self._byte_s = 10 / baud  # 8N1
        self._silent: set[int] = set()  # servos that did not answer, retries included
        self._input = bytearray(BUFFER_BYTES)
        self._view = memoryview(self._input)
        self._begin = self._end = 0  # bounds of the bytes received but not parsed yet
        self._late = False  # the deadline has passed and the last poll is done
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
        """Names of the error bits the servo reports, usually none. BusError when it does not
        answer.
        """
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
        """One register of many servos in one exchange: id -> value, in the order of `servos`.

        A servo that does not answer is missing from the result; the replies of the others are kept.
        It costs one timeout per attempt, and only the missing servos are asked again.
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
        """Several registers of many servos in one exchange: id -> values, in the order of `names`.

        The bytes between the registers are read too.
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
        """Write one register of many servos in one packet: id -> value. Servos do not reply."""
        register = find_register(name)
        data = bytearray((register.address, register.width))
        for servo, value in values.items():
            data.append(servo)
            data += encode(register, value)
        self._send(Packet(BROADCAST, SYNC_WRITE, bytes(data)))

    def _ask_one(self, servo: int, instruction: int, data: bytes = b"", n_data: int = 0) -> Packet:
        replies = self._ask(instruction, data, (servo,), n_data)
        if servo not in replies:
            raise BusError(f"servo {servo} on {self.port} does not answer")
        return replies[servo]

    def _ask(
        self, instruction: int, data: bytes, servos: Collection[int], n_data: int
    ) -> dict[int, Packet]:
        """Status replies with `n_data` bytes, by servo id. Missing servos are asked again, except
        those that did not answer in earlier calls.
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

    def _exchange(self, request: Packet, servos: Collection[int], n_data: int) -> dict[int, Packet]:
        """Send `request`; collect one reply of `n_data` bytes per servo, in any order, until the
        deadline.
        """
        self._discard_input()
        self._send(request)
        deadline = self._deadline(request, servos, n_data)
        replies: dict[int, Packet] = {}
        while len(replies) < len(servos) and self._receive(deadline):
            self._begin = take_replies(self._input, self._begin, self._end, servos, n_data, replies)
        self._count(servos, replies)
        return replies

    def _deadline(self, request: Packet, servos: Collection[int], n_data: int) -> float:
        n_bytes = PACKET_OVERHEAD + len(request.data) + (PACKET_OVERHEAD + n_data) * len(servos)
        return time.monotonic() + self.timeout_s + n_bytes * self._byte_s

    def _count(self, servos: Collection[int], replies: Mapping[int, Packet]) -> None:
        for servo in servos:
            if servo not in replies:
                self.errors[servo]["no answer"] += 1
            elif replies[servo].code:
                self.errors[servo].update(error_words(replies[servo].code))

    def _receive(self, deadline: float) -> bool:
        """Read bytes that arrive before `deadline`; False when none do.

        After a stall beyond the deadline it polls once more, because the reply may already be
        there. After that it returns False even when more bytes keep arriving.
        """
        left_s = deadline - time.monotonic()
        if left_s < 0 and self._late:
            return False
        self._late = left_s < 0
        if not self._poll.poll(max(0.0, left_s) * 1000):
            return False
        self._compact()
        self._end += self._read_into(self._view[self._end :])
        return True

    def _compact(self) -> None:
        """Once the buffer is half full, move the bytes not parsed yet to the front."""
        if self._end > BUFFER_BYTES // 2:
            left = self._input[self._begin : self._end]
            self._input[: len(left)] = left
            self._begin, self._end = 0, len(left)

    def _discard_input(self) -> None:
        self._begin = self._end = 0
        self._late = False
        for _ in range(_MAX_STALE_READS):
            if not self._poll.poll(0):
                break
            self._read_into(self._view)

    def _read_into(self, target: memoryview) -> int:
        try:
            n_bytes = os.readv(self._fd, (target,))
        except OSError as error:
            raise BusError(
                f"{self.port} disappeared while reading ({error.strerror}): check the USB cable"
            ) from error
        if not n_bytes:
            raise BusError(f"{self.port} disappeared: check the USB cable")
        return n_bytes

    def _send(self, request: Packet) -> None:
        self._write(build_packet(*request))

    def _write(self, packet: bytes) -> None:
        try:
            sent = os.write(self._fd, packet)
        except OSError as error:
            raise BusError(
                f"cannot write to {self.port} ({error.strerror}): check the USB cable"
            ) from error
        if sent != len(packet):
            raise BusError(
                f"{self.port} accepted {sent} of {len(packet)} bytes: is another program using it?"
            )


def _request(instruction: int, data: bytes, servos: Collection[int]) -> Packet:
    if instruction == SYNC_READ:
        return Packet(BROADCAST, SYNC_READ, data + bytes(servos))
    (servo,) = servos
    return Packet(servo, instruction, data)


def find_register(name: str) -> Register:
    """The register called `name`. KeyError suggests the nearest name."""
    if name not in REGISTERS:
        near = difflib.get_close_matches(name, REGISTERS, n=1)
        raise KeyError(f"no register {name!r}" + (f", did you mean {near[0]!r}?" if near else ""))
    return REGISTERS[name]


def open_serial(port: str, baud: int) -> serial.Serial:
    """Open `port` exclusively, 8N1, non-blocking. UserError with the fix when that fails.

    LeRobot and the SDK do not lock the port, so we also look for processes that have it open: the
    packets of two programs would collide.
    """
    others = holders(os.path.realpath(port))
    if others:
        raise UserError(f"{port} is in use by {', '.join(others)}: stop it and try again")
    try:
        handle = serial.Serial(port, baud, timeout=0, exclusive=True)
    except (OSError, ValueError) as error:
        raise UserError(_open_failure(port, error)) from error
    with contextlib.suppress(OSError, ValueError, NotImplementedError, AttributeError):
        handle.set_low_latency_mode(True)  # FTDI only; fails on CDC-ACM and pseudo-terminals
    return handle


def _open_failure(port: str, error: Exception) -> str:
    code = getattr(error, "errno", None)
    if code == errno.ENOENT:
        return f"no serial port {port}: {_candidates()}"
    if code in (errno.EACCES, errno.EPERM):
        return f"no permission for {port}: run `sudo usermod -aG dialout $USER`, then log in again"
    if code in (errno.EBUSY, errno.EAGAIN):
        return (
            f"{port} is in use by another program: stop it (`fuser {port}` shows which one) "
            "and try again"
        )
    return f"cannot open {port} as a serial port ({error}): {_candidates()}"


def _candidates() -> str:
    ports = [
        *sorted(glob.glob("/dev/serial/by-id/*")),
        *sorted(glob.glob("/dev/ttyACM*") + glob.glob("/dev/ttyUSB*")),
    ]
    if ports:
        return f"found {', '.join(ports)}; pass one of these"
    return "found no USB serial port; plug in the arm's USB cable and its power supply"
