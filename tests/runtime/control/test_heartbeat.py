"""A run's heartbeat, as another process sees it: fresh, silent, or left behind by a killed run."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from mtdit_runtime.control.clock import LockstepClock
from mtdit_runtime.control.heartbeat import (
    MAX_SILENT_S,
    BeatingClock,
    Heartbeat,
    Running,
    heartbeat,
    heartbeats,
    run_folder,
)

RUN = Running("toy", "open the drawer")


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MTDIT_RUN_DIR", str(tmp_path / "run"))
    return tmp_path / "run"


def only() -> Heartbeat:
    (seen,) = heartbeats()
    return seen


def test_a_run_that_ticks_is_fresh_until_it_ends(folder: Path) -> None:
    with heartbeat(RUN, print) as beat:
        clock = BeatingClock(LockstepClock(), beat)
        (file,) = folder.iterdir()
        os.utime(file, (0, 0))  # it was silent for decades
        assert not only().is_fresh
        clock.wait_until(clock.now_s() + 1)
        assert only() == Heartbeat(RUN, True, pytest.approx(0, abs=MAX_SILENT_S))
        assert only().is_fresh
    assert list(folder.iterdir()) == []


def test_a_loop_that_hangs_is_silent() -> None:
    with heartbeat(RUN, print):
        (seen,) = heartbeats(now_s=time.time() + 60)
        assert seen.is_alive
        assert seen.silent_s >= 59
        assert not seen.is_fresh


def test_what_a_killed_run_left_is_told_and_removed_by_the_next(folder: Path) -> None:
    code = (
        "import os, signal\n"
        "from mtdit_runtime.control.heartbeat import Running, heartbeat\n"
        "with heartbeat(Running('killed', 'x'), print):\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=False)
    assert (only().run.policy, only().is_alive) == ("killed", False)
    with heartbeat(RUN, print), heartbeat(Running("other arm", "y"), print):
        assert {seen.run.policy for seen in heartbeats()} == {"toy", "other arm"}


def test_a_folder_that_takes_no_file_is_said_and_stops_no_run(folder: Path) -> None:
    folder.write_text("a file in its place")
    said: list[str] = []
    with heartbeat(RUN, said.append) as beat:
        beat()
    assert len(said) == 1
    assert str(folder) in said[0]


def test_where_it_is(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    assert run_folder() == folder
    monkeypatch.delenv("MTDIT_RUN_DIR")
    monkeypatch.setenv("XDG_RUNTIME_DIR", "/run/user/1000")
    assert run_folder() == Path("/run/user/1000/mtdit")
    monkeypatch.delenv("XDG_RUNTIME_DIR")
    assert run_folder() is None
    assert heartbeats() == []
