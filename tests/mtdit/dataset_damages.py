"""What damages a dataset: a reader must refuse it with a line that says what is wrong."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from dataset_liberties import Change, NotHere, some
from made_dataset import ACTION, NUMBERS, STATE, VECTORS, Line, Made

DAMAGES: dict[str, tuple[Change, str]] = {}  # name -> change, pattern of the refusal


def damage(says: str) -> Callable[[Change], Change]:
    def known(change: Change) -> Change:
        DAMAGES[change.__name__] = (change, says)
        return change

    return known


def _place(made: Made, entry: Line, key: str) -> tuple[str, int, int]:
    chunk, file = (entry.values[f"videos/{key}/{n}_index"] for n in ("chunk", "file"))
    return key, chunk, file


# -- videos


@damage("claim the same")
def two_episodes_claim_the_same_frames(made: Made, rng: np.random.Generator) -> None:
    key = some(rng, made.videos()).key
    by_length = sorted(made.episodes, key=lambda entry: len(_rows(made, entry)))
    if len(by_length) < 2:
        raise NotHere
    for name in ("chunk_index", "file_index", "from_timestamp"):
        by_length[0].values[f"videos/{key}/{name}"] = by_length[-1].values[f"videos/{key}/{name}"]
    for short, long in zip(_rows(made, by_length[0]), _rows(made, by_length[-1]), strict=False):
        short.values["timestamp"] = long.values["timestamp"]


def _rows(made: Made, entry: Line) -> list[Line]:
    rows = made.of_episode(entry.values["episode_index"])
    return sorted(rows, key=lambda line: line.place)


@damage("lacks .* frames|has no frame at the time")
def a_video_that_is_too_short(made: Made, rng: np.random.Generator) -> None:
    key = some(rng, made.videos()).key
    entry = some(rng, made.episodes)
    times = [line.values["timestamp"] for line in _rows(made, entry)]
    last_s = entry.values[f"videos/{key}/from_timestamp"] + times[-1]
    shown = made.films[_place(made, entry, key)]
    del shown[max(1, round(last_s * made.fps)) :]


@damage("lacks .* frames|has no frame at the time|claim the same|from_timestamp of episode")
def a_place_beyond_the_video(made: Made, rng: np.random.Generator) -> None:
    key = some(rng, made.videos()).key
    entry = some(rng, made.episodes)
    entry.values[f"videos/{key}/from_timestamp"] += some(rng, [-90.0, 1000.0, float("nan")])


@damage("has no frame at the time")
def a_place_between_two_frames(made: Made, rng: np.random.Generator) -> None:
    key = some(rng, made.videos()).key
    some(rng, made.episodes).values[f"videos/{key}/from_timestamp"] += 0.4 / made.fps


@damage("has no column .*videos")
def an_episode_without_a_place(made: Made, rng: np.random.Generator) -> None:
    key = some(rng, made.videos()).key
    name = some(rng, ["chunk_index", "file_index", "from_timestamp"])
    some(rng, made.episodes).values[f"videos/{key}/{name}"] = None


@damage("does not exist")
def a_video_is_missing(made: Made, rng: np.random.Generator) -> None:
    if not made.films:
        raise NotHere
    _after_file(made, rng, "videos/*/*/*.*", lambda path: path.unlink())


@damage("cannot be decoded|lacks .* frames|has no frame at the time")
def a_video_is_cut_off(made: Made, rng: np.random.Generator) -> None:
    if not made.films:
        raise NotHere

    def cut(path: Path) -> None:
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 3])

    _after_file(made, rng, "videos/*/*/*.*", cut)


@damage("has shape .* but meta/info.json says")
def pictures_of_another_size(made: Made, rng: np.random.Generator) -> None:
    camera = some(rng, made.cameras)
    made.features[camera.key]["shape"] = [64, 16, 3]
    made.features[camera.key]["names"] = ["height", "width", "channels"]


@damage("an image that cannot be decoded")
def a_picture_that_is_none(made: Made, rng: np.random.Generator) -> None:
    if not any(camera.kind == "image" for camera in made.cameras):
        raise NotHere
    usual, bad = made.encode, some(rng, [None, {"bytes": None, "path": "x.png"}, b"junk"])
    made.types = {k: v for k, v in made.types.items() if k not in [c.key for c in made.cameras]}
    bad = {"bytes": bad, "path": None} if isinstance(bad, bytes) else bad
    del usual
    made.encode = lambda image: bad


def _after_file(
    made: Made, rng: np.random.Generator, pattern: str, change: Callable[[Path], Any]
) -> None:
    turn = int(rng.integers(100))

    def after(root: Path) -> None:
        files = sorted(f for f in root.glob(pattern) if not f.name.startswith("."))
        change(files[turn % len(files)])

    made.after.append(after)


# -- rows


@damage("twice")
def rows_twice(made: Made, rng: np.random.Generator) -> None:
    line = some(rng, [line for line in made.lines if line.truth])
    made.lines.append(Line(dict(line.values), line.file, line.truth))


@damage("meta/episodes lists|twice")
def a_row_is_missing(made: Made, rng: np.random.Generator) -> None:
    made.lines.remove(some(rng, [line for line in made.lines if line.truth]))


@damage("meta/episodes lists|has no frames")
def an_episode_has_no_rows(made: Made, rng: np.random.Generator) -> None:
    number = some(rng, made.episodes).values["episode_index"]
    made.lines = [line for line in made.lines if line.values["episode_index"] != number]
    if not made.lines:
        raise NotHere


@damage("meta/episodes lists|twice")
def a_length_that_is_wrong(made: Made, rng: np.random.Generator) -> None:
    entry = some(rng, made.episodes)
    entry.values["length"] += some(rng, [-1, 1, 7])
    entry.values["dataset_to_index"] += 3


@damage("lists episode .* twice|meta/episodes lists")
def an_episode_is_listed_twice(made: Made, rng: np.random.Generator) -> None:
    entry = some(rng, made.episodes)
    made.episodes.append(Line(dict(entry.values), entry.file))


@damage("has no time|are missing in column")
def a_time_that_is_none(made: Made, rng: np.random.Generator) -> None:
    line = some(rng, [line for line in made.lines if line.truth])
    line.values["timestamp"] = some(rng, [float("nan"), None, float("inf")])


@damage("frames are .* s apart|has no frame")
def times_of_another_rate(made: Made, rng: np.random.Generator) -> None:
    for line in made.lines:
        line.values["timestamp"] *= some(rng, [2.0])


@damage("is not finite|are missing")
def a_position_that_is_none(made: Made, rng: np.random.Generator) -> None:
    line = some(rng, [line for line in made.lines if line.truth])
    name = some(rng, VECTORS)
    values = np.array(line.values[name], object)
    values[int(rng.integers(len(values)))] = some(rng, [float("nan"), float("inf"), None])
    line.values[name] = values


@damage("numbers in one|numbers per frame|is damaged")
def vectors_of_different_lengths(made: Made, rng: np.random.Generator) -> None:
    line = some(rng, [line for line in made.lines if line.truth])
    line.values[ACTION] = np.append(line.values[ACTION], 1)
    made.types[ACTION] = pa.list_(pa.float32())


@damage("are missing|whole number")
def a_number_that_is_none(made: Made, rng: np.random.Generator) -> None:
    name = some(rng, [name for name in NUMBERS if name != "index"])
    line = some(rng, [line for line in made.lines if line.truth])
    line.values[name] = some(rng, [None, 0.5, float("nan")])
    made.types[name] = pa.float64()


# -- tasks


@damage("uses task number")
def a_task_number_without_words(made: Made, rng: np.random.Generator) -> None:
    some(rng, [line for line in made.lines if line.truth]).values["task_index"] = 77


@damage("says|two meanings|correct one of them")
def words_exchanged(made: Made, rng: np.random.Generator) -> None:
    used = {line.values["task_index"] for line in made.lines if line.truth}
    told = [w for entry in made.episodes for w in entry.values.get("tasks") or ()]
    if len(used) < 2 or len(set(told)) < 2 or isinstance(made.episodes[0].values["tasks"], str):
        raise NotHere
    words = sorted(used)[:2]
    if made.words[words[0]] == made.words[words[1]] or not set(told) <= set(made.words.values()):
        raise NotHere  # a task that was reworded, too, hides it where an episode has both
    alone = [set(entry.values["tasks"]) for entry in made.episodes]
    if not any({made.words[w] for w in words} - one and one for one in alone):
        raise NotHere
    made.words[words[0]], made.words[words[1]] = made.words[words[1]], made.words[words[0]]


@damage("two meanings")
def one_number_of_two_tasks(made: Made, rng: np.random.Generator) -> None:
    number = some(rng, made.words)
    made.words[number + 1000] = "turn around"
    made.task_order = [*(made.task_order or sorted(made.words)), number + 1000]
    made.task_order = list(dict.fromkeys(made.task_order))
    if made.task_style == "number as index":
        raise NotHere

    def same(root: Path) -> None:
        path = root / "meta/tasks.parquet"
        table = pq.read_table(path)
        numbers = [number if n == number + 1000 else n for n in table["task_index"].to_pylist()]
        place = table.column_names.index("task_index")
        pq.write_table(table.set_column(place, "task_index", [numbers]), path)

    made.after.insert(0, same)


# -- files


@damage("does not exist|is missing|lists no|not a LeRobotDataset|meta/episodes lists|no frames")
def a_table_is_missing(made: Made, rng: np.random.Generator) -> None:
    if not all(line.truth for line in made.lines):
        raise NotHere  # the file of rows that no episode lists may go
    pattern = some(rng, ["data/*/*.parquet", "meta/tasks.parquet", "meta/info.json"])
    _after_file(made, rng, pattern, lambda path: path.unlink())


@damage("cannot be read|interrupted|not valid JSON|LFS|is damaged")
def a_table_is_no_table(made: Made, rng: np.random.Generator) -> None:
    junk = [b"", b"PAR1", b"version https://git-lfs.github.com/spec/v1\n", b"PAR1" + b"x" * 90]
    pattern = some(rng, ["data/*/*.parquet", "meta/*.parquet", "meta/episodes/*/*.parquet"])
    _after_file(made, rng, pattern, lambda path: path.write_bytes(some(rng, junk)))


@damage("cannot be read|interrupted|is damaged")
def a_table_is_cut_off(made: Made, rng: np.random.Generator) -> None:
    pattern = some(rng, ["data/*/*.parquet", "meta/*.parquet", "meta/episodes/*/*.parquet"])
    left = float(rng.uniform(0.05, 0.95))

    def cut(path: Path) -> None:
        path.write_bytes(path.read_bytes()[: int(path.stat().st_size * left)])

    _after_file(made, rng, pattern, cut)


@damage("numbers per frame, but|has .* dimensions but|shape .* is not a list of")
def a_shape_that_is_wrong(made: Made, rng: np.random.Generator) -> None:
    key = some(rng, VECTORS)
    made.features[key]["shape"] = some(rng, [[5], [7], [3, 2], [], ["6"], "6", None, 6])


@damage("names .*: write a name for every dimension of both|has two dimensions called")
def names_that_do_not_fit(made: Made, rng: np.random.Generator) -> None:
    names = [f"joint{i}.pos" for i in range(made.features[STATE]["shape"][0])]
    made.features[STATE]["names"] = some(rng, [names[:-1], [*names[:-1], names[0]], [1] * 6, "x"])


@damage("has no feature")
def a_feature_is_missing(made: Made, rng: np.random.Generator) -> None:
    del made.info["features"][some(rng, VECTORS)]


@damage("of version|needs v3")
def another_version(made: Made, rng: np.random.Generator) -> None:
    made.info["codebase_version"] = some(rng, ["v2.1", "v2.0", None, 3, "v4.0", ""])


@damage("statistics")
def statistics_of_other_data(made: Made, rng: np.random.Generator) -> None:
    wrong = some(rng, [{"min": [0.0]}, {"max": ["x"] * 6}, {"mean": [float("nan")] * 6}, 7, None])
    stats = {**(made.stats or {}), STATE: wrong}

    def write(root: Path) -> None:
        (root / "meta/stats.json").write_text(json.dumps(stats))

    made.after.insert(0, write)
