"""A recording that was killed: what happened is said, and what is whole is kept."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import av
import numpy as np
import pyarrow.parquet as pq
import pytest
from command_line import mtdit
from edited_sets import BARE, bare_set, edit_tables, merge_data, tables
from moments import moments_of
from small_recording import CAMERAS, FPS, LENGTHS, TASKS, fill, layout, lerobot, picture, state
from small_recording import write as recorded_set

from mtdit.data.frame_cache import StoredDataset
from mtdit.data.lerobot_dataset import open_dataset
from mtdit_robots.errors import UserError
from mtdit_runtime.recording.dataset_reader import read_dataset
from mtdit_runtime.recording.dataset_repair import STAGING, repair
from mtdit_runtime.recording.dataset_writer import DatasetWriter


def cut(file: Path) -> None:
    """The file as a killed writer leaves it: its footer is missing."""
    footer = pq.ParquetFile(file).metadata.serialized_size + 8
    file.write_bytes(file.read_bytes()[:-footer])


def refused(root: Path) -> str:
    """What the reader says; a session says the same, and touches nothing."""
    before = {file: file.read_bytes() for file in root.rglob("*") if file.is_file()}
    with pytest.raises(UserError) as caught:
        read_dataset(root)
    with pytest.raises(UserError) as again:
        DatasetWriter(root, BARE, resume=True)
    assert str(again.value) == str(caught.value)
    assert {file: file.read_bytes() for file in root.rglob("*") if file.is_file()} == before
    return str(caught.value)


def assert_kept(root: Path, episodes: list[int]) -> None:
    """The dataset has these of the recorded episodes, for us and for LeRobot, and a session goes
    on with it.
    """
    dataset, theirs = read_dataset(root), lerobot(root)
    states = [state(e, i) for e in episodes for i in range(LENGTHS[e])]
    np.testing.assert_array_equal(dataset.state, states)
    assert [row["episode_index"] for row in dataset.episodes] == list(range(len(episodes)))
    assert (len(theirs), theirs.num_episodes) == (len(states), len(episodes))
    starts = dataset.episode_starts.tolist()
    for row, episode in zip(starts, episodes, strict=True):
        item = theirs[row]
        assert item["task"] == TASKS[episode % 2] == dataset.tasks[dataset.task[row]]
        assert (int(item["index"]), int(item["frame_index"])) == (row, 0)
        np.testing.assert_array_equal(item["observation.state"].numpy(), states[row])
    low = np.min(states, axis=0)
    np.testing.assert_allclose(theirs.meta.stats["observation.state"]["min"], low, atol=1e-6)


def test_the_newest_data_file_is_cut_off(tmp_path: Path) -> None:
    root = bare_set(tmp_path / "my set")
    victim = tables(root, "data")[2]
    cut(victim)
    said = refused(root)
    assert f"the recording was interrupted ({victim} cannot be read, it has no footer)" in said
    assert (
        f"whole episodes: 0 to 1, lost: 2; keep the whole ones with `mtdit repair '{root}'`" in said
    )
    done = mtdit("repair", root)
    assert done.returncode == 0, done.stderr
    assert "now has 2 whole episodes; lost: 2" in " ".join(done.stdout.split())
    assert_kept(root, [0, 1])
    aside = tmp_path / "my set.interrupted"
    assert (aside / victim.relative_to(root)).is_file(), "nothing is deleted"
    bare_set(root, (5,), resume=True)
    assert len(read_dataset(root).episodes) == 3


@pytest.mark.parametrize("victim", [0, 1, 2])
def test_one_of_several_data_files(tmp_path: Path, victim: int) -> None:
    """Episodes behind the lost one are counted anew."""
    root = bare_set(tmp_path / "set")
    cut(tables(root, "data")[victim])
    report = repair(root)
    assert (report.kept, report.lost) == (2, (victim,))
    assert_kept(root, [e for e in range(3) if e != victim])


def test_a_lost_episode_in_a_shared_data_file(tmp_path: Path) -> None:
    root = bare_set(tmp_path / "set")
    merge_data(root)
    edit_tables(root, "data", lambda t: t.slice(0, len(t) - 2))
    with pytest.raises(UserError, match=r"7 frames of episode 2, .*lists 9.*`mtdit repair"):
        read_dataset(root)
    assert repair(root).lost == (2,)
    assert_kept(root, [0, 1])


@pytest.mark.parametrize("damage", [cut, lambda file: file.write_bytes(b""), Path.unlink])
def test_the_list_of_episodes_is_gone(tmp_path: Path, damage: Callable[[Path], object]) -> None:
    """The rows are whole, so the list is made again; also where nothing of it was written."""
    root = bare_set(tmp_path / "set")
    for file in tables(root, "meta/episodes"):
        damage(file)
    assert "whole episodes: 0 to 2; keep" in refused(root)
    assert (repair(root).kept, repair(root).aside) == (3, None)
    assert_kept(root, [0, 1, 2])


@pytest.mark.parametrize("listed", [0, 1, 2])
def test_episodes_find_their_place_in_the_videos(tmp_path: Path, listed: int) -> None:
    """LeRobot lists ten episodes at once: those behind the listed ones are in the videos too."""
    root = shared_videos(tmp_path / "set")
    file = tables(root, "meta/episodes")[0]
    whole = pq.read_table(file)
    pq.write_table(whole.slice(0, listed), file)
    if not listed:
        cut(file)
    data = tables(root, "data")[0]
    data.with_name("file-001.parquet").write_bytes(b"PAR1")  # the next file, just begun
    assert repair(root).kept == 3
    assert_kept(root, [0, 1, 2])
    columns = [name for name in whole.column_names if name.startswith("videos/")]
    assert columns
    places = [
        pq.read_table(tables(root, "meta/episodes")[0]).select(columns),
        whole.select(columns),
    ]
    assert places[0].to_pylist() == places[1].to_pylist()


def shared_videos(root: Path) -> Path:
    """Three episodes in one data file and one video per camera, written by LeRobot."""
    dataset = begun(root)
    add_episodes(dataset, range(3))
    dataset.finalize()
    return root


def begun(root: Path) -> Any:
    from lerobot.datasets.lerobot_dataset import LeRobotDataset

    features = layout().features()
    return LeRobotDataset.create("mtdit/it", FPS, features, root=root, robot_type="so_follower")


def add_episodes(dataset: Any, episodes: range) -> None:
    for episode in episodes:
        for i in range(LENGTHS[episode]):
            frames = {f"observation.images.{c}": picture(c, episode, i) for c in CAMERAS}
            vectors = {"observation.state": state(episode, i), "action": state(episode, i) + 1}
            dataset.add_frame({**vectors, **frames, "task": TASKS[episode % 2]})
        dataset.save_episode()


def test_lerobot_killed_in_its_second_session(tmp_path: Path) -> None:
    """A real one: the folder as it is on the disk before LeRobot's `finalize`."""
    from lerobot.datasets.lerobot_dataset import LeRobotDataset

    root, recorded = tmp_path / "killed", tmp_path / "set"
    dataset = begun(recorded)
    add_episodes(dataset, range(2))
    dataset.finalize()
    dataset = LeRobotDataset.resume("mtdit/it", root=recorded)
    add_episodes(dataset, range(2, 3))
    shutil.copytree(recorded, root)
    dataset.finalize()
    assert "whole episodes: 0 to 1, lost: 2" in refused_to_us(root)
    repair(root)
    assert_kept(root, [0, 1])
    frames = dict(StoredDataset(open_dataset(str(root)), None).decoded("top"))
    last = frames[sum(LENGTHS[:2]) - 1].astype(int)
    assert np.abs(last - picture("top", 1, LENGTHS[1] - 1)).mean() < 4
    writer = DatasetWriter(root, layout(), resume=True, wait=True)
    writer.save_episode(fill(writer, 2, LENGTHS[2]))
    writer.close()
    assert_kept(root, [0, 1, 2])


