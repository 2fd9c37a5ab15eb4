"""The whole run from a bundle on disk, and every mistake a user can make before the arm has torque."""

from __future__ import annotations

import os
import shutil
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mtdit_robots.errors import UserError
from mtdit_runtime.bundle.bundle import open_bundle
from mtdit_runtime.bundle.manifest import write_manifest
from mtdit_runtime.recording.run_log import load_log
from mtdit_runtime.run import RunOptions, run_policy

TASK = "open the drawer"


@pytest.fixture
def options(bundle_folder: Path, scripted_robot: Any) -> Any:
    def make(**changes: Any) -> RunOptions:
        fixed = {
            "bundle": bundle_folder,
            "task": TASK,
            "robot": scripted_robot(),
            "backend": "onnx",
        }
        return RunOptions(
            **{**fixed, "lockstep": True, "duration_s": 1.0, "say": lambda line: None, **changes}
        )

    return make


def test_a_run_leaves_log_video_and_a_released_robot(options: Any, tmp_path: Path) -> None:
    said: list[str] = []
    overview = np.zeros((20, 30, 3), np.uint8)
    run = options(
        log=tmp_path / "run.npz", log_frames_mb=1, video=tmp_path / "run.mp4", say=said.append, prefetch_ticks=2,
        overview=lambda: {"overview": overview},
    )  # fmt: skip
    report = run_policy(run)
    assert (report.reason, report.ticks, report.prefetch_ticks) == ("duration", 30, 2)
    assert not run.robot.connected
    assert len(load_log(run.log)) == 30
    assert run.video.stat().st_size > 1000
    assert any("ONNX Runtime" in line for line in said)
    assert any("a chunk takes" in line for line in said)
    assert report.stages["vision"]["count"] < 20  # the warm-up's are not counted


def test_the_ride_home(options: Any) -> None:
    run = options(home_s=0.5)
    run_policy(run)
    np.testing.assert_allclose(run.robot.commands[-1], run.robot.start, atol=1e-9)


def test_in_real_time(options: Any) -> None:
    report = run_policy(options(lockstep=False, duration_s=0.5, home_s=0))
    assert report.reason == "duration"
    assert report.chunks >= 1


def test_commands_start_at_the_pose_found(options: Any) -> None:
    run = options(home_s=0)
    run_policy(run)
    np.testing.assert_allclose(run.robot.commands[0], run.robot.start)
    steps = np.abs(np.diff(np.array(run.robot.commands), axis=0))
    assert steps.max() <= 300 * 1.5 / 30 + 1e-9


@pytest.mark.parametrize(
    ("task", "message"),
    [
        ("open drawer", "did you mean 'open the drawer'"),
        ("xyz", "its tasks are 'open the drawer', 'close the drawer'"),
    ],
)
def test_an_unknown_task_is_refused_with_the_nearest_one(
    options: Any, task: str, message: str
) -> None:
    run = options(task=task)
    with pytest.raises(UserError, match=message):
        run_policy(run)
    assert run.robot.observed == 0


def test_an_unknown_task_may_be_tried(options: Any) -> None:
    assert run_policy(options(task="wave", new_task=True)).stages["text"]["count"] == 1


def test_a_robot_that_does_not_fit_is_never_connected(options: Any, scripted_robot: Any) -> None:
    class Untouchable(scripted_robot):  # type: ignore[misc]
        def connect(self) -> None:
            raise AssertionError("connected")

    run = options(robot=Untouchable(joints=("pan", "grip", "lift")))
    with pytest.raises(UserError, match="joint 2 of the robot is 'grip'"):
        run_policy(run)


def test_a_robot_that_cannot_connect_is_released(options: Any, scripted_robot: Any) -> None:
    class Unplugged(scripted_robot):  # type: ignore[misc]
        closed = False

        def connect(self) -> None:
            raise UserError("no port /dev/ttyACM9: plug it in")

        def close(self) -> None:
            self.closed = True

    run = options(robot=Unplugged())
    with pytest.raises(UserError, match="ttyACM9"):
        run_policy(run)
    assert run.robot.closed


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_a_signal_right_after_torque_came_on_releases_the_arm(
    options: Any, number: signal.Signals
) -> None:
    def kill_when_connected(line: str) -> None:
        if run.robot.connected:
            os.kill(os.getpid(), number)

    outside = signal.signal(
        number, signal.default_int_handler
    )  # tests may run under nohup, which ignores SIGHUP
    run = options(say=kill_when_connected)
    try:
        with pytest.raises(KeyboardInterrupt):
            run_policy(run)
        assert signal.getsignal(number) is signal.default_int_handler
    finally:
        signal.signal(number, outside)
    assert not run.robot.connected


def test_cameras_of_a_robot_that_does_not_fit_are_released(
    options: Any, scripted_robot: Any
) -> None:
    robot = scripted_robot(joints=("pan", "grip", "lift"))
    robot.connected = True  # as cameras are before the arm
    with pytest.raises(UserError, match="joint 2"):
        run_policy(options(robot=robot))
    assert not robot.connected


def test_lock_step_has_one_rate(options: Any, bundle_folder: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(bundle_folder, tmp_path / "slow.mtdit")
    write_manifest(copy, replace(open_bundle(copy).manifest, fps=15))
    with pytest.raises(
        UserError, match=r"lock-step clock runs at 30 Hz, this runs at 15 Hz: use --clock real"
    ):
        run_policy(options(bundle=copy))
    assert (
        run_policy(options(bundle=copy, lockstep=False, duration_s=0.2, home_s=0)).reason
        == "duration"
    )


def test_no_bundle(options: Any, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no bundle at"):
        run_policy(options(bundle=tmp_path / "nothing.mtdit"))


def test_unknown_backend(options: Any) -> None:
    with pytest.raises(UserError, match="backend 'tpu' is unknown"):
        run_policy(options(backend="tpu"))


def test_impossible_prefetch(options: Any) -> None:
    with pytest.raises(UserError, match="choose 0 to 3"):
        run_policy(options(prefetch_ticks=9))
