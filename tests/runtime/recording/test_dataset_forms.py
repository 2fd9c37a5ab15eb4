"""One dataset in the many forms that converters, merges, editors and older recorders write: it is
read as what it is, or refused with what to do.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from command_line import mtdit
from edited_sets import (
    BARE,
    bare_set,
    edit_feature,
    edit_info,
    edit_tables,
    merge_data,
    tables,
    with_column,
)
from small_recording import FPS, LENGTHS, state

from mtdit_robots.errors import UserError
from mtdit_robots.so101.joints import JOINTS
from mtdit_runtime.recording.dataset_reader import read_dataset, read_episode
from mtdit_runtime.recording.dataset_writer import DatasetWriter

ROWS = [(episode, i) for episode, length in enumerate(LENGTHS) for i in range(length)]
STATES = np.stack([state(episode, i) for episode, i in ROWS])
NAMES = [f"{joint}.pos" for joint in JOINTS]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return bare_set(tmp_path / "set")


def assert_same(root: Path, tolerance: float = 0.0) -> None:
    """The dataset reads as it was recorded, and a session can go on with it."""
    dataset = read_dataset(root)
    assert dataset.fps == FPS
    assert dataset.joints == JOINTS
    assert dataset.episode_ends.tolist() == np.cumsum(LENGTHS).tolist()
    np.testing.assert_allclose(dataset.state, STATES, rtol=tolerance, atol=tolerance)
    np.testing.assert_allclose(dataset.action, STATES + 1, rtol=tolerance, atol=tolerance)
    np.testing.assert_allclose(dataset.timestamp, [i / FPS for _, i in ROWS], atol=1e-3)
    episode = read_episode(root, 2)
    np.testing.assert_allclose(
        episode.states, STATES[-LENGTHS[2] :], rtol=tolerance, atol=tolerance
    )


LISTS: dict[str, Callable[[Any], Any]] = {
    "list": pa.list_,
    "large list": pa.large_list,
    "fixed size": lambda kind: pa.list_(kind, 6),
}


@pytest.mark.parametrize("number", [pa.float16(), pa.float32(), pa.float64()], ids=str)
@pytest.mark.parametrize("kind", LISTS)
def test_vectors_in_any_list(root: Path, kind: str, number: Any) -> None:
    """In one file; the others stay as they were."""
    file = tables(root, "data")[1]
    table = pq.read_table(file)
    for name in ("action", "observation.state"):
        rows = np.array(table[name].to_pylist(), number.to_pandas_dtype())
        flat = pa.array(rows.reshape(-1), number)
        listed = pa.FixedSizeListArray.from_arrays(flat, 6).cast(pa.large_list(number))
        place = table.column_names.index(name)
        table = table.set_column(place, name, listed.cast(LISTS[kind](number)))
    pq.write_table(table, file)
    assert_same(root, tolerance=2e-3 if number == pa.float16() else 0.0)


@pytest.mark.parametrize("kind", [pa.int32(), pa.uint16(), pa.float64()], ids=str)
def test_numbers_of_any_type(root: Path, kind: Any) -> None:
    def change(table: pa.Table) -> pa.Table:
        for name in ("episode_index", "frame_index", "task_index", "index"):
            table = with_column(table, name, table[name].cast(kind).combine_chunks())
        times = table["timestamp"].cast(pa.float64()).combine_chunks()
        return with_column(table, "timestamp", times)

    edit_tables(root, "data", change)
    assert_same(root)


def test_a_number_in_a_list_of_one(root: Path) -> None:
    def change(table: pa.Table) -> pa.Table:
        for name in ("timestamp", "task_index", "frame_index"):
            table = with_column(table, name, [[value] for value in table[name].to_pylist()])
        return table

    edit_tables(root, "data", change)
    assert_same(root)


def test_lines_in_any_order_and_stale_indices(root: Path) -> None:
    """After edits and merges neither `index` nor the places in meta/episodes can be trusted."""
    order = np.random.default_rng(7).permutation(len(ROWS))
    merge_data(root, order.tolist())
    edit_tables(root, "data", lambda t: with_column(t, "index", [0] * len(t)))

    def change(table: pa.Table) -> pa.Table:
        for name in ("data/file_index", "data/chunk_index", "dataset_from_index"):
            table = with_column(table, name, [5] * len(table))
        return table

    edit_tables(root, "meta/episodes", change)
    assert_same(root)


def test_additional_columns_and_missing_ones(root: Path) -> None:
    extra = {"next.done": True, "language": "x", "observation.velocity": [0.5] * 6}
    for name, value in extra.items():
        edit_tables(root, "data", lambda t, n=name, v=value: t.append_column(n, [[v] * len(t)]))
    edit_tables(root, "data", lambda t: t.drop_columns(["index"]))
    lost = [
        "dataset_from_index",
        "dataset_to_index",
        "data/chunk_index",
        "data/file_index",
        "tasks",
    ]
    edit_tables(root, "meta/episodes", lambda t: t.drop_columns(lost))
    assert_same(root)


@pytest.mark.parametrize(
    "names",
    [
        {"motors": NAMES},
        {"axes": NAMES},
        {"arm": NAMES[:5], "gripper": NAMES[5:]},
        {name: place for place, name in reversed(list(enumerate(NAMES)))},
        list(JOINTS),
    ],
    ids=["motors", "axes", "two parts", "places", "without .pos"],
)
def test_names_in_any_form(root: Path, names: Any) -> None:
    for key in ("action", "observation.state"):
        edit_feature(root, key, names=names)
    assert_same(root)


def test_other_forms_of_info(root: Path) -> None:
    edit_info(root, fps=10.0, robot_type="so101_follower", total_chunks=1, total_videos=0)
    assert_same(root)
    edit_info(root, fps=9.97)
    with pytest.raises(UserError, match=r"got 9.97; write 10 there: each frame keeps its own time"):
        read_dataset(root)
    edit_info(root, fps=10)
    edit_tables(root, "data", lambda t: with_column(t, "timestamp", _stretched(t)))
    assert read_dataset(root).fps == FPS, "what is advised for 9.97 works"


def _stretched(table: pa.Table) -> list[float]:
    return [frame / 9.97 for frame in table["frame_index"].to_pylist()]


@pytest.mark.parametrize("fps", ["30", True, None, -5, 0, float("inf"), [30]])
def test_fps_that_is_no_number(root: Path, fps: Any) -> None:
    edit_info(root, fps=fps)
    with pytest.raises(UserError, match="fps must be a positive integer, got"):
        read_dataset(root)


def test_other_versions_and_formats_are_named(root: Path) -> None:
    edit_info(root, storage_format="lance")
    with pytest.raises(UserError, match="is stored as Lance, but mtdit reads Parquet"):
        read_dataset(root)
    edit_info(root, storage_format="parquet")
    assert_same(root)
    (root / "data/rows.lance").mkdir()
    edit_info(root, storage_format=None)
    with pytest.raises(UserError, match="is stored as Lance"):
        read_dataset(root)
    edit_info(root, codebase_version="v2.0")
    with pytest.raises(UserError, match=r"of version v2.0, .*LeRobot 0.6 converts v2.1 only"):
        read_dataset(root)


def test_a_dataset_of_v21_is_converted_as_the_message_says(root: Path) -> None:
    edit_info(root, codebase_version="v2.1")
    with pytest.raises(UserError) as caught:
        read_dataset(root)
    command = str(caught.value).split("`")[1].split()
    assert command[:2] == ["python", "-m"]
    from importlib.util import find_spec

    assert find_spec(command[2]) is not None
    source = Path(str(find_spec(command[2]).origin)).read_text()  # type: ignore[union-attr]
    for option in command[3:]:
        assert f'"{option.partition("=")[0]}"' in source


def test_files_that_git_did_not_fetch(root: Path) -> None:
    tables(root, "data")[0].write_text("version https://git-lfs.github.com/spec/v1\noid sha256:1\n")
    with pytest.raises(UserError, match=r"is a Git LFS pointer\): run `git lfs pull`"):
        read_dataset(root)


# -- what does not agree


def test_rows_that_are_there_twice(root: Path) -> None:
    first = tables(root, "data")[0]
    first.with_name("file-009.parquet").write_bytes(first.read_bytes())
    with pytest.raises(UserError, match="has frame 0 of episode 0 twice"):
        read_dataset(root)


def test_episodes_listed_twice(root: Path) -> None:
    first = tables(root, "meta/episodes")[0]
    first.with_name("file-009.parquet").write_bytes(first.read_bytes())
    with pytest.raises(UserError, match="lists episode 0 twice"):
        read_dataset(root)


def test_times_that_go_back(root: Path) -> None:
    def change(table: pa.Table) -> pa.Table:
        times = table["timestamp"].to_pylist()
        return with_column(table, "timestamp", [*times[:6], times[4], *times[7:]])

    edit_tables(root, "data", change)
    with pytest.raises(UserError, match=r"frame 6 of episode 0 is at 0.4 s, not after .*\(0.5 s\)"):
        read_dataset(root)


@pytest.mark.parametrize(
    ("name", "values", "says"),
    [
        ("action", ["open"] * 12, "column 'action' holds string, but mtdit needs numbers"),
        ("task_index", [0.5] * 12, "'task_index' must hold one whole number per row"),
        ("frame_index", [None] * 12, "12 values are missing in column 'frame_index'"),
        ("action", [[[1.0] * 5]] * 12, "'action' has 5 numbers in one file and 6 in another"),
    ],
)
def test_columns_that_hold_something_else(
    root: Path, name: str, values: list[Any], says: str
) -> None:
    file = tables(root, "data")[0]
    pq.write_table(with_column(pq.read_table(file), name, values), file)
    with pytest.raises(UserError, match=says):
        read_dataset(root)


def test_an_episode_number_that_was_removed(root: Path) -> None:
    """Episodes keep their numbers: 0 and 2 are left."""
    tables(root, "data")[1].unlink()
    tables(root, "meta/episodes")[1].unlink()
    dataset = read_dataset(root)
    assert [row["episode_index"] for row in dataset.episodes] == [0, 2]
    np.testing.assert_array_equal(read_episode(root, 2).states, STATES[-LENGTHS[2] :])
    with pytest.raises(UserError, match="has no episode 1: it has episodes 0, 2;"):
        read_episode(root, 1)


def test_replay_refuses_before_it_looks_for_an_arm(root: Path) -> None:
    """The port does not exist: a message about it would mean that the arm came first."""
    words = ("--robot", "so101", "--port", "/dev/no-such-arm", "--units", "degrees")
    done = mtdit("replay", "--dataset", root, "--episode", "9", *words)
    assert done.returncode == 2
    assert "has no episode 9: it has episodes 0 to 2" in done.stderr
    for file in tables(root, "data"):
        table = pq.read_table(file)
        pq.write_table(table.slice(0, 0), file)
    done = mtdit("replay", "--dataset", root, *words)
    assert (done.returncode, "has no frames" in done.stderr) == (2, True), done.stderr


# -- a session goes on


def test_a_session_goes_on_where_numbers_are_stale(root: Path) -> None:
    """A file number that is stale must not lead to a file that is overwritten."""
    edit_tables(root, "meta/episodes", lambda t: with_column(t, "data/file_index", [0] * len(t)))
    edit_feature(root, "action", names={"motors": NAMES})
    edit_info(root, fps=10.0, robot_type="so100_follower")
    before = {file: file.read_bytes() for file in tables(root, "data")}
    writer = DatasetWriter(root, BARE, resume=True)
    taken = writer.begin("close the drawer")
    for i in range(5):
        taken.add(state(3, i), state(3, i) + 1, {})
    writer.save_episode(taken)
    writer.close()
    assert {file: file.read_bytes() for file in before} == before
    dataset = read_dataset(root)
    assert len(dataset.state) == len(ROWS) + 5
    np.testing.assert_array_equal(dataset.state[-1], state(3, 4))
    info = json.loads((root / "meta/info.json").read_text())
    assert (info["fps"], info["total_frames"]) == (10, len(ROWS) + 5)
    assert info["features"]["action"]["names"] == NAMES


def test_statistics_of_a_session_cover_what_was_there_before(root: Path) -> None:
    """Also where the episodes keep no statistics, or none of the newer kinds."""
    gone = [n for n in pq.read_schema(tables(root, "meta/episodes")[0]).names if "stats/" in n]
    for lost in (gone, ["stats/action/q01"]):
        copy = bare_set(root.with_name(f"set-{len(lost)}"))
        edit_tables(copy, "meta/episodes", lambda t, lost=lost: t.drop_columns(lost))
        if lost is gone:
            (copy / "meta/stats.json").unlink()
        bare_set(copy, (4,), resume=True)
        stats = json.loads((copy / "meta/stats.json").read_text())
        everything = read_dataset(copy).action
        np.testing.assert_allclose(stats["action"]["max"], everything.max(0), rtol=1e-6)
        np.testing.assert_allclose(
            stats["action"]["mean"], everything.mean(0), rtol=1e-4, atol=1e-5
        )
        assert ("q01" in stats["action"]) == (lost is gone)
