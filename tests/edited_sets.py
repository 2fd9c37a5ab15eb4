"""Small datasets without cameras, and edits of their tables: what converters and users leave."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from small_recording import FPS, LENGTHS, TASKS, state

from mtdit_robots.so101.joints import JOINTS
from mtdit_runtime.recording.dataset_layout import DatasetLayout
from mtdit_runtime.recording.dataset_writer import DatasetWriter

BARE = DatasetLayout(FPS, JOINTS, {})


def bare_set(root: Path, lengths: Sequence[int] = LENGTHS, resume: bool = False) -> Path:
    """Episodes of two tasks in turn, each in files of its own."""
    writer = DatasetWriter(root, BARE, resume)
    for episode, length in enumerate(lengths):
        taken = writer.begin(TASKS[episode % 2])
        for i in range(length):
            taken.add(state(episode, i), state(episode, i) + 1, {})
        writer.save_episode(taken)
    writer.close()
    return root


def edit_info(root: Path, **changes: Any) -> None:
    path = root / "meta/info.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def edit_feature(root: Path, key: str, **changes: Any) -> None:
    features = json.loads((root / "meta/info.json").read_text())["features"]
    edit_info(root, features={**features, key: {**features.get(key, {}), **changes}})


def tables(root: Path, folder: str) -> list[Path]:
    return sorted((root / folder).rglob("*.parquet"))


def edit_tables(root: Path, folder: str, change: Callable[[pa.Table], pa.Table]) -> None:
    for file in tables(root, folder):
        pq.write_table(change(pq.read_table(file)), file)


def with_column(table: pa.Table, name: str, values: Any) -> pa.Table:
    place = table.column_names.index(name)
    return table.set_column(place, name, pa.chunked_array([pa.array(values)]))


def merge_data(root: Path, order: Sequence[int] | None = None) -> None:
    """All rows in one data file, its lines in `order`."""
    first, *others = tables(root, "data")
    table = pa.concat_tables([pq.read_table(file) for file in [first, *others]])
    for file in others:
        file.unlink()
    pq.write_table(table if order is None else table.take(list(order)), first)


def number_tasks(root: Path, numbers: Mapping[int, int]) -> None:
    """Give the rows other task numbers; the table of tasks stays."""
    edit_tables(
        root,
        "data",
        lambda t: with_column(t, "task_index", [numbers[n] for n in t["task_index"].to_pylist()]),
    )


def write_tasks(root: Path, words: Sequence[str], numbers: Sequence[int], name: Any) -> None:
    """As pandas writes numbers whose index are the words. name: of the index."""
    frame = pd.DataFrame({"task_index": list(numbers)}, index=pd.Index(list(words), name=name))
    frame.to_parquet(root / "meta/tasks.parquet")
