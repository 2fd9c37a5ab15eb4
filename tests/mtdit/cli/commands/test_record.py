"""teleoperate, record, replay, find-cameras as typed: leader and follower of virtual servos, films
as cameras.
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from command_line import mtdit
from repository import EXAMPLE

from mtdit_robots.so101.calibration import Calibration, load
from mtdit_runtime.recording.video_encoder import CODECS, VideoSink

if TYPE_CHECKING:
    from servo_chain import Chain, Waving

    Start = Callable[..., Any]
    Refused = Callable[..., str]

TIMEOUT_S = 300.0
HEIGHT, WIDTH = 48, 64
TASK = "put the cube into the box"
EPISODE_S = 1.5  # before a key: long enough to be an episode


@pytest.fixture
def film(tmp_path: Path) -> Path:
    """A second of a brightening picture, 30 frames."""
    path = tmp_path / "clip.mp4"
    sink = VideoSink(path, 30, HEIGHT, WIDTH, CODECS["h264"])
    for i in range(30):
        sink.write(np.full((HEIGHT, WIDTH, 3), 60 + 4 * i, np.uint8))
    sink.close()
    return path


@dataclass(frozen=True)
class Words:
    """The options every command here shares."""

    leader: Chain
    follower: Chain
    film: Path

    def arms(self) -> tuple[str, ...]:
        leading = ("--leader-port", self.leader.port, "--leader-calibration", str(EXAMPLE))
        return (*leading, *self.arm(), "--bus-timeout", "2")

    def arm(self) -> tuple[str, ...]:
        return (
            "--port",
            self.follower.port,
            "--calibration",
            str(EXAMPLE),
            "--home-seconds",
            "0.2",
        )

    def camera(self) -> tuple[str, ...]:
        return ("--camera", f"top=file:{self.film}", "--height", str(HEIGHT), "--width", str(WIDTH))


@pytest.fixture
def words(leader: Chain, chain: Chain, film: Path) -> Words:
    return Words(leader, chain, film)


def assert_limp(*chains: Chain) -> None:
    assert not any(servo.torque_enabled for each in chains for servo in each.servos.values())


@pytest.mark.parametrize("bus", ["own", "sdk"])
def test_teleoperate_follows_without_a_jump_and_lets_go(
    words: Words, tmp_path: Path, bus: str
) -> None:
    where = words.follower.servos[1].get("Present_Position")
    report = tmp_path / "report.json"
    done = mtdit(
        "teleoperate", *words.arms(), "--bus", bus, "--duration", "4", "--json", str(report)
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert_limp(words.leader, words.follower)
    told = json.loads(report.read_text())
    assert told["reason"] == "duration"
    assert told["ticks"] > 10
    assert set(told["stages"]) >= {"observe", "leader", "command"}
    goals = [int.from_bytes(frame.data[3:5], "little") for _, frame in words.follower.writes(42)]
    assert abs(goals[0] - where) <= 1, "torque comes on where the arm stands"
    steps = np.abs(np.diff(goals))
    assert steps[: len(steps) // 8].max(initial=0) < 60, "the way to the leader is a ramp"
    assert max(goals) - min(goals) > 100, "then it follows"


def test_ctrl_c_leaves_both_arms_limp(words: Words, terminal: Start) -> None:
    screen = terminal("-m", "mtdit.cli", "teleoperate", *words.arms())
    screen.expect("keep clear")
    screen.expect("shoulder_pan")
    screen.expect("Hz")
    screen.send("\x03")
    assert screen.exit_code() == 130
    assert "interrupted" in screen.screen
    assert_limp(words.leader, words.follower)


def test_a_lost_terminal_ends_it_too(words: Words) -> None:
    command = [sys.executable, "-m", "mtdit.cli", "teleoperate", *words.arms()]
    process = subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    wait_for(lambda: any(servo.torque_enabled for servo in words.follower.servos.values()))
    process.send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=TIMEOUT_S)
    assert process.returncode == 130, output.decode()
    assert_limp(words.leader, words.follower)


def driven(words: Words, *more: str) -> subprocess.Popen[str]:
    """A follower that has left its start pose."""
    command = [sys.executable, "-m", "mtdit.cli", "teleoperate", *words.arms(), *more]
    process = subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    start = words.follower.servos[1].get("Present_Position")
    wait_for(lambda: abs(words.follower.servos[1].get("Present_Position") - start) > 60)
    return process


def test_a_servo_that_loses_torque_in_mid_run_ends_it_and_is_named(words: Words) -> None:
    """A brown-out: it restarts, answers as before, and follows no goal."""
    process = driven(words)
    words.follower.servos[3].power_cycle()
    output, _ = process.communicate(timeout=TIMEOUT_S)
    assert process.returncode == 1, output
    told = " ".join(output.split())
    assert "ended bus: elbow_flex (servo 3)" in told
    assert "lost torque because it restarted or protects itself: check the power supply" in told
    assert "Traceback" not in output
    assert_limp(words.leader, words.follower)


def test_a_leader_that_falls_silent_does_not_drop_the_follower(words: Words) -> None:
    """The follower is sound: it rides back to where it stood, and only then lets go."""
    start = words.follower.servos[1].get("Present_Position")
    process = driven(words, "--home-seconds", "1", "--bus-timeout", "0.2")
    words.leader.servos.clear()
    output, _ = process.communicate(timeout=TIMEOUT_S)
    assert process.returncode == 1, output
    assert "ended leader: shoulder_pan (servo 1)" in " ".join(output.split())
    assert abs(words.follower.servos[1].get("Present_Position") - start) <= 2
    assert_limp(words.follower)


SMALL_DISK = """
import resource, runpy, signal, sys
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
runpy.run_module("mtdit.cli", run_name="__main__")
"""


def test_a_disk_that_fills_up_in_an_episode_does_not_drop_the_follower(
    words: Words, tmp_path: Path
) -> None:
    noisy, rng = tmp_path / "noisy.mp4", np.random.default_rng(5)
    sink = VideoSink(noisy, 30, HEIGHT, WIDTH, CODECS["h264"])
    for _ in range(20):
        sink.write(rng.integers(0, 255, (HEIGHT, WIDTH, 3), np.uint8))
    sink.close()
    start = words.follower.servos[1].get("Present_Position")
    out = tmp_path / "set"
    camera = ("--camera", f"top=file:{noisy}", "--height", str(HEIGHT), "--width", str(WIDTH))
    command = [
        sys.executable,
        "-c",
        SMALL_DISK,
        "record",
        "--out",
        str(out),
        "--task",
        TASK,
        *words.arms(),
        *camera,
    ]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=TIMEOUT_S, stdin=subprocess.DEVNULL
    )
    assert done.returncode == 1, done.stdout + done.stderr
    assert "ended recording:" in " ".join(done.stdout.split())
    assert "free some disk space, then continue with --resume" in " ".join(done.stdout.split())
    assert "Traceback" not in done.stderr
    assert abs(words.follower.servos[1].get("Present_Position") - start) <= 2, "it rode home first"
    assert_limp(words.leader, words.follower)
    assert not out.exists(), "nothing was finished"


def wait_for(happened: Callable[[], bool]) -> None:
    for _ in range(900):
        if happened():
            return
        time.sleep(0.1)
    raise AssertionError("it did not happen in 90 s")


def test_what_is_missing_or_wrong_is_named(words: Words, refused: Refused) -> None:
    assert "--leader-port" in refused("teleoperate")
    alone = ("teleoperate", "--leader-port", words.leader.port)
    for part in ("--leader-calibration", "mtdit calibrate"):
        assert part in refused(*alone)
    leading = words.arms()[:4]
    for part in ("--port", "mtdit find-port"):
        assert part in refused("teleoperate", *leading)
    assert "--calibration" in refused("teleoperate", *leading, "--port", words.follower.port)
    itself = refused(
        "teleoperate", *leading, "--port", words.leader.port, "--calibration", str(EXAMPLE)
    )
    assert "an arm cannot lead itself" in itself
    record = ("record", "--out", "x", *words.arms())
    assert "--task" in refused(*record)
    assert "no file none.mp4" in refused(*record, "--task", TASK, "--camera", "top=file:none.mp4")
    assert "the task is empty" in refused(*record, "--task", "")
    assert "is too short" in refused(*record, "--task", TASK, "--episode-seconds", "0.1")
    for option in ("--home-seconds", "--bus-timeout", "--max-speed"):
        for value in ("inf", "nan", "-1"):
            assert option in refused("teleoperate", *words.arms(), option, value)
    twin = (
        "--robot",
        "twin",
        "--clock",
        "lockstep",
        "--fps",
        "20",
        "--height",
        "64",
        "--width",
        "64",
    )
    assert "use --clock real" in refused("teleoperate", *leading, *twin)
    assert "--port is for a real arm" in refused("teleoperate", *words.arms(), "--robot", "twin")
    assert_limp(words.leader, words.follower)


def rows(root: Path) -> dict[str, np.ndarray]:
    files = sorted((root / "data").glob("chunk-*/file-*.parquet"))
    tables = [
        pq.read_table(file, columns=["action", "observation.state", "episode_index"])
        for file in files
    ]
    return {
        name: np.concatenate([np.array(t[name].to_pylist()) for t in tables])
        for name in tables[0].column_names
    }


def test_record_by_timers_then_resume_then_replay(
    words: Words, tmp_path: Path, refused: Refused
) -> None:
    out, report = tmp_path / "set", tmp_path / "report.json"
    times = ("--episodes", "1", "--episode-seconds", "1", "--reset-seconds", "0.2")
    record = ("record", "--out", str(out), "--task", TASK, *words.arms(), *words.camera(), *times)
    done = mtdit(*record, "--json", str(report))
    assert done.returncode == 0, done.stdout + done.stderr
    assert "episode 1 saved: 1.0 s, 30 frames" in done.stdout
    assert "1 episodes saved (30 frames), 0 discarded" in done.stdout
    assert json.loads(report.read_text())["session"]["kept"] == 1
    assert_limp(words.leader, words.follower)

    assert "add --resume" in refused(*record)
    done = mtdit(*record, "--resume")
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{out} now has 2 episodes" in done.stdout
    from lerobot.datasets.lerobot_dataset import LeRobotDataset

    dataset = LeRobotDataset("mtdit/recorded", root=out, video_backend="pyav")
    assert (len(dataset), dataset.num_episodes, dataset[40]["task"]) == (60, 2, TASK)
    seen = [float(dataset[row]["observation.images.top"].mean()) * 255 for row in range(0, 30, 5)]
    assert np.ptp(seen) > 20, "the film moved on"
    check_semantics(rows(out), load(EXAMPLE))

    done = mtdit(
        "replay",
        "--dataset",
        str(out),
        "--episode",
        "1",
        *words.arm(),
        "--bus",
        "sdk",
        "--json",
        "-",
    )
    assert done.returncode == 0, done.stdout + done.stderr
    told = json.loads(done.stdout)
    assert "error to the action" in done.stderr, "words for people stand aside"
    assert told["ticks"] >= 28
    assert max(error["max"] for error in told["limited"].values()) < 1e-5
    assert max(error["mean"] for error in told["tracking"].values()) < 0.2, (
        "these servos jump to their goals"
    )
    assert_limp(words.follower)
    assert "no episode 7" in refused(
        "replay", "--dataset", str(out), "--episode", "7", *words.arm()
    )


def check_semantics(columns: dict[str, np.ndarray], calibration: Calibration) -> None:
    """Row t: the pose seen at t, the goal sent at t. These servos stand at their goal one tick
    later.
    """
    state, action = columns["observation.state"], columns["action"]
    same = np.flatnonzero(np.diff(columns["episode_index"]) == 0)
    errors = np.abs(state[same + 1] - action[same])
    assert np.median(errors) < 360 / 4095, "degrees, and one tick of the servo"
    assert (action[:, 5] >= 0).all()
    assert (action[:, 5] <= 100).all()


def test_record_by_keys(words: Words, terminal: Start, tmp_path: Path) -> None:
    """Ended early, thrown away, taken back, enough: what is kept is what the person meant."""
    out = tmp_path / "set"
    times = ("--episodes", "5", "--episode-seconds", "500", "--reset-seconds", "500")
    screen = terminal(
        "-m",
        "mtdit.cli",
        "record",
        "--out",
        str(out),
        "--task",
        TASK,
        *words.arms(),
        *words.camera(),
        *times,
    )
    screen.expect("RECORDING episode 1 of 5")
    time.sleep(EPISODE_S)
    screen.send("\x1b[C")  # right: keep it
    screen.expect("episode 1 saved")
    screen.send("x\n")  # a wrong key, then on
    screen.expect("RECORDING episode 2 of 5")
    time.sleep(EPISODE_S)
    screen.send("\x1b[D")  # left: record it again
    screen.expect("episode 2 discarded: it will be recorded again")
    screen.send("\n")
    screen.expect("RECORDING episode 2 of 5")
    time.sleep(EPISODE_S)
    screen.send("\n")
    screen.expect("episode 2 saved")
    screen.send("r")  # in the pause: delete it
    screen.expect("episode 2 deleted")
    screen.send("n")
    screen.expect("RECORDING episode 2 of 5")
    time.sleep(EPISODE_S)
    screen.send("q")
    assert screen.exit_code() == 0, screen.screen
    assert "2 episodes saved" in screen.screen
    assert "2 discarded" in screen.screen
    assert json.loads((out / "meta/info.json").read_text())["total_episodes"] == 2
    assert_limp(words.leader, words.follower)


def test_ctrl_c_in_an_episode_keeps_the_finished_ones(
    words: Words, terminal: Start, tmp_path: Path
) -> None:
    out = tmp_path / "set"
    times = ("--episodes", "5", "--episode-seconds", "500", "--reset-seconds", "0")
    screen = terminal(
        "-m",
        "mtdit.cli",
        "record",
        "--out",
        str(out),
        "--task",
        TASK,
        *words.arms(),
        *words.camera(),
        *times,
    )
    screen.expect("RECORDING episode 1 of 5")
    time.sleep(EPISODE_S)
    screen.send("n")
    screen.expect("RECORDING episode 2 of 5")
    screen.send("\x03")
    assert screen.exit_code() == 130
    assert "1 episodes saved" in screen.screen
    assert "being recorded at the end was not saved" in screen.screen
    assert json.loads((out / "meta/info.json").read_text())["total_episodes"] == 1
    assert_limp(words.leader, words.follower)


def test_the_twin_is_recorded_and_replayed(
    leader: Waving, tmp_path: Path, refused: Refused
) -> None:
    leader.swing_ticks = (
        60  # 5 degrees: far from table and drawer, where a hair's breadth decides what is touched
    )
    out, report = tmp_path / "set", tmp_path / "report.json"
    twin = ("--robot", "twin", "--clock", "lockstep", "--bus-timeout", "2")
    leading = (
        "--leader-port",
        leader.port,
        "--leader-calibration",
        str(EXAMPLE),
        "--height",
        "64",
        "--width",
        "64",
    )
    times = ("--episodes", "1", "--episode-seconds", "1", "--reset-seconds", "0")
    done = mtdit("record", "--out", str(out), "--task", "open the drawer", *twin, *leading, *times)
    assert done.returncode == 0, done.stdout + done.stderr
    done = mtdit("replay", "--dataset", str(out), *twin, "--json", str(report))
    assert done.returncode == 0, done.stdout + done.stderr
    told = json.loads(report.read_text())
    assert told["ticks"] == 30
    errors = {joint: error["mean"] for joint, error in told["recorded"].items()}
    assert max(errors.values()) < 2, f"the same commands move it alike: {errors}"
    assert "open the drawer" in refused(
        "record", "--out", str(out), "--task", "open the drawr", *twin, *leading
    )


def test_find_cameras(film: Path, tmp_path: Path, refused: Refused) -> None:
    import cv2

    cameras = ("--camera", f"top=file:{film}", "--camera", f"wrist=file:{film}")
    size = ("--height", str(HEIGHT), "--width", str(WIDTH), "--seconds", "2")
    shots, report = tmp_path / "shots", tmp_path / "cameras.json"
    done = mtdit("find-cameras", *cameras, *size, "--snapshots", str(shots), "--json", str(report))
    assert done.returncode == 0, done.stdout + done.stderr
    watched = json.loads(report.read_text())["watched"]
    assert [one["name"] for one in watched] == ["top", "wrist"]
    assert all(5 < one["rate_hz"] < 40 for one in watched)
    assert cv2.imread(str(shots / "wrist.png")).shape == (HEIGHT, WIDTH, 3)
    assert f"no camera in {tmp_path}" in refused("find-cameras", "--dev", str(tmp_path))
    (tmp_path / "video0").write_text("")
    done = mtdit("find-cameras", "--dev", str(tmp_path))
    assert done.returncode == 1
    assert "is not a camera" in done.stdout
