"""Find this computer's serial ports and the servos that answer on them, at every baud rate.

Only reads: no servo is changed or moved. Which arm is which is left to the user, who sees ids and
voltages (a leader runs on 5..7.4 V, a follower on 7.4 or 12 V). Sources: Linux device naming (by-id
links, ttyACM, ttyUSB), /proc/PID/fd, ModemManager's udev tags.
"""

from __future__ import annotations

import os
import select
import time
from collections.abc import Collection
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from mtdit_robots import processes
from mtdit_robots.bus.feetech import Bus, BusError, open_serial
from mtdit_robots.bus.packets import BROADCAST, PACKET_OVERHEAD, PING, build_packet, take_packet
from mtdit_robots.bus.sts3215 import BAUD_CODES
from mtdit_robots.errors import UserError
from mtdit_robots.so101.joints import IDS
from mtdit_robots.so101.servos import answers

BAUDS = tuple(BAUD_CODES)  # fastest first: an arm that was set up answers at 1 Mbit/s
BROADCAST_WAIT_S = 0.8  # servos reply one after the other, about 3 ms per id; as in LeRobot
PING_WAIT_S = 0.05
_USB_ADAPTER = ("1a86", "55d3")  # CH343 of the common servo boards; used when sysfs has no ids


@dataclass(frozen=True)
class Port:
    """One serial device. path: the name to use, a by-id link where there is one. device: the device
    file it points to.
    """

    path: str
    device: str


@dataclass(frozen=True)
class Servo:
    """One servo that answered. baud: the bits/s it answers at. faults: names of the error bits it
    reports, usually none.
    """

    id: int
    baud: int
    model: int
    firmware: str
    voltage_v: float
    faults: tuple[str, ...] = ()

    def __str__(self) -> str:
        text = (
            f"id {self.id} at {self.baud} baud, model {self.model}, firmware {self.firmware}, "
            f"{self.voltage_v:.1f} V"
        )
        return f"{text}, reports {' and '.join(self.faults)}" if self.faults else text


@dataclass(frozen=True)
class PortReport:
    """A port and the servos that answer there. problem: why they could not be asked, and the fix;
    empty when they could.
    """

    port: Port
    servos: tuple[Servo, ...] = ()
    problem: str = ""

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


class CollisionError(UserError):
    """Several servos answer at once. They cannot be told apart: nothing may be written to them."""


def find_ports(dev: Path = Path("/dev")) -> list[Port]:
    """The serial devices below `dev`, each listed once, with its by-id link when it has one."""
    links = [
        *sorted(dev.glob("serial/by-id/*")),
        *sorted(dev.glob("ttyACM*")),
        *sorted(dev.glob("ttyUSB*")),
    ]
    found: dict[str, Port] = {}
    for link in links:
        device = os.path.realpath(link)
        if os.path.exists(device):
            found.setdefault(device, Port(str(link), device))
    return list(found.values())


def probe(
    port: Port,
    ids: Collection[int] = tuple(IDS.values()),
    every_id: bool = False,
    timeout_s: float = PING_WAIT_S,
) -> PortReport:
    """Ping the servos `ids` at one baud rate after the other until some answer; with `every_id`,
    find all servos with any id at all rates.

    timeout_s: how long one servo may take to answer.
    """
    try:
        if every_id:
            servos = [servo for baud in BAUDS for servo in scan(port.path, baud)]
        else:
            servos = next(
                filter(None, (_ping(port.path, baud, ids, timeout_s) for baud in BAUDS)), []
            )
    except (UserError, BusError) as error:
        return PortReport(port, problem=str(error))
    return PortReport(port, tuple(servos))


def scan(path: str, baud: int, wait_s: float = BROADCAST_WAIT_S) -> list[Servo]:
    """Every servo that answers a broadcast ping at this rate, sorted by id.

    CollisionError when the bytes received are not one valid reply per id: two servos share an id,
    or the wire is bad. UserError when the port does not open.
    """
    frames, received = _broadcast_ping(path, baud, wait_s)
    ids = sorted(frames)
    if len(set(ids)) < len(ids) or received != PACKET_OVERHEAD * len(ids):
        raise CollisionError(
            f"several servos on {path} answer at once at {baud} baud, so two share an id: "
            "connect one at a time and run `mtdit setup-motors`"
        )
    with Bus(path, baud, retries=5) as bus:
        return [_identify(bus, baud, servo) for servo in ids]


def _broadcast_ping(path: str, baud: int, wait_s: float) -> tuple[list[int], int]:
    """The ids of the valid replies, and the number of all bytes received."""
    received, ids = bytearray(), []
    handle = open_serial(path, baud)
    try:
        handle.reset_input_buffer()
        handle.write(build_packet(BROADCAST, PING))
        deadline = time.monotonic() + wait_s
        while select.select([handle], [], [], max(0.0, deadline - time.monotonic()))[0]:
            received += handle.read(4096)
    except OSError as error:
        raise BusError(f"{path} disappeared: check the USB cable") from error
    finally:
        handle.close()
    n_bytes = len(received)
    while frame := take_packet(received, max_length=2):
        ids.append(frame.servo)
    return ids, n_bytes


def _ping(path: str, baud: int, ids: Collection[int], timeout_s: float) -> list[Servo]:
    with Bus(path, baud, timeout_s, retries=1) as bus:
        return [_identify(bus, baud, servo) for servo in ids if answers(bus, servo)]


def _identify(bus: Bus, baud: int, servo: int) -> Servo:
    """Read one servo's data. CollisionError when it answers a ping but cannot be read.

    Two servos with one id send the same reply to a ping, so it reads fine. Their voltages and
    positions differ, so those replies collide.
    """
    try:
        faults = bus.ping(servo)
        major, minor = (
            bus.read(servo, "Firmware_Major_Version"),
            bus.read(servo, "Firmware_Minor_Version"),
        )
        tenths, model = bus.read(servo, "Present_Voltage"), bus.read(servo, "Model_Number")
        bus.read(servo, "Present_Position")
    except BusError as error:
        raise CollisionError(
            f"servo {servo} on {bus.port} answers a ping but cannot be read: if two servos share "
            "this id, connect only one of them; if not, check the cable"
        ) from error
    return Servo(servo, baud, model, f"{major}.{minor}", tenths / 10, faults)


def modem_manager_runs() -> bool:
    """Whether ModemManager runs. It opens every new serial port and writes to it for seconds."""
    return processes.runs("ModemManager")


def udev_rule(device: str, sys_class: Path = Path("/sys/class/tty")) -> str:
    """The line for /etc/udev/rules.d/99-so101.rules: users in the group dialout may open the
    device, and ModemManager ignores it.
    """
    usb = (sys_class / Path(device).name / "device" / "..").resolve()
    vendor, product = _text(usb / "idVendor"), _text(usb / "idProduct")
    if not vendor or not product:
        vendor, product = _USB_ADAPTER
    return (
        f'SUBSYSTEM=="tty", ATTRS{{idVendor}}=="{vendor}", ATTRS{{idProduct}}=="{product}", '
        'MODE="0660", GROUP="dialout", ENV{ID_MM_DEVICE_IGNORE}="1"'
    )


def _text(file: Path) -> str:
    try:
        return file.read_text().strip()
    except OSError:
        return ""
