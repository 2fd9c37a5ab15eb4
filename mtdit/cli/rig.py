"""Opens the robot and the leader arm that a command names."""

from __future__ import annotations

import difflib
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from mtdit.cli.camera_words import named_cameras
from mtdit.cli.options import ArmOptions, RobotKind
from mtdit.cli.terminal.console import console
from mtdit_robots.errors import UserError
from mtdit_robots.features import IMAGES, STATE
from mtdit_robots.units import DEGREES

if TYPE_CHECKING:
    from mtdit_robots.cameras.options import CameraOptions
    from mtdit_robots.robot import Frame
    from mtdit_robots.so101.arm import So101Arm
    from mtdit_robots.so101.calibration import Calibration
    from mtdit_robots.so101.leader import So101Leader
    from mtdit_robots.twin.client import Twin

Size = tuple[int, int]  # height, width
OVERVIEW = (240, 320)  # of the twin's scene beside the policy's cameras in a film


@dataclass(frozen=True)
class Rig:
    """An arm that is not connected yet. Only the twin knows success and has a camera that shows the
    whole scene.
    """

    robot: So101Arm
    twin: Twin | None = None

    def overview(self) -> Mapping[str, Frame]:
        """The whole scene of the twin, (H, W, 3) uint8 RGB; nothing for a real arm."""
        return {"overview": self.twin.picture("overview", *OVERVIEW)} if self.twin else {}


@contextmanager
def open_rig(
    arm: ArmOptions,
    cameras: Sequence[str] | None = None,
    size: Size | Mapping[str, Size] = (480, 640),
    fps: int = 30,
    task: str | None = None,
    rename_map: Mapping[str, str] | None = None,
) -> Iterator[Rig]:
    """The robot that the options describe; the twin runs as long as the block. UserError names the
    option that is missing or wrong.

    cameras: words of --camera. size: (height, width) of every camera that is named and whose words
    give none, or of each camera that the policy needs; fps likewise. task: the twin's scene; None:
    that of its first task. rename_map: the robot's name of a camera -> the policy's, where they
    differ.
    """
    names = rename_map or {}
    if arm.robot is RobotKind.so101:
        named = named_cameras(cameras)
        yield _real(arm, {names.get(c, c): options for c, options in named.items()}, size, fps)
        return
    real = {"--port": arm.port, "--calibration": arm.calibration, "--camera": cameras}
    for flag in (flag for flag, value in real.items() if value):
        raise UserError(f"{flag} is for a real arm: leave it out, or use --robot so101")
    from mtdit_robots.twin.client import Twin
    from mtdit_robots.twin.tasks import TASKS, find_task

    scene = find_task(next(iter(TASKS)) if task is None else task).name
    one = size if isinstance(size, tuple) else _one_size(size)
    with Twin(image_size=one, clock=arm.clock.value, fps=fps) as twin:
        twin.reset(scene, arm.seed)
        yield Rig(twin.robot(arm.bus.value, names), twin)


def scene_for(task: str, given: str | None) -> str:
    """The twin's task whose scene and success an instruction gets: the one that was given, its own,
    or the nearest, which is said. UserError for a given one that the twin does not have.
    """
    from mtdit_robots.twin.tasks import TASKS, find_task

    if given is not None:
        return find_task(given).name
    if task in TASKS:
        return task
    scene = next(iter(difflib.get_close_matches(task, TASKS, n=1, cutoff=0.0)), next(iter(TASKS)))
    console.print(
        f"the twin has no task {task!r}: its scene and its success are those of {scene!r} "
        "(--scene chooses another)"
    )
    return scene


def _real(
    arm: ArmOptions,
    cameras: Mapping[str, CameraOptions],
    size: Size | Mapping[str, Size],
    fps: int,
) -> Rig:
    from mtdit_robots.bus.open import open_bus
    from mtdit_robots.cameras.open import open_camera
    from mtdit_robots.so101.arm import So101Arm

    if arm.port is None:
        raise UserError(
            "--port is missing: add --port /dev/ttyACM0, or use --robot twin; "
            "`mtdit find-port` lists the ports"
        )
    calibration = load_calibration("--calibration", arm.calibration)
    sizes = dict.fromkeys(cameras, size) if isinstance(size, tuple) else size
    for name in sizes:
        if name not in cameras:
            raise UserError(f"the policy needs camera {name!r}: add --camera {name}=/dev/video0")
        if not isinstance(size, tuple):
            cameras[name].check_size(name, *sizes[name])
    bus = arm.bus.value
    open_bus(bus, arm.port).close()  # report a wrong port before the cameras take seconds to open
    opened = [open_camera(name, cameras[name], *sizes[name], fps) for name in sizes]
    return Rig(So101Arm(arm.port, calibration, opened, timeout_s=arm.bus_timeout, bus=bus))


def cameras_renamed(rename_map: Mapping[str, str], policys: Sequence[str]) -> dict[str, str]:
    """The robot's name of a camera -> the policy's, of the entries of a rename_map that concern a
    policy with these cameras.

    A bundle has the robot's names already if its checkpoint was trained with the map: an entry
    whose first name it has, and not its second, is done. UserError for an entry that fits neither
    way.
    """
    named = {
        old.removeprefix(IMAGES): new.removeprefix(IMAGES)
        for old, new in rename_map.items()
        if new != STATE
    }
    for old, new in named.items():
        if new not in policys and old not in policys:
            raise UserError(
                f"--rename-map {old}={new}: the policy has no camera {new!r}, it has "
                f"{', '.join(policys) or 'none'}; give one of those as the second name"
            )
    return {old: new for old, new in named.items() if new in policys}


def _one_size(sizes: Mapping[str, Size]) -> Size:
    """(height, width) that all cameras have: the twin renders them in one size."""
    if len(set(sizes.values())) > 1:
        raise UserError(
            f"the twin renders all cameras in one size, but the policy needs {dict(sizes)}: "
            "train on frames of one size"
        )
    return next(iter(sizes.values()), (64, 64))


def leader_arm(
    port: str | None, calibration: str | None, follower: ArmOptions, units: str = DEGREES
) -> So101Leader:
    """The leader arm that the options describe, which reads in `units`; not connected yet.
    UserError names the option that is missing or wrong.
    """
    from mtdit_robots.so101.leader import So101Leader

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
    is_degrees = units == DEGREES
    timeout_s, bus = follower.bus_timeout, follower.bus.value
    return So101Leader(port, loaded, is_degrees, timeout_s=timeout_s, bus=bus)


def load_calibration(flag: str, name: str | None, leader: bool = False) -> Calibration:
    """The calibration in a file, or in LeRobot's folder under the arm's id. flag: named in the
    UserError if `name` is missing.
    """
    from mtdit_robots.so101 import calibration as calibrations

    file = calibration_file(name, leader)
    if file is None:
        raise UserError(
            f"{flag} is missing: give the arm's calibration file or its id in LeRobot, "
            "or make one with `mtdit calibrate`"
        )
    return calibrations.load(file)


def calibration_file(name: str | None, leader: bool = False) -> Path | None:
    """The path of a calibration that is named by file or by id. UserError for an id that is not in
    LeRobot's folder.
    """
    from mtdit_robots.so101.calibration_places import find

    if name is None:
        return None
    is_path = "/" in name or name.endswith(".json") or Path(name).is_file()
    return Path(name) if is_path else find(name, leader)
