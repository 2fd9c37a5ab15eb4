"""Frames on disk, in memory and from their videos: the same numbers, and what can be in the way."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from full_disk import LIMIT
from small_dataset import write_dataset

from mtdit.data.cache_folder import open_cache
from mtdit.data.frame_cache import StoredDataset
from mtdit.data.frames import frame_cache
from mtdit.data.lerobot_dataset import open_dataset
from mtdit_robots.errors import UserError
from mtdit_runtime.memory import free_memory


@pytest.fixture(scope="module")
def png_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_dataset(tmp_path_factory.mktemp("datasets") / "png", use_videos=False)


@pytest.mark.parametrize("size", [None, (32, 40)])
@pytest.mark.parametrize("pictures", [False, True])
def test_three_kinds_give_the_same_frames(
    size: tuple[int, int] | None,
    pictures: bool,
    dataset_folder: Path,
    png_folder: Path,
    tmp_path: Path,
) -> None:
    source = str(png_folder if pictures else dataset_folder)
    disk, memory, video = (
        frame_cache(source, tmp_path / "f", size, kind=k) for k in ("disk", "memory", "video")
    )
    rows = np.random.default_rng(0).permutation(146).reshape(73, 2) % 73
    for camera in ("top", "wrist"):
        shape = (73, *(size or (64, 64)), 3)
        assert (
            disk.frames[camera].shape
            == memory.frames[camera].shape
            == video.frames[camera].shape
            == shape
        )
        expected = disk.frames[camera][rows]
        assert expected.std() > 10
        np.testing.assert_array_equal(memory.frames[camera][rows], expected)
        np.testing.assert_array_equal(video.frames[camera][rows], expected)
    assert disk.info == memory.info == video.info
    np.testing.assert_array_equal(disk.action, video.action)


def test_size_is_said_before_anything_is_written(dataset_folder: Path, tmp_path: Path) -> None:
    said: list[str] = []

    def say(line: str) -> None:
        assert [path.name for path in tmp_path.iterdir()] == [".frames.lock"]
        said.append(line)

    frame_cache(str(dataset_folder), tmp_path / "frames", (200, 100), say=say)
    megabytes = f"{73 * 2 * 200 * 100 * 3 / 1e6:.0f} MB in {tmp_path / 'frames'}"
    assert said == [f"decoding the frames of {dataset_folder} once: {megabytes}"]
    written = sum(p.stat().st_size for p in (tmp_path / "frames").glob("frames.*.npy"))
    assert (
        0
        <= written
        - StoredDataset(open_dataset(str(dataset_folder)), (200, 100)).n_bytes(["top", "wrist"])
        < 1000
    )


def test_a_cache_is_kept_until_the_dataset_or_the_size_changes(
    dataset_folder: Path, tmp_path: Path
) -> None:
    calls: list[int] = []
    folder = tmp_path / "frames"

    def cache(size: tuple[int, int] | None) -> tuple[int, ...]:
        return (
            frame_cache(str(dataset_folder), folder, size, lambda done, total: calls.append(done))
            .frames["top"]
            .shape
        )

    assert cache((32, 40)) == (73, 32, 40, 3)
    decoded = len(calls)
    assert cache((32, 40)) == (73, 32, 40, 3)
    assert len(calls) == decoded
    assert cache(None) == (73, 64, 64, 3)
    assert len(calls) > decoded
    assert frame_cache(str(folder), tmp_path / "unused", None).frames["top"].shape == (
        73,
        64,
        64,
        3,
    )
    assert not (tmp_path / "unused").exists()


def test_no_room(dataset_folder: Path, tmp_path: Path) -> None:
    side = int((shutil.disk_usage(tmp_path).free / 73 / 6) ** 0.5) + 1
    with pytest.raises(UserError, match="--frames video"):
        frame_cache(str(dataset_folder), tmp_path / "frames", (side, side))
    side = int((free_memory() / 73 / 6) ** 0.5)
    with pytest.raises(UserError, match=r"of memory are free.*--frames video"):
        frame_cache(str(dataset_folder), tmp_path / "frames", (side, side), kind="memory")
    assert not list(tmp_path.iterdir())


FILL_UP = f"""
import sys
from pathlib import Path
from mtdit.data.frames import frame_cache
from mtdit_robots.errors import UserError
{LIMIT.format(bytes=300_000)}
try:
    frame_cache(sys.argv[1], Path(sys.argv[2]), None)
except UserError as error:
    print(error)
    sys.exit(2)
"""


def test_a_write_that_fails_leaves_no_half_cache(dataset_folder: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-c", FILL_UP, str(dataset_folder), str(tmp_path / "frames")]
    ran = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ran.returncode == 2, ran.stderr
    assert "cannot be written" in ran.stdout
    assert "--frames video" in ran.stdout
    assert not list(tmp_path.iterdir())


def test_a_folder_of_something_else_is_left_alone(dataset_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(UserError, match="is not a frame cache"):
        frame_cache(str(dataset_folder), tmp_path, None)
    assert (tmp_path / "thesis.txt").exists()


def test_what_lies_beside_an_older_cache_is_left_alone(
    dataset_folder: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    frame_cache(str(dataset_folder), folder, (16, 16))
    (folder / "checkpoints").mkdir()
    with pytest.raises(UserError, match="also contains checkpoints"):
        frame_cache(str(dataset_folder), folder, (32, 32))
    assert (folder / "checkpoints").is_dir()


def test_an_incomplete_cache(dataset_folder: Path, tmp_path: Path) -> None:
    frame_cache(str(dataset_folder), tmp_path / "frames", None)
    (tmp_path / "frames/frames.top.npy").unlink()
    with pytest.raises(UserError, match="not a complete frame cache"):
        open_cache(tmp_path / "frames")


def test_a_cache_needs_no_lerobot(dataset_folder: Path, tmp_path: Path) -> None:
    frame_cache(str(dataset_folder), tmp_path / "frames", None)
    code = (
        "import sys; from pathlib import Path; from mtdit.data.frames import frame_cache;"
        "c = frame_cache(sys.argv[1], Path('unused'), None); assert c.frames['top'][3].std() > 10;"
        "print([m for m in sys.modules if m.split('.')[0] in ('lerobot', 'av')])"
    )
    ran = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "frames")],
        capture_output=True,
        text=True,
        check=True,
    )
    assert json.loads(ran.stdout) == []


def test_videos_that_fail_while_they_are_read(dataset_folder: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(dataset_folder, tmp_path / "broken"))
    video = folder / "videos/observation.images.top/chunk-000/file-000.mp4"
    whole = video.read_bytes()
    cache = frame_cache(str(folder), tmp_path / "frames", None, kind="video")
    video.write_bytes(b"junk" * 1000)
    with pytest.raises(UserError, match=r"file-000.mp4 cannot be decoded"):
        cache.frames["top"][np.array([3])]
    video.write_bytes(whole)
    assert cache.frames["top"][np.array([3])].shape == (1, 64, 64, 3)
    video.unlink()
    with pytest.raises(UserError, match=r"file-000.mp4 does not exist"):
        frame_cache(str(folder), tmp_path / "frames", None, kind="video")
