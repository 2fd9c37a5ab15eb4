"""No kill costs a finished episode."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from small_recording import CAMERAS, LENGTHS, TASKS, fill, layout, lerobot, state, write

from mtdit.data.lerobot_dataset import open_dataset
from mtdit_robots.errors import UserError
from mtdit_runtime.recording.dataset_layout import ASIDE
from mtdit_runtime.recording.dataset_writer import DatasetWriter


def test_every_half_done_commit_reads_and_goes_on(tmp_path: Path) -> None:
    """A kill between any two of the renames that add an episode: the dataset has one more or not,
    and is whole.
    """

    class Killed(DatasetWriter):
        steps = 0

        def _staged(self, *details: Any) -> list[tuple[Path, Path]]:
            return super()._staged(*details)[: self.steps]

    write(tmp_path / "first", lengths=LENGTHS[:2])
    n_moves = len(CAMERAS) + 6
    for steps in range(n_moves + 1):
        root = tmp_path / f"killed-{steps}"
        shutil.copytree(tmp_path / "first", root)
        recording = Killed(root, layout(), resume=True, wait=True)
        recording.steps = steps
        recording.save_episode(fill(recording, 2, 9))
        # the process is gone: the kernel releases its lock, nothing else is cleaned up
        recording._lock.close()
        dataset = lerobot(root)
        counted = 3 if steps == n_moves else 2
        assert dataset.meta.total_episodes == counted, steps
        assert dataset[LENGTHS[0] + LENGTHS[1] - 1]["task"] == TASKS[1]
        n_ours = len(open_dataset(str(root)).episode_ends)
        assert n_ours == (3 if steps >= n_moves - 2 else 2), steps
        again = DatasetWriter(root, layout(), resume=True, wait=True)
        assert again.n_episodes == n_ours
        again.save_episode(fill(again, 1, 7))
        again.close()
        dataset = lerobot(root)
        assert (dataset.num_episodes, len(dataset)) == (
            n_ours + 1,
            sum(LENGTHS[:2]) + 9 * (n_ours == 3) + 7,
        ), steps
        np.testing.assert_array_equal(
            dataset[len(dataset) - 1]["observation.state"].numpy(), state(1, 6)
        )
        assert len(open_dataset(str(root)).episode_ends) == n_ours + 1


RECORD = """
import sys, numpy as np
from pathlib import Path
from mtdit_robots.so101.joints import JOINTS
from mtdit_runtime.recording.dataset_layout import DatasetLayout
from mtdit_runtime.recording.dataset_writer import DatasetWriter
layout = DatasetLayout(10, JOINTS, {"top": (48, 64), "wrist": (64, 64)})
recording = DatasetWriter(Path(sys.argv[1]), layout, resume=True, wait=True)
for episode in range(3):
    taking = recording.begin("open the drawer")
    for i in range(400 if episode == 2 else 8):
        frames = {c: np.full((*s, 3), i % 256, np.uint8) for c, s in layout.cameras.items()}
        taking.add(np.full(6, i), np.full(6, i), frames)
        if episode == 2 and i == 200:
            print("under way", flush=True)
            sys.stdin.read()
    recording.save_episode(taking)
"""


def test_a_killed_recording_keeps_every_finished_episode(tmp_path: Path) -> None:
    root = tmp_path / "set"
    command = [sys.executable, "-c", RECORD, str(root)]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "under way\n"
        os.kill(process.pid, signal.SIGKILL)
    assert (root / ASIDE).is_dir(), "the third episode was under way"
    dataset = lerobot(root)
    assert (len(dataset), dataset.num_episodes) == (16, 2)
    assert float(dataset[15]["observation.state"][0]) == 7
    assert dataset[15]["observation.images.wrist"].mean() * 255 == pytest.approx(7, abs=3)
    recording = DatasetWriter(root, layout(), resume=True, wait=True)
    recording.save_episode(fill(recording, 0, 5))
    recording.close()
    dataset = lerobot(root)
    assert (len(dataset), dataset.num_episodes) == (21, 3)
    assert not (root / ASIDE).exists()


def test_two_recordings_do_not_share_a_folder(tmp_path: Path) -> None:
    """The second one would remove what the first has under way."""
    root = tmp_path / "set"
    command = [sys.executable, "-c", RECORD, str(root)]
    first = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert first.stdout is not None
    assert first.stdout.readline() == "under way\n"
    with pytest.raises(UserError, match=r"another program records into .*: wait for it"):
        DatasetWriter(root, layout(), resume=True)
    first.communicate()
    assert first.returncode == 0
    assert lerobot(root).num_episodes == 3
    DatasetWriter(root, layout(), resume=True).close()
