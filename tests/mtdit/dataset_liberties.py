"""What converters, merges, edits and recorders do to a dataset, and what damages one.

A liberty leaves every row what it is: a reader must give the same values, or may refuse where the
liberty says so. A damage must be refused. `DRAWN` has their order: each may follow those before it.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from made_dataset import (
    ACTION,
    FILLER,
    IMAGES,
    JOINTS,
    NUMBERS,
    PICTURE,
    STATE,
    VECTORS,
    Camera,
    Line,
    Made,
    as_png,
    encoded,
    place_videos,
)

Change = Callable[[Made, np.random.Generator], None]


@dataclass(frozen=True)
class Liberty:
    """lerobot: LeRobot reads it too, and rightly. resumes: a recording can go on with it. refused:
    a pattern of the line that may refuse it; None: it must be read. pictures: it moves pictures
    that are in the tables, or changes them.
    """

    change: Change
    lerobot: bool = True
    resumes: bool = True
    refused: str | None = None
    pictures: bool = False


LIBERTIES: dict[str, Liberty] = {}


class NotHere(Exception):  # noqa: N818, not an error
    """A change that a drawn dataset has no place for."""


def liberty(**facts: Any) -> Callable[[Change], Change]:
    def known(change: Change) -> Change:
        LIBERTIES[change.__name__] = Liberty(change, **facts)
        return change

    return known


def some(rng: np.random.Generator, things: Any) -> Any:
    things = list(things)
    if not things:
        raise NotHere
    return things[int(rng.integers(len(things)))]


# -- joints, names, features


def _with_names(made: Made, names: Any) -> None:
    for key in VECTORS:
        made.features[key]["names"] = names


@liberty()
def names_in_another_form(made: Made, rng: np.random.Generator) -> None:
    names = made.features[ACTION]["names"]
    bare = [name.removesuffix(".pos") for name in names]
    places = {name: place for place, name in enumerate(names)}
    parts = {"arm": names[:5], "gripper": names[5:]}
    _with_names(made, some(rng, [{"motors": names}, {"axes": names}, bare, places, parts]))


@liberty(refused="has 6 dimensions but 0 names", resumes=False)
def no_names(made: Made, rng: np.random.Generator) -> None:
    _with_names(made, None)


@liberty()
def action_in_another_order(made: Made, rng: np.random.Generator) -> None:
    """The truth is what the columns hold: readers must give the names in this order, too."""
    names = made.features[ACTION]["names"]
    if not isinstance(names, list):
        raise NotHere
    made.features[ACTION]["names"] = [names[i] for i in rng.permutation(6)]


@liberty(resumes=False)
def another_number_of_joints(made: Made, rng: np.random.Generator) -> None:
    """The state has three joints more than the action."""
    for line in made.lines:
        assert line.truth is not None
        more = np.append(line.truth.state, rng.integers(0, 800, 3) / 8).astype(np.float32)
        line.truth, line.values[STATE] = replace(line.truth, state=more), more
    names = [f"{joint}.pos" for joint in JOINTS]
    made.features[STATE] |= {"shape": [9], "names": [*names, "base.x", "base.y", "base.turn"]}


@liberty()
def older_robot_type(made: Made, rng: np.random.Generator) -> None:
    made.info["robot_type"] = some(rng, ["so101_follower", "so100_follower"])


@liberty(resumes=False)
def unknown_robot_type(made: Made, rng: np.random.Generator) -> None:
    made.info["robot_type"] = some(rng, [None, "aloha", ""])


@liberty()
def fps_with_a_point(made: Made, rng: np.random.Generator) -> None:
    made.info["fps"] = float(made.fps)


@liberty()
def other_keys_of_info(made: Made, rng: np.random.Generator) -> None:
    made.info |= {"total_videos": 3, "total_chunks": 1, "tags": ["x"]}
    for key in ("splits", "chunks_size", "robot_type"):
        if rng.integers(2) and key != "robot_type":
            del made.info[key]


@liberty(lerobot=False)
def stale_counters(made: Made, rng: np.random.Generator) -> None:
    for key in ("total_episodes", "total_frames", "total_tasks"):
        made.info[key] = int(rng.integers(1, 50))


@liberty()
def channels_first(made: Made, rng: np.random.Generator) -> None:
    """Older recorders wrote (3, H, W) into info.json."""
    camera = some(rng, made.cameras)
    names = some(rng, [["channels", "height", "width"], ["channel", "height", "width"], None])
    made.features[camera.key] |= {"shape": [3, *camera.size], "names": names}


@liberty()
def names_of_pictures(made: Made, rng: np.random.Generator) -> None:
    key = some(rng, made.cameras).key
    if made.features[key]["shape"][2] == 3:
        made.features[key]["names"] = some(rng, [["height", "width", "channel"], None])


@liberty(resumes=False)
def camera_without_the_usual_name(made: Made, rng: np.random.Generator) -> None:
    """observation.image, as in LeRobot's pusht."""
    camera = some(rng, made.cameras)
    _rename(made, camera, "observation.image")


