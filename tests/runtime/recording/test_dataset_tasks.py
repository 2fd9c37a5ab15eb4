"""A task number means what the table says, whatever its form, and what the episode itself says."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from edited_sets import (
    BARE,
    bare_set,
    edit_tables,
    number_tasks,
    tables,
    with_column,
    write_tasks,
)
from small_recording import TASKS, state

from mtdit_robots.errors import UserError
from mtdit_runtime.recording.dataset_reader import RecordedDataset, read_dataset, read_episode
from mtdit_runtime.recording.dataset_writer import DatasetWriter

A, B = TASKS
C = "put the cube into the bowl"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return bare_set(tmp_path / "set")


def words_of(dataset: RecordedDataset) -> list[str]:
    """The words of each episode's first row."""
    return [dataset.tasks[n] for n in dataset.task[dataset.episode_starts].tolist()]


@pytest.mark.parametrize("name", ["task", None, "instruction"])
@pytest.mark.parametrize(
    ("words", "numbers", "used"),
    [
        ((B, A), (1, 0), {0: 0, 1: 1}),
        ((A, B), (0, 2), {0: 0, 1: 2}),
        ((A, B, C), (1, 2, 3), {0: 1, 1: 2}),
        ((C, B, A), (-4, 7, 100), {0: 100, 1: 7}),
    ],
    ids=["another order", "a gap", "from 1", "any numbers"],
)
def test_rows_find_their_task_by_its_number(
    root: Path, words: Sequence[str], numbers: Sequence[int], used: dict[int, int], name: Any
) -> None:
    write_tasks(root, words, numbers, name)
    number_tasks(root, used)
    dataset = read_dataset(root)
    assert words_of(dataset) == [A, B, A]
    assert set(dataset.tasks) == set(words)
    assert read_episode(root, 1).task == B
    assert not dataset.notes


@pytest.mark.parametrize(
    "frame",
    [
        pd.DataFrame({"task": [A, B]}, index=[0, 1]),
        pd.DataFrame({"task": [A, B]}),
        pd.DataFrame({"task": [B, A], "task_index": [1, 0], "colour": [1.5, 2.5]}),
        pd.DataFrame({"task": [A, B], "task_index": [0.0, 1.0]}),
        pd.DataFrame({"task": pd.Categorical([A, B]), "task_index": [0, 1]}),
        pd.DataFrame({"task_index": [0, 1, 2]}, index=pd.Index([A, B, A], name="task")),
    ],
    ids=["index", "range", "more columns", "floats", "categories", "twice the same words"],
)
def test_other_forms_of_the_table(root: Path, frame: pd.DataFrame) -> None:
    frame.to_parquet(root / "meta/tasks.parquet")
    dataset = read_dataset(root)
    assert words_of(dataset) == [A, B, A]
    assert dataset.tasks == (A, B)


@pytest.mark.parametrize(
    ("words", "numbers", "says"),
    [
        ((A, B, C), (0, 1, 1), "gives task number 1 two meanings"),
        ((A, None), (0, 1), "the task in row 1 has no words"),
        ((A,), (0,), "episode 1 uses task number 1, but .*tasks.parquet has the numbers 0;"),
    ],
)
def test_tables_that_mean_nothing(
    root: Path, words: Sequence[Any], numbers: Sequence[int], says: str
) -> None:
    frame = pd.DataFrame({"task": words, "task_index": numbers})
    frame.to_parquet(root / "meta/tasks.parquet")
    with pytest.raises(UserError, match=says):
        read_dataset(root)


def test_a_table_without_words(root: Path) -> None:
    pq.write_table(pa.table({"task_index": [0, 1]}), root / "meta/tasks.parquet")
    with pytest.raises(UserError, match="has no column 'task', only task_index"):
        read_dataset(root)


# -- the episodes' own words


def test_mixed_up_numbers_are_refused(root: Path) -> None:
    write_tasks(root, (B, A), (0, 1), "task")
    with pytest.raises(UserError, match=f"episode 0 have task number 0 \\('{B}'\\).*says '{A}'"):
        read_dataset(root)


