"""The SO-101 leader arm: six servos without torque that a person moves, read as positions.

Units are those of the follower: both arms are calibrated, so mid-range reads 0 degrees on either.
Source: LeRobot `so_leader.py` (configure).
"""

from __future__ import annotations

import logging
from collections import Counter

from mtdit_robots.bus.feetech import Bus, BusError
from mtdit_robots.bus.open import open_bus
from mtdit_robots.errors import UserError
from mtdit_robots.robot import Positions
from mtdit_robots.signals import signals_deferred
from mtdit_robots.so101 import calibration as calibrations
from mtdit_robots.so101 import servos
from mtdit_robots.so101.calibration import Calibration
from mtdit_robots.so101.joints import JOINTS
from mtdit_robots.so101.servos import JOINT_BY_ID, SERVOS
from mtdit_robots.units import DEGREES, NORMALIZED

log = logging.getLogger(__name__)


class So101Leader:
    """An SO-101 leader on its serial port. Its torque is never switched on.

    port: serial device. calibration: the leader's own, as LeRobot made it. use_degrees: body joints
    in degrees, else -100..100. timeout_s, retries: for each bus exchange. bus: "own" for our
    driver, "sdk" for Feetech's SDK.

        with mtdit.So101Leader("/dev/ttyACM1", mtdit.load_calibration("my_leader.json")) as leader:
            positions = leader.read()  # (6,)
    """

    def __init__(
        self,
        port: str,
        calibration: Calibration,
        use_degrees: bool = True,
        baud: int = 1_000_000,
        timeout_s: float = 0.05,
        retries: int = 1,
        bus: str = "own",
    ) -> None:
        self._port, self._baud, self._timeout_s, self._retries = port, baud, timeout_s, retries
        self._bus_kind = bus
        self._calibration = dict(calibration)
        self._ranges = calibrations.ranges(calibration, use_degrees)
        self.units = DEGREES if use_degrees else NORMALIZED
        self._bus: Bus | None = None

    @property
    def joints(self) -> tuple[str, ...]:
        return JOINTS

    @property
    def errors(self) -> dict[str, Counter[str]]:
        """Joint -> counts since connect: "no answer", and the faults its servo reported."""
        counts = self._bus.errors if self._bus is not None else {}
        return {JOINT_BY_ID[servo]: Counter(errors) for servo, errors in counts.items()}

    def connect(self) -> None:
        """Open the port, check the servos and their calibration, torque off. UserError names the
        fix.
        """
        if self._bus is not None:
            raise UserError(f"the leader on {self._port} is already connected: close it first")
        try:
            self._bus = open_bus(
                self._bus_kind, self._port, self._baud, self._timeout_s, self._retries
            )
            servos.handshake(self._bus)
            self._configure(self._bus)
        except BusError as error:
            self.close()
            raise UserError(
                f"leader: {error}: check its cables and power supply, then try again"
            ) from error
        except UserError as error:
            self.close()
            raise UserError(f"leader: {error}") from error
        except BaseException:
            self.close()
            raise

    def read(self) -> Positions:
        """Positions (6,) in `units`, gripper 0..100, in one bus exchange.

        OSError when a servo does not answer.
        """
        if self._bus is None:
            raise BusError(f"the leader on {self._port} is not connected")
        return self._ranges.positions(list(servos.read(self._bus, "Present_Position").values()))

    def close(self) -> None:
        """Write torque off once more and close the port. Safe to call twice."""
        if self._bus is None:
            return
        with signals_deferred():
            unconfirmed = servos.release(self._bus)
            if unconfirmed:
                log.warning(
                    "leader: %s did not confirm torque off: cut its power", ", ".join(unconfirmed)
                )
            self._bus.close()
            self._bus = None

    def __enter__(self) -> So101Leader:
        self.connect()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _configure(self, bus: Bus) -> None:
        """Set what LeRobot's leader sets: torque off, no reply delay, positions within one turn."""
        servos.unlock(bus)
        servos.check_calibration(bus, self._calibration, leader=True)
        for name, value in {"Return_Delay_Time": 0, "Operating_Mode": 0}.items():
            servos.ensure(bus, name, dict.fromkeys(SERVOS, value))
        servos.read_one_turn(bus)
        servos.lock(bus)