def _rename(made: Made, camera: Camera, key: str) -> None:
    old, camera.key = camera.key, key
    made.info["features"] = {key if k == old else k: f for k, f in made.features.items()}
    made.films = {(key if k == old else k, *place): v for (k, *place), v in made.films.items()}
    for line in made.episodes:
        line.values = {
            name.replace(f"videos/{old}/", f"videos/{key}/"): v for name, v in line.values.items()
        }
    for line in made.lines:
        assert line.truth is not None
        shown = {key if k == old else k: n for k, n in line.truth.pictures.items()}
        line.truth = replace(line.truth, pictures=shown)


def _feature(made: Made, key: str, dtype: str, size: int = 1, **more: Any) -> None:
    made.info["features"][key] = {"dtype": dtype, "shape": [size], "names": None, **more}


@liberty(resumes=False)
def velocities(made: Made, rng: np.random.Generator) -> None:
    for name in ("observation.velocity", "observation.effort", "observation.environment_state"):
        _feature(made, name, "float32", 6, names=[f"{joint}.vel" for joint in JOINTS])
        made.extra[name] = lambda line: [0.5] * 6
        made.types[name] = pa.list_(pa.float32())


@liberty(resumes=False)
def rewards_and_flags(made: Made, rng: np.random.Generator) -> None:
    for name, dtype, value in (
        ("next.reward", "float32", 0.25),
        ("next.done", "bool", False),
        ("next.success", "bool", True),
        ("observation.step", "int64", 7),
        ("note", "string", "x"),
    ):
        _feature(made, name, dtype)
        made.extra[name] = lambda line, value=value: value


@liberty(lerobot=False, resumes=False)
def sound(made: Made, rng: np.random.Generator) -> None:
    """Its files are elsewhere, so data/ has no column for it."""
    _feature(made, "observation.audio.front", "audio", info={"sample_rate": 48000})


@liberty(lerobot=False, resumes=False)
def depth_video(made: Made, rng: np.random.Generator) -> None:
    marks = [{"is_depth_map": True}, {"video.is_depth_map": True}]
    shape = [32, 32, int(rng.choice([1, 3]))]
    feature = {"dtype": "video", "shape": shape, "names": ["height", "width", "channels"]}
    made.info["features"][IMAGES + "top_depth"] = {**feature, "info": some(rng, marks)}


@liberty(resumes=False)
def depth_pictures(made: Made, rng: np.random.Generator) -> None:
    key = IMAGES + "depth"
    feature = {"dtype": "image", "shape": [32, 32, 1], "names": ["height", "width", "channels"]}
    made.info["features"][key] = {**feature, "info": {"is_depth_map": True}}
    tall = encoded(np.full((32, 32), 1200, np.uint16), "PNG")
    made.extra[key] = lambda line: {"bytes": tall, "path": None}
    made.types[key] = PICTURE


