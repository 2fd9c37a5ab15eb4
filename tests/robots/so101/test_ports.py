"""Finding ports and servos: device folders, /proc and /sys built by hand, servos on the virtual
bus.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from mtdit_robots.bus.packets import PING, READ, SYNC_READ, Packet
from mtdit_robots.bus.sts3215 import BAUD_CODES
from mtdit_robots.errors import UserError
from mtdit_robots.processes import holders, runs
from mtdit_robots.so101.ports import BAUDS, CollisionError, Port, find_ports, probe, scan, udev_rule
from mtdit_robots.twin.bus import VirtualBus
from mtdit_robots.twin.registers import ServoRegisters

if TYPE_CHECKING:
    from servo_chain import Chain

PATIENT_S = 0.5
HOLDER = (
    "import serial, sys; s = serial.Serial(sys.argv[1], exclusive=sys.argv[2] == 'True'); "
    "print('open', flush=True); sys.stdin.read()"
)


def servo(servo_id: int, baud: int = 1_000_000, **registers: int) -> ServoRegisters:
    made = ServoRegisters(servo_id)
    for name, value in {"Baud_Rate": BAUD_CODES[baud], **registers}.items():
        made.set(name, value)
    return made


class Colliding(VirtualBus):
    """Servos that share an id talk at the same time: a wire that any of them can pull down carries
    the AND.
    """

    def _reply(self, request: Packet, replies: list[tuple[float, bytes]], baud: int) -> None:
        merged: dict[int, bytes] = {}
        for _, frame in replies:
            other = merged.get(frame[2], b"\xff" * len(frame))
            merged[frame[2]] = bytes(a & b for a, b in zip(frame, other, strict=True))
        super()._reply(request, [(0.0, frame) for frame in merged.values()], baud)


@contextmanager
def served(*servos: ServoRegisters, kind: type[VirtualBus] = VirtualBus) -> Iterator[VirtualBus]:
    with kind(dict(enumerate(servos))).serve_in_thread() as bus:
        yield bus


def port_of(bus: VirtualBus) -> Port:
    return Port(bus.path, bus.path)


@pytest.fixture
def dev(tmp_path: Path) -> Path:
    (tmp_path / "serial" / "by-id").mkdir(parents=True)
    return tmp_path


def test_a_port_is_listed_once_under_its_lasting_name(dev: Path) -> None:
    with ExitStack() as stack:
        first, second, third = (stack.enter_context(served()) for _ in range(3))
        (dev / "ttyACM0").symlink_to(first.path)
        (dev / "ttyACM1").symlink_to(second.path)
        (dev / "ttyUSB0").symlink_to(third.path)
        (dev / "ttyS0").touch()
        by_id = dev / "serial" / "by-id" / "usb-1a86_USB_Single_Serial_58FA-if00"
        by_id.symlink_to("../../ttyACM1")
        (dev / "serial" / "by-id" / "usb-unplugged").symlink_to("../../ttyACM9")
        assert find_ports(dev) == [
            Port(str(by_id), second.path),
            Port(str(dev / "ttyACM0"), first.path),
            Port(str(dev / "ttyUSB0"), third.path),
        ]


def test_no_devices_no_ports(tmp_path: Path) -> None:
    assert find_ports(tmp_path) == []


def test_probe_says_what_each_servo_says_and_changes_nothing(chain: Chain) -> None:
    chain.servos[3].set_present(2000, voltage_v=12.1)
    chain.servos[4].error = 32
    report = probe(port_of(chain.bus), timeout_s=PATIENT_S)
    assert [found.id for found in report.servos] == [1, 2, 3, 4, 5, 6]
    assert {(found.baud, found.model, found.firmware) for found in report.servos} == {
        (1_000_000, 777, "3.10")
    }
    assert [found.voltage_v for found in report.servos] == [7.4, 7.4, 12.1, 7.4, 7.4, 7.4]
    assert (
        str(report.servos[3])
        == "id 4 at 1000000 baud, model 777, firmware 3.10, 7.4 V, reports overload"
    )
    assert {frame.code for frame in chain.log} <= {PING, READ, SYNC_READ}
    assert json.loads(json.dumps(report.to_dict()))["servos"][2]["voltage_v"] == 12.1


def test_probe_finds_the_rate() -> None:
    with served(servo(2, 115_200), servo(5, 115_200)) as bus:
        report = probe(port_of(bus), timeout_s=0.1)
    assert [(found.id, found.baud) for found in report.servos] == [(2, 115_200), (5, 115_200)]


def test_probe_of_all_finds_any_id_at_any_rate() -> None:
    with served(servo(1), servo(200), servo(7, 38_400)) as bus:
        assert probe(port_of(bus), timeout_s=0.02).servos[0].id == 1
        report = probe(port_of(bus), every_id=True)
    assert [(found.id, found.baud) for found in report.servos] == [
        (1, 1_000_000),
        (200, 1_000_000),
        (7, 38_400),
    ]


def test_nobody_answers() -> None:
    with served() as bus:
        report = probe(port_of(bus), timeout_s=0.02)
    assert (report.servos, report.problem) == ((), "")


@pytest.mark.parametrize("baud", BAUDS)
def test_scan_hears_only_its_rate(baud: int) -> None:
    with served(servo(9, baud)) as bus:
        assert [found.id for found in scan(bus.path, baud, PATIENT_S)] == [9]
        assert scan(bus.path, BAUDS[BAUDS.index(baud) - 1], 0.1) == []


@pytest.mark.parametrize("kind", [VirtualBus, Colliding])
def test_two_servos_under_one_id_are_noticed(kind: type[VirtualBus]) -> None:
    first, second = servo(1), servo(1)
    first.set_present(1000, voltage_v=7.4)
    second.set_present(2222, voltage_v=7.3)
    with (
        served(first, second, kind=kind) as bus,
        pytest.raises(CollisionError, match=r"two (servos )?share (this|an) id"),
    ):
        scan(bus.path, 1_000_000, PATIENT_S)


def test_a_babbling_wire_is_no_servo() -> None:
    with served(servo(1)) as bus:
        bus.faults.noise = b"\xff\x13"
        with pytest.raises(CollisionError, match="answer at once"):
            scan(bus.path, 1_000_000, PATIENT_S)


@pytest.mark.parametrize("locks", [True, False])
def test_a_busy_port_names_its_holder(locks: bool) -> None:
    """LeRobot and the SDK lock nothing: two programs could talk on one wire, and garble each
    other.
    """
    with served(servo(1)) as bus:
        command = [sys.executable, "-c", HOLDER, bus.path, str(locks)]
        holder = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert holder.stdout
        assert holder.stdout.readline() == "open\n"
        problem = probe(port_of(bus)).problem
        holder.communicate()
        assert f"{bus.path} is in use by python (pid {holder.pid}): stop it" in problem
        assert probe(port_of(bus), timeout_s=PATIENT_S).servos


def test_no_permission_names_the_group() -> None:
    with served(servo(1)) as bus:
        mode = os.stat(bus.path).st_mode
        os.chmod(bus.path, 0)
        privileged = os.geteuid() == 0
        if privileged:
            os.seteuid(65534)
        try:
            problem = probe(port_of(bus)).problem
        finally:
            if privileged:
                os.seteuid(0)
            os.chmod(bus.path, mode)
    assert (
        problem
        == f"no permission for {bus.path}: run `sudo usermod -aG dialout $USER`, then log in again"
    )


def test_a_port_that_vanished() -> None:
    assert "no serial port /dev/ttyACM99" in probe(Port("/dev/ttyACM99", "/dev/ttyACM99")).problem


def test_holders_come_from_proc(tmp_path: Path) -> None:
    for pid, name, target in ((12, "lerobot-record", "/dev/ttyACM0"), (13, "bash", "/dev/pts/1")):
        (tmp_path / str(pid) / "fd").mkdir(parents=True)
        (tmp_path / str(pid) / "comm").write_text(name + "\n")
        (tmp_path / str(pid) / "fd" / "3").symlink_to(target)
    (tmp_path / "14").mkdir()  # another user's: nothing to be read
    (tmp_path / "self").mkdir()
    assert holders("/dev/ttyACM0", tmp_path) == ["lerobot-record (pid 12)"]
    assert holders("/dev/ttyACM1", tmp_path) == []
    assert holders("/dev/pts/1", tmp_path) == ["bash (pid 13)"]
    (tmp_path / "13" / "fd" / "4").symlink_to(
        "/dev/ptmx"
    )  # bash keeps the other end: it made the pseudo-terminal
    assert holders("/dev/pts/1", tmp_path) == []
    assert not runs("ModemManager", tmp_path)
    (tmp_path / "14" / "comm").write_text("ModemManager\n")
    assert runs("ModemManager", tmp_path)


def test_the_udev_rule_is_about_this_very_adapter(tmp_path: Path) -> None:
    usb = tmp_path / "devices" / "usb1" / "1-2"
    (usb / "1-2:1.0" / "tty" / "ttyACM3").mkdir(parents=True)
    (usb / "idVendor").write_text("0403\n")
    (usb / "idProduct").write_text("6001\n")
    (usb / "1-2:1.0" / "tty" / "ttyACM3" / "device").symlink_to(usb / "1-2:1.0")
    (tmp_path / "class").mkdir()
    (tmp_path / "class" / "ttyACM3").symlink_to(usb / "1-2:1.0" / "tty" / "ttyACM3")
    rule = udev_rule("/dev/ttyACM3", tmp_path / "class")
    assert rule == (
        'SUBSYSTEM=="tty", ATTRS{idVendor}=="0403", ATTRS{idProduct}=="6001", '
        'MODE="0660", GROUP="dialout", '
        'ENV{ID_MM_DEVICE_IGNORE}="1"'
    )
    assert '"1a86"' in udev_rule("/dev/ttyACM4", tmp_path / "class")


def test_errors_are_for_users() -> None:
    assert issubclass(CollisionError, UserError)
