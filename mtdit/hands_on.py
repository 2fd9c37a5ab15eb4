"""What a person at the arm is asked and shown: calibrating with live bars, and one servo after the
other.

Knows prompts, keys and rich. Refuses to know registers and files' insides. Every question has a
flag that answers it; where there is no terminal and the flag is missing, one line names it.
"""

from __future__ import annotations

import time
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from rich.live import Live
from rich.text import Text

from mtdit.keys import Keys
from mtdit.terminal import console
from mtdit_robots import calibration as calibrations
from mtdit_robots import motor_setup
from mtdit_robots.calibrate import (
    FULL_TURN,
    NOMINAL_TRAVEL_DEG,
    Calibrator,
    PoseError,
    Sweep,
    opened,
)
from mtdit_robots.calibration import Calibration
from mtdit_robots.errors import UserError
from mtdit_robots.ports import Servo
from mtdit_robots.so101 import JOINTS
from mtdit_runtime.loop import dying_in_order

BAR_CELLS = 40  # over one turn of the encoder
SAMPLE_S = 0.02  # as LeRobot
REFRESH_S = 0.1
LEAVE = ("q", "escape")
ADVICE = "ENTER when every joint has its tick · c centre again · q leave"


@dataclass(frozen=True)
class CalibrateOptions:
    """port: serial device. place: the file to write. centre_now, sweep_s, yes answer what a person
    would be asked.
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
        """The flags a run without a terminal still needs; empty when it can go ahead."""
        given = {
            "--yes": self.yes,
            "--centre-now": self.centre_now,
            "--sweep-seconds 20": self.sweep_s is not None,
        }
        return " ".join(flag for flag, is_given in given.items() if not is_given)


def calibrate(options: CalibrateOptions) -> Calibration | None:
    """Centre, sweep, write to the servos and to the file. None when the person left; the arm is as
    before then.
    """
    flags = options.unanswered()
    with dying_in_order(), Keys(flags) if flags else nullcontext() as keys:
        return _calibrate(options, keys)


def _calibrate(options: CalibrateOptions, keys: Keys | None) -> Calibration | None:
    calibrations.check_place(options.place)
    if options.place.exists():
        console.print(f"{options.place} exists; it will be replaced, and kept in the history")
    if not options.yes and not _go_on(keys, f"the {_arm(options.leader)} goes limp now: hold it"):
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
    """Until it succeeds, or the person leaves. PoseError when nobody can be asked."""
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
    """Sample until the time is up, or ENTER finds every joint well swept; None when the person
    leaves.
    """
    console.print(f"now move every joint except {FULL_TURN} from stop to stop, one after the other")
    end_s = float("inf") if options.sweep_s is None else time.monotonic() + options.sweep_s
    advice = ADVICE if options.sweep_s is None else f"{options.sweep_s:.0f} s in all"
    with Live(console=console, auto_refresh=False, transient=True) as live:
        shown_s = 0.0
        while time.monotonic() < end_s:
            sweep = calibrator.sample()
            if console.is_terminal and time.monotonic() - shown_s > REFRESH_S:
                live.update(bars(sweep, options.min_share, advice), refresh=True)
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
    """None, and the reasons on the screen, when the sweep has to go on."""
    try:
        return calibrator.finish(partial(calibrations.save, path=place))
    except PoseError as error:
        console.print(str(error))
        return None


def _recentre(calibrator: Calibrator) -> None:
    try:
        calibrator.centre()
        console.print("centred again, sweep from the start")
    except PoseError as error:
        console.print(f"{error}; then press c")


def _pause(keys: Keys | None) -> str | None:
    """One sample's time, or the key that cut it short."""
    if keys is not None:
        return keys.get(SAMPLE_S)
    time.sleep(SAMPLE_S)
    return None


def bars(sweep: Sweep, min_share: float, advice: str) -> Text:
    """One line per joint: the bar over one turn, lowest, present, highest, span, and a tick mark
    when it is enough.
    """
    text = Text()
    for joint in JOINTS:
        text.append(f"{joint:14}")
        text.append_text(_bar(sweep, joint))
        text.append(
            f" {sweep.low[joint]:4} {sweep.now[joint]:4} {sweep.high[joint]:4}  {_span(sweep, joint):20}"
        )
        enough = sweep.enough(joint, min_share)
        text.append("✓\n" if enough else "\n", style="green")
    return text.append(advice)


