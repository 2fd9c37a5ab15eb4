"""What a person sees and types while an arm is driven by hand or by a recording; and how such an
arm is found.

Knows the screen, keys and the two kinds of robot. Refuses to know control and file formats. The
screen is drawn by a thread of its own: a terminal that hangs must not hold up the arm.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import typer
from rich.console import Group
from rich.live import Live
from rich.text import Text

from mtdit.keys import Keys
from mtdit.terminal import console, table
from mtdit_robots import calibration as calibrations
from mtdit_robots.arm import So101Arm
from mtdit_robots.calibration import Calibration
from mtdit_robots.camera import open_camera
from mtdit_robots.errors import UserError
from mtdit_robots.leader import So101Leader
from mtdit_robots.robot import Robot
from mtdit_robots.so101 import JOINTS
from mtdit_runtime.loop import RunReport
from mtdit_runtime.teleoperate import Board, report_rows

REFRESH_HZ = 5.0
NO_CALIBRATION = "make one with `mtdit calibrate`"


@dataclass(frozen=True)
class Follower:
    """Which arm is driven, as the options say. cameras: name=source; size: (height, width) of every
    camera.
    """

    kind: str  # so101 | twin
    port: str | None = None
    calibration: str | None = None  # file, or LeRobot's id
    cameras: Sequence[str] = ()
    size: tuple[int, int] = (480, 640)
    fps: int = 30
    patience_s: float = 0.05
    clock: str = "real"  # of the twin
    seed: int = 0
    task: str | None = (
        None  # whose table the twin lays; one it does not know is a mistake only when `strict`
    )
    strict: bool = False
    bus: str = "own"  # or sdk

    @property
    def lockstep(self) -> bool:
        return self.kind == "twin" and self.clock == "lockstep"


@dataclass(frozen=True)
class Rig:
    """A robot that is not connected yet, its calibration, and the size of each of its cameras."""

    robot: Robot
    calibration: Calibration
    cameras: Mapping[str, tuple[int, int]]
    success: Callable[[], bool] | None = None


@contextmanager
def rigged(follower: Follower) -> Iterator[Rig]:
    """The arm the options describe. UserError names the option that is missing or wrong."""
    if follower.kind == "so101":
        yield _real(follower)
        return
    real = {
        "--port": follower.port,
        "--calibration": follower.calibration,
        "--camera": follower.cameras,
    }
    for option in (option for option, value in real.items() if value):
        raise UserError(f"{option} is of a real arm: leave it out, or use --robot so101")
    from mtdit_robots.twin.client import Twin
    from mtdit_robots.twin.tasks import TASKS, find_task

    task = (
        follower.task
        if follower.task in TASKS or (follower.strict and follower.task)
        else next(iter(TASKS))
    )
    with Twin(image_size=follower.size, clock=follower.clock) as twin:
        twin.reset(find_task(task or "").name, follower.seed)
        robot = twin.robot(follower.bus)
        yield Rig(
            robot, twin.calibration, dict.fromkeys(robot.cameras, follower.size), twin.success
        )


def _real(follower: Follower) -> Rig:
    if follower.port is None:
        raise UserError("which arm? add --port /dev/ttyACM0, `mtdit find-port` lists the ports")
    calibration = load_calibration("--calibration", follower.calibration)
    height, width = follower.size
    named = dict(pairs("--camera", follower.cameras))
    opened = [
        open_camera(name, source, height, width, follower.fps) for name, source in named.items()
    ]
    arm = So101Arm(
        follower.port, calibration, opened, timeout_s=follower.patience_s, bus=follower.bus
    )
    return Rig(arm, calibration, dict.fromkeys(named, follower.size))


def leader(port: str | None, calibration: str | None, follower: Follower) -> So101Leader:
    """The leader arm the options describe; not connected yet."""
    if port is None:
        raise UserError(
            "which arm leads? add --leader-port /dev/ttyACM1, `mtdit find-port` lists the ports"
        )
    if follower.port is not None and os.path.realpath(port) == os.path.realpath(follower.port):
        raise UserError(
            f"--leader-port and --port are both {port}: an arm cannot lead itself, see `mtdit find-port`"
        )
    loaded = load_calibration("--leader-calibration", calibration, leader=True)
    return So101Leader(port, loaded, timeout_s=follower.patience_s, bus=follower.bus)


def load_calibration(option: str, name: str | None, leader: bool = False) -> Calibration:
    """From a file, or from LeRobot's folder by the id it was calibrated under."""
    file = calibration_file(name, leader)
    if file is None:
        raise UserError(
            f"{option} is missing: give the arm's file or LeRobot's id of it, or {NO_CALIBRATION}"
        )
    return calibrations.load(file)


