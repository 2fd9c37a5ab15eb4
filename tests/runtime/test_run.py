"""The whole run from a bundle on disk, and every mistake a user can make before the arm has
torque.
"""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mtdit.policy_loader import load
from mtdit_robots.errors import UserError
from mtdit_runtime.bundle.bundle import Bundle, open_bundle, save_task_features
from mtdit_runtime.bundle.manifest import TASKS, write_manifest
from mtdit_runtime.control.heartbeat import Heartbeat, heartbeats
from mtdit_runtime.control.report import RunReport
from mtdit_runtime.recording.run_log import load_log, recompute
from mtdit_runtime.run import RunOptions, run

TASK = "open the drawer"


@dataclass
class Prepared:
    """A run that is called later: options by name, the robot at hand."""

    bundle: Bundle | Path
    robot: Any
    options: RunOptions
    task: str = TASK
    overview: Any = None
    say: Any = None

    def __call__(self) -> RunReport:
        more = {"overview": self.overview, "say": self.say}
        return run(self.bundle, self.robot, self.task, self.options, **more)


@pytest.fixture
def prepared(bundle_folder: Path, scripted_robot: Any) -> Callable[..., Prepared]:
    def make(**changes: Any) -> Prepared:
        given = {"bundle": bundle_folder, "robot": scripted_robot()}
        for name in ("bundle", "robot", "task", "overview", "say"):
            given |= {name: changes.pop(name)} if name in changes else {}
        fixed = {"backend": "onnx", "lockstep": True, "duration_s": 1.0}
        return Prepared(options=RunOptions(**{**fixed, **changes}), **given)

    return make


@pytest.fixture
def with_tasks(bundle: Bundle, tmp_path: Path) -> Callable[..., Bundle]:
    """The bundle as if it had been trained on these two tasks; same: both with one feature."""

    def make(first: str, other: str, same: bool = False) -> Bundle:
        copy = shutil.copytree(bundle.folder, tmp_path / "toy.mtdit", dirs_exist_ok=True)
        features = list(bundle.task_features.values())
        save_task_features(copy / TASKS, {first: features[0], other: features[0 if same else 1]})
        write_manifest(copy, replace(bundle.manifest, tasks=(first, other)))
        return open_bundle(copy)

    return make


def test_a_run_leaves_log_video_and_a_released_robot(prepared: Any, tmp_path: Path) -> None:
    said: list[str] = []
    overview = np.zeros((20, 30, 3), np.uint8)
    ride = prepared(
        log=tmp_path / "run.npz",
        log_frames_mb=1,
        video=tmp_path / "run.mp4",
        say=said.append,
        prefetch_ticks=2,
        overview=lambda: {"overview": overview},
    )
    report = ride()
    assert (report.reason, report.ticks, report.prefetch_ticks) == ("duration", 30, 2)
    assert not ride.robot.connected
    assert len(load_log(ride.options.log)) == 30
    assert ride.options.video.stat().st_size > 1000
    assert any("ONNX Runtime" in line for line in said)
    assert any("a chunk takes" in line for line in said)
    assert report.stages["vision"]["count"] < 20  # the warm-up's are not counted


def test_the_ride_home(prepared: Any) -> None:
    ride = prepared(home_s=0.5)
    ride()
    np.testing.assert_allclose(ride.robot.commands[-1], ride.robot.start, atol=1e-9)


