"""Frames byte for byte, resynchronisation, and both buses against virtual servos and against
hand-made replies.
"""

from __future__ import annotations

import contextlib
import errno
import os
import pty
import random
import threading
import tty
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mtdit_robots.bus.feetech import Bus, BusError, _open_failure
from mtdit_robots.bus.open import open_bus
from mtdit_robots.bus.packets import (
    BROADCAST,
    MAX_LENGTH,
    PING,
    READ,
    SYNC_READ,
    SYNC_WRITE,
    WRITE,
    Packet,
    build_packet,
    take_packet,
)
from mtdit_robots.bus.sdk import SdkBus
from mtdit_robots.bus.sts3215 import REGISTERS, encode
from mtdit_robots.errors import UserError

if TYPE_CHECKING:
    from servo_chain import Chain

PATIENT_S = 2.0  # a stalled machine must not fail a test
SIX = range(1, 7)


@pytest.fixture(params=[Bus, SdkBus])
def kind(request: pytest.FixtureRequest) -> type[Bus]:
    """Either bus: all that is said here of one holds for the other."""
    chosen: type[Bus] = request.param
    return chosen


GOLDEN = [
    (Packet(1, PING), "ff ff 01 02 01 fb"),
    (Packet(1, READ, bytes((56, 2))), "ff ff 01 04 02 38 02 be"),
    (Packet(6, WRITE, bytes((40, 1))), "ff ff 06 04 03 28 01 c9"),
    (
        Packet(1, WRITE, b"\x1f" + encode(REGISTERS["Homing_Offset"], -123)),
        "ff ff 01 05 03 1f 7b 08 54",
    ),
    (
        Packet(BROADCAST, SYNC_READ, bytes((56, 2, *SIX))),
        "ff ff fe 0a 82 38 02 01 02 03 04 05 06 26",
    ),
    (Packet(1, 0, b"\xff\x07"), "ff ff 01 04 00 ff 07 f4"),
    (Packet(6, 0), "ff ff 06 02 00 f7"),
    (
        Packet(BROADCAST, SYNC_WRITE, bytes((42, 2)) + b"".join(bytes((n, 0xFF, 7)) for n in SIX)),
        "ff ff fe 16 83 2a 02 01 ff 07 02 ff 07 03 ff 07 04 ff 07 05 ff 07 06 ff 07 03",
    ),
]


def take_any(buffer: bytearray) -> Packet | None:
    return take_packet(buffer, max_id=BROADCAST, max_code=0xFF)


@pytest.mark.parametrize(("frame", "golden"), GOLDEN)
def test_golden_frames(frame: Packet, golden: str) -> None:
    assert build_packet(frame.servo, frame.code, frame.data) == bytes.fromhex(golden)
    assert take_any(bytearray.fromhex(golden)) == frame


frames = st.builds(Packet, st.integers(0, 0xFD), st.integers(0, 0x7F), st.binary(max_size=20))
noise = st.binary(max_size=30).map(lambda data: data.replace(b"\xff", b"\xfe"))


@given(st.lists(st.tuples(noise, frames), max_size=6), noise, st.randoms(use_true_random=False))
@settings(max_examples=150, deadline=None)
def test_frames_are_found_between_garbage_however_they_arrive(
    parts: list[tuple[bytes, Packet]], tail: bytes, chance: random.Random
) -> None:
    stream = b"".join(before + build_packet(f.servo, f.code, f.data) for before, f in parts) + tail
    buffer, found = bytearray(), []
    while stream:
        n = chance.randint(1, len(stream))
        buffer += stream[:n]
        stream = stream[n:]
        while frame := take_packet(buffer):
            found.append(frame)
    assert found == [frame for _, frame in parts]


@pytest.mark.parametrize(
    "before",
    ["ff", "ff ff", "ff ff ff", "ff ff 01 04", "ff ff 01 04 00 ff 07 f5", "ff ff 01 fa 00"],
)
def test_a_frame_behind_a_broken_one_is_found(before: str) -> None:
    buffer = bytearray.fromhex(before) + build_packet(5, 0, b"\1\2")
    assert take_packet(buffer, max_length=4) == Packet(5, 0, b"\1\2")


def test_random_bytes_never_break_the_parser() -> None:
    seed = 20251
    print("seed", seed)
    junk = random.Random(seed).randbytes(20_000)
    buffer = bytearray()
    for at in range(0, len(junk), 7):
        buffer += junk[at : at + 7]
        while frame := take_any(buffer):
            assert build_packet(frame.servo, frame.code, frame.data) in junk
        assert len(buffer) < MAX_LENGTH + 4 + 7
    buffer += bytes(MAX_LENGTH + 4) + build_packet(3, PING)
    assert take_any(buffer) == Packet(3, PING)


