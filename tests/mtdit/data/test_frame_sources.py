"""A row's frame is the one at its own time, as in LeRobot, and no two rows have the same one."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import av
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from small_recording import CAMERAS, FPS, LENGTHS, TASKS, layout, lerobot, picture, state, write

from mtdit.data.frame_cache import FrameCache
from mtdit.data.frames import frame_cache
from mtdit_robots.errors import UserError
from mtdit_runtime.recording.dataset_writer import DatasetWriter

KINDS = ("disk", "memory", "video")
KEY = "videos/observation.images.top"
Line = dict[str, Any]


def data_file(root: Path, episode: int) -> Path:
    return root / f"data/chunk-000/file-{episode:03d}.parquet"


def edit_episode(root: Path, episode: int, **changes: object) -> None:
    path = root / f"meta/episodes/chunk-000/file-{episode:03d}.parquet"
    (line,) = pq.read_table(path).to_pylist()
    pq.write_table(pa.Table.from_pylist([line | changes]), path)


def edit_times(root: Path, episode: int, change: Callable[[np.ndarray], np.ndarray]) -> None:
    path = data_file(root, episode)
    table = pq.read_table(path)
    times = change(table["timestamp"].to_numpy()).astype(np.float32)
    place = table.column_names.index("timestamp")
    pq.write_table(table.set_column(place, "timestamp", pa.array(times)), path)


def opened(root: Path, kind: str, **options: Any) -> FrameCache:
    return frame_cache(str(root), root.with_name(f"{root.name}-{kind}"), None, kind=kind, **options)


def refused(root: Path, says: str) -> None:
    for kind in KINDS:
        with pytest.raises(UserError, match=says) as caught:
            opened(root, kind)
        assert "\n" not in str(caught.value)
        assert not root.with_name(f"{root.name}-{kind}").exists()


def compare_with_lerobot(root: Path, kinds: tuple[str, ...] = KINDS) -> None:
    theirs = lerobot(root, return_uint8=True)
    for kind in kinds:
        ours = opened(root, kind)
        assert len(ours.state) == len(theirs)
        for row in range(len(theirs)):
            item = theirs[row]
            for camera in CAMERAS:
                image = item[f"observation.images.{camera}"].permute(1, 2, 0).numpy()
                expected = image if image.dtype == np.uint8 else np.round(image * 255)
                got = ours.frames[camera][np.array([row])][0]
                np.testing.assert_array_equal(got, expected, f"{kind} {camera} row {row}")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return write(tmp_path / "set")


def cut(root: Path, removed: Mapping[int, range]) -> None:
    """Cut rows out of the tables, number the rest anew, and leave videos and timestamps alone."""
    start = 0
    for episode in range(len(LENGTHS)):
        table = pq.read_table(data_file(root, episode))
        gone = removed.get(episode, range(0))
        table = table.take([i for i in range(len(table)) if i not in gone])
        count = len(table)
        numbers = {"index": np.arange(start, start + count), "frame_index": np.arange(count)}
        for name, values in numbers.items():
            table = table.set_column(table.column_names.index(name), name, pa.array(values))
        pq.write_table(table, data_file(root, episode))
        edit_episode(
            root,
            episode,
            length=count,
            dataset_from_index=start,
            dataset_to_index=start + count,
        )
        start += count
    path = root / "meta/info.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "total_frames": start}))


def test_rows_cut_out_of_the_tables(root: Path) -> None:
    cut(root, {0: range(3, 7), 1: range(0, 5), 2: range(6, 9)})
    compare_with_lerobot(root)
    seen = opened(root, "memory").frames["top"][3]
    assert np.abs(seen.astype(int) - picture("top", 0, 7)).mean() < 4


def test_rows_cut_out_of_pictures_in_tables(tmp_path: Path) -> None:
    root = write(tmp_path / "set", video=False)
    cut(root, {0: range(3, 7), 1: range(0, 5)})
    compare_with_lerobot(root)


def test_one_video_of_several_episodes(tmp_path: Path) -> None:
    """Half a second that belongs to no episode comes before each: from_timestamp decides."""
    root = write(tmp_path / "set")
    starts_s = [0.5 * (e + 1) + sum(LENGTHS[:e]) / FPS for e in range(len(LENGTHS))]
    for camera in CAMERAS:
        film = [
            (picture(camera, e, i), round(start_s * FPS) + i)
            for e, start_s in enumerate(starts_s)
            for i in range(LENGTHS[e])
        ]
        key = f"videos/observation.images.{camera}"
        _film(root / key / "chunk-000/file-009.mp4", film)
        for episode, start_s in enumerate(starts_s):
            place = {f"{key}/from_timestamp": start_s, f"{key}/file_index": 9}
            edit_episode(root, episode, **place)
    compare_with_lerobot(root)


def _film(path: Path, frames: list[tuple[np.ndarray, int]]) -> None:
    """Pairs of a picture and its time, in 1 / FPS. With B-frames, which LeRobot's videos lack."""
    with av.open(str(path), "w") as out:
        stream = out.add_stream("libx264", rate=FPS)
        stream.height, stream.width = frames[0][0].shape[:2]
        stream.pix_fmt, stream.options = "yuv420p", {"crf": "10", "bf": "2"}
        for picture_of_row, number in frames:
            shown = av.VideoFrame.from_ndarray(picture_of_row, "rgb24")
            shown.pts = number
            out.mux(stream.encode(shown))
        out.mux(stream.encode())


