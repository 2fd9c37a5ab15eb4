"""Episodes are added and taken out again; folders that are not ours are refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from small_recording import CAMERAS, FPS, LENGTHS, TASKS, fill, layout, lerobot, state, write

from mtdit_robots.errors import UserError
from mtdit_robots.so101.joints import JOINTS
from mtdit_runtime.recording.dataset_layout import INFO, DatasetLayout
from mtdit_runtime.recording.dataset_writer import DatasetWriter


def test_a_second_session_goes_on(tmp_path: Path) -> None:
    root = write(tmp_path / "set", lengths=LENGTHS[:2])
    recording = DatasetWriter(root, layout(), resume=True, wait=True)
    recording.save_episode(fill(recording, 2, LENGTHS[2]))
    recording.close()
    once = write(tmp_path / "once")
    for file in (INFO, "meta/stats.json"):
        assert_close(json.loads((root / file).read_text()), json.loads((once / file).read_text()))
    dataset = lerobot(root)
    assert (len(dataset), dataset.num_episodes) == (sum(LENGTHS), 3)
    assert dataset[sum(LENGTHS) - 1]["task"] == TASKS[0]


def assert_close(found: Any, wanted: Any) -> None:
    if isinstance(wanted, dict):
        assert found.keys() == wanted.keys()
        for key in wanted:
            assert_close(found[key], wanted[key])
    elif isinstance(wanted, list) and wanted and not isinstance(wanted[0], str):
        np.testing.assert_allclose(
            np.array(found, float), np.array(wanted, float), rtol=1e-6, atol=1e-9
        )
    else:
        assert found == wanted


def test_the_last_episode_can_be_taken_out_again(tmp_path: Path) -> None:
    root = write(tmp_path / "set", lengths=LENGTHS[:1])
    before = files_below(root)
    recording = DatasetWriter(root, layout(), resume=True, wait=True)
    assert not recording.drop_last(), "an earlier session's episode is not ours to drop"
    recording.save_episode(fill(recording, 1, 11))
    assert recording.drop_last()
    assert recording.n_episodes == 1
    recording.save_episode(fill(recording, 2, 9))
    recording.close()
    assert files_below(root) > before
    dataset = lerobot(root)
    assert (len(dataset), dataset.num_episodes) == (LENGTHS[0] + 9, 2)
    assert dataset[LENGTHS[0]]["task"] == TASKS[0]
    np.testing.assert_array_equal(dataset[LENGTHS[0] + 8]["observation.state"].numpy(), state(2, 8))


def files_below(root: Path) -> set[Path]:
    return {path.relative_to(root) for path in root.rglob("*") if path.is_file()}


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (DatasetLayout(30, JOINTS, CAMERAS), "has fps 10, not 30: choose another folder"),
        (
            DatasetLayout(FPS, JOINTS, {"top": (48, 64)}),
            "wrist as video 64x64x3, this arm gives nothing",
        ),
        (
            DatasetLayout(FPS, JOINTS, CAMERAS, video=False),
            r"observation.images.top as video 48x64x3, this arm gives image",
        ),
        (
            DatasetLayout(FPS, JOINTS[:5], CAMERAS),
            "action has joints shoulder_pan, .*, gripper; this arm has joints shoulder_pan, .*, "
            "wrist_roll: this arm has no 'gripper': choose another folder",
        ),
    ],
)
def test_another_layout_is_refused(
    recorded: tuple[Path, bool], other: DatasetLayout, message: str
) -> None:
    root, is_video = recorded
    if is_video:
        with pytest.raises(UserError, match=message):
            DatasetWriter(root, other, resume=True)


def test_folders_that_are_not_ours(tmp_path: Path) -> None:
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis/chapter.txt").write_text("years of work")
    with pytest.raises(
        UserError, match=r"contains chapter.txt but is not a dataset: choose another folder"
    ):
        DatasetWriter(tmp_path / "thesis", layout(), resume=True)
    write(tmp_path / "set", lengths=(3,))
    with pytest.raises(UserError, match=r"add --resume \(resume=True in Python\) to continue it"):
        DatasetWriter(tmp_path / "set", layout())
    with pytest.raises(UserError, match="video needs an even width and height"):
        DatasetWriter(tmp_path / "odd", DatasetLayout(FPS, JOINTS, {"top": (47, 64)}))
    with pytest.raises(UserError, match="fps must be at least 1, got 0: use 30"):
        DatasetWriter(tmp_path / "still", DatasetLayout(0, JOINTS, CAMERAS))


def test_a_session_without_an_episode_leaves_nothing(tmp_path: Path) -> None:
    recording = DatasetWriter(tmp_path / "set", layout(), wait=True)
    fill(recording, 0, 5).discard()
    with pytest.raises(UserError, match="an episode of 1 frames is too short"):
        recording.save_episode(fill(recording, 0, 1))
    recording.close()
    assert not (tmp_path / "set").exists()
