"""An SO-101 follower on its serial port: a `Robot` over the Feetech bus. The twin uses this very
class.

Knows the order in which an arm is checked, configured, energised and released. Refuses to know
packets and policies. Source of the register values: LeRobot `so_follower.py` (configure) and
`feetech.py` (configure_motors).
"""

from __future__ import annotations

import contextlib
import logging
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from mtdit_robots import calibration as calibrations
from mtdit_robots import servos
from mtdit_robots.calibration import Calibration
from mtdit_robots.camera import Camera
from mtdit_robots.errors import UserError
from mtdit_robots.feetech import Bus, BusError, open_bus
from mtdit_robots.robot import Observation, Positions
from mtdit_robots.servos import JOINT_BY_ID, SERVOS
from mtdit_robots.signals import undisturbed
from mtdit_robots.so101 import IDS, JOINTS, Ticks

log = logging.getLogger(__name__)

_MULTI_TURN = 0x10  # Phase bit: cleared, Present_Position stays in 0..4095
# 9 degrees beyond the calibrated range is no slack: the joint is wound, or the file is wrong
_OUTSIDE_TICKS = 100
_GOAL_TICKS = 10  # less than a degree: goal and present may differ by so much when torque comes on
_LISTED = 3  # differences a message names

# Half the torque and current, a quarter of the torque once overloaded: a gripper that squeezes must
# not burn out.
_GRIPPER_LIMITS = {"Max_Torque_Limit": 500, "Protection_Current": 250, "Overload_Torque": 25}


