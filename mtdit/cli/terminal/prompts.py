"""Prompts for the person at the arm: calibration with live bars, and the setup of one servo after
the other.

Every question can be answered by a flag. Without a terminal, a missing flag is named in the error.
The procedures themselves are in `mtdit_robots.so101`: `calibrate` and `motor_setup`.
"""

from __future__ import annotations

import time
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from mtdit.cli.terminal.console import console
from mtdit.cli.terminal.keys import Keys
from mtdit.cli.terminal.tables import sweep_bars
from mtdit_robots.errors import UserError
from mtdit_robots.signals import graceful_exit
from mtdit_robots.so101 import calibration as calibrations
from mtdit_robots.so101 import motor_setup
from mtdit_robots.so101.calibrate import (
    FULL_TURN,
    Calibrator,
    PoseError,
    opened,
)
from mtdit_robots.so101.calibration import Calibration
from mtdit_robots.so101.joints import JOINTS

SAMPLE_S = 0.02  # LeRobot's value
REFRESH_S = 0.1
LEAVE = ("q", "escape")
ADVICE = "ENTER: finish, when every joint has its tick · c: centre again · q: quit"


@dataclass(frozen=True)
class CalibrateOptions:
    """port: serial device. place: the file to write. min_share: fraction of an SO-101's travel that
    each joint must be moved. centre_now, sweep_s and yes answer the questions in advance.
    """

    port: str
    place: Path
    leader: bool = False
    min_share: float = 0.6
    centre_now: bool = False
    sweep_s: float | None = None
    yes: bool = False
    bus: str = "own"  # or sdk

    def unanswered(self) -> str:
        """The flags that are missing for a run without a terminal; empty if there are none."""
        given = {
            "--yes": self.yes,
            "--centre-now": self.centre_now,
            "--sweep-seconds 20": self.sweep_s is not None,
        }
        return " ".join(flag for flag, is_given in given.items() if not is_given)


def calibrate(options: CalibrateOptions) -> Calibration | None:
    """Centre, sweep, write to the servos and to the file. None if the person quits; the servos then
    keep the calibration they had.
    """
    flags = options.unanswered()
    with graceful_exit(), Keys(flags) if flags else nullcontext() as keys:
        return _calibrate(options, keys)


def _calibrate(options: CalibrateOptions, keys: Keys | None) -> Calibration | None:
    calibrations.check_place(options.place)
    if options.place.exists():
        console.print(f"{options.place} exists: it will be replaced and kept in the history")
    if not options.yes and not _go_on(
        keys, f"torque goes off and the {_arm(options.leader)} drops: hold it"
    ):
        return None
    with (
        opened(options.port, bus=options.bus) as bus,
        Calibrator(bus, options.min_share, console.print) as calibrator,
    ):
        console.print("torque is off")
        if not _centre(calibrator, keys, options.centre_now):
            return None
        return _sweep(calibrator, keys, options)


def _centre(calibrator: Calibrator, keys: Keys | None, now: bool) -> bool:
    """Centre until it succeeds; False if the person quits. PoseError with `now`, without asking."""
    while now or _go_on(keys, "put every joint in the middle of its travel"):
        try:
            offsets = calibrator.centre()
        except PoseError as error:
            if now:
                raise
            console.print(str(error))
            continue
        console.print(
            "centred: " + ", ".join(f"{joint} {offset:+d}" for joint, offset in offsets.items())
        )
        return True
    return False


def _sweep(
    calibrator: Calibrator, keys: Keys | None, options: CalibrateOptions
) -> Calibration | None:
    """Sample until the time is up, or until ENTER finds that every joint was moved far enough; None
    if the person quits. PoseError if the time is up too early.
    """
    from rich.live import Live

    console.print(f"now move every joint except {FULL_TURN} from stop to stop, one after the other")
    end_s = float("inf") if options.sweep_s is None else time.monotonic() + options.sweep_s
    advice = ADVICE if options.sweep_s is None else f"{options.sweep_s:.0f} s in total"
    with Live(console=console.rich, auto_refresh=False, transient=True) as live:
        shown_s = 0.0
        while time.monotonic() < end_s:
            sweep = calibrator.sample()
            if console.is_terminal and time.monotonic() - shown_s > REFRESH_S:
                live.update(sweep_bars(sweep, options.min_share, advice), refresh=True)
                shown_s = time.monotonic()
            key = _pause(keys if options.sweep_s is None else None)
            if key in LEAVE:
                return None
            if key == "enter" and (made := _finish(calibrator, options.place)):
                return made
            if key == "c":
                _recentre(calibrator)
            elif key not in (None, "enter"):
                console.print(ADVICE)
    return calibrator.finish(partial(calibrations.save, path=options.place))


