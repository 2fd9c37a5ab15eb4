"""Who hits Ctrl-C again and again, or loses the terminal while an arm lets go: it is let go of all
the same.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import pytest

from mtdit_robots.bus.feetech import Bus
from mtdit_robots.bus.packets import WRITE, Packet
from mtdit_robots.signals import ENDING_SIGNALS, signals_deferred
from mtdit_robots.so101.arm import So101Arm
from mtdit_robots.so101.calibrate import Calibrator
from mtdit_robots.so101.calibration import Calibration
from mtdit_robots.so101.leader import So101Leader

if TYPE_CHECKING:
    from servo_chain import Chain

PATIENT_S = 2.0
TORQUE_OFF = b"\x28\x00"  # what a servo is asked one by one to confirm


class Tripwire(list[Packet]):
    """A bus log that sends this process a signal with every single torque-off, while it waits for
    the reply.
    """

    armed, hits = False, 0

    def append(self, frame: Packet) -> None:
        super().append(frame)
        if self.armed and (frame.code, frame.data) == (WRITE, TORQUE_OFF):
            self.hits += 1
            os.kill(os.getpid(), ENDING_SIGNALS[self.hits % len(ENDING_SIGNALS)])


@pytest.fixture
def tripwire(chain: Chain) -> Iterator[Tripwire]:
    before = {
        number: signal.signal(number, signal.default_int_handler) for number in ENDING_SIGNALS
    }
    chain.bus._log = made = Tripwire()
    yield made
    for number, handler in before.items():
        signal.signal(number, handler)


def closed_arm(chain: Chain, calibration: Calibration) -> Callable[[], None]:
    arm = So101Arm(chain.port, calibration, timeout_s=PATIENT_S)
    arm.connect()
    return arm.close


def closed_leader(chain: Chain, calibration: Calibration) -> Callable[[], None]:
    leader = So101Leader(chain.port, calibration, timeout_s=PATIENT_S)
    leader.connect()
    return leader.close


def left_calibration(chain: Chain, calibration: Calibration) -> Callable[[], None]:
    bus = Bus(chain.port, timeout_s=PATIENT_S)
    calibrator = Calibrator(bus, say=lambda line: None)
    calibrator.__enter__()
    calibrator.centre()

    def leave() -> None:
        with bus:
            calibrator.__exit__()

    return leave


@pytest.mark.parametrize("begun", [closed_arm, closed_leader, left_calibration])
def test_letting_go_is_not_interrupted(
    chain: Chain,
    calibration: Calibration,
    tripwire: Tripwire,
    begun: Callable[..., Callable[[], None]],
) -> None:
    held = {n: servo.get("Homing_Offset") for n, servo in chain.servos.items()}
    let_go = begun(chain, calibration)
    for servo in chain.servos.values():
        servo.set("Torque_Enable", 1)
    tripwire.armed = True
    let_go()
    tripwire.armed = False
    assert tripwire.hits >= 6
    assert not any(servo.torque_enabled for servo in chain.servos.values())
    assert {n: servo.get("Homing_Offset") for n, servo in chain.servos.items()} == held
    Bus(chain.port).close()  # the port was let go, too


def test_afterwards_ctrl_c_is_ctrl_c_again(tripwire: Tripwire) -> None:
    with signals_deferred():
        signal.raise_signal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        signal.raise_signal(signal.SIGTERM)
