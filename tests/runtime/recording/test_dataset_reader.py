"""What we wrote is read back, and damage is named."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from small_recording import CAMERAS, FPS, LENGTHS, TASKS, layout, picture, state, write

from mtdit.data.frame_cache import StoredDataset
from mtdit.data.lerobot_dataset import open_dataset
from mtdit_robots.errors import UserError
from mtdit_robots.so101.joints import JOINTS
from mtdit_runtime.recording.dataset_layout import INFO
from mtdit_runtime.recording.dataset_layout import TASKS as TASKS_FILE
from mtdit_runtime.recording.dataset_reader import read_episode
from mtdit_runtime.recording.dataset_writer import DatasetWriter


def test_our_trainer_reads_the_same(recorded: tuple[Path, bool]) -> None:
    root, is_video = recorded
    dataset = open_dataset(str(root))
    assert (dataset.fps, dataset.joints, dataset.tasks) == (FPS, JOINTS, TASKS)
    assert dataset.episode_ends.tolist() == np.cumsum(LENGTHS).tolist()
    assert {camera: shape[:2] for camera, shape in dataset.cameras.items()} == CAMERAS
    rows = dict(StoredDataset(dataset, None).decoded("wrist"))
    assert len(rows) == sum(LENGTHS)
    assert np.abs(rows[LENGTHS[0] + 3].astype(int) - picture("wrist", 1, 3)).mean() < (
        4 if is_video else 1e-3
    )


def test_an_episode_is_read_back(recorded: tuple[Path, bool]) -> None:
    episode = read_episode(recorded[0], 1)
    assert (episode.fps, episode.joints, episode.task, len(episode.states)) == (
        FPS,
        JOINTS,
        TASKS[1],
        LENGTHS[1],
    )
    np.testing.assert_array_equal(episode.actions[4], (state(1, 4) + 1).astype(np.float64))
    with pytest.raises(UserError, match="has no episode 3: it has episodes 0 to 2"):
        read_episode(recorded[0], 3)


@pytest.mark.parametrize(
    ("file", "content"),
    [
        (INFO, b'{"codebase_version": "v3.0", "fps'),
        (INFO, b"[]"),
        (INFO, b'{"codebase_version": "v3.0"}'),
        (INFO, b"\xff\xfe"),
        (TASKS_FILE, b"PAR1junk"),
        ("meta/episodes/chunk-000/file-000.parquet", b""),
        ("data/chunk-000/file-000.parquet", b"PAR1" * 9),
    ],
)
def test_damage_is_named(tmp_path: Path, file: str, content: bytes) -> None:
    """Whatever a bad disk or a bad copy made of it: one line, and nothing more is written."""
    root = tmp_path / "set"
    write(root, lengths=LENGTHS[:1])
    (root / file).write_bytes(content)
    before = {path: path.read_bytes() for path in root.rglob("*") if path.is_file()}
    if not file.startswith("data"):
        with pytest.raises(UserError, match=re.escape(str(root))):
            DatasetWriter(root, layout(), resume=True)
    with pytest.raises(UserError, match=re.escape(str(root))):
        read_episode(root, 0)
    assert {path: path.read_bytes() for path in root.rglob("*") if path.is_file()} == before