def _finish(calibrator: Calibrator, place: Path) -> Calibration | None:
    """Save the calibration; None, with the reasons printed, if the sweep has to continue."""
    try:
        return calibrator.finish(partial(calibrations.save, path=place))
    except PoseError as error:
        console.print(str(error))
        return None


def _recentre(calibrator: Calibrator) -> None:
    try:
        calibrator.centre()
        console.print("centred again: sweep all joints from the start")
    except PoseError as error:
        console.print(f"{error}; then press c again")


def _pause(keys: Keys | None) -> str | None:
    """Wait until the next sample; returns the key that was pressed meanwhile."""
    if keys is not None:
        return keys.get(SAMPLE_S)
    time.sleep(SAMPLE_S)
    return None


@dataclass(frozen=True)
class SetupOptions:
    """motor: set up only this joint's servo. yes: do not ask, the servo is connected.
    bus_timeout_s: seconds to wait for answers at each baud rate.
    """

    port: str
    leader: bool = False
    motor: str | None = None
    yes: bool = False
    bus_timeout_s: float = motor_setup.BROADCAST_WAIT_S


def setup_motors(options: SetupOptions) -> bool:
    """Give every servo its id, gripper first. False if the person quits before the last one."""
    if options.motor is not None and options.motor not in JOINTS:
        raise UserError(
            f"--motor {options.motor!r} is not a joint: use one of {', '.join(motor_setup.ORDER)}"
        )
    if options.motor is not None and options.yes:
        _set_up(options, options.motor)
        return True
    with graceful_exit(), Keys("--motor gripper --yes (and so on, one servo at a time)") as keys:
        for joint in [options.motor] if options.motor else motor_setup.ORDER:
            answer = _ask_for(joint, options, keys)
            if answer != "next":
                return answer == "complete"
    return True


def _ask_for(joint: str, options: SetupOptions, keys: Keys) -> str:
    """Ask until this joint's servo is set up. Returns "next" (also if it is skipped), "complete" if
    a whole arm is already set up, or "leave".
    """
    gear = motor_setup.gear(joint, options.leader)
    while True:
        console.print(
            f"connect only the {joint} servo (gear {gear}) of the {_arm(options.leader)} and "
            "switch its power on: ENTER to continue, s to skip it, q to quit"
        )
        key = keys.wait("enter", "s", *LEAVE)
        if key != "enter":
            return "next" if key == "s" else "leave"
        try:
            return "complete" if _set_up(options, joint) else "next"
        except UserError as error:
            console.print(str(error))


def _set_up(options: SetupOptions, joint: str) -> bool:
    """Set up the one servo that is connected. True if it is a whole arm that is already set up.
    UserError unless exactly one servo answers.
    """
    port = options.port
    found = motor_setup.find_servos(port, _say_baud, options.bus_timeout_s)
    if motor_setup.complete(found):
        console.print("all six servos answer with their ids at 1000000 baud: nothing to do")
        return True
    servo = motor_setup.only_servo(port, found)
    console.print(f"found {servo}")
    if motor_setup.is_set_up(servo, joint):
        console.print(f"{joint} is already set up")
    else:
        now = motor_setup.set_up(port, servo, joint)
        console.print(f"{joint} is now id {now.id} at {now.baud} baud")
    return False


def _say_baud(baud: int) -> None:
    if console.is_terminal:
        console.print(f"listening at {baud} baud")


def confirm(question: str, yes: bool) -> bool:
    """True for `yes` or ENTER, False for q. UserError that names --yes if there is no terminal."""
    if yes:
        return True
    with Keys("--yes") as keys:
        return _go_on(keys, question)


def _go_on(keys: Keys | None, question: str) -> bool:
    """Ask until ENTER (True) or q or escape (False)."""
    if keys is None:
        raise UserError(f"no terminal to ask in ({question}): add --yes")
    console.print(f"{question}: ENTER to continue, q to quit")
    while (key := keys.get()) != "enter":
        if key in LEAVE:
            return False
        console.print("press ENTER or q")
    return True


def _arm(leader: bool) -> str:
    return "leader" if leader else "arm"
