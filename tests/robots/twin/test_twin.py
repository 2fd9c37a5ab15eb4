"""The twin's process: driver bytes over the pseudo-terminal, both clocks, frames, and an orderly
end.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from mtdit_robots.errors import UserError
from mtdit_robots.robot import Observation
from mtdit_robots.so101 import calibration as calibrations
from mtdit_robots.twin.client import Twin
from mtdit_robots.twin.expert import demonstrate
from mtdit_robots.twin.server import Control
from mtdit_robots.twin.tasks import find_task
from mtdit_robots.twin.world import CAMERAS, World

SIZE = (32, 40)
TASK = "push the red cube to the right"

Demonstration = tuple[
    list[np.ndarray], list[np.ndarray], list[dict[str, np.ndarray]]
]  # sent, positions, frames


@pytest.fixture(scope="module")
def lockstep() -> Iterator[Twin]:
    with Twin(clock="lockstep", image_size=SIZE) as twin:
        yield twin


@pytest.fixture(scope="module")
def demonstration() -> Demonstration:
    """What was sent, and what the in-process world showed before each command."""
    world = World(find_task("open the drawer"))
    world.energise()
    world.reset(find_task(TASK), 31)
    sent, positions, frames = [], [], []
    for step in demonstrate(world, 0.01):
        positions.append(world.positions())
        frames.append({camera: world.render(camera, *SIZE) for camera in CAMERAS})
        sent.append(world.command(step.sent))
        world.step_tick()
    assert world.success()
    world.close()
    return sent, positions, frames


def replay(twin: Twin, sent: list[np.ndarray]) -> tuple[list[Observation], bool]:
    robot = twin.robot()
    robot.connect()
    twin.reset(TASK, 31)
    seen = []
    for goal in sent:
        seen.append(robot.observe())
        robot.command(goal)
    robot.observe()
    done = twin.success()
    robot.close()
    return seen, done


def same(
    seen: list[Observation], positions: list[np.ndarray], frames: list[dict[str, np.ndarray]]
) -> bool:
    return all(
        (a.positions == p).all() and all((a.frames[c] == f[c]).all() for c in CAMERAS)
        for a, p, f in zip(seen, positions, frames, strict=True)
    )


def test_lockstep_equals_the_world_in_process_bit_for_bit_and_twice(
    lockstep: Twin, demonstration: Demonstration
) -> None:
    """The driver's bytes, the pty and the shared frames add nothing and lose nothing."""
    sent, positions, frames = demonstration
    for _ in range(2):
        seen, done = replay(lockstep, sent)
        assert done
        assert same(seen, positions, frames)
        assert all(age == 0.0 for one in seen for age in one.frame_age_s.values())
    assert lockstep.status()["tick"] == len(sent)


def test_connecting_costs_no_tick(lockstep: Twin) -> None:
    lockstep.reset(TASK, 1)
    robot = lockstep.robot()
    robot.connect()
    assert lockstep.status()["tick"] == 0
    robot.close()


def test_status_and_picture(lockstep: Twin) -> None:
    lockstep.reset("close the drawer", 2)
    status = lockstep.status()
    assert (status["task"], status["seed"], status["success"]) == ("close the drawer", 2, False)
    assert status["drawer_m"] > 0.03
    picture = lockstep.picture("overview", 48, 64)
    assert picture.shape == (48, 64, 3)
    assert picture.std() > 10
    assert lockstep.picture("top", 32, 32, fine=True).shape == (32, 32, 3)


def test_an_unknown_task_is_the_users_mistake_and_harmless(lockstep: Twin) -> None:
    with pytest.raises(UserError, match="did you mean 'open the drawer'"):
        lockstep.reset("open a drawer", 0)
    lockstep.reset("open the drawer", 0)


def test_the_calibration_file_is_lerobots(lockstep: Twin, tmp_path: Path) -> None:
    calibrations.save(lockstep.calibration, tmp_path / "twin.json")
    assert calibrations.load(tmp_path / "twin.json") == lockstep.calibration


def test_real_time_moves_on_by_itself_and_keeps_about_pace(tmp_path: Path) -> None:
    link = tmp_path / "ttySIM0"
    with Twin(clock="real", image_size=SIZE, link=link) as twin:
        assert os.readlink(link) == twin.port
        twin.reset("open the drawer", 0)
        robot = twin.robot()
        robot.connect()
        first = robot.observe()
        began, tick = time.monotonic(), twin.status()["tick"]
        robot.command(first.positions + np.array([-20, 0, 0, 0, 0, 20]))
        time.sleep(1.5)
        last = robot.observe()
        passed, ticks = time.monotonic() - began, twin.status()["tick"] - tick
        robot.close()
    assert not link.is_symlink()
    assert 0.2 * passed < ticks / 30 < 1.2 * passed  # a busy machine may make it skip, never rush
    assert last.positions[0] - first.positions[0] == pytest.approx(-20, abs=3)
    assert last.positions[5] - first.positions[5] == pytest.approx(20, abs=3)
    assert all(0 <= age < 5 for age in last.frame_age_s.values())
    assert any((last.frames[c] != first.frames[c]).any() for c in CAMERAS)


def test_closing_ends_the_process_and_is_repeatable() -> None:
    twin = Twin(image_size=SIZE)
    process = twin._process
    twin.close()
    twin.close()
    assert process.returncode == 0


def test_the_process_ends_with_its_parent() -> None:
    code = (
        "import sys, time\nfrom mtdit_robots.twin.client import Twin\n"
        "twin = Twin()\nprint(twin._process.pid, flush=True)\ntime.sleep(600)\n"
    )
    parent = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    child = int(parent.stdout.readline())
    assert alive(child)
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    parent.stdout.close()
    deadline = time.monotonic() + 30
    while alive(child) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not alive(child)


def alive(pid: int) -> bool:
    """Whether the process runs; an orphan waiting to be reaped does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_a_dead_process_is_reported_as_such() -> None:
    with Twin(image_size=SIZE) as twin:
        twin._process.kill()
        with pytest.raises(OSError, match="the twin's process ended with code -9"):
            twin.success()


def test_a_closed_twin_says_so() -> None:
    twin = Twin(image_size=SIZE)
    twin.close()
    for ask in (twin.success, twin.status, twin.picture):
        with pytest.raises(OSError, match="the twin was closed"):
            ask()


def test_a_process_that_dies_in_mid_sentence() -> None:
    ours, theirs = socket.socketpair()
    control = Control(ours)
    theirs.sendall(b'{"success": tr')
    theirs.close()
    assert control.receive() is None
    control.close()


def test_an_unknown_clock_is_refused() -> None:
    with pytest.raises(UserError, match="no clock 'fast': use real or lockstep"):
        Twin(clock="fast")


def test_an_impossible_picture_is_the_users_mistake(lockstep: Twin) -> None:
    with pytest.raises(UserError, match="no camera 'front': use one of top, wrist, overview"):
        lockstep.picture("front")
    with pytest.raises(
        UserError, match="4000x3000 cannot be rendered: the largest size is 1280x960"
    ):
        Twin(image_size=(3000, 4000))


def test_an_impossible_link_is_the_users_mistake(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="choose another --link path"):
        Twin(image_size=SIZE, link=tmp_path / "no" / "such" / "folder")
