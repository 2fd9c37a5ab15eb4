"""The virtual bus as a wire: who answers what, at which rate, and what the owner is told."""

from __future__ import annotations

import os
import random
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from mtdit_robots.bus.feetech import Bus, BusError
from mtdit_robots.bus.packets import (
    ACTION,
    BROADCAST,
    PING,
    READ,
    REG_WRITE,
    WRITE,
    Packet,
    build_packet,
    take_packet,
)
from mtdit_robots.errors import UserError
from mtdit_robots.twin.bus import VirtualBus
from mtdit_robots.twin.registers import ServoRegisters

if TYPE_CHECKING:
    from servo_chain import Chain

PATIENT_S = 2.0


def ask(chain: Chain, request: bytes, n_replies: int) -> list[Packet]:
    """Send raw bytes through a client's port; wait for `n_replies`, then see that nothing else
    comes.
    """
    with Bus(chain.port) as bus:
        fd = bus._fd
        os.write(fd, request)
        buffer, replies = bytearray(), []
        deadline = time.monotonic() + PATIENT_S
        while len(replies) < n_replies and time.monotonic() < deadline:
            if bus._poll.poll(50):
                buffer += os.read(fd, 4096)
            while frame := take_packet(buffer):
                replies.append(frame)
        assert not bus._poll.poll(20)
    return replies


def test_a_broadcast_ping_is_answered_by_all(chain: Chain) -> None:
    assert ask(chain, build_packet(BROADCAST, PING), 6) == [Packet(n, 0) for n in range(1, 7)]


def test_a_broadcast_write_acts_silently(chain: Chain) -> None:
    request = build_packet(BROADCAST, WRITE, bytes((41, 7))) + build_packet(1, READ, bytes((41, 1)))
    assert ask(chain, request, 1) == [Packet(1, 0, b"\7")]
    assert {servo.get("Acceleration") for servo in chain.servos.values()} == {7}


def test_staged_writes_act_together(chain: Chain) -> None:
    goal = (1234).to_bytes(2, "little")
    requests = [build_packet(n, REG_WRITE, b"\x2a" + goal) for n in (1, 2)]
    assert ask(chain, b"".join(requests), 2) == [Packet(1, 0), Packet(2, 0)]
    assert chain.n_goals == 0
    assert ask(chain, build_packet(BROADCAST, ACTION) + build_packet(1, PING), 1) == [Packet(1, 0)]
    assert [n for n, servo in chain.servos.items() if servo.get("Goal_Position") == 1234] == [1, 2]
    assert chain.n_goals == 1
    assert ask(chain, build_packet(2, ACTION), 1) == [Packet(2, 0)]


def test_response_level_zero_answers_only_questions(chain: Chain) -> None:
    chain.servos[1].set("Response_Status_Level", 0)
    requests = (
        build_packet(1, WRITE, bytes((41, 9)))
        + build_packet(1, PING)
        + build_packet(1, READ, bytes((41, 1)))
    )
    assert ask(chain, requests, 2) == [Packet(1, 0), Packet(1, 0, b"\x09")]


def test_malformed_requests_are_ignored(chain: Chain) -> None:
    requests = b"".join(
        build_packet(servo, code) for servo in (1, BROADCAST) for code in (READ, 0x82, 0x83, 77)
    )
    short = build_packet(BROADCAST, 0x83, bytes((42, 2, 1, 5))) + build_packet(
        BROADCAST, READ, bytes((56, 2))
    )
    assert ask(chain, requests + short + build_packet(6, PING), 1) == [Packet(6, 0)]


def test_random_bytes_leave_the_bus_alive(chain: Chain) -> None:
    seed = 4711
    print("seed", seed)
    junk = random.Random(seed).randbytes(20_000)
    with Bus(chain.port, timeout_s=PATIENT_S) as bus:
        for at in range(0, len(junk), 500):
            os.write(bus._fd, junk[at : at + 500])
            time.sleep(0.001)
        os.write(bus._fd, bytes(260))
        assert bus.ping(1) == ()