def test_two_episodes_that_claim_the_same_frames(root: Path) -> None:
    edit_episode(root, 0, **{f"{KEY}/file_index": 1})
    refused(
        root, r"top/chunk-000/file-001.mp4: episodes 0 and 1 claim the same 12 frames \(0 to 11"
    )


def test_an_overlap_of_three_frames(root: Path) -> None:
    edit_episode(root, 2, **{f"{KEY}/file_index": 1, f"{KEY}/from_timestamp": 1.4})
    refused(root, r"file-001.mp4: episodes 1 and 2 claim the same 3 frames \(14 to 16\), 1.4 s to")


def test_a_time_that_is_in_an_episode_twice(root: Path) -> None:
    edit_times(root, 1, lambda t: np.r_[t[:8], t[7], t[9:]])
    refused(root, r"frame 8 of episode 1 is at 0.7 s, not after the frame before it \(0.7 s\)")


def test_a_row_between_two_frames(root: Path) -> None:
    edit_times(root, 1, lambda t: np.r_[t[:8], t[8] + 0.012, t[9:]])
    says = r"no frame at the time of 1 of 17 rows: episode 1 frame 8 is at 0.812 s.*12 ms away"
    refused(root, says + ".*--tolerance-seconds 0.013")
    nearest = opened(root, "memory", tolerance_s=0.013)
    seen = nearest.frames["top"][LENGTHS[0] + 8]
    assert np.abs(seen.astype(int) - picture("top", 1, 8)).mean() < 4


def test_a_row_after_the_end_of_its_video(root: Path) -> None:
    edit_times(root, 2, lambda t: np.r_[t[:-1], t[-1] + 5])
    refused(root, "lacks 1 of 9 frames .first: episode 2 frame 8, at 5.8 s.*delete_episodes")


def test_a_row_that_has_no_time(root: Path) -> None:
    edit_times(root, 2, lambda t: np.r_[t[:-1], np.nan])
    refused(root, "frame 8 of episode 2 has no time, its timestamp is nan; copy")


def test_two_cameras_in_one_file(root: Path) -> None:
    path = root / "meta/info.json"
    pattern = "videos/observation.images.top/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4"
    path.write_text(json.dumps({**json.loads(path.read_text()), "video_path": pattern}))
    refused(root, "leads cameras 'top' and 'wrist' to the same file videos/observation.images.top/")


# --- the dataset's statistics


def test_the_video_of_another_episode(tmp_path: Path) -> None:
    """No frame is claimed twice, but two files changed places; every episode has its statistics."""
    root = tmp_path / "set"
    recording = DatasetWriter(root, layout(), wait=True)
    for episode, level in enumerate((40, 110, 200)):
        taking = recording.begin(TASKS[0])
        for i in range(9):
            frames = {c: np.full((*size, 3), level + i, np.uint8) for c, size in CAMERAS.items()}
            taking.add(state(episode, i), state(episode, i), frames)
        recording.save_episode(taking)
    recording.close()
    assert opened(root, "memory").info.doubts == ()
    folder = root / "videos/observation.images.wrist/chunk-000"
    for old, new in ((1, 9), (2, 1), (9, 2)):
        (folder / f"file-{old:03d}.mp4").rename(folder / f"file-{new:03d}.mp4")
    refused(
        root, r"camera 'wrist' of episode 1 has a mean colour of \(0.8.*\(0.4.*--no-check-frames"
    )
    assert opened(root, "disk", check_frames=False).frames["wrist"][9].mean() > 190