def _span(sweep: Sweep, joint: str) -> str:
    if joint == FULL_TURN:
        return "full turn"
    if joint in sweep.wrapped:
        return "crossed the seam"
    return f"{sweep.span_deg(joint):3.0f} of {NOMINAL_TRAVEL_DEG[joint]:3.0f} degrees"


def _bar(sweep: Sweep, joint: str) -> Text:
    low, now, high = (_cell(ticks[joint]) for ticks in (sweep.low, sweep.now, sweep.high))
    cells = ["━" if low <= cell <= high else "─" for cell in range(BAR_CELLS)]
    cells[now] = "●"
    return Text("".join(cells), style="red" if joint in sweep.wrapped else "cyan")


def _cell(ticks: int) -> int:
    return min(max(ticks * BAR_CELLS // 4096, 0), BAR_CELLS - 1)


@dataclass(frozen=True)
class SetupOptions:
    """motor: only this joint's servo. yes: do not ask, the servo is connected. patience_s:
    listening at each rate.
    """

    port: str
    leader: bool = False
    motor: str | None = None
    yes: bool = False
    patience_s: float = motor_setup.BROADCAST_WAIT_S


def setup_motors(options: SetupOptions) -> bool:
    """Give every servo its id, gripper first. False when the person left before the last."""
    if options.motor is not None and options.motor not in JOINTS:
        raise UserError(
            f"there is no motor {options.motor!r}: use one of {', '.join(motor_setup.ORDER)}"
        )
    if options.motor is not None and options.yes:
        _set_up(options, options.motor)
        return True
    with dying_in_order(), Keys("--motor gripper --yes (and so on, one servo at a time)") as keys:
        for joint in [options.motor] if options.motor else motor_setup.ORDER:
            answer = _ask_for(joint, options, keys)
            if answer != "next":
                return answer == "complete"
    return True


def _ask_for(joint: str, options: SetupOptions, keys: Keys) -> str:
    """Until this joint's servo is right: "next", also when it is skipped, "complete" for a whole
    arm, or "leave".
    """
    gear = motor_setup.gear(joint, options.leader)
    while True:
        console.print(
            f"connect only the {joint} servo (gear {gear}) of the {_arm(options.leader)}, power on: "
            "ENTER when ready, s to skip it, q to leave"
        )
        key = keys.wait("enter", "s", *LEAVE)
        if key != "enter":
            return "next" if key == "s" else "leave"
        try:
            return "complete" if _set_up(options, joint) else "next"
        except UserError as error:
            console.print(str(error))


def _set_up(options: SetupOptions, joint: str) -> bool:
    """Set up the one servo on the wire. True when a whole arm hangs there that needs nothing.
    UserError otherwise.
    """
    port = options.port
    found = motor_setup.find_servos(port, _say_baud, options.patience_s)
    if motor_setup.complete(found):
        console.print("all six servos answer with their ids at 1000000 baud: nothing to do")
        return True
    servo = motor_setup.only_servo(port, found)
    console.print(f"found {servo}")
    if motor_setup.is_set_up(servo, joint):
        console.print(f"{joint} is right already")
    else:
        console.print(f"{joint} is now {_brief(motor_setup.set_up(port, servo, joint))}")
    return False


def _brief(servo: Servo) -> str:
    return f"id {servo.id} at {servo.baud} baud"


def _say_baud(baud: int) -> None:
    if console.is_terminal:
        console.print(f"listening at {baud} baud")


def confirm(question: str, yes: bool) -> bool:
    """Whether to go on: `yes`, or ENTER. UserError naming --yes where nobody can be asked."""
    if yes:
        return True
    with Keys("--yes") as keys:
        return _go_on(keys, question)


def _go_on(keys: Keys | None, question: str) -> bool:
    """ENTER goes on, q or escape leaves; other keys are told so."""
    if keys is None:
        raise UserError(f"nobody can be asked to go on ({question}): add --yes")
    console.print(f"{question}: ENTER to go on, q to leave")
    while (key := keys.get()) != "enter":
        if key in LEAVE:
            return False
        console.print("ENTER or q")
    return True


def _arm(leader: bool) -> str:
    return "leader" if leader else "arm"
