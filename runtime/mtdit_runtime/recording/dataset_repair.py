"""Keeps the whole episodes of a LeRobotDataset whose recording was interrupted.

The dataset stays where it is. Files that cannot be read, and the old form of each file that
changes, are moved into a folder beside it. Videos are not touched: frames of a lost episode stay in
them, unused.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mtdit_robots.errors import UserError
from mtdit_robots.files import flush_to_disk, new_file
from mtdit_runtime.files import locked
from mtdit_runtime.recording import dataset_stats
from mtdit_runtime.recording.dataset_interrupted import Row, Salvage, salvage
from mtdit_runtime.recording.dataset_layout import COUNTERS, EPISODES_PATH, INFO, STATS
from mtdit_runtime.recording.dataset_parquet import (
    DATA,
    EPISODES,
    import_parquet,
    read_parquet,
    table_files,
    whole_numbers,
)
from mtdit_runtime.recording.dataset_reader import damage_named, read_dataset, read_info
from mtdit_runtime.recording.dataset_tables import stats_so_far, write_json
from mtdit_runtime.recording.dataset_tasks import read_tasks
from mtdit_runtime.text import numbers_text

STAGING = ".repair"  # new files, until all of them are written


@dataclass(frozen=True)
class RepairReport:
    """What `repair` kept. aside: the folder with the files that were replaced; None: it found
    nothing to do. lost: numbers of the episodes that are not whole.
    """

    root: Path
    kept: int
    lost: tuple[int, ...]
    aside: Path | None

    def lines(self) -> list[str]:
        if self.aside is None:
            return [f"all {self.kept} episodes of {self.root} are whole: nothing was changed"]
        lost = f"; lost: {numbers_text(self.lost)}" if self.lost else ""
        return [
            f"{self.root} now has {self.kept} whole episodes{lost}",
            f"the files that were replaced are in {self.aside}",
        ]


def repair(root: Path | str) -> RepairReport:
    """Keep the whole episodes of an interrupted recording, numbered from 0 without gaps.

    UserError when the folder is no dataset, no episode is whole, or another program records into
    it.
    """
    root = Path(root)
    info = read_info(root)
    busy = f"another program records into {root}: wait for it"
    with locked(root, busy), damage_named(root):
        found = salvage(root, info)
        if found.is_whole:
            return RepairReport(root, len(found.whole), (), None)
        if not found.whole:
            raise UserError(f"{root}: no episode is whole; record again into another folder")
        rows = _renumbered(found.whole)
        staging = root / STAGING
        shutil.rmtree(staging, ignore_errors=True)
        old = [root / INFO, *table_files(root, EPISODES), *found.unfinished]
        old += _write_data(root, staging, found, rows)
        _write_meta(root, staging, info, list(rows.values()))
        aside = _replaced(root, staging, dict.fromkeys(old))
        stats = dataset_stats.to_lists(stats_so_far(read_dataset(root)))
        with new_file(root / STATS, sync=True) as part:
            part.write_text(write_json(stats))
        return RepairReport(root, len(rows), found.lost, aside)


def _renumbered(whole: Sequence[Row]) -> dict[int, Row]:
    """Old episode number -> its row in meta/episodes, numbered and counted anew."""
    rows, first = dict[int, Row](), 0
    place = {"meta/episodes/chunk_index": 0, "meta/episodes/file_index": 0}
    for number, row in enumerate(whole):
        end = first + int(row["length"])
        new = {"episode_index": number, "dataset_from_index": first, "dataset_to_index": end}
        rows[int(row["episode_index"])] = {**row, **new, **place}
        first = end
    return rows


def _write_data(root: Path, staging: Path, found: Salvage, rows: Mapping[int, Row]) -> list[Path]:
    """Write the data files whose lines change, and return the old ones. Files that hold nothing
    of a whole episode are among these, and have no new one.
    """
    pq, old = import_parquet(), list[Path]()
    for file in table_files(root, DATA):
        if file in found.unfinished:
            continue
        table = read_parquet(file)
        kept = _kept_lines(file, table, rows)
        if kept.equals(table):
            continue
        old.append(file)
        if len(kept):
            new = staging / file.relative_to(root)
            new.parent.mkdir(parents=True, exist_ok=True)
            groups = pq.read_metadata(file).num_row_groups
            pq.write_table(kept, new, row_group_size=-(-len(table) // groups))
    return old


def _kept_lines(file: Path, table: Any, rows: Mapping[int, Row]) -> Any:
    """The lines of whole episodes, with the new numbers."""
    import pyarrow as pa

    episode = whole_numbers(file, table, "episode_index")
    kept = np.isin(episode, list(rows))
    table, episode = table.filter(pa.array(kept)), episode[kept]
    firsts = np.array([rows[n]["dataset_from_index"] for n in episode.tolist()], np.int64)
    numbers: dict[str, NDArray[np.int64]] = {
        "episode_index": np.array([rows[n]["episode_index"] for n in episode.tolist()], np.int64)
    }
    if "index" in table.column_names:
        frame = whole_numbers(file, table, "frame_index")
        numbers["index"] = firsts + frame
    for name, values in numbers.items():
        place = table.column_names.index(name)
        column = pa.chunked_array([pa.array(values, table.field(place).type)])
        table = table.set_column(place, table.field(place), column)
    return table


def _write_meta(root: Path, staging: Path, info: Mapping[str, Any], rows: Sequence[Row]) -> None:
    """Write the new list of episodes, in one file, and the counters of info.json."""
    import pyarrow as pa

    columns = dict.fromkeys(name for row in rows for name in row)
    lines = [{name: row.get(name) for name in columns} for row in rows]
    file = staging / EPISODES_PATH.format(chunk_index=0, file_index=0)
    file.parent.mkdir(parents=True)
    import_parquet().write_table(pa.Table.from_pylist(lines), file)
    frames, tasks = sum(int(row["length"]) for row in rows), len(read_tasks(root).words)
    counters = (len(rows), frames, tasks, {"train": f"0:{len(rows)}"})
    new = {**info, **dict(zip(COUNTERS, counters, strict=True))}
    (staging / INFO).write_text(write_json(new))


def _replaced(root: Path, staging: Path, old: Iterable[Path]) -> Path:
    """Move the old files aside and the new ones in. Returns the folder with the old ones."""
    beside = root.absolute()
    names = (f"{root.name}.interrupted", *(f"{root.name}.interrupted-{n}" for n in range(2, 1000)))
    aside = next(place for name in names if not (place := beside.with_name(name)).exists())
    new = [file for file in sorted(staging.rglob("*")) if file.is_file()]
    for file in new:
        flush_to_disk(file)
    for file in old:
        place = aside / file.relative_to(root)
        place.parent.mkdir(parents=True, exist_ok=True)
        os.replace(file, place)
    for file in new:
        place = root / file.relative_to(staging)
        place.parent.mkdir(parents=True, exist_ok=True)
        os.replace(file, place)
    shutil.rmtree(staging)
    return aside
