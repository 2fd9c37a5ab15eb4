"""`mtdit run`, `eval`, `bench` and `twin`: which arm they drive, what they report."""

from __future__ import annotations

import json
import os
import pty
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from command_line import assert_one_line, mtdit

from mtdit.cli.app import main
from mtdit_runtime.control.safety import SafetyConfig
from mtdit_runtime.recording.run_log import load_log

if TYPE_CHECKING:
    from mtdit_runtime.run import RunOptions


def test_run_of_an_unknown_task_suggests_the_nearest(run_folder: Path) -> None:
    done = mtdit("run", "--bundle", "policy.mtdit", "--task", "open the drawr", cwd=run_folder)
    assert_one_line(done, "did you mean 'open the drawer'?")


def test_a_new_task_runs_in_the_scene_that_is_nearest_or_given(run_folder: Path) -> None:
    words = ("run", "--bundle", "policy.mtdit", "--new-task", "--duration", "0.1")
    twin = (*words, "--clock", "lockstep", "--backend", "onnx")
    done = mtdit(*twin, "--task", "pull the drawer open", cwd=run_folder)
    assert done.returncode == 0, done.stderr
    said = "the twin has no task 'pull the drawer open': its scene and its success are those of "
    assert f"{said}'open the drawer' (--scene" in " ".join(done.stdout.split())
    scene = ("--scene", "put the red cube in the bowl")
    done = mtdit(*twin, "--task", "bowl it", *scene, cwd=run_folder)
    assert (done.returncode, "has no task" in done.stdout) == (0, False), done.stderr
    done = mtdit(*twin, "--task", "bowl it", "--scene", "put it in the bowl", cwd=run_folder)
    assert_one_line(done, "the twin has no task 'put it in the bowl': did you mean")
    done = mtdit(*words, "--task", "bowl it", "--port", "/dev/none", *scene, cwd=run_folder)
    assert_one_line(done, "--scene is for the twin")


def so101(folder: Path, *more: str) -> subprocess.CompletedProcess[str]:
    cameras = ("--camera", "top=/dev/video90", "--camera", "wrist=/dev/video91")
    words = (
        "run",
        "--robot",
        "so101",
        "--bundle",
        "policy.mtdit",
        "--task",
        "open the drawer",
        *cameras,
        *more,
    )
    return mtdit(*words, cwd=folder)


def write_calibration(path: Path, wrong: str | None = None) -> Path:
    joints = ["shoulder_pan", "shoulder_lift", "elbow_flex", "wrist_flex", "wrist_roll", "gripper"]
    entries = {
        ("shoulder_pam" if joint == wrong else joint): {
            "id": i,
            "drive_mode": 0,
            "homing_offset": 0,
            "range_min": 800,
            "range_max": 3300,
        }
        for i, joint in enumerate(joints, start=1)
    }
    path.write_text(json.dumps(entries))
    return path


def test_wrong_joint_in_a_calibration(run_folder: Path, tmp_path: Path) -> None:
    path = write_calibration(tmp_path / "arm.json", wrong="shoulder_pan")
    assert_one_line(
        so101(run_folder, "--port", "/dev/null", "--calibration", str(path)), "shoulder_pa"
    )


def test_port_that_does_not_exist(run_folder: Path, tmp_path: Path) -> None:
    path = write_calibration(tmp_path / "arm.json")
    done = so101(run_folder, "--port", "/dev/ttyNOPE", "--calibration", str(path))
    assert_one_line(done, "/dev/ttyNOPE")


def test_port_that_is_busy(run_folder: Path, tmp_path: Path) -> None:
    import serial

    ours, theirs = pty.openpty()
    name = os.ttyname(theirs)
    path = write_calibration(tmp_path / "arm.json")
    with serial.Serial(name, exclusive=True):
        done = so101(run_folder, "--port", name, "--calibration", str(path))
    os.close(ours)
    os.close(theirs)
    assert_one_line(done, name, "in use")


def test_arm_without_a_port(run_folder: Path) -> None:
    assert_one_line(so101(run_folder), "--port")


def test_a_film_that_cannot_be_written(run_folder: Path) -> None:
    robot = ("--robot", "twin", "--bundle", "policy.mtdit", "--task", "open the drawer")
    done = mtdit("run", *robot, "--video", "run.avi", cwd=run_folder)
    assert_one_line(done, "cannot write a video to run.avi", ".mp4")
    assert "Ctrl-C" not in done.stdout, "said before the run starts"