def calibration_file(name: str | None, leader: bool = False) -> Path | None:
    """Where the calibration is that a person calls by its file or by its id. UserError for an id
    LeRobot lacks.
    """
    if name is None:
        return None
    is_path = "/" in name or name.endswith(".json") or Path(name).is_file()
    return Path(name) if is_path else calibrations.find(name, leader)


def pairs(option: str, words: Sequence[str]) -> Iterator[tuple[str, str]]:
    """name=value words, each name once."""
    seen = set[str]()
    for word in words:
        name, sign, value = word.partition("=")
        if not (sign and name and value):
            raise UserError(
                f"{option} {word!r}: write {option} name=source, e.g. {option} top=/dev/video0"
            )
        if name in seen:
            raise UserError(f"{option} {name} is given twice: every camera has a name of its own")
        seen.add(name)
        yield name, value


@contextmanager
def screen(
    board: Board, status: Callable[[], str] = str, help_line: str = "Ctrl-C ends it"
) -> Iterator[None]:
    """Show joints and rates while the block runs; without a terminal nothing."""

    def picture() -> Group:
        joints = table("", ["joint", "leader", "told", "measured"], board.rows())
        return Group(Text(status() or "driving"), joints, Text(board.line()), Text(help_line))

    live = Live(
        get_renderable=picture, console=console, refresh_per_second=REFRESH_HZ, transient=True
    )
    with live if console.is_terminal else nullcontext():
        yield


@contextmanager
def keys_if_any() -> Iterator[Callable[[], str | None]]:
    """A function that gives the key hit since it was last asked; without a terminal it never gives
    one.

    Nor does it once the terminal is gone: what then becomes of the arm is for the hang-up signal to
    say.
    """
    if not sys.stdin.isatty():
        yield lambda: None
        return
    with Keys("") as keys:
        yield partial(_key_if_any, keys)


def _key_if_any(keys: Keys) -> str | None:
    try:
        return keys.get(0.0)
    except KeyboardInterrupt:
        return None


def show(report: RunReport) -> None:
    console.print(table("", ["", ""], report_rows(report)))


def show_errors(title: str, errors: Mapping[str, Mapping[str, float]]) -> None:
    """Joint -> {mean, max}."""
    rows = [
        (joint, *(f"{value:.2f}" for value in errors[joint].values()))
        for joint in JOINTS
        if joint in errors
    ]
    console.print(table(title, ["joint", "mean", "max"], rows))


def leave(report: RunReport) -> None:
    """The exit code: 130 after Ctrl-C, 1 when the run ended otherwise than it should."""
    if report.reason == "interrupted":
        raise typer.Exit(130)
    if not report.ok:
        raise typer.Exit(1)


def summary(outcome: Any, out: Path, n_episodes: int) -> str:
    """What a recording session has come to, in one or two lines."""
    line = f"{outcome.kept} episodes kept ({outcome.frames} frames), {outcome.discarded} not; {out} holds {n_episodes}"
    if outcome.interrupted:
        line += "\nthe episode under way when it ended is not kept"
    for camera, n in outcome.repeated.items():
        line += f"\n{n} frames of {camera} show the picture before, the encoder was too slow: use a smaller --width"
    if outcome.slow_episodes:
        line += f"\n{outcome.slow_episodes} episodes ran slower than --fps says: use a lower --fps, or smaller cameras"
    if outcome.stale_frames:
        line += f"\n{outcome.stale_frames} frames have old pictures: check the cameras with `mtdit find-cameras`"
    return line
