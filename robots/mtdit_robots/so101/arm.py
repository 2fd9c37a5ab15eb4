"""The SO-101 follower arm: checks, configures, energises, commands and releases its six servos.

A `Robot` over the Feetech bus, used for the real arm and for the twin alike. Packets are left to
`feetech`. Source of the register values: LeRobot `so_follower.py` (configure) and `feetech.py`
(configure_motors).
"""

from __future__ import annotations

import contextlib
import logging
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from mtdit_robots.bus.feetech import Bus, BusError
from mtdit_robots.bus.open import open_bus
from mtdit_robots.cameras.camera import Camera
from mtdit_robots.errors import UserError
from mtdit_robots.robot import Observation, Positions
from mtdit_robots.signals import signals_deferred
from mtdit_robots.so101 import calibration as calibrations
from mtdit_robots.so101 import servos
from mtdit_robots.so101.calibration import Calibration
from mtdit_robots.so101.joints import IDS, JOINTS, Ticks
from mtdit_robots.so101.servos import GAINS, JOINT_BY_ID, SERVOS
from mtdit_robots.timing import TICK_HZ
from mtdit_robots.units import DEGREES, NORMALIZED

log = logging.getLogger(__name__)

_GOAL_TICKS = 10  # under a degree: allowed difference of goal and position when torque comes on

# Half the torque and current, a quarter of the torque once overloaded, so that a gripper that keeps
# squeezing does not burn out
_GRIPPER_LIMITS = {"Max_Torque_Limit": 500, "Protection_Current": 250, "Overload_Torque": 25}