@liberty(resumes=False)
def camera_of_the_other_kind(made: Made, rng: np.random.Generator) -> None:
    """PNGs in the tables beside a camera that is video."""
    if not made.videos():
        raise NotHere
    camera = Camera(IMAGES + "tactile", (32, 32), "image")
    made.cameras.append(camera)
    names = ["height", "width", "channels"]
    made.info["features"][camera.key] = {"dtype": "image", "shape": [32, 32, 3], "names": names}
    for line, number in zip(made.lines, rng.permutation(2**16).tolist(), strict=False):
        assert line.truth is not None
        line.truth = replace(line.truth, pictures={**line.truth.pictures, camera.key: number})


@liberty(lerobot=False)
def columns_that_info_does_not_name(made: Made, rng: np.random.Generator) -> None:
    made.extra |= {"language_instruction": lambda line: "x", "__index_level_0__": lambda line: 3}


# -- tasks


@liberty()
def several_tasks_in_an_episode(made: Made, rng: np.random.Generator) -> None:
    if len(made.words) < 2:
        raise NotHere
    for entry in made.episodes:
        rows = made.of_episode(entry.values["episode_index"])
        for line in rows:
            number = int(rng.integers(len(made.words)))
            assert line.truth is not None
            line.values["task_index"] = number
            line.truth = replace(line.truth, words=made.words[number])
        entry.values["tasks"] = list(dict.fromkeys(line.truth.words for line in rows if line.truth))


def _reword(made: Made, number: int, new: str, own: str) -> None:
    """Other words in the table, and in the episodes."""
    old, made.words[number] = made.words[number], new
    for line in made.lines:
        assert line.truth is not None
        if line.values["task_index"] == number:
            line.truth = replace(line.truth, words=new)
    for entry in made.episodes:
        entry.values["tasks"] = [own if w == old else w for w in entry.values["tasks"]]


@liberty()
def odd_words(made: Made, rng: np.random.Generator) -> None:
    words = [
        "pose le cafe\u0301",
        " lift it ",
        "two\nlines",
        "x" * 400,
        "拿起杯子 🍵",
        "a 'b' \"c\"",
    ]
    new = some(rng, words)
    _reword(made, some(rng, made.words), new, new)


@liberty()
def words_in_two_forms(made: Made, rng: np.random.Generator) -> None:
    """The table and the episodes differ in Unicode's form only."""
    word = "pose le café"
    forms = [unicodedata.normalize(form, word) for form in ("NFC", "NFD")]
    new, own = rng.permutation(forms).tolist()
    _reword(made, some(rng, made.words), new, own)


@liberty()
def a_task_reworded_in_the_table(made: Made, rng: np.random.Generator) -> None:
    number = some(rng, made.words)
    _reword(made, number, "fold the towel", made.words[number])


@liberty(lerobot=False)
def other_task_numbers(made: Made, rng: np.random.Generator) -> None:
    """From 1, with gaps, or in another order."""
    count = len(made.words)
    new = some(
        rng,
        [
            list(range(1, count + 1)),
            sorted(rng.permutation(40)[:count].tolist()),
            rng.permutation(count).tolist(),
        ],
    )
    numbers = dict(zip(made.words, new, strict=True))
    made.words = {numbers[n]: words for n, words in made.words.items()}
    for line in made.lines:
        line.values["task_index"] = numbers[line.values["task_index"]]


@liberty()
def tasks_that_no_row_has(made: Made, rng: np.random.Generator) -> None:
    made.words[max(made.words) + 1] = "wave"


@liberty(lerobot=False)
def one_task_with_two_numbers(made: Made, rng: np.random.Generator) -> None:
    number = some(rng, made.words)
    other = max(made.words) + 1
    made.words[other] = made.words[number]
    for line in made.lines:
        if line.values["task_index"] == number and rng.integers(2):
            line.values["task_index"] = other


