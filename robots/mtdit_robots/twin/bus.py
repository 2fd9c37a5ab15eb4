"""A virtual servo bus: a pseudo-terminal that answers as a chain of STS3215 servos would.

Handles packets, baud rates and wire time. Physics is left to the owner of the bus; callbacks tell
it that goals were written and that registers are about to be read. Linux only (pseudo-terminals,
TCGETS2).
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import pty
import select
import struct
import threading
import time
import tty
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from mtdit_robots.bus.packets import (
    ACTION,
    BROADCAST,
    MAX_LENGTH,
    PACKET_OVERHEAD,
    PING,
    READ,
    REG_WRITE,
    SYNC_READ,
    SYNC_WRITE,
    WRITE,
    Packet,
    build_packet,
    take_packet,
)
from mtdit_robots.errors import UserError
from mtdit_robots.twin.faults import Faults
from mtdit_robots.twin.registers import ServoRegisters

WIRE_BAUD = 1_000_000  # of the wire time of a client that has set no rate
_TCGETS2 = 0x802C542A
# flags, line and control characters, input speed, output speed
_TERMIOS2 = struct.Struct("4I20s2I")


def _nothing() -> None:
    return None


class VirtualBus:
    """Simulated servos behind a pseudo-terminal; any serial client may open `path`.

    servos: the servos on the chain. Their ID registers decide which one answers; the keys of the
    mapping are not used. on_goal: called once per packet that wrote Goal_Position, after all servos
    have taken it. before_read: called before READ and SYNC_READ are answered, to update the present
    registers. wire_time: delay replies by the time that request, return delays and replies would
    take on a real wire; the next request waits for that too. any_baud: answer whatever rate the
    client has set; one under qemu-user cannot set any above 38400. link: path of a symbolic link
    to `path`, removed at close. log: if given, every valid request is appended to it. The attribute
    `faults` holds faults of the replies, none at first.
    """

    def __init__(
        self,
        servos: Mapping[int, ServoRegisters],
        on_goal: Callable[[], None] = _nothing,
        before_read: Callable[[], None] = _nothing,
        wire_time: bool = False,
        link: str | Path | None = None,
        log: list[Packet] | None = None,
        any_baud: bool = False,
    ) -> None:
        self.servos = servos
        self._on_goal, self._before_read = on_goal, before_read
        self._wire_time, self._log, self._any_baud = wire_time, log, any_baud
        self._arrived_s = self._wire_free_s = 0.0
        self.faults = Faults()
        self._input = bytearray()
        # Keep the slave end open: if only the client had it open, the master would report a hang-up
        # when the client closes it.
        self._master, self._slave = pty.openpty()
        tty.setraw(self._slave)
        os.set_blocking(self._master, False)
        self._poll = select.poll()
        self._poll.register(self._master, select.POLLIN)
        self.path = os.ttyname(self._slave)
        self._link = self._make_link(link)

    def fileno(self) -> int:
        """The descriptor to poll for requests."""
        return self._master

    def serve(self, timeout_s: float = 0.0) -> int:
        """Answer the requests that have arrived, waiting at most `timeout_s` for one.

        Returns the number of requests handled.
        """
        if not self._poll.poll(timeout_s * 1000):
            return 0
        with contextlib.suppress(BlockingIOError):
            self._input += os.read(self._master, 65536)
        self._arrived_s = time.monotonic()
        n_requests = 0
        while request := take_packet(
            self._input, max_id=BROADCAST, max_code=0xFF, max_length=MAX_LENGTH
        ):
            self._handle(request)
            n_requests += 1
        return n_requests

    @contextlib.contextmanager
    def serve_in_thread(self) -> Iterator[VirtualBus]:
        """Serve from a thread until the block ends, then close. For tests and small tools."""
        stop = threading.Event()

        def loop() -> None:
            while not stop.is_set():
                self.serve(0.02)

        thread = threading.Thread(target=loop, name="virtual-bus")
        thread.start()
        try:
            yield self
        finally:
            stop.set()
            thread.join()
            self.close()

    def close(self) -> None:
        """Remove the port. Safe to call twice."""
        if self._master < 0:
            return
        if self._link is not None:
            self._link.unlink(missing_ok=True)
        os.close(self._master)
        os.close(self._slave)
        self._master = self._slave = -1

    def _make_link(self, link: str | Path | None) -> Path | None:
        if link is None:
            return None
        place = Path(link)
        if place.is_symlink():
            place.unlink()
        try:
            place.symlink_to(self.path)
        except OSError as error:
            raise UserError(
                f"cannot create the link {place} ({error.strerror}): choose another --link path"
            ) from error
        return place

    def _client_baud(self) -> int:
        """Bits/s the client set, exact even for rates without a termios constant."""
        answer = fcntl.ioctl(self._slave, _TCGETS2, bytes(_TERMIOS2.size))
        return int(_TERMIOS2.unpack(answer)[-1])

    def _handle(self, request: Packet) -> None:
        """Let every servo that receives the request act on it, then send the replies."""
        if self._log is not None:
            self._log.append(request)
        baud = self._client_baud()
        reachable = [s for s in self.servos.values() if self._any_baud or s.baud == baud]
        if request.code in (READ, SYNC_READ):
            self._before_read()
        if request.code == SYNC_WRITE:
            replies: list[tuple[float, bytes]] = []
            wrote_goal = _sync_write(reachable, request.data)
        elif request.code == SYNC_READ:
            replies, wrote_goal = _sync_read(reachable, request.data), False
        else:
            replies, wrote_goal = _unicast(reachable, request)
        if wrote_goal:
            self._on_goal()
        self._reply(request, replies, baud)

    def _reply(self, request: Packet, replies: list[tuple[float, bytes]], baud: int) -> None:
        """Write the replies, each given with its return delay in seconds."""
        if self._wire_time:
            n_bytes = PACKET_OVERHEAD + len(request.data) + sum(len(frame) for _, frame in replies)
            taken_s = n_bytes * 10 / (baud or WIRE_BAUD) + sum(delay_s for delay_s, _ in replies)
            self._wire_free_s = max(self._wire_free_s, self._arrived_s) + taken_s
        heard = self.faults.distort(frame for _, frame in replies)
        if not heard:
            return
        time.sleep(max(0.0, self._wire_free_s - time.monotonic()) + self.faults.late_s)
        with contextlib.suppress(BlockingIOError):  # no reader: the bytes are lost, as on a wire
            os.write(self._master, heard)


def _status(servo: ServoRegisters, servo_id: int, data: bytes = b"") -> tuple[float, bytes]:
    return servo.return_delay_s, build_packet(servo_id, servo.error, data)


def _sync_write(servos: list[ServoRegisters], data: bytes) -> bool:
    """Write each servo's part of a SYNC_WRITE. True when goals were written."""
    if len(data) < 2:
        return False
    address, width = data[:2]
    shares = [data[at : at + 1 + width] for at in range(2, len(data), 1 + width)]
    wrote_goal = False
    for share in shares:
        for servo in servos:
            if servo.servo_id == share[0]:
                wrote_goal |= servo.write(address, share[1:])
    return wrote_goal


