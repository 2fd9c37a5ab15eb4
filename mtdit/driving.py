"""Build the arm that teleoperate, record and replay drive, show it on the screen, and read keys
meanwhile.

Control is in `mtdit_runtime.teleoperate`. The screen is drawn in a thread of its own, because a
terminal that hangs must not stop the arm.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
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
    """The arm that the options describe. cameras: NAME=SOURCE; size: (height, width) of every
    camera.
    """

    kind: str  # so101 | twin
    port: str | None = None
    calibration: str | None = None  # file, or LeRobot's id
    cameras: Sequence[str] = ()
    size: tuple[int, int] = (480, 640)
    fps: int = 30
    bus_timeout_s: float = 0.05  # seconds a servo may take to answer
    clock: str = "real"  # the twin's
    seed: int = 0
    task: str | None = None  # the twin's scene; without a known task, that of its first one
    strict: bool = False  # refuse a task that the twin does not know
    bus: str = "own"  # or sdk

    @property
    def lockstep(self) -> bool:
        return self.kind == "twin" and self.clock == "lockstep"


@dataclass(frozen=True)
class Rig:
    """A robot that is not connected yet, its calibration, and (height, width) of each camera."""

    robot: Robot
    calibration: Calibration
    cameras: Mapping[str, tuple[int, int]]
    success: Callable[[], bool] | None = None


@contextmanager
def rigged(follower: Follower) -> Iterator[Rig]:
    """The arm that the options describe; the twin runs as long as the block. UserError names the
    option that is missing or wrong.
    """
    if follower.kind == "so101":
        yield _real(follower)
        return
    real = {
        "--port": follower.port,
        "--calibration": follower.calibration,
        "--camera": follower.cameras,
    }
    for option in (option for option, value in real.items() if value):
        raise UserError(f"{option} is for a real arm: leave it out, or use --robot so101")
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
        raise UserError(
            "--port of the follower is missing: add --port /dev/ttyACM0, or use --robot twin; "
            "`mtdit find-port` lists the ports"
        )
    calibration = load_calibration("--calibration", follower.calibration)
    height, width = follower.size
    named = dict(pairs("--camera", follower.cameras))
    opened = [
        open_camera(name, source, height, width, follower.fps) for name, source in named.items()
    ]
    arm = So101Arm(
        follower.port, calibration, opened, timeout_s=follower.bus_timeout_s, bus=follower.bus
    )
    return Rig(arm, calibration, dict.fromkeys(named, follower.size))


def leader(port: str | None, calibration: str | None, follower: Follower) -> So101Leader:
    """The leader arm that the options describe; not connected yet. UserError names the option that
    is missing or wrong.
    """
    if port is None:
        raise UserError(
            "--leader-port is missing: add --leader-port /dev/ttyACM1; "
            "`mtdit find-port` lists the ports"
        )
    if follower.port is not None and os.path.realpath(port) == os.path.realpath(follower.port):
        raise UserError(
            f"--leader-port and --port are both {port}: an arm cannot lead itself, "
            "see `mtdit find-port`"
        )
    loaded = load_calibration("--leader-calibration", calibration, leader=True)
    return So101Leader(port, loaded, timeout_s=follower.bus_timeout_s, bus=follower.bus)


def load_calibration(option: str, name: str | None, leader: bool = False) -> Calibration:
    """The calibration in a file, or in LeRobot's folder under the arm's id. option: named in the
    UserError if `name` is missing.
    """
    file = calibration_file(name, leader)
    if file is None:
        raise UserError(
            f"{option} is missing: give the arm's calibration file or its id in LeRobot, "
            f"or {NO_CALIBRATION}"
        )
    return calibrations.load(file)


def calibration_file(name: str | None, leader: bool = False) -> Path | None:
    """The path of a calibration that is named by file or by id. UserError for an id that is not in
    LeRobot's folder.
    """
    if name is None:
        return None
    is_path = "/" in name or name.endswith(".json") or Path(name).is_file()
    return Path(name) if is_path else calibrations.find(name, leader)


def pairs(option: str, words: Sequence[str]) -> Iterator[tuple[str, str]]:
    """(name, source) of NAME=SOURCE words. UserError for a name that is given twice."""
    seen = set[str]()
    for word in words:
        name, sign, value = word.partition("=")
        if not (sign and name and value):
            raise UserError(
                f"{option} {word!r}: write {option} name=source, e.g. {option} top=/dev/video0"
            )
        if name in seen:
            raise UserError(f"{option} {name} is given twice: give every camera a different name")
        seen.add(name)
        yield name, value


@contextmanager
def screen(
    board: Board, status: Callable[[], str] = str, help_line: str = "Ctrl-C ends it"
) -> Iterator[None]:
    """Show joints and rates while the block runs; without a terminal, show nothing."""

    def picture() -> Group:
        joints = table("", ["joint", "leader", "commanded", "measured"], board.rows())
        return Group(Text(status() or "driving"), joints, Text(board.line()), Text(help_line))

    live = Live(
        get_renderable=picture, console=console, refresh_per_second=REFRESH_HZ, transient=True
    )
    with live if console.is_terminal else nullcontext():
        yield


@contextmanager
def keys_if_any() -> Iterator[Callable[[], str | None]]:
    """A function that returns the key pressed since the last call, or None. Without a terminal, and
    after the terminal was closed, it always returns None: the hang-up signal then ends the run.
    """
    if not sys.stdin.isatty():
        yield lambda: None
        return
    with Keys("") as keys:

        def pressed() -> str | None:
            try:
                return keys.get(0.0)
            except KeyboardInterrupt:
                return None

        yield pressed


def show(report: RunReport) -> None:
    """Print a report as a table."""
    console.print(table("", ["", ""], report_rows(report)))


def show_errors(title: str, errors: Mapping[str, Mapping[str, float]]) -> None:
    """Print a table of errors: joint -> {"mean", "max"}, degrees (gripper: percent)."""
    rows = [
        (joint, *(f"{value:.2f}" for value in errors[joint].values()))
        for joint in JOINTS
        if joint in errors
    ]
    console.print(table(title, ["joint", "mean", "max"], rows))


def leave(report: RunReport) -> None:
    """Exit with 130 after Ctrl-C, with 1 after a run that failed; return after one that is ok."""
    if report.reason == "interrupted":
        raise typer.Exit(130)
    if not report.ok:
        raise typer.Exit(1)


def summary(outcome: Any, out: Path, n_episodes: int) -> str:
    """The result of a recording session: one line, and one for each problem."""
    lines = [
        f"{outcome.kept} episodes saved ({outcome.frames} frames), {outcome.discarded} discarded; "
        f"{out} now has {n_episodes} episodes"
    ]
    if outcome.interrupted:
        lines.append("the episode that was being recorded at the end was not saved")
    for camera, n in outcome.repeated.items():
        lines.append(
            f"{n} frames of {camera} repeat the previous picture because the encoder was too slow: "
            "use a smaller --width and --height"
        )
    if outcome.slow_episodes:
        lines.append(
            f"{outcome.slow_episodes} episodes were recorded more slowly than --fps: "
            "use a lower --fps, or smaller frames"
        )
    if outcome.stale_frames:
        lines.append(
            f"{outcome.stale_frames} frames have outdated pictures: "
            "check the cameras with `mtdit find-cameras`"
        )
    return "\n".join(lines)