@liberty(lerobot=False)
def table_of_tasks_in_another_order(made: Made, rng: np.random.Generator) -> None:
    made.task_order = rng.permutation(list(made.words)).tolist()


@liberty()
def unnamed_index_of_tasks(made: Made, rng: np.random.Generator) -> None:
    made.task_style = "unnamed"


@liberty(lerobot=False)
def tasks_as_a_column(made: Made, rng: np.random.Generator) -> None:
    made.task_style = some(rng, ["column", "number as index"])


@liberty()
def episodes_without_words(made: Made, rng: np.random.Generator) -> None:
    form = int(rng.integers(4))
    for entry in made.episodes:
        tasks = entry.values.pop("tasks")
        if form:
            one = tasks[0] if len(tasks) == 1 else None
            entry.values["tasks"] = [None, one, []][form - 1]


# -- videos


@liberty()
def episodes_in_videos_as_they_come(made: Made, rng: np.random.Generator) -> None:
    """Several files, gaps of pictures that belong to no row, episodes in any order."""
    for camera in made.videos():
        files = {
            int(episode): (int(rng.integers(2)), int(rng.integers(3)))
            for episode in rng.permutation(len(made.episodes))
        }
        gaps = {episode: int(rng.integers(1, 5)) for episode in files}
        place_videos(made, camera.key, files, gaps)


@liberty()
def film_behind_the_last_row(made: Made, rng: np.random.Generator) -> None:
    for shown in made.films.values():
        shown += [FILLER] * int(rng.integers(1, 6))


CODECS: tuple[dict[str, Any], ...] = (
    {"options": {"g": "50", "crf": "10", "bf": "2"}},
    {"options": {"g": "3", "crf": "4"}, "pix_fmt": "yuv444p"},
    {"codec": "mpeg4", "options": {"b": "4000000", "g": "4"}},
    {"codec": "libaom-av1", "options": {"g": "2", "crf": "10", "cpu-used": "8"}},
    {"codec": "libvpx-vp9", "options": {"crf": "10", "b": "0", "cpu-used": "8", "g": "4"}},
    {"codec": "mjpeg", "options": {"q:v": "2"}, "pix_fmt": "yuvj420p"},
)


@liberty()
def another_codec(made: Made, rng: np.random.Generator) -> None:
    camera = some(rng, made.videos())
    for name, value in some(rng, CODECS).items():
        setattr(camera, name, value)


@liberty()
def another_video_path(made: Made, rng: np.random.Generator) -> None:
    if not made.videos():
        raise NotHere
    made.info["video_path"] = "videos/{video_key}/c{chunk_index}/episode_{file_index:06d}.mp4"


@liberty(lerobot=False)
def tags_of_another_encoding(made: Made, rng: np.random.Generator) -> None:
    """The name of the program that wrote a video, in Latin 1."""

    def rename(root: Path) -> None:
        for file in root.glob("videos/*/*/*"):
            file.write_bytes(file.read_bytes().replace(b"Lavf", b"L\xe5vf"))

    if not made.films:
        raise NotHere
    made.after.append(rename)


@liberty(lerobot=False)
def no_video_path(made: Made, rng: np.random.Generator) -> None:
    made.info["video_path"] = None


@liberty(pictures=True)
def pictures_in_another_form(made: Made, rng: np.random.Generator) -> None:
    """JPEG, a path beside the bytes, the fields of the struct in another order."""
    for camera in made.cameras:
        if camera.kind == "image":
            kind = some(rng, ["PNG", "JPEG"])
            path = some(rng, [None, "frame-000001.png"])
            made.encode = lambda image, kind=kind, path=path: {
                "bytes": encoded(image, kind),
                "path": path,
            }
            fields = [("path", pa.string()), ("bytes", pa.binary())]
            made.types[camera.key] = pa.struct(fields[:: int(rng.choice([1, -1]))])