def _sync_read(servos: list[ServoRegisters], data: bytes) -> list[tuple[float, bytes]]:
    """Replies to a SYNC_READ, in the order requested. Missing servos are left out."""
    if len(data) < 2:
        return []
    address, width = data[:2]
    return [
        _status(servo, servo_id, servo.read(address, width))
        for servo_id in data[2:]
        for servo in servos
        if servo.servo_id == servo_id
    ]


def _unicast(
    servos: list[ServoRegisters], request: Packet
) -> tuple[list[tuple[float, bytes]], bool]:
    """PING, READ, WRITE, REG_WRITE or ACTION to one servo, or to all of them.

    Returns the replies, and whether goals were written.
    """
    addressed = [servo for servo in servos if request.servo in (servo.servo_id, BROADCAST)]
    replies, wrote_goal = [], False
    for servo in addressed:
        servo_id = servo.servo_id  # the reply to a write of ID still carries the old one
        answers = servo.answers_writes and request.servo != BROADCAST
        if request.code == PING:
            replies.append(_status(servo, servo_id))
        elif request.code == READ and len(request.data) == 2 and request.servo != BROADCAST:
            replies.append(_status(servo, servo_id, servo.read(*request.data)))
        elif request.code in (WRITE, REG_WRITE, ACTION):
            wrote_goal |= _write(servo, request)
            if answers:
                replies.append(_status(servo, servo_id))
    return replies, wrote_goal


def _write(servo: ServoRegisters, request: Packet) -> bool:
    """Carry out WRITE, REG_WRITE or ACTION on one servo. True when it wrote Goal_Position."""
    if request.code == ACTION:
        return servo.action()
    if not request.data:
        return False
    address, data = request.data[0], request.data[1:]
    if request.code == WRITE:
        return servo.write(address, data)
    servo.stage(address, data)
    return False