class So101Arm:
    """Six servos and any number of open cameras.

    port: serial device of the arm. calibration: joint -> JointCalibration (`calibration.load`), as
    LeRobot made it. cameras: open cameras; the arm closes them. use_degrees: body joints in
    degrees, else -100..100, as trained. timeout_s, retries: of one bus exchange. p_gain, i_gain,
    d_gain: position loop; LeRobot's defaults. bus: "own" driver, or "sdk" for Feetech's packets;
    both behave alike.
    """

    def __init__(
        self,
        port: str,
        calibration: Calibration,
        cameras: Sequence[Camera] = (),
        use_degrees: bool = True,
        baud: int = 1_000_000,
        timeout_s: float = 0.05,
        retries: int = 2,
        p_gain: int = 16,
        i_gain: int = 0,
        d_gain: int = 32,
        bus: str = "own",
    ) -> None:
        self._port, self._baud, self._timeout_s, self._retries = port, baud, timeout_s, retries
        self._bus_kind = bus
        self._calibration = dict(calibration)
        self._cameras = tuple(cameras)
        self._gains = {"P_Coefficient": p_gain, "I_Coefficient": i_gain, "D_Coefficient": d_gain}
        self._ranges = calibrations.ranges(calibration, use_degrees)
        self._bounds = self._ranges.bounds()  # (2, 6) lowest and highest position
        self._bus: Bus | None = None
        self._errors: Mapping[int, Counter[str]] = {}
        self._goal: Ticks | None = None  # (6,) last goal sent
        self._energised = False

    @property
    def joints(self) -> tuple[str, ...]:
        return JOINTS

    @property
    def cameras(self) -> tuple[str, ...]:
        return tuple(camera.name for camera in self._cameras)

    @property
    def errors(self) -> dict[str, Counter[str]]:
        """Joint -> how often its servo gave "no answer" or reported "overload", "voltage" ... since
        connect.
        """
        return {JOINT_BY_ID[servo]: Counter(counts) for servo, counts in self._errors.items()}

    def connect(self) -> None:
        """Open, check, configure, and hold the present pose with torque on. UserError names the
        servo and the fix.

        Registers are written only when they differ, and read back. On failure the arm and the
        cameras are released.
        """
        with self._opened() as bus:
            self._check_cameras()
            self._check_calibration(bus)
            self._configure(bus)
            _check_health(bus)
            self._energise(bus)

    def write_calibration(self) -> None:
        """Write this arm's calibration to the servos' EEPROM: torque off, unlock, write, read back,
        close the port.

        For an arm that is not connected. It goes limp: lay it down first.
        """
        with self._opened() as bus:
            servos.write_calibration(bus, self._calibration)
        self._close_bus()

    def observe(self) -> Observation:
        """Positions in one bus exchange, then each camera's latest frame.

        OSError naming the servo that is silent, or that has lost its torque since connect: after a
        brown-out it answers as if nothing had happened and follows no goal. Its torque switch comes
        with the position, at 1 ms of wire time.
        """
        seen = servos.read_many(self._connected(), ("Torque_Enable", "Present_Position"))
        time_s = time.monotonic()
        self._check_torque([servo for servo, (torque, _) in seen.items() if not torque])
        ticks = [ticks for _, ticks in seen.values()]
        frames, ages = {}, {}
        for camera in self._cameras:
            frames[camera.name], ages[camera.name] = camera.read()
        return Observation(self._ranges.positions(ticks), frames, ages, time_s)

    def command(self, positions: Positions) -> Positions:
        """Send goals (6,), limited to the calibrated ranges, in one packet without a reply.

        Returns the positions asked for after that limit; the servo steers to a whole tick, less
        than 0.1 degree away. ValueError for a position that is not finite.
        """
        if not np.all(np.isfinite(positions)):
            raise ValueError(f"positions {positions} are not all finite: nothing sent")
        sent = np.clip(positions, *self._bounds)
        self._send_goal(np.clip(self._ranges.ticks(sent), self._ranges.low, self._ranges.high))
        return sent

    def hold(self) -> None:
        """Send the last goal again."""
        if self._goal is not None:
            self._send_goal(self._goal)

    def torque_off(self) -> tuple[str, ...]:
        """Release every servo that can be reached; returns the joints that did not confirm it."""
        self._energised = False
        return servos.release(self._connected())

    def close(self) -> None:
        """Torque off, then close bus and cameras. Safe to call twice. Joints that may still hold
        are logged.
        """
        try:
            self._close_bus()
        finally:
            for camera in self._cameras:
                camera.close()

    def _close_bus(self) -> None:
        if self._bus is None:
            return
        with undisturbed():
            energised = self.torque_off()
            if energised:
                log.warning(
                    "%s did not confirm torque off: cut the arm's power", ", ".join(energised)
                )
            self._bus.close()
            self._bus = self._goal = None

    @contextlib.contextmanager
    def _opened(self) -> Iterator[Bus]:
        """Open the port and greet the servos. What fails in the block releases everything and reads
        as one line.
        """
        if self._bus is not None:
            raise UserError(f"the arm on {self._port} is already connected: close it first")
        try:
            self._bus = open_bus(
                self._bus_kind, self._port, self._baud, self._timeout_s, self._retries
            )
            self._errors = self._bus.errors
            servos.handshake(self._bus)
            yield self._bus
        except BusError as error:
            self.close()
            raise UserError(
                f"{error}: check the arm's cables and power supply, then try again"
            ) from error
        except BaseException:
            self.close()
            raise

    def _connected(self) -> Bus:
        if self._bus is None:
            raise BusError(f"the arm on {self._port} is not connected")
        return self._bus

    def _check_cameras(self) -> None:
        """UserError for a camera without a picture: better told now than with torque on."""
        for camera in self._cameras:
            try:
                camera.read()
            except OSError as error:
                raise UserError(f"{error}, then try again") from error

    def _check_calibration(self, bus: Bus) -> None:
        """UserError unless the servos hold what the file says: another arm's file would move this
        one wrongly.
        """
        wrong = calibrations.differences(self._calibration, servos.read_calibration(bus))
        if wrong:
            listed = "; ".join(wrong[:_LISTED]) + (
                f"; and {len(wrong) - _LISTED} more" if len(wrong) > _LISTED else ""
            )
            raise UserError(
                f"the servos do not hold this calibration ({listed}): pass the file made with this arm, "
                f"or write this one to the servos: mtdit calibrate --port {bus.port} --import FILE"
            )

    def _configure(self, bus: Bus) -> None:
        """What LeRobot's `configure` sets, in its order."""
        servos.unlock(bus)
        for name, value in {
            "Return_Delay_Time": 0,
            "Maximum_Acceleration": 254,
            "Acceleration": 254,
        }.items():
            servos.ensure(bus, name, dict.fromkeys(SERVOS, value))
        servos.ensure(
            bus,
            "Phase",
            {servo: phase & ~_MULTI_TURN for servo, phase in servos.read(bus, "Phase").items()},
        )
        for name, value in {"Operating_Mode": 0, **self._gains}.items():
            servos.ensure(bus, name, dict.fromkeys(SERVOS, value))
        for name, value in _GRIPPER_LIMITS.items():
            servos.ensure(bus, name, {IDS["gripper"]: value})

    def _energise(self, bus: Bus) -> None:
        """Goal := present, and only then torque on: whatever goal the servos remember must not move
        the arm.
        """
        present = np.array(list(servos.read(bus, "Present_Position").values()))
        self._check_inside(present)
        goal = np.clip(present, self._ranges.low, self._ranges.high)  # as the servo itself would
        self._send_goal(goal)
        held = np.array(list(servos.read(bus, "Goal_Position").values()))
        if np.abs(held - goal).max() > _GOAL_TICKS:
            raise BusError(
                f"the servos on {self._port} did not take their present position as goal"
            )
        servos.ensure(bus, "Torque_Enable", dict.fromkeys(SERVOS, 1))
        self._energised = True
        servos.lock(bus)

    def _check_torque(self, limp: Sequence[int]) -> None:
        if limp and self._energised:
            raise BusError(
                f"{servos.named(limp)} on {self._port} lost torque, it restarted or protects itself: "
                "check the power supply and its cable, then start again"
            )

    def _check_inside(self, present: Ticks) -> None:
        """UserError for a joint far outside its range: with torque on it would swing to the nearest
        limit.
        """
        low, high = self._ranges.low, self._ranges.high
        for joint, ticks, lowest, highest in zip(JOINTS, present, low, high, strict=True):
            if not lowest - _OUTSIDE_TICKS <= ticks <= highest + _OUTSIDE_TICKS:
                raise UserError(
                    f"{joint} stands at {ticks} ticks, outside its calibrated range {lowest}..{highest}: "
                    "move it inside by hand and connect again, or calibrate again"
                )

    def _send_goal(self, ticks: Ticks) -> None:
        self._connected().sync_write(
            "Goal_Position", dict(zip(SERVOS, map(int, ticks), strict=True))
        )
        self._goal = ticks


def _check_health(bus: Bus) -> None:
    """UserError when a servo reports a fault, with torque already off (which releases what can be
    released).
    """
    for servo in SERVOS:
        words = bus.ping(servo)
        if words:
            raise UserError(
                f"{servos.named([servo])} reports {' and '.join(words)}: "
                "mend the cause (supply voltage, a blocked joint, heat), then switch the arm off and on"
            )
