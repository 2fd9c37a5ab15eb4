"""What of a cache on disk is kept, and what is written anew, when its dataset changes."""

from __future__ import annotations

import json
import os
import shutil
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from small_recording import LENGTHS, TASKS, fill, layout, write

from mtdit.data.cache_folder import open_cache
from mtdit.data.frame_cache import FrameCache
from mtdit.data.frames import frame_cache
from mtdit_robots.errors import UserError
from mtdit_runtime.recording.dataset_writer import DatasetWriter

N = sum(LENGTHS)
VIDEO = "videos/observation.images.top/chunk-000/file-001.mp4"
DATA = "data/chunk-000/file-001.parquet"


class Cached:
    """A dataset and its cache; `open` says how many frames were written anew."""

    def __init__(self, folder: Path, video: bool = True) -> None:
        self.root, self.folder = write(folder / "set", video), folder / "frames"
        self.said: list[str] = []

    def open(self, **options: Any) -> tuple[FrameCache, int]:
        written = [0]
        cache = frame_cache(
            str(self.root),
            self.folder,
            options.pop("size", None),
            lambda done, total: written.append(total),
            self.said.append,
            **options,
        )
        return cache, written[-1]


@pytest.fixture
def cached(tmp_path: Path) -> Cached:
    cached = Cached(tmp_path)
    assert cached.open()[1] == 2 * N
    return cached


def edit_column(path: Path, name: str, change: Callable[[list[Any]], list[Any]]) -> None:
    table = pq.read_table(path)
    field = table.schema.field(name)
    values = pa.array(change(table[name].to_pylist()), field.type)
    pq.write_table(table.set_column(table.column_names.index(name), field, values), path)


def same_as_new(cached: Cached, tmp_path: Path) -> None:
    """The cache holds what one that is made from nothing holds."""
    fresh = frame_cache(str(cached.root), tmp_path / "fresh", None)
    ours = open_cache(cached.folder)
    for name in ("state", "action", "task", "episode_ends"):
        np.testing.assert_array_equal(getattr(ours, name), getattr(fresh, name))
    for camera, frames in fresh.frames.items():
        np.testing.assert_array_equal(ours.frames[camera], frames)
    assert ours.info == fresh.info
    shutil.rmtree(tmp_path / "fresh")


def test_a_task_that_is_worded_anew(cached: Cached, tmp_path: Path) -> None:
    frames = cached.folder / "frames.top.npy"
    inode = frames.stat().st_ino
    path = cached.root / "meta/tasks.parquet"
    edit_column(path, "task", lambda words: ["shut the drawer", *words[1:]])
    for episode in (0, 2):
        path = cached.root / f"meta/episodes/chunk-000/file-{episode:03d}.parquet"
        edit_column(path, "tasks", lambda tasks: [["shut the drawer"]])
    cache, written = cached.open()
    assert cache.info.facts.tasks == ("shut the drawer", TASKS[1])
    assert written == 0
    assert frames.stat().st_ino == inode, "not even copied"
    assert cached.open()[1] == 0
    same_as_new(cached, tmp_path)


@pytest.mark.parametrize("video", [True, False])
def test_actions_that_changed(video: bool, tmp_path: Path) -> None:
    cached = Cached(tmp_path, video)
    cached.open()
    edit_column(cached.root / DATA, "action", lambda rows: [[v + 1 for v in r] for r in rows])
    cache, written = cached.open()
    assert written == 0
    assert cache.action[LENGTHS[0], 0] == pytest.approx(cache.state[LENGTHS[0], 0] + 2)
    same_as_new(cached, tmp_path)


def test_a_video_that_changed(cached: Cached, tmp_path: Path) -> None:
    wrist = (cached.folder / "frames.wrist.npy").stat().st_ino
    other = write(tmp_path / "other", codec="h264", lengths=LENGTHS)
    small = (other / VIDEO.replace("001", "000")).read_bytes()
    (cached.root / VIDEO).write_bytes((other / VIDEO).read_bytes() + b"\0")
    assert cached.open()[1] == N, "the other camera stays"
    assert (cached.folder / "frames.wrist.npy").stat().st_ino == wrist
    same_as_new(cached, tmp_path)
    (cached.root / VIDEO).write_bytes(small)
    with pytest.raises(UserError, match="lacks 5 of 17 frames"):
        cached.open()
    assert open_cache(cached.folder).frames["top"].shape[0] == N, "the earlier cache stays"