def test_every_operation_on_virtual_servos(chain: Chain, kind: type[Bus]) -> None:
    with kind(chain.port, timeout_s=PATIENT_S) as bus:
        assert bus.ping(1) == ()
        assert bus.read(3, "Model_Number") == 777
        bus.write(2, "Goal_Velocity", -300)
        assert bus.read(2, "Goal_Velocity") == -300
        assert bus.sync_read("Present_Position", SIX) == dict.fromkeys(SIX, 2047)
        bus.sync_write("Goal_Position", {n: 2000 + n for n in SIX})
        assert bus.sync_read("Goal_Position", (6, 1)) == {6: 2006, 1: 2001}
        assert not bus.errors
    assert chain.n_goals == 1


def test_error_bits_are_counted_and_do_not_stop_the_exchange(chain: Chain, kind: type[Bus]) -> None:
    chain.servos[2].error = 1 | 32
    with kind(chain.port, timeout_s=PATIENT_S) as bus:
        assert bus.ping(2) == ("voltage", "overload")
        assert bus.sync_read("Present_Position", SIX)[2] == 2047
        bus.write(2, "Torque_Enable", 0)
        assert bus.errors == {2: {"voltage": 3, "overload": 3}}


def test_a_silent_servo_costs_nobody_else_their_reply(chain: Chain, kind: type[Bus]) -> None:
    del chain.servos[3]
    with kind(chain.port, timeout_s=0.3, retries=1) as bus:
        assert sorted(bus.sync_read("Present_Position", SIX)) == [1, 2, 4, 5, 6]
        assert bus.errors[3]["no answer"] == 2
    asked = [frame.data[2:] for frame in chain.log]
    assert asked == [bytes(SIX), bytes((3,))]


def test_a_servo_known_to_be_silent_is_asked_once_a_call_until_it_answers(
    chain: Chain, kind: type[Bus]
) -> None:
    """One bounded timeout, not one per attempt, and not one per servo."""
    gone = chain.servos.pop(3)
    with kind(chain.port, timeout_s=0.3, retries=2) as bus:
        for attempts in (3, 4, 5):
            assert 3 not in bus.sync_read("Present_Position", SIX)
            assert bus.errors[3]["no answer"] == attempts
        chain.servos[3] = gone
        assert bus.sync_read("Present_Position", SIX)[3] == 2047
        del chain.servos[3]
        with pytest.raises(BusError, match="servo 3"):
            bus.ping(3)
        assert bus.errors == {3: {"no answer": 8}}


def test_several_registers_come_in_one_exchange(chain: Chain, kind: type[Bus]) -> None:
    chain.servos[2].set("Torque_Enable", 1)
    chain.servos[5].set("Goal_Position", -7)
    with kind(chain.port, timeout_s=PATIENT_S) as bus:
        names = ("Present_Position", "Torque_Enable", "Goal_Position")
        seen = bus.sync_read_many(names, (5, 2))
    assert seen == {5: (2047, 0, -7), 2: (2047, 1, chain.servos[2].get("Goal_Position"))}
    assert chain.log == [Packet(BROADCAST, SYNC_READ, bytes((40, 18, 5, 2)))]


def test_a_cycle_is_one_read_and_one_write(chain: Chain, kind: type[Bus]) -> None:
    """The golden frames, as they are on the wire."""
    with kind(chain.port, timeout_s=PATIENT_S) as bus:
        bus.sync_read("Present_Position", SIX)
        bus.sync_write("Goal_Position", dict.fromkeys(SIX, 2047))
        bus.write(6, "Torque_Enable", 1)
        bus.write(1, "Homing_Offset", -123)
        bus.read(1, "Present_Position")
        bus.ping(1)
    sent = [build_packet(*frame).hex(" ") for frame in chain.log]
    assert sent == [GOLDEN[n][1] for n in (4, 7, 2, 3, 1, 0)]


def test_a_value_that_does_not_fit_is_not_sent(chain: Chain, kind: type[Bus]) -> None:
    with (
        kind(chain.port, timeout_s=PATIENT_S) as bus,
        pytest.raises(ValueError, match=r"must be -2047\.\.2047, not 2048"),
    ):
        bus.write(1, "Homing_Offset", 2048)
    assert not chain.log


def test_a_silent_servo_is_named(chain: Chain, kind: type[Bus]) -> None:
    with kind(chain.port, timeout_s=0.05, retries=0) as bus:
        for ask in (bus.ping, lambda n: bus.read(n, "ID"), lambda n: bus.write(n, "Lock", 1)):
            with pytest.raises(BusError, match=r"servo 9 on /dev/.* does not answer"):
                ask(9)


def test_stale_input_is_discarded(chain: Chain, kind: type[Bus]) -> None:
    with kind(chain.port, timeout_s=PATIENT_S) as bus:
        os.write(
            chain.bus.fileno(), build_packet(1, 0, encode(REGISTERS["Present_Position"], 11)) * 40
        )
        assert bus.read(1, "Present_Position") == 2047


