"""Keeps the whole episodes of a LeRobotDataset whose recording was interrupted.

The dataset stays where it is. Files that cannot be read, and the old form of each file that
changes, are kept in a folder beside it. Videos are not touched: frames of a lost episode stay in
them, unused. A repair that is killed changed nothing, or it is finished by the next one.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mtdit_robots.errors import UserError
from mtdit_robots.files import flush_to_disk, new_file
from mtdit_runtime.files import load, locked
from mtdit_runtime.recording import dataset_stats
from mtdit_runtime.recording.dataset_interrupted import READY, Row, Salvage, salvage
from mtdit_runtime.recording.dataset_layout import COUNTERS, EPISODES_PATH, INFO, STATS
from mtdit_runtime.recording.dataset_parquet import (
    DATA,
    EPISODES,
    import_parquet,
    read_parquet,
    table_files,
    whole_numbers,
)
from mtdit_runtime.recording.dataset_reader import damage_named, read_info, read_tables
from mtdit_runtime.recording.dataset_tables import stats_so_far, write_json
from mtdit_runtime.recording.dataset_tasks import read_tasks
from mtdit_runtime.text import numbers_text

STAGING = ".repair"  # new files, until all of them are written
PLAN = "plan.json"  # beside them


@dataclass(frozen=True)
class _Plan:
    """What happens to the files of a dataset. aside: the folder beside it that keeps the old ones,
    old and new: names of files in it, lost: numbers of the episodes that are not whole.
    """

    aside: str
    old: tuple[str, ...]
    new: tuple[str, ...]
    lost: tuple[int, ...]


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
        if (root / READY).is_dir():
            return _finished(root)
        found = salvage(root, info)
        if found.is_whole:
            return RepairReport(root, len(found.whole), (), None)
        if not found.whole:
            raise UserError(
                f"{root}: no episode is whole{found.doubt}; record again into another folder"
            )
        rows = _renumbered(found.whole)
        staging = root / STAGING
        shutil.rmtree(staging, ignore_errors=True)
        old = [root / INFO, *table_files(root, EPISODES), *found.unfinished]
        old = list(dict.fromkeys([*old, *_write_data(root, staging, found, rows)]))
        _write_meta(root, staging, info, list(rows.values()))
        aside = _kept_aside(root, old)
        new = filter(Path.is_file, staging.rglob("*"))
        plan = _Plan(
            aside.name,
            tuple(str(file.relative_to(root)) for file in old),
            tuple(str(file.relative_to(staging)) for file in new),
            found.lost,
        )
        (staging / PLAN).write_text(write_json(asdict(plan)))
        for file in filter(Path.is_file, staging.rglob("*")):
            flush_to_disk(file)
        staging.rename(root / READY)
        return _finished(root)


def _finished(root: Path) -> RepairReport:
    """Move the new files, which all are written, to their places, and remove the old ones. Done
    again after a kill, it leaves the same.
    """
    ready = root / READY
    plan: _Plan = load(ready / PLAN, _Plan, "repair", f"copy {root} again")
    files = [file for file in sorted(ready.rglob("*")) if file.is_file() and file.name != PLAN]
    for file in files:
        place = root / file.relative_to(ready)
        place.parent.mkdir(parents=True, exist_ok=True)
        os.replace(file, place)
    for name in plan.old:
        if name not in plan.new:
            (root / name).unlink(missing_ok=True)
    dataset = read_tables(root, read_info(root))
    with new_file(root / STATS, sync=True) as part:
        part.write_text(write_json(dataset_stats.to_lists(stats_so_far(dataset))))
    ready.rename(root / STAGING)
    shutil.rmtree(root / STAGING)
    aside = root.absolute().with_name(plan.aside)
    return RepairReport(root, len(dataset.episodes), plan.lost, aside)


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


def _kept_aside(root: Path, old: Sequence[Path]) -> Path:
    """The folder beside the dataset with what the old files hold now."""
    names = (f"{root.name}.interrupted", *(f"{root.name}.interrupted-{n}" for n in range(2, 1000)))
    beside = root.absolute()
    aside = next(place for name in names if not (place := beside.with_name(name)).exists())
    for file in filter(Path.is_file, old):
        place = aside / file.relative_to(root)
        place.parent.mkdir(parents=True, exist_ok=True)
        try:
            os.link(file, place)  # pictures in tables are large
        except OSError:  # a disk without links
            shutil.copyfile(file, place)
    return aside
