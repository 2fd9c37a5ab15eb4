"""Any value anywhere in the files of a dataset: the rows are read as what they are, or one line
says what is wrong.

    python tests/mtdit/dataset_junk.py 1000 --seed 1
"""

from __future__ import annotations

import argparse
import json
import logging
import shutil
import tempfile
import traceback
import warnings
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from dataset_cases import compare, ours, quiet
from dataset_liberties import LIBERTIES, NotHere
from made_dataset import VECTORS, Made, plain

from mtdit.data.lerobot_dataset import open_dataset
from mtdit_robots.errors import UserError
from mtdit_runtime.recording.dataset_reader import read_episode
from mtdit_runtime.recording.dataset_repair import repair

NO_NUMBERS: tuple[Any, ...] = (None, "", "x", [], [[]], {}, {"a": 1}, ["a"], [None], "\0", "{", "é")
JUNK = (*NO_NUMBERS, True, -1, 0, 10**30, 2**63, 1e300, float("nan"), [1, 2, 3], [[1.5]], {"": []})
FILES = ("meta/info.json", "meta/stats.json", "meta/mtdit.json")
TABLES = ("data", "meta/episodes", "tasks")


def any_json(root: Path, rng: np.random.Generator) -> str:
    """Another value, or none, at a place of a JSON file, or instead of it."""
    path = root / FILES[rng.choice(3, p=[0.7, 0.2, 0.1])]
    content = (json.loads(path.read_text()) if path.is_file() else {}) or {"units": "degrees"}
    value = JUNK[rng.integers(len(JUNK))]
    inside, steps = content, list[Any]()
    while True:
        keys = list(inside) if isinstance(inside, dict) else list(range(len(inside)))
        steps.append(keys[rng.integers(len(keys))])
        below = inside[steps[-1]]
        if not (below and isinstance(below, dict | list)) or rng.integers(3) == 0:
            break
        inside = below
    if rng.integers(8) == 0:
        content = value
    elif rng.integers(5) == 0:
        del inside[steps[-1]]
    else:
        inside[steps[-1]] = value
    path.write_text(json.dumps(content))
    return f"{path.name} {steps} {value!r}"


def any_column(root: Path, rng: np.random.Generator) -> str:
    """Another value in one row or in all rows of a column, or no such column."""
    folder = TABLES[rng.integers(len(TABLES))]
    files = sorted(root.glob(f"{folder}/*/*.parquet")) or [root / "meta/tasks.parquet"]
    path = files[rng.integers(len(files))]
    table = pq.read_table(path)
    name = table.column_names[rng.integers(table.num_columns)]
    if rng.integers(6) == 0:
        pq.write_table(table.drop_columns([name]), path)
        return f"{path.name} without {name}"
    pool = NO_NUMBERS if name in VECTORS else JUNK
    pool = [junk for junk in pool if name != "task" or not isinstance(junk, str)]
    value = pool[rng.integers(len(pool))]
    values = table[name].to_pylist()
    place = int(rng.integers(len(values)))
    if rng.integers(2):
        values[place] = value
    else:
        values = [value] * len(values)
    try:
        column = pa.array(values)
        pq.write_table(table.set_column(table.column_names.index(name), name, column), path)
    except (pa.ArrowException, OverflowError):
        raise NotHere from None
    return f"{folder} {path.name} {name}[{place}] {value!r}"


def any_bytes(root: Path, rng: np.random.Generator) -> str:
    """Bytes that a disk or a transfer changed, in a JSON file or in a video."""
    files = [*root.glob("meta/*.json"), *root.glob("videos/*/*/*")]
    path = files[rng.integers(len(files))]
    content = bytearray(path.read_bytes())
    for place in rng.integers(len(content), size=int(rng.integers(1, 4))).tolist():
        content[place] = int(rng.integers(256))
    path.write_bytes(bytes(content))
    return f"{path.relative_to(root)} bytes"


WAYS: tuple[Callable[[Path, np.random.Generator], str], ...] = (any_json, any_column, any_bytes)


def made_for(rng: np.random.Generator) -> Made:
    made = plain(rng)
    for name in ("statistics", "episodes_in_files", "rows_in_files"):
        if rng.integers(2):
            LIBERTIES[name].change(made, rng)
    return made


def check(seed: int, folder: Path) -> str:
    """What became of it. AssertionError, or what a reader raises, when an answer is wrong."""
    rng = np.random.default_rng(seed)
    made = made_for(rng)
    root = made.write(folder / "set")
    way = WAYS[rng.choice(3, p=[0.4, 0.45, 0.15])]
    try:
        what = way(root, rng)
    except NotHere:
        return "not possible"
    try:
        answer = _answer(made, root, exact=way is not any_bytes)
    except Exception as error:
        error.add_note(f"seed {seed}: {what}")
        raise
    return answer


def _answer(made: Made, root: Path, exact: bool) -> str:
    try:
        read = ours(root, "memory")
        read_episode(root, read[0][0][0])
        opened = open_dataset(str(root))
    except UserError as error:
        line = str(error)
    else:
        if exact:
            known = opened.info["features"]  # a camera that is not in it is none of the dataset
            gone = {camera.key for camera in made.cameras if camera.key not in known}
            compare(made, read, gone | set(opened.unused))
        return "read"
    assert "\n" not in line
    try:
        repair(root)
    except UserError as error:
        line = str(error)
    assert "\n" not in line
    return "refused as damaged" if "is damaged (" in line else "refused"


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("count", nargs="?", type=int, default=500)
    parser.add_argument("--seed", type=int, default=0)
    words = parser.parse_args()
    warnings.simplefilter("error", RuntimeWarning)
    logging.disable(logging.WARNING)
    with tempfile.TemporaryDirectory() as scratch:
        quiet(Path(scratch))
        run_junk(words.seed, words.count, Path(scratch))


def run_junk(first: int, count: int, folder: Path) -> int:
    """How many of the cases failed; prints them."""
    results = Counter[str]()
    for seed in range(first, first + count):
        place = folder / str(seed)
        place.mkdir(parents=True)
        try:
            results[check(seed, place)] += 1
        except Exception:
            results["FAILED"] += 1
            print(f"--- seed {seed}\n{traceback.format_exc(limit=-3)}", flush=True)
        shutil.rmtree(place)
    print(f"seeds {first} to {first + count - 1}: {dict(results)}")
    return results["FAILED"]


if __name__ == "__main__":
    main()
