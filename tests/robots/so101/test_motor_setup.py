"""Ids and rates on the virtual bus: one servo is set up, none or two never are, and half done is
recognised.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from mtdit_robots.bus.feetech import Bus
from mtdit_robots.bus.packets import WRITE, Packet
from mtdit_robots.bus.sts3215 import BAUD_CODES
from mtdit_robots.errors import UserError
from mtdit_robots.so101.joints import IDS, JOINTS
from mtdit_robots.so101.motor_setup import (
    ORDER,
    complete,
    find_servos,
    gear,
    is_set_up,
    only_servo,
    set_up,
)
from mtdit_robots.so101.ports import BAUDS, Servo
from mtdit_robots.twin.bus import VirtualBus
from mtdit_robots.twin.registers import ServoRegisters

LISTEN_S = 0.2
PATIENT_S = 1.0
NEW = Servo(1, 1_000_000, 777, "3.10", 7.4)


class Wire:
    """Servos that a person plugs and unplugs."""

    def __init__(self) -> None:
        self.log: list[Packet] = []
        self.servos: dict[int, ServoRegisters] = {}
        self.bus = VirtualBus(self.servos, log=self.log)

    @property
    def port(self) -> str:
        return self.bus.path

    def plug(self, *servos: ServoRegisters) -> None:
        self.servos.clear()
        self.servos.update(enumerate(servos))

    def find(self) -> list[Servo]:
        return find_servos(self.port, wait_s=LISTEN_S)


@contextmanager
def wire(*servos: ServoRegisters) -> Iterator[Wire]:
    made = Wire()
    made.plug(*servos)
    with made.bus.serve_in_thread():
        yield made


def servo(servo_id: int = 1, baud: int = 1_000_000) -> ServoRegisters:
    made = ServoRegisters(servo_id)
    made.set("Baud_Rate", BAUD_CODES[baud])
    return made


def test_the_order_is_lerobots() -> None:
    assert ORDER == (
        "gripper",
        "wrist_roll",
        "wrist_flex",
        "elbow_flex",
        "shoulder_lift",
        "shoulder_pan",
    )


def test_a_leaders_gears_are_mixed() -> None:
    assert [gear(joint, leader=True) for joint in JOINTS] == [
        "1/191",
        "1/345",
        "1/191",
        "1/147",
        "1/147",
        "1/147",
    ]
    assert {gear(joint, leader=False) for joint in JOINTS} == {"1/345"}


@pytest.mark.parametrize(
    ("servo_id", "baud"), [(1, 1_000_000), (1, 115_200), (6, 57_600), (253, 19_200)]
)
def test_one_servo_is_set_up_and_stays_so(servo_id: int, baud: int) -> None:
    new = servo(servo_id, baud)
    new.set("Torque_Enable", 1)
    with wire(new) as chain:
        found = only_servo(chain.port, chain.find())
        assert (found.id, found.baud, found.model) == (servo_id, baud, 777)
        now = set_up(chain.port, found, "gripper", PATIENT_S)
        assert (now.id, now.baud) == (6, 1_000_000)
        assert not new.torque_enabled
        assert new.get("Lock") == 1
        new.power_cycle()
        again = only_servo(chain.port, chain.find())
        assert is_set_up(again, "gripper")
        assert not is_set_up(again, "wrist_roll")


def test_a_whole_arm_one_after_the_other() -> None:
    arm = {joint: servo() for joint in ORDER}
    with wire() as chain:
        for joint in ORDER:
            chain.plug(arm[joint])
            assert not is_set_up(NEW, joint) or joint == "shoulder_pan"
            set_up(chain.port, NEW, joint, PATIENT_S)
        chain.plug(*arm.values())
        found = chain.find()
    assert complete(found)
    assert [found.id for found in found] == list(IDS.values())


def test_nothing_is_written_to_none_or_two() -> None:
    with wire() as chain:
        message = r"no servo answers on .* at any baud rate: check its cable"
        with pytest.raises(UserError, match=message):
            only_servo(chain.port, chain.find())
        chain.plug(servo(1), servo(6, 115_200))
        message = (
            r"2 servos answer on .* \(id 1 at 1000000 baud, id 6 at 115200 baud\), "
            "nothing was changed: connect only one"
        )
        with pytest.raises(UserError, match=message):
            only_servo(chain.port, chain.find())
        chain.plug(servo(1), servo(1))
        with pytest.raises(UserError, match="two share an id"):
            chain.find()
        assert not any(frame.code == WRITE for frame in chain.log)


def test_another_model_is_refused() -> None:
    foreign = servo()
    foreign.set("Model_Number", 2825)
    with (
        wire(foreign) as chain,
        pytest.raises(UserError, match=r"servo 1 is not an STS3215 \(model 2825, not 777\)"),
    ):
        only_servo(chain.port, chain.find())


def test_half_an_arm_is_not_complete() -> None:
    whole = [Servo(n, 1_000_000, 777, "3.10", 7.4) for n in IDS.values()]
    assert complete(whole)
    assert not complete(whole[:5])
    assert not complete([*whole, Servo(7, 1_000_000, 777, "3.10", 7.4)])
    assert not complete([*whole[:5], Servo(6, 115_200, 777, "3.10", 7.4)])


def test_a_servo_that_does_not_take_its_id_is_told() -> None:
    class Stubborn(ServoRegisters):
        def write(self, address: int, data: bytes) -> bool:
            return address != 5 and super().write(address, data)

    with wire(Stubborn(1)) as chain:
        message = (
            r"wrist_flex: servo 4 on .* does not answer after its id and baud rate were written: "
            "switch the power off"
        )
        with pytest.raises(UserError, match=message):
            set_up(chain.port, NEW, "wrist_flex", 0.2)


def test_a_servo_that_is_gone_before_anything_was_written_is_told_so() -> None:
    with (
        wire() as chain,
        pytest.raises(UserError, match=r"gripper: servo 1 .* its id and baud rate are unchanged"),
    ):
        set_up(chain.port, NEW, "gripper", 0.1)


def test_a_servo_whose_rate_was_not_written_yet_is_finished() -> None:
    """The power failed between id and rate."""
    half = servo(6, 500_000)
    with wire(half) as chain:
        found = only_servo(chain.port, chain.find())
        assert not is_set_up(found, "gripper")
        set_up(chain.port, found, "gripper", PATIENT_S)
        with Bus(chain.port, timeout_s=PATIENT_S) as bus:
            assert bus.read(6, "Baud_Rate") == 0


def test_every_rate_is_listened_to() -> None:
    heard: list[int] = []
    with wire() as chain:
        find_servos(chain.port, heard.append, wait_s=0.01)
    assert heard == list(BAUDS)