def test_a_run_has_a_heartbeat_on_its_way_home_too(
    prepared: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MTDIT_RUN_DIR", str(tmp_path))
    ride = prepared(home_s=0.5)
    seen: list[Heartbeat] = []
    command = ride.robot.command
    ride.robot.command = lambda positions: (seen.extend(heartbeats()), command(positions))[1]
    ride()
    assert len(seen) == len(ride.robot.commands) == 45
    assert all(one.is_fresh and one.run.task == TASK for one in seen)
    assert heartbeats() == []


def test_in_real_time(prepared: Any) -> None:
    report = prepared(lockstep=False, duration_s=0.5, home_s=0)()
    assert report.reason == "duration"
    assert report.chunks >= 1


def test_commands_start_at_the_pose_found(prepared: Any) -> None:
    ride = prepared(home_s=0)
    ride()
    np.testing.assert_allclose(ride.robot.commands[0], ride.robot.start)
    steps = np.abs(np.diff(np.array(ride.robot.commands), axis=0))
    assert steps.max() <= 300 * 1.5 / 30 + 1e-9


@pytest.mark.parametrize(
    ("task", "message"),
    [
        ("open drawer", "did you mean 'open the drawer'"),
        ("xyz", "its tasks are 'open the drawer', 'close the drawer'"),
    ],
)
def test_an_unknown_task_is_refused_with_the_nearest_one(
    prepared: Any, task: str, message: str
) -> None:
    ride = prepared(task=task)
    with pytest.raises(UserError, match=message):
        ride()
    assert ride.robot.observed == 0


def test_an_unknown_task_may_be_tried(prepared: Any) -> None:
    assert prepared(task="wave", new_task=True)().stages["text"]["count"] == 1


@pytest.mark.parametrize(
    ("task", "says"),
    [
        ("a" * 80, "is longer than the 77 tokens that CLIP reads: 'aaaaa' is not read"),
        ("Open  The drawer", "cannot tell 'Open  The drawer' from the trained task 'open the draw"),
    ],
)
def test_what_the_policy_does_not_read_is_said(prepared: Any, task: str, says: str) -> None:
    said: list[str] = []
    prepared(task=task, new_task=True, say=said.append, duration_s=0.1)()
    assert [line for line in said if says in line]


def test_one_task_in_two_forms_of_unicode(prepared: Any, with_tasks: Any) -> None:
    """Typed composed, stored decomposed, and the other way round: the stored one is run."""
    said: list[str] = []
    for stored, typed in (("caf\u00e9", "cafe\u0301"), ("cafe\u0301", "caf\u00e9")):
        bundle = with_tasks(stored, "close the drawer")
        report = prepared(bundle=bundle, task=typed, say=said.append, duration_s=0.1)()
        assert report.stages.get("text", {}).get("count", 0) == 0, "nothing is encoded anew"


def test_trained_tasks_that_were_the_same_tokens(prepared: Any, with_tasks: Any) -> None:
    said: list[str] = []
    first, other = "x " * 90 + "left", "x " * 90 + "right"
    bundle = with_tasks(first, other, same=True)
    prepared(bundle=bundle, task=other, say=said.append, duration_s=0.1)()
    assert [line for line in said if "in training both were the same 77 tokens" in line]


@pytest.mark.parametrize("task", ["open\x07", "a\nb", "bytes \udcff", "\x1b[31mred"])
def test_a_new_task_with_control_characters_is_refused(prepared: Any, task: str) -> None:
    ride = prepared(task=task, new_task=True)
    with pytest.raises(UserError, match="contains the control character") as refused:
        ride()
    assert str(refused.value).isprintable()
    assert ride.robot.observed == 0


def test_a_robot_that_does_not_fit_is_never_connected(prepared: Any, scripted_robot: Any) -> None:
    class Untouchable(scripted_robot):  # type: ignore[misc]
        def connect(self) -> None:
            raise AssertionError("connected")

    ride = prepared(robot=Untouchable(joints=("pan", "elbow", "grip")))
    with pytest.raises(UserError, match=r"the robot has joints pan, elbow, grip; the policy's"):
        ride()


def test_a_robot_with_another_order_of_joints_moves_alike(
    prepared: Any, scripted_robot: Any, bundle_folder: Path, tmp_path: Path
) -> None:
    """Ramp, range and speed guards, seams and the log are the same for each joint."""
    usual = prepared(log=tmp_path / "usual.npz", log_frames_mb=1)
    wanted = usual().to_dict()
    moved = load_log(tmp_path / "usual.npz")
    for n, order in enumerate(([2, 0, 1], [1, 2, 0], [0, 2, 1])):
        joints = tuple(usual.robot.joints[i] for i in order)
        robot = scripted_robot(joints=joints, start=usual.robot.start[order])
        ride = prepared(robot=robot, log=tmp_path / f"{n}.npz", log_frames_mb=1)
        report = ride().to_dict()
        assert report["interventions"] == wanted["interventions"]
        assert report["seam_jump"] == pytest.approx(wanted["seam_jump"])
        log = load_log(tmp_path / f"{n}.npz")
        assert log.joints == joints
        for name in ("positions", "wanted", "sent"):
            np.testing.assert_allclose(log.columns[name], moved.columns[name][:, order], atol=1e-9)
        policy = load(bundle_folder, "onnx")
        assert recompute(log, policy).max_error < 1e-9


def test_a_robot_that_cannot_connect_is_released(prepared: Any, scripted_robot: Any) -> None:
    class Unplugged(scripted_robot):  # type: ignore[misc]
        closed = False

        def connect(self) -> None:
            raise UserError("no port /dev/ttyACM9: plug it in")

        def close(self) -> None:
            self.closed = True

    ride = prepared(robot=Unplugged())
    with pytest.raises(UserError, match="ttyACM9"):
        ride()
    assert ride.robot.closed


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_a_signal_right_after_torque_came_on_releases_the_arm(
    prepared: Any, number: signal.Signals
) -> None:
    def kill_when_connected(line: str) -> None:
        if ride.robot.connected:
            os.kill(os.getpid(), number)

    outside = signal.signal(
        number, signal.default_int_handler
    )  # tests may run under nohup, which ignores SIGHUP
    ride = prepared(say=kill_when_connected)
    try:
        with pytest.raises(KeyboardInterrupt):
            ride()
        assert signal.getsignal(number) is signal.default_int_handler
    finally:
        signal.signal(number, outside)
    assert not ride.robot.connected


def test_cameras_of_a_robot_that_does_not_fit_are_released(
    prepared: Any, scripted_robot: Any
) -> None:
    robot = scripted_robot(joints=("pan", "elbow", "grip"))
    robot.connected = True  # as cameras are before the arm
    with pytest.raises(UserError, match="has no 'elbow'"):
        prepared(robot=robot)()
    assert not robot.connected


def test_lock_step_has_one_rate(prepared: Any, bundle_folder: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(bundle_folder, tmp_path / "slow.mtdit")
    write_manifest(copy, replace(open_bundle(copy).manifest, fps=15))
    with pytest.raises(
        UserError, match=r"lock-step clock runs at 30 Hz, this runs at 15 Hz: use --clock real"
    ):
        prepared(bundle=copy)()
    assert prepared(bundle=copy, lockstep=False, duration_s=0.2, home_s=0)().reason == "duration"


def test_no_bundle(prepared: Any, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no bundle at"):
        prepared(bundle=tmp_path / "nothing.mtdit")()


def test_unknown_backend(prepared: Any) -> None:
    with pytest.raises(UserError, match="backend 'tpu' is unknown"):
        prepared(backend="tpu")()


def test_impossible_prefetch(prepared: Any) -> None:
    with pytest.raises(UserError, match="must be 0 to 3"):
        prepared(prefetch_ticks=9)()


def test_an_opened_bundle_is_not_opened_again(
    prepared: Any, bundle_folder: Path, tmp_path: Path
) -> None:
    copy = shutil.copytree(bundle_folder, tmp_path / "copy.mtdit")
    opened = open_bundle(copy)
    (copy / "manifest.json").unlink()
    assert prepared(bundle=opened, duration_s=0.2)().reason == "duration"
    with pytest.raises(UserError, match="not a bundle"):
        prepared(bundle=str(copy))()


def test_without_say_it_is_silent(prepared: Any, capfd: Any, caplog: Any) -> None:
    prepared(duration_s=0.2)()
    assert capfd.readouterr() == ("", "")
    assert not [record for record in caplog.records if record.levelname == "WARNING"]