@pytest.mark.parametrize(("code", "baud"), [(4, 115_200), (2, 250_000), (1, 500_000)])
def test_a_wrong_baud_rate_meets_silence(chain: Chain, code: int, baud: int) -> None:
    chain.servos[1].set("Baud_Rate", code)
    with Bus(chain.port, timeout_s=0.2, retries=0) as bus, pytest.raises(BusError):
        bus.ping(1)
    with Bus(chain.port, baud, timeout_s=PATIENT_S) as bus:
        assert bus.ping(1) == ()
    with Bus(chain.port, baud, timeout_s=0.05, retries=0) as bus, pytest.raises(BusError):
        bus.ping(2)


@pytest.mark.parametrize("baud", [38_400, 250_000, 1_000_000])
def test_any_baud_rate_is_answered_on_request(baud: int) -> None:
    servos = {n: ServoRegisters(n) for n in range(1, 7)}
    with (
        VirtualBus(servos, any_baud=True).serve_in_thread() as virtual,
        Bus(virtual.path, baud, timeout_s=PATIENT_S) as bus,
    ):
        assert bus.sync_read("ID", range(1, 7)) == {n: n for n in range(1, 7)}


def test_a_changed_id_takes_effect_after_its_reply(chain: Chain) -> None:
    with Bus(chain.port, timeout_s=PATIENT_S) as bus:
        bus.write(1, "ID", 40)
        assert bus.ping(40) == ()
    with Bus(chain.port, timeout_s=0.05, retries=0) as bus, pytest.raises(BusError):
        bus.ping(1)


def test_the_owner_hears_of_every_goal_packet_and_every_read(chain: Chain) -> None:
    with Bus(chain.port, timeout_s=PATIENT_S) as bus:
        bus.sync_write("Goal_Position", dict.fromkeys(range(1, 7), 2000))
        bus.sync_write("Goal_Velocity", dict.fromkeys(range(1, 7), 100))
        bus.write(3, "Goal_Position", 2100)
        bus.write(3, "Torque_Enable", 1)
        bus.sync_read("Present_Position", range(1, 7))
        bus.read(1, "Present_Load")
        bus.ping(1)
    assert (chain.n_goals, chain.n_reads) == (2, 2)


def test_one_thread_can_serve() -> None:
    bus = VirtualBus({1: ServoRegisters(1)})
    client = os.open(bus.path, os.O_RDWR | os.O_NOCTTY)
    try:
        assert bus.serve() == 0
        os.write(client, build_packet(1, PING) * 3)
        handled = 0
        while handled < 3:
            handled += bus.serve(PATIENT_S)
        assert handled == 3
    finally:
        os.close(client)
        bus.close()
        bus.close()


def test_nobody_reading_never_blocks_the_bus(chain: Chain) -> None:
    with Bus(chain.port, timeout_s=PATIENT_S) as bus:
        for _ in range(60):
            os.write(bus._fd, build_packet(1, READ, bytes((0, 87))))
        assert bus.read(2, "ID") == 2


def test_a_client_may_come_and_go(chain: Chain) -> None:
    for _ in range(3):
        with Bus(chain.port, timeout_s=PATIENT_S) as bus:
            assert bus.read(1, "ID") == 1


def test_wire_time_is_spent_before_the_reply() -> None:
    servos = {n: ServoRegisters(n) for n in range(1, 7)}
    with (
        VirtualBus(servos, wire_time=True).serve_in_thread() as virtual,
        Bus(virtual.path, timeout_s=PATIENT_S) as bus,
    ):
        begun_s = time.perf_counter()
        for _ in range(10):
            bus.sync_read("Present_Position", range(1, 7))
        # 14 bytes out, 48 back at 10 us, and six factory return delays of 500 us
        assert time.perf_counter() - begun_s >= 10 * (62 * 10e-6 + 6 * 500e-6)


def test_a_packet_without_replies_occupies_the_wire_too() -> None:
    servos = {n: ServoRegisters(n) for n in range(1, 7)}
    with (
        VirtualBus(servos, wire_time=True).serve_in_thread() as virtual,
        Bus(virtual.path, timeout_s=PATIENT_S) as bus,
    ):
        begun_s = time.perf_counter()
        for _ in range(20):
            bus.sync_write("Goal_Position", dict.fromkeys(range(1, 7), 2000))
        bus.ping(1)
        # 26 bytes each, then 12 of the ping and its factory return delay
        assert time.perf_counter() - begun_s >= (20 * 26 + 12) * 10e-6 + 500e-6