def test_a_merge_that_forgot_to_renumber_is_refused(root: Path) -> None:
    """The second source's task became number 0 too: its own words tell."""
    number_tasks(root, {0: 0, 1: 0})
    with pytest.raises(UserError, match=f"episode 1 have task number 0 \\('{A}'\\).*says '{B}'"):
        read_dataset(root)
    write_tasks(root, (A,), (0,), "task")  # nor do those words stand elsewhere
    with pytest.raises(UserError, match=f"episode 1 have task number 0 \\('{A}'\\).*says '{B}'"):
        read_dataset(root)


def test_two_tasks_that_became_one_are_refused(root: Path) -> None:
    number_tasks(root, {0: 0, 1: 0})
    write_tasks(root, (C,), (0,), "task")
    with pytest.raises(UserError, match=f"one task, '{C}', for what the episodes"):
        read_dataset(root)


def test_a_reworded_task_has_the_new_words(root: Path) -> None:
    write_tasks(root, ("pull the drawer open", B), (0, 1), "task")
    dataset = read_dataset(root)
    assert words_of(dataset) == ["pull the drawer open", B, "pull the drawer open"]
    assert dataset.notes == (
        f"meta/tasks.parquet calls 'pull the drawer open' what the episodes call {A!r}: the words "
        "of meta/tasks.parquet are used",
    )


@pytest.mark.parametrize("form", ["missing", "null", "text", "spaces"])
def test_other_forms_of_the_episodes_words(root: Path, form: str) -> None:
    def change(table: pa.Table) -> pa.Table:
        own = table["tasks"].to_pylist()
        if form == "missing":
            return table.drop_columns(["tasks"])
        if form == "null":
            return with_column(table, "tasks", pa.nulls(len(table), pa.list_(pa.string())))
        if form == "text":
            return with_column(table, "tasks", [words[0] for words in own])
        return with_column(table, "tasks", [[f" {words[0]} "] for words in own])

    edit_tables(root, "meta/episodes", change)
    assert words_of(read_dataset(root)) == [A, B, A]


def test_an_episode_of_two_tasks(root: Path) -> None:
    """Annotated parts of an episode: each row keeps its own task."""
    file = tables(root, "data")[0]
    table = pq.read_table(file)
    parts = [0] * 5 + [1] * (len(table) - 5)
    pq.write_table(with_column(table, "task_index", parts), file)
    with pytest.raises(UserError, match=f"episode 0 have task number 0 .* 1 .*says '{A}'"):
        read_dataset(root)
    edit_tables(root, "meta/episodes", lambda t: with_column(t, "tasks", [[A, B]] * len(t)))
    assert read_dataset(root).task[:7].tolist() == [0] * 5 + [1] * 2


# -- going on with it


@pytest.mark.parametrize("numbers", [(0, 1), (1, 2), (7, 3)])
def test_resume_writes_the_current_form(root: Path, numbers: tuple[int, int]) -> None:
    """An unnamed index, and numbers of its own: what was there keeps its number, what is new gets
    the next one, and the index is called `task`.
    """
    write_tasks(root, (B, A), numbers[::-1], None)
    number_tasks(root, dict(enumerate(numbers)))
    writer = DatasetWriter(root, BARE, resume=True)
    assert set(writer.tasks) == {A, B}
    for task in (C, B):
        taken = writer.begin(task)
        for i in range(4):
            taken.add(state(0, i), state(0, i), {})
        writer.save_episode(taken)
    writer.close()
    frame = pd.read_parquet(root / "meta/tasks.parquet")
    assert frame.index.name == "task"
    assert frame["task_index"].to_dict() == {A: numbers[0], B: numbers[1], C: max(numbers) + 1}
    assert frame["task_index"].is_monotonic_increasing
    assert words_of(read_dataset(root)) == [A, B, A, C, B]
    if numbers == (0, 1):
        from small_recording import lerobot

        theirs = lerobot(root)
        assert [theirs[int(r)]["task"] for r in read_dataset(root).episode_starts] == [
            A,
            B,
            A,
            C,
            B,
        ]
    assert json.loads((root / "meta/info.json").read_text())["total_tasks"] == 3
    np.testing.assert_array_equal(np.unique(read_dataset(root).task), [0, 1, 2])
