"""`mtdit record` and `mtdit replay` as typed: virtual servos, films as cameras."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from command_line import mtdit
from driven_arms import (
    EPISODE_S,
    HEIGHT,
    TASK,
    TIMEOUT_S,
    WIDTH,
    Refused,
    Start,
    Words,
    assert_limp,
)
from full_disk import LIMIT
from repository import EXAMPLE

from mtdit.cli import main
from mtdit_robots.errors import UserError
from mtdit_robots.so101.calibration import Calibration, load
from mtdit_runtime.recording.video_encoder import CODECS, VideoSink
from mtdit_runtime.teleoperate import DriveOptions

if TYPE_CHECKING:
    from servo_chain import Waving


SMALL_DISK = f"""{LIMIT.format(bytes=100_000)}
import runpy, signal
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
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


def recording(terminal: Start, words: Words, out: Path, *times: str) -> Any:
    """`mtdit record` into `out` in a terminal of its own."""
    record = ("record", "--out", str(out), "--task", TASK)
    return terminal("-m", "mtdit.cli", *record, *words.arms(), *words.camera(), *times)


def test_record_by_keys(words: Words, terminal: Start, tmp_path: Path) -> None:
    """Ended early, thrown away, taken back, enough: what is kept is what the person meant."""
    out = tmp_path / "set"
    times = ("--episodes", "5", "--episode-seconds", "500", "--reset-seconds", "500")
    screen = recording(terminal, words, out, *times)
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
    screen = recording(terminal, words, out, *times)
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


def test_the_options_of_replay_reach_the_loop(
    run_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Teleoperation makes its options in the same place."""
    seen = []

    def driven(_robot: Any, _episode: Any, options: DriveOptions, **_: Any) -> None:
        seen.append(options)
        raise UserError("seen")

    monkeypatch.setattr("mtdit_runtime.replay.replay", driven)
    words = ("--dataset", str(run_folder / "dataset"), "--robot", "twin", "--clock", "lockstep")
    given = ("--max-speed", "40", "--home-seconds", "1.5")
    monkeypatch.setattr(sys, "argv", ["mtdit", "replay", *words, *given])
    with pytest.raises(SystemExit):
        main()
    assert seen == [DriveOptions(30, lockstep=True, max_speed=40.0, home_s=1.5)]
