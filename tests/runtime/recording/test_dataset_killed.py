"""No kill costs a finished episode, and each leaves a dataset that opens."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from moments import moments_of
from small_recording import fill, layout, lerobot, state

from mtdit.data.lerobot_dataset import open_dataset
from mtdit_robots.errors import UserError
from mtdit_runtime.recording.dataset_layout import ASIDE
from mtdit_runtime.recording.dataset_resume import has_episodes
from mtdit_runtime.recording.dataset_writer import DatasetWriter

SESSION = """
from small_recording import fill, layout
from mtdit_runtime.recording.dataset_writer import DatasetWriter
writer = DatasetWriter(folder, layout(), wait=True)
for episode, length in {lengths}:
    if episode == 2:
        writer.drop_last()
    writer.save_episode(fill(writer, episode, length))
writer.close()
"""
SAVED = ((0, 4), (1, 5), (2, 6))  # episode and length; the second one is dropped


def test_a_kill_at_any_moment_leaves_a_dataset_that_opens(tmp_path: Path) -> None:
    """Each state that the files of a session pass through: it has the episodes that were whole, for
    us and for LeRobot, and a session goes on with it.
    """
    script = SESSION.format(lengths=SAVED)
    counts = [_check_moment(root) for root in moments_of(script, tmp_path / "set", ASIDE)]
    assert len(counts) > 20
    grown = [count for count, before in zip(counts, [-1, *counts], strict=False) if count != before]
    assert grown == [0, 1, 2, 1, 2], "no whole episode is lost, and none comes back"


def _check_moment(root: Path) -> int:
    before = _states(root)
    if len(before):
        assert abs(lerobot(root).num_episodes - len(before)) <= 1, "counters follow"
    again = DatasetWriter(root, layout(), resume=True, wait=True)
    assert again.n_episodes == len(before)
    again.save_episode(fill(again, 3, 3))
    again.close()
    expected = [state(episode, i) for episode, length in (*before, (3, 3)) for i in range(length)]
    dataset = lerobot(root)
    assert (dataset.num_episodes, len(dataset)) == (len(before) + 1, len(expected))
    np.testing.assert_array_equal(np.stack(dataset.hf_dataset["observation.state"]), expected)
    assert dataset[len(dataset) - 1]["observation.images.top"].shape == (3, 48, 64)
    assert _states(root) == (*before, (3, 3))
    return len(before)


def _states(root: Path) -> tuple[tuple[int, int], ...]:
    """Which episodes a dataset has, as in SAVED."""
    if not has_episodes(root):
        with pytest.raises(UserError, match="no episodes yet; record some with `mtdit record --re"):
            open_dataset(str(root))
        return ()
    dataset = open_dataset(str(root))
    firsts = {state(episode, 0).tobytes(): episode for episode in range(4)}
    starts, ends = dataset.episode_starts.tolist(), dataset.episode_ends.tolist()
    found = [(firsts[dataset.state[s].tobytes()], e - s) for s, e in zip(starts, ends, strict=True)]
    for (episode, length), start in zip(found, starts, strict=True):
        expected = [state(episode, i) for i in range(length)]
        np.testing.assert_array_equal(dataset.state[start : start + length], expected)
    return tuple(found)


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