def test_an_unknown_register_suggests_the_nearest() -> None:
    with pytest.raises(KeyError, match="did you mean 'Goal_Position'"):
        Bus.read(None, 1, "Goal_Positon")  # type: ignore[arg-type]


@contextmanager
def answering(reply: Callable[[Packet, int], bytes | None]) -> Iterator[str]:
    """A port whose far end sends `reply(request, n)` to the n-th request; None takes the port
    away.
    """
    master, slave = pty.openpty()
    tty.setraw(slave)
    path = os.ttyname(slave)

    def serve() -> None:
        buffer, n = bytearray(), 0
        while True:
            try:
                buffer += os.read(master, 4096)
            except OSError:
                return
            while request := take_any(buffer):
                data = reply(request, n)
                if data is None:
                    os.close(master)
                    return
                os.write(master, data)
                n += 1

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        yield path
    finally:
        os.close(slave)  # the last one: the reader's next read fails and the thread ends
        thread.join()


def position(servo: int, ticks: int) -> bytes:
    return build_packet(servo, 0, encode(REGISTERS["Present_Position"], ticks))


def test_replies_may_come_in_any_order_between_garbage(kind: type[Bus]) -> None:
    def reply(request: Packet, n: int) -> bytes:
        asked = request.data[2:]
        foreign = position(99, 1) + build_packet(4, 0) + build_packet(5, 0, b"\1\2\3")
        return (
            b"\xff\0"
            + foreign
            + b"\xff".join(position(servo, 100 * servo) for servo in reversed(asked))
        )

    with answering(reply) as port, kind(port, timeout_s=PATIENT_S) as bus:
        assert list(bus.sync_read("Present_Position", SIX).items()) == [(n, 100 * n) for n in SIX]


def test_a_corrupt_reply_is_asked_for_again(kind: type[Bus]) -> None:
    def reply(request: Packet, n: int) -> bytes:
        good = position(1, 2047)
        return good if n else good[:-1] + bytes((good[-1] ^ 1,))

    with answering(reply) as port, kind(port, timeout_s=0.3, retries=20) as bus:
        assert bus.read(1, "Present_Position") == 2047
        assert bus.errors[1]["no answer"] >= 1


def test_a_port_that_goes_away_says_so(kind: type[Bus]) -> None:
    with answering(lambda request, n: None) as port, kind(port, timeout_s=PATIENT_S) as bus:
        with pytest.raises(BusError, match="check the USB cable"):
            bus.ping(1)
        with pytest.raises(BusError, match="check the USB cable"):
            bus.sync_write("Goal_Position", {1: 0})


def test_a_busy_port_is_refused(chain: Chain, kind: type[Bus]) -> None:
    with (
        kind(chain.port),
        pytest.raises(UserError, match=f"{chain.port} is in use by another program: .*fuser"),
    ):
        kind(chain.port)
    kind(chain.port).close()


@pytest.mark.parametrize(
    "babble", [b"\0", b"\xff", b"\xff\xff\1\4", position(9, 3), build_packet(1, 0)]
)
def test_a_port_that_babbles_without_end_is_given_up(babble: bytes, kind: type[Bus]) -> None:
    """As an unrelated device would, or a servo gone mad."""
    master, slave = pty.openpty()
    tty.setraw(slave)
    quiet = threading.Event()

    def talk() -> None:
        os.set_blocking(master, False)
        while not quiet.is_set():
            with contextlib.suppress(BlockingIOError):
                os.write(master, babble * (1000 // len(babble)))
            quiet.wait(0.001)

    talker = threading.Thread(target=talk)
    talker.start()
    try:
        with (
            kind(os.ttyname(slave), timeout_s=0.1, retries=1) as bus,
            pytest.raises(BusError, match="does not answer"),
        ):
            bus.read(1, "Present_Position")
    finally:
        quiet.set()
        talker.join()
        os.close(master)
        os.close(slave)


def test_a_bus_is_chosen_by_name(chain: Chain) -> None:
    for name, kind in (("own", Bus), ("sdk", SdkBus)):
        with open_bus(name, chain.port, timeout_s=PATIENT_S) as bus:
            assert type(bus) is kind
            assert bus.ping(1) == ()
    with pytest.raises(UserError, match="there is no bus 'serial': use own or sdk"):
        open_bus("serial", chain.port)


def test_a_missing_port_lists_what_there_is() -> None:
    with pytest.raises(UserError, match="no serial port /dev/ttyNONE: found "):
        Bus("/dev/ttyNONE")


def test_a_file_is_no_port(tmp_path: os.PathLike[str]) -> None:
    place = os.path.join(tmp_path, "port")
    open(place, "w").close()
    with pytest.raises(UserError, match="as a serial port"):
        Bus(place)


def test_no_permission_names_the_group() -> None:
    assert "dialout" in _open_failure("/dev/ttyACM0", PermissionError(errno.EACCES, "denied"))