class So101Arm:
    """The SO-101 follower arm: six servos and any number of open cameras.

        arm = mtdit.So101Arm("/dev/ttyACM0", mtdit.load_calibration("my_arm.json"), [camera])
        report = mtdit.run("policy.mtdit", arm, "open the drawer")

    port: the arm's serial device. calibration: joint -> JointCalibration, as LeRobot made it
    (`load_calibration` reads it). cameras: open cameras; `close` closes them. use_degrees: body
    joints in degrees, else -100..100; `run` and the other calls switch to the unit of their bundle
    or dataset. timeout_s, retries: for each bus
    exchange. p_gain, i_gain, d_gain: of the servos' position loop; defaults are LeRobot's. bus:
    "own" for our driver, "sdk" for Feetech's SDK; both behave alike.
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
        p_gain: int = GAINS["P_Coefficient"],
        i_gain: int = GAINS["I_Coefficient"],
        d_gain: int = GAINS["D_Coefficient"],
        bus: str = "own",
    ) -> None:
        self._port, self._baud, self._timeout_s, self._retries = port, baud, timeout_s, retries
        self._bus_kind = bus
        self.calibration = dict(calibration)
        self._cameras = tuple(cameras)
        self._gains = {"P_Coefficient": p_gain, "I_Coefficient": i_gain, "D_Coefficient": d_gain}
        self.use_units(DEGREES if use_degrees else NORMALIZED)
        self._bus: Bus | None = None
        self._errors: Mapping[int, Counter[str]] = {}
        self._goal: Ticks | None = None  # (6,) last goal sent
        self._energised = False
        self.lockstep_hz: float = TICK_HZ  # of a twin whose time waits for commands

    @property
    def joints(self) -> tuple[str, ...]:
        return JOINTS

    @property
    def is_real(self) -> bool:
        return True

    def use_units(self, units: str) -> Positions:
        """From now on give and take body joints in these units: "normalized", anything else means
        degrees. Returns (6,), how many units a degree is.
        """
        self._ranges = calibrations.ranges(self.calibration, units != NORMALIZED)
        self._bounds = self._ranges.bounds()  # (2, 6) lowest and highest position
        return self._ranges.per_degree()

    @property
    def cameras(self) -> tuple[str, ...]:
        return tuple(camera.name for camera in self._cameras)

    @property
    def frame_sizes(self) -> dict[str, tuple[int, int]]:
        """Camera -> (height, width) of its frames."""
        return {camera.name: (camera.height, camera.width) for camera in self._cameras}

    @property
    def errors(self) -> dict[str, Counter[str]]:
        """Joint -> counts since connect: "no answer", and the faults its servo reported
        ("overload", "voltage" ...).
        """
        return {JOINT_BY_ID[servo]: Counter(counts) for servo, counts in self._errors.items()}

    def connect(self) -> None:
        """Open the port, check and configure the servos, and hold the present pose with torque on.

        Registers are written only when they differ, and read back. UserError names the servo and
        the fix; the arm and the cameras are then released.
        """
        with self._opened() as bus:
            self._check_cameras()
            servos.check_calibration(bus, self.calibration)
            self._configure(bus)
            _check_health(bus)
            self._energise(bus)

    def write_calibration(self) -> None:
        """Write this arm's calibration to the servos' EEPROM: torque off, unlock, write, read back,
        close the port.

        Call it while the arm is not connected. The arm goes limp: put it in a resting pose first.
        """
        with self._opened() as bus:
            servos.write_calibration(bus, self.calibration)
        self._close_bus()

    def observe(self) -> Observation:
        """Read the positions in one bus exchange, then each camera's latest frame.

        OSError names the servo that does not answer, or whose torque has gone off since connect:
        after a brown-out a servo answers normally but follows no goal. Torque_Enable is therefore
        read together with the position, which costs 1 ms of wire time.
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
        """Send goals (6,), clipped to the calibrated ranges, in one packet that has no reply.

        Returns the clipped positions; the servo goes to a whole tick less than 0.1 degree from
        them. ValueError for a position that is not finite.
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
        """Switch off the torque of every servo that answers; returns the joints that did not
        confirm it.
        """
        self._energised = False
        return servos.release(self._connected())

    def close(self) -> None:
        """Torque off, then close bus and cameras. Safe to call twice.

        Joints that did not confirm torque off are logged.
        """
        try:
            self._close_bus()
        finally:
            for camera in self._cameras:
                camera.close()

    def _close_bus(self) -> None:
        if self._bus is None:
            return
        with signals_deferred():
            energised = self.torque_off()
            if energised:
                log.warning(
                    "%s did not confirm torque off: cut the arm's power", ", ".join(energised)
                )
            self._bus.close()
            self._bus = self._goal = None

    @contextlib.contextmanager
    def _opened(self) -> Iterator[Bus]:
        """Open the port and check that all servos are there. An error in the block closes the arm
        and becomes one line with the fix.
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
        """UserError for a camera that gives no frame, before torque comes on."""
        for camera in self._cameras:
            try:
                camera.read()
            except OSError as error:
                raise UserError(f"{error}, then try again") from error

    def _configure(self, bus: Bus) -> None:
        """Set what LeRobot's `configure` sets, in the same order."""
        servos.unlock(bus)
        for name, value in {
            "Return_Delay_Time": 0,
            "Maximum_Acceleration": 254,
            "Acceleration": 254,
        }.items():
            servos.ensure(bus, name, dict.fromkeys(SERVOS, value))
        servos.read_one_turn(bus)
        for name, value in {"Operating_Mode": 0, **self._gains}.items():
            servos.ensure(bus, name, dict.fromkeys(SERVOS, value))
        for name, value in _GRIPPER_LIMITS.items():
            servos.ensure(bus, name, {IDS["gripper"]: value})

    def _energise(self, bus: Bus) -> None:
        """Set the goal to the present position, then torque on: a goal that the servos still
        remember must not move the arm.
        """
        present = np.array(list(servos.read(bus, "Present_Position").values()))
        self._check_inside(present)
        goal = np.clip(present, self._ranges.low, self._ranges.high)  # the servo does the same
        self._send_goal(goal)
        held = np.array(list(servos.read(bus, "Goal_Position").values()))
        if np.abs(held - goal).max() > _GOAL_TICKS:
            raise BusError(
                f"the servos on {self._port} did not accept their present position as the goal"
            )
        servos.ensure(bus, "Torque_Enable", dict.fromkeys(SERVOS, 1))
        self._energised = True
        servos.lock(bus)

    def _check_torque(self, limp: Sequence[int]) -> None:
        if limp and self._energised:
            raise BusError(
                f"{servos.named(limp)} on {self._port} lost torque because it restarted or "
                "protects itself: check the power supply and its cable, then start again"
            )

    def _check_inside(self, present: Ticks) -> None:
        """UserError for a joint far outside its range: with torque on it would move to the nearest
        limit at once.
        """
        for joint, ticks in zip(JOINTS, present, strict=True):
            wanted = self.calibration[joint]
            if not wanted.allows(ticks):
                raise UserError(
                    f"{joint} is at {ticks} ticks, outside its calibrated range "
                    f"{wanted.range_min}..{wanted.range_max}: move it inside by hand and connect "
                    "again, or calibrate again"
                )

    def _send_goal(self, ticks: Ticks) -> None:
        self._connected().sync_write(
            "Goal_Position", dict(zip(SERVOS, map(int, ticks), strict=True))
        )
        self._goal = ticks


def _check_health(bus: Bus) -> None:
    """UserError when a servo reports a fault. Torque is already off here, which clears the faults
    that can be cleared.
    """
    for servo in SERVOS:
        faults = bus.ping(servo)
        if faults:
            raise UserError(
                f"{servos.named([servo])} reports {' and '.join(faults)}: fix the cause (supply "
                "voltage, a blocked joint, heat), then switch the arm off and on"
            )
