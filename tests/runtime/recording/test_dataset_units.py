"""A dataset says its unit, or is judged; a mix of two is refused."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from small_recording import LENGTHS, TASKS, layout, lerobot, write

from mtdit_robots.errors import UserError
from mtdit_runtime.recording.dataset_layout import RECORDER, DatasetLayout
from mtdit_runtime.recording.dataset_reader import RecordedDataset, read_dataset
from mtdit_runtime.recording.dataset_units import dataset_units
from mtdit_runtime.recording.dataset_writer import DatasetWriter


def write_rows(root: Path, units: str, *episodes: np.ndarray) -> RecordedDataset:
    """A dataset without cameras whose states and actions are these (N, 6)."""
    blind = DatasetLayout(10, layout().joints, {}, units=units)
    writer = DatasetWriter(root, blind, wait=True)
    for rows in episodes:
        episode = writer.begin(TASKS[0])
        for row in rows:
            episode.add(row, row, {})
        writer.save_episode(episode)
    writer.close()
    return read_dataset(root)


WAVE = np.stack([np.sin(np.arange(60) / 9 + k) for k in range(6)], axis=1)
IN_DEGREES = np.round(WAVE * 600 / 0.5) * 0.5 * 360 / 4095  # whole half ticks
NORMALIZED = np.clip(WAVE * 104, -100, 100)


def test_a_recording_says_its_unit_and_lerobot_does_not_mind(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    root = write(tmp_path / "set", lengths=LENGTHS[:1])
    assert json.loads((root / RECORDER).read_text()) == {"units": "degrees"}
    assert dataset_units(read_dataset(root)).units == "degrees"
    with caplog.at_level("WARNING"):
        assert lerobot(root).num_frames == LENGTHS[0]
    assert not [r for r in caplog.records if "Unknown fields" in r.message]


def test_without_a_word_of_its_recorder_the_numbers_decide(tmp_path: Path) -> None:
    for name, rows in (("degrees", IN_DEGREES), ("normalized", NORMALIZED)):
        dataset = write_rows(tmp_path / name, name, rows)
        (dataset.root / RECORDER).unlink()
        assert dataset_units(dataset).units == name


def test_a_merge_of_two_units_is_refused(tmp_path: Path) -> None:
    dataset = write_rows(tmp_path / "set", "degrees", IN_DEGREES, NORMALIZED)
    with pytest.raises(UserError, match=r"degrees \(meta/mtdit\.json\).*\(episode 1\)"):
        dataset_units(dataset)
    (dataset.root / RECORDER).unlink()
    with pytest.raises(UserError, match=r"degrees \(episode 0\).*\(episode 1\)"):
        dataset_units(dataset)


def test_episodes_that_contradict_the_recorder_are_named(tmp_path: Path) -> None:
    dataset = write_rows(tmp_path / "set", "normalized", WAVE * 131)
    with pytest.raises(UserError, match="says normalized, but state shoulder_pan reaches"):
        dataset_units(dataset)


@pytest.mark.parametrize("content", ['{"units": "ticks"}', "{}", "[", '{"units": 3}'])
def test_a_damaged_word_is_named(tmp_path: Path, content: str) -> None:
    dataset = write_rows(tmp_path / "set", "degrees", IN_DEGREES)
    (dataset.root / RECORDER).write_text(content)
    with pytest.raises(UserError, match=r"mtdit\.json.*remove that file"):
        dataset_units(dataset)