def refused_to_us(root: Path) -> str:
    with pytest.raises(UserError) as caught:
        read_dataset(root)
    return str(caught.value)


@pytest.mark.parametrize("is_front", [False, True])
def test_a_video_that_is_cut_off(tmp_path: Path, is_front: bool) -> None:
    """Our films have their index at the end, LeRobot's at the front: those open, cut off as they
    are, and say that they are whole.
    """
    root = recorded_set(tmp_path / "set")
    video = root / "videos/observation.images.wrist/chunk-000/file-001.mp4"
    if is_front:
        with_index_in_front(video)
    video.write_bytes(video.read_bytes()[:-900])
    with pytest.raises(UserError, match=r"file-001.mp4 is missing or ends before episode 1 does"):
        DatasetWriter(root, layout(), resume=True)
    assert repair(root).lost == (1,)
    assert_kept(root, [0, 2])


def with_index_in_front(video: Path) -> None:
    moved = video.with_suffix(".moved.mp4")
    options = {"movflags": "faststart"}
    with av.open(str(video)) as source, av.open(str(moved), "w", options=options) as out:
        stream = out.add_stream_from_template(source.streams.video[0])
        for packet in source.demux(video=0):
            if packet.dts is not None:
                packet.stream = stream
                out.mux(packet)
    moved.replace(video)