def test_run_eval_and_bench_report_as_json(run_folder: Path) -> None:
    robot = ("--robot", "twin", "--bundle", "policy.mtdit", "--task", "open the drawer")
    done = mtdit(
        "run",
        *robot,
        "--clock",
        "lockstep",
        "--duration",
        "1",
        "--video",
        "run.mp4",
        "--json",
        "run.json",
        cwd=run_folder,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    told = json.loads((run_folder / "run.json").read_text())
    assert told["ticks"] == 30
    assert told["verdict"].startswith("abnormal: the speed guard changed "), "it is untrained"
    assert "; a new chunk differed from the one before by " in told["verdict"]
    assert done.stdout.rstrip().splitlines()[-1] == f"verdict: {told['verdict']}"
    assert (run_folder / "run.mp4").stat().st_size > 1000
    rates = {}
    for name, source in (("bundle", "policy.mtdit"), ("checkpoint", "train")):
        options = (
            "--task",
            "open the drawer",
            "--episodes",
            "1",
            "--max-seconds",
            "1",
            "--json",
            f"{name}.json",
        )
        done = mtdit("eval", "--robot", "twin", f"--{name}", source, *options, cwd=run_folder)
        assert done.returncode == 0, done.stdout + done.stderr
        rates[name] = json.loads((run_folder / f"{name}.json").read_text())
        assert rates[name]["verdict"].startswith("abnormal: the speed guard changed ")
        assert done.stdout.rstrip().splitlines()[-1] == f"verdict: {rates[name]['verdict']}"
    assert [e["seed"] for e in rates["bundle"]["each"]] == [
        e["seed"] for e in rates["checkpoint"]["each"]
    ]
    done = mtdit("bench", "policy.mtdit", "--repeats", "4", "--json", "-", cwd=run_folder)
    assert done.returncode == 0, done.stdout + done.stderr
    assert '"denoiser"' in done.stdout


class Started(Exception):  # noqa: N818, not an error
    """Instead of a run: its robot and options, and how the arm was built."""

    def __init__(self, robot: Any, options: RunOptions, success: Any, arm: dict[str, Any]) -> None:
        super().__init__(options)
        self.robot, self.options, self.success, self.arm = robot, options, success, arm


@pytest.fixture
def started(
    run_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., Started]:
    """What `mtdit run WORDS` would have run, in this process."""
    arm: dict[str, Any] = {}

    def build_arm(port: str, *_: Any, **options: Any) -> str:
        arm.update(options, port=port)
        return "arm"

    def started(
        bundle: Any, robot: Any, task: str, options: RunOptions, *, success: Any, **_: Any
    ) -> None:
        raise Started(robot, options, success, arm)

    monkeypatch.setattr("mtdit_robots.so101.arm.So101Arm", build_arm)
    monkeypatch.setattr("mtdit_runtime.run.run", started)
    monkeypatch.chdir(run_folder)

    def run(*words: str) -> Started:
        task = ("--bundle", "policy.mtdit", "--task", "open the drawer")
        monkeypatch.setattr(sys, "argv", ["mtdit", "run", *task, *words])
        with pytest.raises(Started) as caught:
            main()
        return caught.value

    return run


@pytest.fixture
def real_arm(run_folder: Path, tmp_path: Path) -> Iterator[tuple[str, ...]]:
    """The options of an arm without --robot: a port that opens, and films as cameras."""
    ours, theirs = pty.openpty()
    cameras = (f"--camera={name}=dataset:dataset:{name}" for name in ("top", "wrist"))
    calibration = write_calibration(tmp_path / "arm.json")
    yield ("--port", os.ttyname(theirs), "--calibration", str(calibration), *cameras)
    os.close(ours)
    os.close(theirs)


def test_the_options_of_run_reach_the_arm_and_the_loop(
    started: Callable[..., Started], real_arm: tuple[str, ...]
) -> None:
    given = ("--max-speed", "40", "--home-seconds", "1.5", "--bus-timeout", "0.2", "--bus", "sdk")
    run = started(*real_arm, *given)
    assert run.robot == "arm", "a port without --robot means a real arm"
    assert run.arm == {"port": real_arm[1], "timeout_s": 0.2, "bus": "sdk"}
    assert (run.options.safety, run.options.home_s) == (SafetyConfig(max_speed=40.0), 1.5)


def test_run_takes_arm_cameras_and_limits_from_a_file(
    started: Callable[..., Started], real_arm: tuple[str, ...], tmp_path: Path, run_folder: Path
) -> None:
    """A camera has its own rate and rotation, and the policy's size."""
    _, port, _, calibration, *_ = real_arm
    cameras = [
        f'[cameras.{name}]\nsource = "dataset:dataset:{name}"\nrotation = 180'
        for name in ("top", "wrist")
    ]
    file = tmp_path / "mtdit.toml"
    lines = [f'port = "{port}"', f'calibration = "{calibration}"', "max_speed = 40"]
    lines += ["[run]", "home_seconds = 1.5", *cameras]
    file.write_text("\n".join(lines))
    run = started("--config", str(file))
    assert (run.robot, run.arm["port"]) == ("arm", port)
    assert (run.options.safety, run.options.home_s) == (SafetyConfig(max_speed=40.0), 1.5)
    assert started("--config", str(file), "--max-speed", "50").options.safety.max_speed == 50
    file.write_text("\n".join([*lines, "width = 320"]))
    words = ("run", "--bundle", "policy.mtdit", "--task", "open the drawer", "--config", file)
    done = mtdit(*words, cwd=run_folder)
    assert_one_line(done, "camera 'wrist' is set to 320x64, but the policy was trained on 64x64")


def test_the_defaults_of_run(started: Callable[..., Started], real_arm: tuple[str, ...]) -> None:
    run = started(*real_arm)
    assert run.arm == {"port": real_arm[1], "timeout_s": 0.05, "bus": "own"}
    assert (run.options.safety, run.options.home_s) == (SafetyConfig(), 3.0)
    for words in ((), ("--robot", "twin")):
        run = started(*words)
        assert run.success is not None, "without a port it is the twin"
        assert (run.options.safety, run.options.home_s) == (SafetyConfig(), 0.0)
    assert started("--home-seconds", "2").options.home_s == 2.0


def test_a_run_is_no_faster_than_max_speed(run_folder: Path, tmp_path: Path) -> None:
    def fastest(*more: str) -> float:
        log = tmp_path / "run.npz"
        words = ("run", "--bundle", "policy.mtdit", "--task", "open the drawer", "--robot", "twin")
        options = ("--clock", "lockstep", "--duration", "2", "--log", str(log), *more)
        done = mtdit(*words, *options, cwd=run_folder)
        assert done.returncode == 0, done.stdout + done.stderr
        return float(np.abs(np.diff(load_log(log).columns["sent"], axis=0)).max()) * 30

    assert fastest("--max-speed", "5") <= 5 + 360 / 4095 * 30 < fastest()  # within one tick


def test_log_frames_keeps_the_first_frames(run_folder: Path, tmp_path: Path) -> None:
    """A frame of both cameras takes 2 * 64 * 64 * 3 bytes: 0.1 MB hold four."""
    log = tmp_path / "run.npz"
    words = ("run", "--bundle", "policy.mtdit", "--task", "open the drawer", "--robot", "twin")
    options = ("--clock", "lockstep", "--duration", "0.5", "--log-frames", "0.1")
    assert_one_line(mtdit(*words, *options, cwd=run_folder), "--log run.npz")
    done = mtdit(*words, *options, "--log", log, cwd=run_folder)
    assert done.returncode == 0, done.stdout + done.stderr
    read = load_log(log)
    assert len(read) == 15
    assert {name: frames.shape for name, frames in read.frames.items()} == {
        "top": (4, 64, 64, 3),
        "wrist": (4, 64, 64, 3),
    }
    assert read.frames["top"].std() > 1


def test_twin_serves_a_port_a_calibration_and_a_picture(tmp_path: Path) -> None:
    import cv2

    options = (
        "--link",
        "tty",
        "--picture",
        "twin.png",
        "--calibration",
        "twin.json",
        "--seconds",
        "2",
    )
    done = mtdit("twin", *options, cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "port" in done.stdout
    assert set(json.loads((tmp_path / "twin.json").read_text())) >= {"shoulder_pan", "gripper"}
    assert cv2.imread(str(tmp_path / "twin.png")).std() > 10


@pytest.mark.parametrize(
    ("option", "value"),
    [("--port", "/dev/null"), ("--calibration", "arm.json"), ("--camera", "top=/dev/video0")],
)
def test_the_twin_takes_no_option_of_a_real_arm(run_folder: Path, option: str, value: str) -> None:
    words = ("run", "--robot", "twin", "--bundle", "policy.mtdit", "--task", "open the drawer")
    done = mtdit(*words, option, value, cwd=run_folder)
    assert_one_line(done, f"{option} is for a real arm", "--robot so101")
