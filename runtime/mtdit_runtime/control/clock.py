"""Clocks of the control loop: real time, and the lock-step time of the twin."""

from __future__ import annotations

import time
from typing import Protocol

from mtdit_robots.errors import UserError
from mtdit_robots.robot import Robot
from mtdit_robots.timing import TICK_HZ


class Clock(Protocol):
    def now_s(self) -> float: ...

    def wait_until(self, time_s: float) -> None: ...


class RealClock:
    """The computer's monotonic clock."""

    def now_s(self) -> float:
        return time.monotonic()

    def wait_until(self, time_s: float) -> None:
        time.sleep(max(0.0, time_s - time.monotonic()))


class LockstepClock:
    """A clock that advances only in `wait_until`: for a twin that advances one tick per command."""

    def __init__(self) -> None:
        self._now_s = 0.0

    def now_s(self) -> float:
        return self._now_s

    def wait_until(self, time_s: float) -> None:
        self._now_s = max(self._now_s, time_s)


def check_lockstep(fps: float, robot: Robot) -> None:
    """Raise UserError unless the robot's twin has the rate of what drives it in lock-step: else it
    moves at a wrong speed.
    """
    twin_fps = getattr(robot, "lockstep_hz", TICK_HZ)
    if fps != twin_fps:
        raise UserError(
            f"the twin's lock-step clock runs at {twin_fps:g} Hz, this runs at {fps:g} Hz: "
            f"use --clock real, or start the twin at that rate, mtdit.Twin(fps={fps:g})"
        )