SIX = range(1, 7)


def test_a_lost_reply_is_asked_for_again(chain: Chain) -> None:
    with Bus(chain.port, timeout_s=0.2, retries=1) as bus:
        chain.bus.faults.silent = {2, 5}
        assert sorted(bus.sync_read("Present_Position", SIX)) == [1, 3, 4, 6]
        chain.bus.faults.silent = set()
        assert sorted(bus.sync_read("Present_Position", SIX)) == [*SIX]
    assert {n: dict(of) for n, of in bus.errors.items()} == {n: {"no answer": 2} for n in (2, 5)}


def test_a_silent_servo_still_acts(chain: Chain) -> None:
    chain.bus.faults.silent = {4}
    with (
        Bus(chain.port, timeout_s=0.05, retries=0) as bus,
        pytest.raises(BusError, match="servo 4"),
    ):
        bus.write(4, "Acceleration", 9)
    assert chain.servos[4].get("Acceleration") == 9


def test_a_reply_that_loses_a_bit_is_not_believed(chain: Chain) -> None:
    chain.bus.faults.corrupt[3] = 2
    with Bus(chain.port, timeout_s=0.3, retries=9) as bus:
        assert bus.sync_read("Present_Position", SIX) == dict.fromkeys(SIX, 2047)
        assert bus.errors[3]["no answer"] >= 2


def test_noise_repeats_and_any_order_do_no_harm(chain: Chain) -> None:
    chain.bus.faults.noise, chain.bus.faults.repeat, chain.bus.faults.reverse = (
        b"\xff\xff\x00\xff",
        True,
        True,
    )
    for servo in chain.servos.values():
        servo.set("Goal_Position", 1000 + servo.servo_id)
    with Bus(chain.port, timeout_s=PATIENT_S) as bus:
        for _ in range(5):
            assert bus.sync_read("Goal_Position", SIX) == {n: 1000 + n for n in SIX}
        assert not bus.errors


def test_a_late_reply_is_not_taken_for_the_next_one(chain: Chain) -> None:
    with Bus(chain.port, timeout_s=0.05, retries=0) as bus:
        chain.bus.faults.late_s = 0.5
        with pytest.raises(BusError):
            bus.read(1, "Goal_Position")
        chain.bus.faults.late_s = 0.0
        chain.servos[1].set("Goal_Position", 1234)
        time.sleep(1.0)  # by now the late reply, 2047 or 2048, waits in the port
        bus.timeout_s = PATIENT_S
        assert bus.read(1, "Goal_Position") == 1234


def test_a_brown_out_takes_torque_and_what_was_not_saved(chain: Chain) -> None:
    with Bus(chain.port, timeout_s=PATIENT_S) as bus:
        bus.write(6, "Torque_Enable", 1)
        bus.write(6, "P_Coefficient", 99)  # Lock is 1
        chain.servos[6].power_cycle()
        assert bus.ping(6) == ()
        assert (
            bus.read(6, "Torque_Enable"),
            bus.read(6, "P_Coefficient"),
            bus.read(6, "Lock"),
        ) == (0, 32, 1)


def test_the_link_appears_and_goes(tmp_path: Path) -> None:
    link = tmp_path / "ttySIM0"
    link.symlink_to("/dev/pts/gone")
    with (
        VirtualBus({5: ServoRegisters(5)}, link=link).serve_in_thread(),
        Bus(str(link), timeout_s=PATIENT_S) as bus,
    ):
        assert bus.ping(5) == ()
    assert not link.is_symlink()


def test_a_link_does_not_replace_a_file(tmp_path: Path) -> None:
    place = tmp_path / "precious"
    place.touch()
    with pytest.raises(
        UserError, match=r"cannot create the link .*precious .*: choose another --link"
    ):
        VirtualBus({}, link=place)
    assert place.exists()