@liberty(pictures=True)
def pictures_as_bytes(made: Made, rng: np.random.Generator) -> None:
    """Without the struct around them: datasets casts them."""
    for camera in made.cameras:
        if camera.kind == "image":
            made.encode = lambda image: as_png(image)["bytes"]
            made.types[camera.key] = pa.binary()


# -- rows and times


@liberty(refused="frames are .* s apart", pictures=True)
def rows_cut_videos_whole(made: Made, rng: np.random.Generator) -> None:
    keeps_numbers = bool(rng.integers(2))
    for entry in made.episodes:
        rows = made.of_episode(entry.values["episode_index"])
        gone = rng.permutation(len(rows))[: rng.integers(1, 2 + len(rows) // 4)].tolist()
        kept = [row for i, row in enumerate(rows) if i not in gone]
        made.lines = [line for line in made.lines if line in kept or line not in rows]
        for i, row in enumerate(kept if not keeps_numbers else ()):
            row.values["frame_index"] = i
        entry.values["length"] = len(kept)
    _count(made)


def _count(made: Made) -> None:
    """Counters and ranges that fit the rows."""
    start = 0
    for entry in made.episodes:
        end = start + entry.values["length"]
        entry.values |= {"dataset_from_index": start, "dataset_to_index": end}
        start = end
    for i, line in enumerate(made.lines):
        line.values["index"] = i
    made.info |= {"total_frames": len(made.lines), "total_episodes": len(made.episodes)}


@liberty()
def times_that_go_on(made: Made, rng: np.random.Generator) -> None:
    """An episode's times do not begin at 0; its place in the videos makes up for it."""
    for entry in made.episodes:
        first_s = int(rng.integers(1, 40)) / made.fps
        for line in made.of_episode(entry.values["episode_index"]):
            line.values["timestamp"] = float(np.float32(line.values["timestamp"] + first_s))
        for camera in made.videos():
            entry.values[f"videos/{camera.key}/from_timestamp"] -= first_s


@liberty()
def rounded_times(made: Made, rng: np.random.Generator) -> None:
    for line in made.lines:
        line.values["timestamp"] = round(line.values["timestamp"], 4)


@liberty(lerobot=False, pictures=True)
def an_episode_removed(made: Made, rng: np.random.Generator) -> None:
    """The others keep their numbers; its pictures stay in the videos."""
    gone = some(rng, made.episodes)
    number = gone.values["episode_index"]
    made.episodes.remove(gone)
    made.lines = [line for line in made.lines if line.values["episode_index"] != number]
    _count(made)


@liberty(lerobot=False, pictures=True)
def other_episode_numbers(made: Made, rng: np.random.Generator) -> None:
    numbers = [entry.values["episode_index"] for entry in made.episodes]
    new = dict(zip(numbers, sorted(rng.permutation(30)[: len(numbers)].tolist()), strict=True))
    for line in (*made.episodes, *made.lines):
        line.values["episode_index"] = new[line.values["episode_index"]]


@liberty(lerobot=False, pictures=True)
def rows_that_no_episode_lists(made: Made, rng: np.random.Generator) -> None:
    """A killed recorder left them in the file behind the last one."""
    _add_unlisted(made, (0, 1))


@liberty(lerobot=False, resumes=False, pictures=True)
def rows_of_an_unlisted_episode_before_others(made: Made, rng: np.random.Generator) -> None:
    """In their file. A recording goes on after `mtdit repair` only."""
    _add_unlisted(made, (0, 0))
    made.lines = [*made.lines[-3:], *made.lines[:-3]]


def _add_unlisted(made: Made, file: tuple[int, int]) -> None:
    if made.extra:
        raise NotHere
    last = max(made.lines, key=lambda line: line.place)
    for i in range(3):
        values = {**last.values, "episode_index": last.place[0] + 1, "frame_index": i}
        made.lines.append(Line(values | {"timestamp": i / made.fps}, file))


@liberty()
def stale_index(made: Made, rng: np.random.Generator) -> None:
    for line in made.lines:
        line.values["index"] = int(rng.integers(0, 9))


@liberty(lerobot=False)
def no_index(made: Made, rng: np.random.Generator) -> None:
    made.dropped["data"] = {"index"}


# -- files and types


@liberty(pictures=True)
def rows_in_files(made: Made, rng: np.random.Generator) -> None:
    """Also in the middle of an episode; numbers of files have gaps."""
    if any(line.truth is None for line in made.lines):
        raise NotHere
    cuts = np.sort(rng.permutation(len(made.lines))[: rng.integers(1, 5)])
    numbers = np.cumsum(rng.integers(1, 3, len(cuts) + 1)) - 1
    for i, line in enumerate(made.lines):
        number = int(numbers[np.searchsorted(cuts, i, side="right")])
        line.file = (number // 3, number % 3)


@liberty(pictures=True)
def lines_in_any_order(made: Made, rng: np.random.Generator) -> None:
    made.lines = [made.lines[i] for i in rng.permutation(len(made.lines))]


@liberty()
def other_names_of_data_files(made: Made, rng: np.random.Generator) -> None:
    """LeRobot reads data/*/*.parquet."""
    if any(line.truth is None for line in made.lines):
        raise NotHere  # what is left of a killed recording has the usual names
    names = ["data/chunk-{0:03d}/episode_{1:06d}.parquet", "data/train-{0}/{1:05d}.parquet"]
    made.data_name = some(rng, names)


@liberty()
def stale_places(made: Made, rng: np.random.Generator) -> None:
    for entry in made.episodes:
        for name in ("data/chunk_index", "data/file_index", "meta/episodes/file_index"):
            entry.values[name] = int(rng.integers(0, 4))


@liberty()
def columns_of_episodes_missing(made: Made, rng: np.random.Generator) -> None:
    names = ["data/chunk_index", "data/file_index", "dataset_from_index", "dataset_to_index"]
    names += ["meta/episodes/chunk_index", "meta/episodes/file_index"]
    kept = int(rng.integers(len(names)))
    made.dropped["episodes"] = {*names[:kept], *names[kept + 1 :]}


@liberty()
def no_lengths(made: Made, rng: np.random.Generator) -> None:
    if "episodes" in made.dropped:
        raise NotHere
    made.dropped["episodes"] = {"length"}


@liberty()
def stale_ranges(made: Made, rng: np.random.Generator) -> None:
    if "length" in made.dropped.get("episodes", ()):
        raise NotHere
    for entry in made.episodes:
        entry.values |= {"dataset_from_index": 5, "dataset_to_index": 7}


@liberty()
def more_columns_of_episodes(made: Made, rng: np.random.Generator) -> None:
    for entry in made.episodes:
        entry.values |= {"success": True, "operator": "x", "note": None}


@liberty()
def numbers_as_floats_in_episodes(made: Made, rng: np.random.Generator) -> None:
    """pandas turns a column of numbers into floats when one was missing."""
    for entry in made.episodes:
        for name, value in entry.values.items():
            if isinstance(value, int) and name.endswith(("length", "dataset_from_index")):
                entry.values[name] = float(value)


@liberty(lerobot=False)
def list_of_episodes_in_any_order(made: Made, rng: np.random.Generator) -> None:
    made.episodes = [made.episodes[i] for i in rng.permutation(len(made.episodes))]


@liberty()
def episodes_in_files(made: Made, rng: np.random.Generator) -> None:
    cuts = np.sort(rng.integers(0, len(made.episodes), 2))
    for i, entry in enumerate(made.episodes):
        entry.file = (0, int(np.searchsorted(cuts, i, side="right")))


NUMBER_TYPES = (pa.int32(), pa.uint16(), pa.float64(), pa.int16(), pa.uint64())


@liberty()
def types_of_numbers(made: Made, rng: np.random.Generator) -> None:
    for name in NUMBERS:
        made.types[name] = some(rng, NUMBER_TYPES)
    made.types["timestamp"] = some(rng, [pa.float32(), pa.float64()])


LISTS: tuple[Callable[[Any, int], Any], ...] = (
    lambda kind, size: pa.list_(kind),
    lambda kind, size: pa.large_list(kind),
    lambda kind, size: pa.list_(kind, size),
)


@liberty()
def types_of_vectors(made: Made, rng: np.random.Generator) -> None:
    for name in VECTORS:
        number = some(rng, [pa.float16(), pa.float32(), pa.float64()])
        size = len(made.lines[0].values[name])
        made.types[name] = some(rng, LISTS)(number, size)


@liberty()
def types_of_texts(made: Made, rng: np.random.Generator) -> None:
    kinds = [pa.large_string(), pa.dictionary(pa.int32(), pa.string())]
    made.text = some(rng, kinds)


@liberty(pictures=True)
def how_parquet_is_written(made: Made, rng: np.random.Generator) -> None:
    made.parquet = {
        "compression": some(rng, ["none", "snappy", "gzip", "zstd", "brotli", "lz4"]),
        "row_group_size": int(rng.integers(1, 8)),
        "use_dictionary": bool(rng.integers(2)),
        "data_page_version": some(rng, ["1.0", "2.0"]),
        "store_schema": bool(rng.integers(2)),
    }


# -- statistics


def _stats(rows: np.ndarray) -> dict[str, Any]:
    names = ("min", "max", "mean", "std")
    return {n: getattr(rows, n)(axis=0).tolist() for n in names} | {"count": [len(rows)]}


@liberty()
def statistics(made: Made, rng: np.random.Generator) -> None:
    truths = [truth for _, truth in made.expected()]
    vectors = {STATE: [t.state for t in truths], ACTION: [t.action for t in truths]}
    made.stats = {key: _stats(np.stack(rows)) for key, rows in vectors.items()}
    for key in list(made.stats):
        if rng.integers(3) == 0:
            del made.stats[key]
        elif rng.integers(3) == 0:
            del made.stats[key]["std"]


@liberty()
def statistics_of_another_form(made: Made, rng: np.random.Generator) -> None:
    """Made up for the pictures, as LeRobot's ImageNet option leaves them; quantiles; a count."""
    made.stats = made.stats or {}
    for camera in made.cameras:
        mean = [[[0.485]], [[0.456]], [[0.406]]]
        made.stats[camera.key] = {"mean": mean, "std": mean, "min": mean, "max": mean}
    made.stats["timestamp"] = {"min": [0.0], "max": [1.0], "q01": [0.0]}


# -- around the dataset


@liberty(pictures=True)
def links_instead_of_files(made: Made, rng: np.random.Generator) -> None:
    """As the cache of the Hub keeps them."""

    def link(root: Path) -> None:
        blobs = root.with_name(f"{root.name}-blobs")
        blobs.mkdir()
        for i, file in enumerate(sorted(p for p in root.rglob("*") if p.is_file())):
            file.rename(blobs / str(i))
            file.symlink_to(blobs / str(i))

    made.after.append(link)


@liberty(lerobot=False)
def files_of_other_programs(made: Made, rng: np.random.Generator) -> None:
    def leave(root: Path) -> None:
        for name in (
            ".DS_Store",
            "README.md",
            "data/chunk-000/._file-000.parquet",
            "data/chunk-000/file-000.parquet.tmp",
            "meta/episodes/chunk-000/._file-000.parquet",
            ".cache/huggingface/download/x.lock",
            "images/observation.images.top/episode-000000/frame-000000.png",
        ):
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            (root / name).write_bytes(b"\0\5\x16\7")

    made.after.append(leave)
