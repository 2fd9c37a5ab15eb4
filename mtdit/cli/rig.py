"""Opens the robot, the leader arm and the cameras that a command names."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from mtdit.cli.options import Clock, RobotKind
from mtdit_robots.cameras.open import open_camera
from mtdit_robots.errors import UserError
from mtdit_robots.robot import Frame, Robot
from mtdit_robots.so101 import calibration as calibrations
from mtdit_robots.so101.arm import So101Arm
from mtdit_robots.so101.calibration import Calibration
from mtdit_robots.so101.leader import So101Leader


@dataclass(frozen=True)
class RunRig:
    """A robot that is not connected yet. Only the twin knows success and has an overview camera."""

    robot: Robot
    success: Callable[[], bool] | None = None
    overview: Callable[[], Mapping[str, Frame]] | None = None


@contextmanager
def run_rig(
    kind: RobotKind,
    sizes: Mapping[str, tuple[int, int]],
    fps: int,
    task: str,
    seed: int,
    clock: Clock,
    port: str | None,
    calibration: str | None,
    cameras: list[str] | None,
    bus: str,
    bus_timeout: float,
) -> Iterator[RunRig]:
    """The robot that the options describe; the twin runs as long as the block. sizes: camera ->
    (height, width). UserError names the option that is missing or wrong.
    """
    if kind is RobotKind.so101:
        yield RunRig(_so101(sizes, fps, port, calibration, cameras or [], bus, bus_timeout))
        return
    from mtdit_robots.twin.client import Twin
    from mtdit_robots.twin.tasks import find_task

    find_task(task)
    with Twin(image_size=one_size(sizes), clock=clock.value) as twin:
        twin.reset(task, seed)
        yield RunRig(
            twin.robot(bus), twin.success, lambda: {"overview": twin.picture("overview", 240, 320)}
        )


def _so101(
    sizes: Mapping[str, tuple[int, int]],
    fps: int,
    port: str | None,
    calibration: str | None,
    cameras: list[str],
    bus: str,
    bus_timeout: float,
) -> Robot:
    from mtdit.cli.rig import load_calibration
    from mtdit_robots.bus.open import open_bus
    from mtdit_robots.cameras.open import open_camera
    from mtdit_robots.so101.arm import So101Arm

    if port is None or calibration is None:
        missing = "--port /dev/ttyACM0" if port is None else "--calibration my_arm.json"
        raise UserError(f"a real arm needs {missing}: run `mtdit doctor --robot so101` for help")
    devices = dict(pairs_of("--camera", cameras))
    for name in sizes:
        if name not in devices:
            raise UserError(f"the policy needs camera {name!r}: add --camera {name}=/dev/video0")
    loaded = load_calibration("--calibration", calibration)
    open_bus(bus, port).close()  # report a wrong port before the cameras take seconds to open
    opened = [
        open_camera(name, devices[name], height, width, fps)
        for name, (height, width) in sizes.items()
    ]
    return So101Arm(port, loaded, opened, timeout_s=bus_timeout, bus=bus)


def one_size(sizes: Mapping[str, tuple[int, int]]) -> tuple[int, int]:
    """(height, width) that all cameras have: the twin renders them in one size."""
    if len(set(sizes.values())) > 1:
        raise UserError(
            f"the twin renders all cameras in one size, but the policy needs {dict(sizes)}: "
            "train on frames of one size"
        )
    return next(iter(sizes.values()), (64, 64))


def pairs_of(option: str, words: Iterable[str]) -> Iterator[tuple[str, str]]:
    for word in words:
        name, sign, value = word.partition("=")
        if not sign:
            raise UserError(f"{option} {word!r} has no value: write {option} name=value")
        yield name, value


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
    """An arm that is not connected yet."""

    robot: So101Arm
    success: Callable[[], bool] | None = None


@contextmanager
def open_rig(follower: Follower) -> Iterator[Rig]:
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
        yield Rig(twin.robot(follower.bus), twin.success)


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
    return Rig(arm)


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
