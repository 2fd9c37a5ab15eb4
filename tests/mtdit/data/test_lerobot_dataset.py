"""Reading a LeRobotDataset, and everything that can be wrong with one: each a line that says what
to do.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from edited_sets import bare_set, edit_tables
from small_dataset import JOINTS, LENGTHS, SIZE, TASKS, write_dataset

from mtdit.data.frame_cache import StoredDataset
from mtdit.data.lerobot_dataset import open_dataset
from mtdit.policies.multi_task_dit.clip_lookup import load_tokenizer
from mtdit_robots.errors import UserError


def test_png_datasets_read_like_videos(dataset_folder: Path, tmp_path: Path) -> None:
    stills, video = (
        StoredDataset(open_dataset(str(folder)), None)
        for folder in (write_dataset(tmp_path / "png", use_videos=False), dataset_folder)
    )
    pairs = zip(stills.decoded("top"), video.decoded("top"), strict=True)
    errors = [np.abs(a.astype(int) - b).mean() for (_, a), (_, b) in pairs]
    assert max(errors) < 8, "only the video's compression may differ"


def test_dataset_says_what_a_checkpoint_must_know(dataset_folder: Path) -> None:
    dataset = open_dataset(str(dataset_folder))
    assert dataset.joints == JOINTS
    assert dataset.tasks == TASKS
    assert dataset.fps == 10
    assert list(dataset.cameras) == ["top", "wrist"]
    assert dataset.episode_ends.tolist() == np.cumsum(LENGTHS).tolist()
    inside = np.abs(np.diff(dataset.action[: LENGTHS[0]], axis=0)).max() * 10
    assert 0 < max(dataset.max_speed) <= 1.5 * inside, "the jump between episodes must not count"


def test_tasks_that_differ_in_form_only_are_one(broken: Path, clip_folder: Path) -> None:
    """As CLIP's tokenizer, so LeRobot trains the same tokens for both."""
    composed, other = "pose le caf\u00e9", "pose le cafe\u0301"
    edit_table(broken / "meta/tasks.parquet", lambda c: c.update(task=[other, composed]))
    edit_table(
        broken / "meta/episodes/chunk-000/file-000.parquet",
        lambda c: c.update(tasks=[[other], [composed], [other]]),
    )
    dataset = open_dataset(str(broken))
    assert dataset.tasks == (composed,)
    assert not dataset.task.any()
    ids = load_tokenizer(clip_folder)([composed, other])["input_ids"]
    assert ids[0] == ids[1]


# --- what can be wrong
# --------------------------------------------------------------------------------------------


@pytest.fixture
def broken(dataset_folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(dataset_folder, tmp_path / "broken"))


def refuses(folder: Path | str, says: str) -> None:
    with pytest.raises(UserError, match=says) as caught:
        read_all(folder)
    assert "\n" not in str(caught.value)


def read_all(folder: Path | str) -> None:
    stored = StoredDataset(open_dataset(str(folder)), None)
    for camera in stored.dataset.cameras:
        list(stored.decoded(camera))


def edit_info(folder: Path, **changes: object) -> None:
    path = folder / "meta/info.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def test_no_such_dataset(tmp_path: Path) -> None:
    refuses(tmp_path / "nowhere", "mtdit simulate")
    (tmp_path / "empty").mkdir()
    refuses(tmp_path / "empty", "not a LeRobotDataset")


def test_metadata_that_does_not_fit(broken: Path) -> None:
    features = json.loads((broken / "meta/info.json").read_text())["features"]
    edit_info(broken, codebase_version="v2.1")
    refuses(broken, "v2.1")
    edit_info(broken, codebase_version="v3.0", fps=0)
    refuses(broken, "fps")
    edit_info(
        broken, fps=10, features={k: f for k, f in features.items() if k != "observation.state"}
    )
    refuses(broken, "observation.state")
    (broken / "meta/info.json").write_text("{")
    refuses(broken, "not valid JSON")