def test_nothing_to_repair(tmp_path: Path) -> None:
    root = bare_set(tmp_path / "set")
    before = {file: file.read_bytes() for file in root.rglob("*") if file.is_file()}
    assert mtdit("repair", root).stdout.split()[:4] == ["all", "3", "episodes", "of"]
    assert {file: file.read_bytes() for file in root.rglob("*") if file.is_file()} == before


def test_nothing_is_whole(tmp_path: Path) -> None:
    root = bare_set(tmp_path / "set", LENGTHS[:1])
    cut(tables(root, "data")[0])
    assert "no episode is whole, so record again into another folder" in refused(root)
    done = mtdit("repair", root)
    assert (done.returncode, "no episode is whole" in done.stderr) == (2, True)
    assert mtdit("repair", tmp_path / "nowhere").returncode == 2


def test_leftovers_that_a_session_would_meet_again(tmp_path: Path) -> None:
    """Rows of an episode that nothing lists: the next episode would have its number."""
    root = bare_set(tmp_path / "set")
    merge_data(root)
    tables(root, "meta/episodes")[2].unlink()
    with pytest.raises(UserError, match="frames of an episode that meta/episodes does not"):
        DatasetWriter(root, BARE, resume=True)
    shutil.copytree(root, tmp_path / "read")
    assert len(read_dataset(root).episodes) == 2
    assert repair(root).kept == 3
    assert_kept(root, [0, 1, 2])


def test_a_repair_can_be_killed_at_any_moment(tmp_path: Path) -> None:
    """The first of three episodes is lost, so numbers and files of the others change. What is left
    is the interrupted recording or asks for the rest of the repair, which then ends.
    """
    root = bare_set(tmp_path / "set")
    cut(tables(root, "data")[0])
    script = "from mtdit_runtime.recording.dataset_repair import repair\nrepair(folder)"
    moments = moments_of(script, root, STAGING)
    said = []
    for moment in moments:
        try:
            assert len(read_dataset(moment).episodes) == 2
        except UserError as error:
            said.append(str(error))
        repair(moment)
        assert_kept(moment, [1, 2])
    assert len(said) < len(moments)
    asks = [line for line in said if "its repair was interrupted; run `mtdit repair " in line]
    assert 0 < len(asks) < len(said)
    assert all("keep the whole ones with" in line for line in said if line not in asks)