def test_a_video_that_was_only_touched_or_copied(cached: Cached) -> None:
    os.utime(cached.root / VIDEO)
    assert cached.open()[1] == 0
    copy = shutil.copytree(cached.root, cached.root.with_name("copy"))
    shutil.rmtree(cached.root)
    copy.rename(cached.root)
    assert cached.open()[1] == 0
    assert len(cached.said) == 1


def test_a_video_of_the_same_size_and_time(cached: Cached) -> None:
    """A tool may set back the time of change; that of the inode it cannot."""
    path = cached.root / VIDEO
    status, data = path.stat(), bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert path.stat().st_mtime_ns == status.st_mtime_ns
    assert cached.open()[1] == N


def test_a_dataset_that_grew_decodes_only_what_is_new(cached: Cached, tmp_path: Path) -> None:
    before = open_cache(cached.folder)
    recording = DatasetWriter(cached.root, layout(), resume=True, wait=True)
    recording.save_episode(fill(recording, 3, 8))
    recording.close()
    # frames that were decoded anew would lack this mark
    with (cached.folder / "frames.top.npy").open("r+b") as file:
        file.seek(-before.frames["top"].nbytes, os.SEEK_END)
        file.write(b"\x7b" * 30)
    cache, _ = cached.open()
    assert len(cache.state) == N + 8
    assert (cache.frames["top"][0].ravel()[:30] == 0x7B).all()
    fresh = frame_cache(str(cached.root), tmp_path / "fresh", None)
    np.testing.assert_array_equal(cache.frames["top"][1:], fresh.frames["top"][1:])


def test_statistics_and_units_and_facts_follow(cached: Cached) -> None:
    path = cached.root / "meta/stats.json"
    stats = json.loads(path.read_text())
    stats["action"]["max"][0] = 77.0
    path.write_text(json.dumps(stats))
    cache, written = cached.open()
    assert written == 0
    assert cache.stats["action"]["max"][0] == 77.0


def test_a_cache_of_an_older_mtdit(cached: Cached, tmp_path: Path) -> None:
    path = cached.folder / "frames.json"
    raw = json.loads(path.read_text())
    for name in ("format", "frames"):
        del raw[name]
    path.write_text(json.dumps({**raw, "fingerprint": "0123"}))
    with pytest.raises(UserError, match=r"older mtdit.*give the dataset itself"):
        open_cache(cached.folder)
    assert cached.open()[1] == 2 * N
    same_as_new(cached, tmp_path)


@pytest.mark.parametrize("name", ["frames.top.npy", "source.top.npy", "action.npy", "stats.json"])
def test_a_cache_that_is_damaged(name: str, cached: Cached, tmp_path: Path) -> None:
    path = cached.folder / name
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    cached.open()
    same_as_new(cached, tmp_path)


def test_videos_that_are_gone(cached: Cached) -> None:
    shutil.rmtree(cached.root / "videos")
    with pytest.raises(UserError, match="does not exist; copy the whole dataset, or give a folder"):
        cached.open()
    assert frame_cache(str(cached.folder), Path("unused"), None).frames["top"].shape[0] == N


def test_a_run_keeps_its_frames_when_another_replaces_them(cached: Cached) -> None:
    running, _ = cached.open()
    expected = np.array(running.frames["top"])
    small, written = cached.open(size=(16, 16))
    assert written == 2 * N
    assert small.frames["top"].shape == (N, 16, 16, 3)
    np.testing.assert_array_equal(running.frames["top"], expected)


def test_runs_that_start_at_once(tmp_path: Path) -> None:
    """Two datasets and two sizes in one folder: every run trains on its own frames."""
    sets = [write(tmp_path / "a"), write(tmp_path / "b", lengths=(9, 12))]
    folder, results, said = tmp_path / "shared/frames", {}, []

    def start(number: int) -> None:
        size = (16, 16) if number % 2 else None
        cache = frame_cache(str(sets[number // 2]), folder, size, say=said.append)
        results[number] = {c: np.array(f) for c, f in cache.frames.items()}

    threads = [threading.Thread(target=start, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for number in range(4):
        size = (16, 16) if number % 2 else None
        alone = frame_cache(str(sets[number // 2]), Path("unused"), size, kind="memory")
        for camera, frames in alone.frames.items():
            np.testing.assert_array_equal(results[number][camera], frames)
    assert any("another run prepares the frames" in line for line in said)
    assert [path.name for path in folder.parent.iterdir()] == ["frames"]