def test_missing_files(broken: Path) -> None:
    video = broken / "videos/observation.images.top/chunk-000/file-000.mp4"
    whole = video.read_bytes()
    video.write_bytes(whole[: len(whole) // 3])
    refuses(broken, "file-000.mp4")
    video.unlink()
    refuses(broken, "file-000.mp4")
    (broken / "meta/tasks.parquet").unlink()
    refuses(broken, "tasks.parquet")
    parquet = broken / "data/chunk-000/file-000.parquet"
    parquet.write_bytes(b"PAR1 broken")
    refuses(broken, "cannot be read")
    parquet.unlink()
    refuses(broken, "file-000.parquet is missing")


def test_damaged_tables(broken: Path) -> None:
    (broken / "meta/stats.json").write_text("[]")
    refuses(broken, "delete it")
    (broken / "meta/stats.json").unlink()
    (broken / "meta/tasks.parquet").write_bytes(b"junk")
    refuses(broken, "tasks.parquet cannot be read")
    (broken / "meta/info.json").write_text('{"codebase_version": "v3.0"}')
    refuses(broken, "lists no features")


def test_videos_are_found_where_lerobot_puts_them(broken: Path) -> None:
    edit_info(broken, video_path=None)
    read_all(broken)


def test_statistics_are_computed_when_missing(broken: Path) -> None:
    (broken / "meta/stats.json").unlink()
    dataset = open_dataset(str(broken))
    np.testing.assert_array_equal(dataset.stats["action"]["max"], dataset.action.max(0))


def test_statistics_that_are_not_finite(broken: Path) -> None:
    path = broken / "meta/stats.json"
    stats = json.loads(path.read_text())
    stats["action"]["max"][0] = float("nan")
    path.write_text(json.dumps(stats))
    refuses(broken, "not finite")


def test_a_video_path_that_is_no_pattern(broken: Path) -> None:
    edit_info(broken, video_path="{nothing}.mp4")
    refuses(broken, "is not a valid pattern")


def test_a_feature_without_a_type(broken: Path) -> None:
    features = json.loads((broken / "meta/info.json").read_text())["features"]
    del features["action"]["dtype"]
    edit_info(broken, features=features)
    refuses(broken, "lacks dtype or shape")


def edit_table(path: Path, change: Callable[[dict[str, list[Any]]], None]) -> None:
    """Writes a parquet file again with changed columns; a vector may then have any length."""
    table = pq.read_table(path)
    columns = {n: table[n].to_pylist() for n in table.column_names}
    change(columns)
    pq.write_table(pa.table(columns), path)


DATA = "data/chunk-000/file-000.parquet"


def test_fps_that_is_not_that_of_the_frames(broken: Path) -> None:
    edit_info(broken, fps=30)
    refuses(
        broken, r"info.json says fps 30, but the frames are 0.1 s apart \(10 fps\); correct fps"
    )
    edit_info(broken, fps=29.97)
    refuses(broken, "fps must be a positive integer, got 29.97")


def test_dimensions_that_differ(broken: Path) -> None:
    features = json.loads((broken / "meta/info.json").read_text())["features"]
    action = features["action"]
    edit_info(broken, features={**features, "action": {**action, "shape": [7]}})
    refuses(broken, r"action has 6 numbers per frame, but meta/info.json says shape \[7\]")
    edit_info(broken, features={**features, "action": {**action, "names": action["names"][:5]}})
    refuses(broken, "action has 6 dimensions but 5 names")
    edit_info(broken, features=features)
    edit_table(broken / DATA, lambda c: c["action"].__setitem__(4, [0.0] * 5))
    refuses(broken, "'action' has 5 numbers in one frame and 6 in another")


@pytest.mark.parametrize(
    "damage", [lambda b: b[: len(b) // 2], lambda b: b"no parquet at all", lambda b: b""]
)
def test_corrupt_parquet(damage: Callable[[bytes], bytes], broken: Path) -> None:
    for name in (DATA, "meta/tasks.parquet", "meta/episodes/chunk-000/file-000.parquet"):
        whole = (broken / name).read_bytes()
        (broken / name).write_bytes(damage(whole))
        refuses(broken, f"{name} cannot be read")
        (broken / name).write_bytes(whole)


def test_parquet_with_garbage_inside(broken: Path) -> None:
    whole = bytearray((broken / DATA).read_bytes())
    whole[200:1500] = bytes(1300)
    (broken / DATA).write_bytes(bytes(whole))
    refuses(broken, f"{DATA} cannot be read|not a finite|missing|apart")


@pytest.mark.parametrize("key", ["action", "timestamp", "frame_index", "task_index"])
def test_missing_column(key: str, broken: Path) -> None:
    edit_table(broken / DATA, lambda c: c.__delitem__(key))
    refuses(broken, f"{DATA} has no column {key!r}")


def test_values_that_are_none_or_not_finite(broken: Path) -> None:
    whole = (broken / DATA).read_bytes()
    edit_table(broken / DATA, lambda c: c["action"][30].__setitem__(2, float("nan")))
    refuses(broken, r"action is not finite in frame 30 \(episode 1\)")
    (broken / DATA).write_bytes(whole)
    edit_table(broken / DATA, lambda c: c["action"].__setitem__(30, None))
    refuses(broken, "1 values are missing in column 'action'")


def test_rows_that_are_missing(broken: Path) -> None:
    edit_table(broken / DATA, lambda c: [v.pop(20) for v in c.values()])  # type: ignore[arg-type,return-value]
    refuses(broken, r"23 frames of episode 0, but meta/episodes lists 24 \(frame 20 is missing\)")


def test_episodes_that_disagree(broken: Path) -> None:
    whole = (broken / DATA).read_bytes()
    edit_table(broken / DATA, lambda c: [v.__delitem__(slice(60, None)) for v in c.values()])  # type: ignore[arg-type,return-value]
    refuses(broken, "data has 5 frames of episode 2, but meta/episodes lists 18")
    (broken / DATA).write_bytes(whole)
    edit_table(broken / DATA, lambda c: c.update(episode_index=[0] * 73))
    refuses(broken, "data has frame 0 of episode 0 twice")


def test_task_out_of_range(broken: Path) -> None:
    edit_table(broken / DATA, lambda c: c.update(task_index=[5] * 73))
    refuses(broken, "episode 0 uses task number 5, but .*/meta/tasks.parquet has the numbers 0, 1;")


def test_fewer_frames_than_rows(broken: Path) -> None:
    import av

    path = broken / "videos/observation.images.top/chunk-000/file-000.mp4"
    short = path.with_name("short.mp4")
    with av.open(str(short), "w") as out:
        stream = out.add_stream("mpeg4", rate=10)
        stream.width = stream.height = SIZE
        for _ in range(50):
            out.mux(
                stream.encode(
                    av.VideoFrame.from_ndarray(np.zeros((SIZE, SIZE, 3), np.uint8), format="rgb24")
                )
            )
        out.mux(stream.encode())
    short.replace(path)
    refuses(broken, r"file-000.mp4 lacks 23 of 73 frames \(first: episode 1 frame 26, at 5 s\)")


def test_garbage_video(broken: Path) -> None:
    (broken / "videos/observation.images.wrist/chunk-000/file-000.mp4").write_bytes(b"junk" * 1000)
    refuses(broken, r"file-000.mp4 cannot be decoded")


def test_a_picture_that_is_broken(tmp_path: Path) -> None:
    folder = write_dataset(tmp_path / "png", use_videos=False)
    table = pq.read_table(folder / DATA)
    place = table.column_names.index("observation.images.top")
    pictures = table.column(place).to_pylist()
    pictures[7]["bytes"] = b"junk"
    pq.write_table(
        table.set_column(place, table.field(place), pa.array(pictures, table.field(place).type)),
        folder / DATA,
    )
    refuses(folder, f"{DATA} contains an image that cannot be decoded")


def test_a_camera_the_videos_do_not_have(broken: Path) -> None:
    features = json.loads((broken / "meta/info.json").read_text())["features"]
    edit_info(
        broken, features={**features, "observation.images.side": features["observation.images.top"]}
    )
    refuses(broken, "no column 'videos/observation.images.side/chunk_index'")


OPENPI = {"observation.state": "state", "action": "actions"}
AGIBOT = {"observation.state": "observation.states.joint.position", "action": "actions.joint"}


def rename_features(root: Path, names: dict[str, str]) -> None:
    """In the three places that the refusal of a rename_map names."""
    for file in ("meta/info.json", "meta/stats.json"):
        raw = json.loads((root / file).read_text())
        if file == "meta/info.json":
            raw["features"] = {names.get(k, k): v for k, v in raw["features"].items()}
        else:
            raw = {names.get(k, k): v for k, v in raw.items()}
        (root / file).write_text(json.dumps(raw))
    edit_tables(root, "data", lambda t: t.rename_columns([names.get(k, k) for k in t.column_names]))


@pytest.mark.parametrize("names", [OPENPI, AGIBOT, {"action": "leader.position"}])
def test_features_of_another_ecosystem(names: dict[str, str], tmp_path: Path) -> None:
    """Said what the dataset has; renamed as the message says, it is read."""
    root = bare_set(tmp_path / "set")
    before = open_dataset(str(root))
    rename_features(root, names)
    with pytest.raises(UserError, match="is of another robot or program; convert it") as refused:
        open_dataset(str(root))
    assert all(name in str(refused.value) for name in names.values())
    rename_features(root, {new: old for old, new in names.items()})
    assert np.array_equal(open_dataset(str(root)).state, before.state)
