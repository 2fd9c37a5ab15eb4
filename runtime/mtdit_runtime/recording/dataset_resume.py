"""What a session that adds to a dataset finds there: everything is opened before it starts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from shlex import quote
from typing import Any

from mtdit_robots.errors import UserError
from mtdit_robots.features import IMAGES
from mtdit_runtime.recording.dataset_features import PICTURES, image_shape
from mtdit_runtime.recording.dataset_interrupted import Videos, file_place
from mtdit_runtime.recording.dataset_layout import (
    CHUNKS_SIZE,
    INFO,
    ROBOT_TYPES,
    DatasetLayout,
)
from mtdit_runtime.recording.dataset_parquet import (
    DATA,
    EPISODES,
    import_parquet,
    table_files,
)
from mtdit_runtime.recording.dataset_reader import RecordedDataset, read_dataset, read_info
from mtdit_runtime.recording.dataset_stats import Stats
from mtdit_runtime.recording.dataset_tables import new_info, stats_so_far, vector_orders
from mtdit_runtime.recording.dataset_tasks import read_tasks
from mtdit_runtime.recording.dataset_units import recorded_units
from mtdit_runtime.recording.dataset_videos import video_path, video_pattern


@dataclass(frozen=True)
class Before:
    """An existing dataset. rows: of meta/episodes. words: of each task number. stats: of all
    episodes together. last: kind of file -> number of the last one that holds an episode. schema:
    pyarrow's, of meta/episodes.
    """

    info: dict[str, Any]
    rows: list[dict[str, Any]] = field(default_factory=list)
    words: dict[int, str] = field(default_factory=dict)
    stats: list[dict[str, Stats]] = field(default_factory=list)
    last: dict[str, int] = field(default_factory=dict)
    schema: Any = None


def read_before(root: Path, layout: DatasetLayout) -> Before:
    """Open all that a session will add to. Counters and statistics are computed from the episodes,
    since stats.json and info.json may be one episode behind. UserError: another layout, damage.
    """
    info = read_info(root)
    vector_orders(info, layout, root)  # the joints' names, before their number
    check_same(info, layout, root)
    if not has_episodes(root):
        return Before(info)
    recorded = read_dataset(root)
    check_videos(recorded)
    _check_apart(root, info, layout)
    rows = [dict(row) for row in recorded.episodes]
    words, stats = dict(read_tasks(root).words), stats_so_far(recorded)
    schema = import_parquet().read_schema(table_files(root, EPISODES)[0])
    return Before(info, rows, words, [stats], _last_files(recorded, layout), schema)


def has_episodes(root: Path) -> bool:
    """Whether a folder holds a dataset with an episode; a session that was killed before its first
    one was whole leaves a dataset without.
    """
    if not (root / INFO).is_file():
        return False
    return bool(table_files(root, EPISODES) or read_info(root).get("total_episodes"))


def chunks_size(info: Mapping[str, Any]) -> int:
    """How many files a chunk has."""
    return int(info.get("chunks_size") or CHUNKS_SIZE)


def check_videos(recorded: RecordedDataset) -> None:
    """UserError when a video is missing or cut off: an episode could not be seen again."""
    videos = Videos(recorded.root, recorded.info, recorded.episodes)
    for row in recorded.episodes:
        if (short := videos.short(row)) is not None:
            raise UserError(
                f"{short} is missing or ends before episode {row['episode_index']} does: "
                "copy the dataset again"
            )


def _check_apart(root: Path, info: Mapping[str, Any], layout: DatasetLayout) -> None:
    """UserError when info.json has one place for the videos of several episodes or cameras."""
    keys = [IMAGES + camera for camera in layout.cameras] if layout.video else []
    places = [(key, *place) for key in keys for place in ((0, 0), (0, 1), (1, 0))]
    paths = [video_path(root, info, *place) for place in places]
    if len(set(paths)) < len(paths):
        raise UserError(
            f"{root}/{INFO}: video_path is {video_pattern(info)!r}, so a new episode would replace "
            "the video of another: choose another folder"
        )


def _last_files(recorded: RecordedDataset, layout: DatasetLayout) -> dict[str, int]:
    """Kind of file -> number of the last one that holds an episode. The next one may be there: a
    killed session left it, and it will be overwritten. UserError when more is left.
    """

    size = chunks_size(recorded.info)

    def number(file: Path) -> int:
        place = file_place(file)
        return place[0] * size + place[1] if place is not None else -1  # no name of ours

    last = {
        DATA: max(number(file) for file, rows in recorded.places.items() if (rows >= 0).any()),
        EPISODES: max(map(number, table_files(recorded.root, EPISODES))),
    }
    for key in (f"videos/{IMAGES}{camera}" for camera in layout.cameras if layout.video):
        places = [
            (row[f"{key}/chunk_index"], row[f"{key}/file_index"]) for row in recorded.episodes
        ]
        last[key] = max(int(chunk) * size + int(place) for chunk, place in places)
    for file, rows in recorded.places.items():
        if (rows < 0).any() and number(file) != last[DATA] + 1:
            raise UserError(
                f"{file} has frames of an episode that {EPISODES} does not list: run "
                f"`mtdit repair {quote(str(recorded.root))}` first"
            )
    return last


def check_same(info: Mapping[str, Any], layout: DatasetLayout, root: Path) -> None:
    """Raise UserError with the first feature in which the dataset differs from `layout`."""
    asked = new_info(layout)
    for name, same in (("fps", (layout.fps,)), ("robot_type", ROBOT_TYPES)):
        if info.get(name) != asked[name] and info.get(name) not in same:
            raise UserError(
                f"{root} has {name} {info.get(name)}, not {asked[name]}: choose another folder"
            )
    if (units := recorded_units(root)) not in (None, layout.units):
        raise UserError(f"{root} is in {units}, not {layout.units}: record in {units}")
    for key in dict.fromkeys([*asked["features"], *info["features"]]):
        ours, theirs = (
            _feature_text(features.get(key)) for features in (asked["features"], info["features"])
        )
        if ours != theirs:
            raise UserError(
                f"{root} has {key} as {theirs}, this arm gives {ours}: choose another folder"
            )


def _feature_text(feature: Mapping[str, Any] | None) -> str:
    """dtype and shape of a feature, for the comparison and the message; names are compared by
    `vector_orders`.
    """
    if feature is None:
        return "nothing"
    shape = image_shape(feature) if feature["dtype"] in PICTURES else feature["shape"]
    return f"{feature['dtype']} {'x'.join(map(str, shape))}"
