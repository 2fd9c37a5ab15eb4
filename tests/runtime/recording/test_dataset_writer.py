"""What we write, LeRobot reads: frames, tables, statistics, windows; and no kill costs a finished
episode.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from mtdit.data.lerobot_dataset import open_dataset
from mtdit_robots.errors import UserError
from mtdit_robots.so101.joints import JOINTS
from mtdit_runtime.recording import dataset_stats
from mtdit_runtime.recording.dataset_layout import ASIDE, INFO, DatasetLayout
from mtdit_runtime.recording.dataset_layout import TASKS as TASKS_FILE
from mtdit_runtime.recording.dataset_reader import read_episode
from mtdit_runtime.recording.dataset_writer import DatasetWriter
from mtdit_runtime.recording.episode import Episode
from mtdit_runtime.recording.video_encoder import Encoding, PngSink

FPS = 10
CAMERAS = {"top": (48, 64), "wrist": (64, 64)}
TASKS = ("open the drawer", "close the drawer")
LENGTHS = (12, 17, 9)


def picture(camera: str, episode: int, i: int) -> np.ndarray:
    """Smooth, so that video keeps it, and different in every frame."""
    height, width = CAMERAS[camera]
    y, x = np.mgrid[0:height, 0:width]
    return (
        np.stack([x + 5 * i, y + 9 * episode, np.full_like(x, 40 + 8 * i)], axis=-1)
        .clip(0, 255)
        .astype(np.uint8)
    )


def state(episode: int, i: int) -> np.ndarray:
    return (20 * np.sin(i / 5 + episode + np.arange(6))).astype(np.float32)


def fill(recording: DatasetWriter, episode: int, length: int) -> Episode:
    taking = recording.begin(TASKS[episode % 2])
    for i in range(length):
        frames = {camera: picture(camera, episode, i) for camera in CAMERAS}
        taking.add(state(episode, i), state(episode, i) + 1, frames)
    return taking


def layout(video: bool = True) -> DatasetLayout:
    return DatasetLayout(FPS, JOINTS, CAMERAS, video)


def write(
    root: Path, video: bool = True, lengths: tuple[int, ...] = LENGTHS, codec: str = "h264"
) -> Path:
    recording = DatasetWriter(root, layout(video), codec=codec, wait=True)
    for episode, length in enumerate(lengths):
        recording.save_episode(fill(recording, episode, length))
    recording.close()
    return root


def lerobot(root: Path, **options: Any) -> Any:
    from lerobot.datasets.lerobot_dataset import LeRobotDataset

    return LeRobotDataset("mtdit/recorded", root=root, video_backend="pyav", **options)


@pytest.fixture(scope="module", params=[True, False], ids=["video", "images"])
def recorded(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, bool]:
    return write(tmp_path_factory.mktemp("recorded") / "set", video=request.param), request.param


def test_lerobot_reads_every_frame(recorded: tuple[Path, bool]) -> None:
    root, is_video = recorded
    dataset = lerobot(root)
    assert (len(dataset), dataset.num_episodes, dataset.fps) == (sum(LENGTHS), len(LENGTHS), FPS)
    assert dataset.meta.robot_type == "so_follower"
    row = 0
    for episode, length in enumerate(LENGTHS):
        for i in range(length):
            item = dataset[row]
            assert item["task"] == TASKS[episode % 2]
            assert (int(item["episode_index"]), int(item["frame_index"]), int(item["index"])) == (
                episode,
                i,
                row,
            )
            assert float(item["timestamp"]) == pytest.approx(i / FPS)
            np.testing.assert_array_equal(item["observation.state"].numpy(), state(episode, i))
            np.testing.assert_array_equal(item["action"].numpy(), state(episode, i) + 1)
            for camera in CAMERAS:
                seen = item[f"observation.images.{camera}"].permute(1, 2, 0).numpy() * 255
                error = np.abs(seen - picture(camera, episode, i))
                assert error.mean() < (4 if is_video else 1e-3), (row, camera, error.mean())
            row += 1


def test_lerobot_windows_do_not_leave_the_episode(recorded: tuple[Path, bool]) -> None:
    root, _ = recorded
    dataset = lerobot(
        root,
        delta_timestamps={
            "action": [i / FPS for i in range(-1, 4)],
            "observation.images.top": [-1 / FPS, 0],
        },
    )
    last = dataset[LENGTHS[0] - 1]
    assert last["action_is_pad"].tolist() == [False, False, True, True, True]
    assert last["observation.images.top"].shape == (2, 3, 48, 64)
    np.testing.assert_array_equal(last["action"][1].numpy(), state(0, LENGTHS[0] - 1) + 1)


def test_our_trainer_reads_the_same(recorded: tuple[Path, bool]) -> None:
    root, is_video = recorded
    dataset = open_dataset(str(root))
    assert (dataset.fps, dataset.joints, dataset.tasks) == (FPS, JOINTS, TASKS)
    assert dataset.episode_ends.tolist() == np.cumsum(LENGTHS).tolist()
    assert {camera: shape[:2] for camera, shape in dataset.cameras.items()} == CAMERAS
    rows = dict(dataset.frames("wrist"))
    assert len(rows) == sum(LENGTHS)
    assert np.abs(rows[LENGTHS[0] + 3].astype(int) - picture("wrist", 1, 3)).mean() < (
        4 if is_video else 1e-3
    )


def test_an_episode_is_read_back(recorded: tuple[Path, bool]) -> None:
    episode = read_episode(recorded[0], 1)
    assert (episode.fps, episode.joints, episode.task, len(episode.states)) == (
        FPS,
        JOINTS,
        TASKS[1],
        LENGTHS[1],
    )
    np.testing.assert_array_equal(episode.actions[4], (state(1, 4) + 1).astype(np.float64))
    with pytest.raises(UserError, match="has no episode 3: it has episodes 0 to 2"):
        read_episode(recorded[0], 3)


def write_with_lerobot(root: Path, use_videos: bool) -> Path:
    from lerobot.datasets.lerobot_dataset import LeRobotDataset

    dataset = LeRobotDataset.create(
        "mtdit/theirs",
        FPS,
        layout(use_videos).features(),
        root=root,
        robot_type="so_follower",
        use_videos=use_videos,
    )
    for episode, length in enumerate(LENGTHS):
        for i in range(length):
            frames = {
                f"observation.images.{camera}": picture(camera, episode, i) for camera in CAMERAS
            }
            vectors = {"observation.state": state(episode, i), "action": state(episode, i) + 1}
            dataset.add_frame({**vectors, **frames, "task": TASKS[episode % 2]})
        dataset.save_episode()
    dataset.finalize()
    return root


@pytest.mark.parametrize("is_video", [True, False])
def test_files_are_what_lerobot_would_have_written(tmp_path: Path, is_video: bool) -> None:
    """Same features, columns, types and metadata; statistics agree to the width of LeRobot's
    bins.
    """
    ours, theirs = (
        write(tmp_path / "ours", is_video),
        write_with_lerobot(tmp_path / "theirs", is_video),
    )
    infos = [json.loads((root / INFO).read_text()) for root in (ours, theirs)]
    for info in infos:
        for feature in info["features"].values():
            feature["info"] = sorted(feature.get("info") or {})
    assert infos[0] == infos[1]
    assert list(infos[0]["features"]) == list(infos[1]["features"])
    for file in (
        "meta/tasks.parquet",
        "meta/episodes/chunk-000/file-000.parquet",
        "data/chunk-000/file-000.parquet",
    ):
        schemas = [pq.read_schema(root / file) for root in (ours, theirs)]
        assert schemas[0].equals(schemas[1], check_metadata=False), (
            f"{file}:\n{schemas[0]}\n{schemas[1]}"
        )
    pandas = [
        json.loads(pq.read_schema(root / "meta/tasks.parquet").metadata[b"pandas"])
        for root in (ours, theirs)
    ]
    assert [p["index_columns"] for p in pandas] == [["task"], ["task"]]
    assert_stats_agree(
        *(json.loads((root / "meta/stats.json").read_text()) for root in (ours, theirs))
    )


def assert_stats_agree(ours: dict[str, Any], theirs: dict[str, Any]) -> None:
    assert set(ours) == set(theirs)
    for key, wanted in theirs.items():
        assert set(ours[key]) == set(wanted)
        span = np.max(np.array(wanted["max"]) - np.array(wanted["min"]))
        for name, value in wanted.items():
            found = np.array(ours[key][name])
            assert found.shape == np.array(value).shape, (key, name)
            # a quantile of theirs lies anywhere in the bin, or between two pixel values; their std
            # of pictures is a difference of squares in float32
            room = (
                span / 200
                if name.startswith("q")
                else 2e-4 * span
                if name == "std"
                else 1e-5 * max(1.0, span)
            )
            np.testing.assert_allclose(found, value, atol=room, rtol=1e-5, err_msg=f"{key} {name}")


def test_pictures_are_thinned_and_sampled_as_lerobot_does() -> None:
    from lerobot.datasets.compute_stats import (
        auto_downsample_height_width,
        get_feature_stats,
        sample_indices,
    )

    seed = 5
    print(f"seed {seed}")
    rng = np.random.default_rng(seed)
    images = rng.integers(0, 256, (130, 240, 320, 3), np.uint8)
    ours = dataset_stats.image_stats([dataset_stats.pixel_counts(image) for image in images])
    chosen = np.stack(
        [auto_downsample_height_width(images[i].transpose(2, 0, 1)) for i in sample_indices(130)]
    )
    theirs = get_feature_stats(chosen, (0, 2, 3), keepdims=True)
    exact = chosen.transpose(1, 0, 2, 3).reshape(3, -1) / 255
    for name in ("min", "max", "mean", "std"):
        np.testing.assert_allclose(ours[name].ravel(), getattr(exact, name)(axis=1), rtol=1e-12)
        np.testing.assert_allclose(
            ours[name], theirs[name][0] / 255, atol=5e-4
        )  # theirs sums squares in float32
    assert ours["count"].tolist() == theirs["count"].tolist()


def test_av1_too(tmp_path: Path) -> None:
    dataset = lerobot(write(tmp_path / "set", codec="av1", lengths=(6,)))
    assert dataset.meta.features["observation.images.top"]["info"]["video.codec"] == "av1"
    seen = dataset[5]["observation.images.top"].permute(1, 2, 0).numpy() * 255
    assert np.abs(seen - picture("top", 0, 5)).mean() < 4


# -- going on, taking back


def test_a_second_session_goes_on(tmp_path: Path) -> None:
    root = write(tmp_path / "set", lengths=LENGTHS[:2])
    recording = DatasetWriter(root, layout(), resume=True, wait=True)
    recording.save_episode(fill(recording, 2, LENGTHS[2]))
    recording.close()
    once = write(tmp_path / "once")
    for file in (INFO, "meta/stats.json"):
        assert_close(json.loads((root / file).read_text()), json.loads((once / file).read_text()))
    dataset = lerobot(root)
    assert (len(dataset), dataset.num_episodes) == (sum(LENGTHS), 3)
    assert dataset[sum(LENGTHS) - 1]["task"] == TASKS[0]


def assert_close(found: Any, wanted: Any) -> None:
    if isinstance(wanted, dict):
        assert found.keys() == wanted.keys()
        for key in wanted:
            assert_close(found[key], wanted[key])
    elif isinstance(wanted, list) and wanted and not isinstance(wanted[0], str):
        np.testing.assert_allclose(
            np.array(found, float), np.array(wanted, float), rtol=1e-6, atol=1e-9
        )
    else:
        assert found == wanted


def test_we_go_on_with_lerobots_and_lerobot_with_ours(tmp_path: Path) -> None:
    from lerobot.datasets.lerobot_dataset import LeRobotDataset

    root = write_with_lerobot(tmp_path / "set", use_videos=True)
    recording = DatasetWriter(root, layout(), resume=True, wait=True)
    recording.save_episode(fill(recording, 3, 8))
    recording.close()
    theirs = LeRobotDataset.resume("mtdit/mixed", root=root)
    for i in range(7):
        frames = {f"observation.images.{camera}": picture(camera, 4, i) for camera in CAMERAS}
        theirs.add_frame(
            {
                "observation.state": state(4, i),
                "action": state(4, i) + 1,
                **frames,
                "task": TASKS[0],
            }
        )
    theirs.save_episode()
    theirs.finalize()
    dataset = lerobot(root)
    assert (len(dataset), dataset.num_episodes) == (sum(LENGTHS) + 8 + 7, 5)
    for episode, i, row in ((3, 5, sum(LENGTHS) + 5), (4, 6, sum(LENGTHS) + 14)):
        item = dataset[row]
        np.testing.assert_array_equal(item["observation.state"].numpy(), state(episode, i))
        seen = item["observation.images.top"].permute(1, 2, 0).numpy() * 255
        assert np.abs(seen - picture("top", episode, i)).mean() < 4


def test_the_last_episode_can_be_taken_out_again(tmp_path: Path) -> None:
    root = write(tmp_path / "set", lengths=LENGTHS[:1])
    before = files_below(root)
    recording = DatasetWriter(root, layout(), resume=True, wait=True)
    assert not recording.drop_last(), "an earlier session's episode is not ours to drop"
    recording.save_episode(fill(recording, 1, 11))
    assert recording.drop_last()
    assert recording.n_episodes == 1
    recording.save_episode(fill(recording, 2, 9))
    recording.close()
    assert files_below(root) > before
    dataset = lerobot(root)
    assert (len(dataset), dataset.num_episodes) == (LENGTHS[0] + 9, 2)
    assert dataset[LENGTHS[0]]["task"] == TASKS[0]
    np.testing.assert_array_equal(dataset[LENGTHS[0] + 8]["observation.state"].numpy(), state(2, 8))


def files_below(root: Path) -> set[Path]:
    return {path.relative_to(root) for path in root.rglob("*") if path.is_file()}


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (DatasetLayout(30, JOINTS, CAMERAS), "has fps 10, not 30: choose another --out"),
        (
            DatasetLayout(FPS, JOINTS, {"top": (48, 64)}),
            "wrist as video 64x64x3, this arm gives nothing",
        ),
        (
            DatasetLayout(FPS, JOINTS, CAMERAS, video=False),
            r"observation.images.top as video 48x64x3, this arm gives image",
        ),
        (
            DatasetLayout(FPS, JOINTS[:5], CAMERAS),
            r"action as float32 6 of shoulder_pan.pos, .*, this arm gives",
        ),
    ],
)
def test_another_layout_is_refused(
    recorded: tuple[Path, bool], other: DatasetLayout, message: str
) -> None:
    root, is_video = recorded
    if is_video:
        with pytest.raises(UserError, match=message):
            DatasetWriter(root, other, resume=True)


def test_folders_that_are_not_ours(tmp_path: Path) -> None:
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis/chapter.txt").write_text("years of work")
    with pytest.raises(
        UserError, match=r"contains chapter.txt but is not a dataset: choose another --out"
    ):
        DatasetWriter(tmp_path / "thesis", layout(), resume=True)
    write(tmp_path / "set", lengths=(3,))
    with pytest.raises(UserError, match="add --resume to continue it"):
        DatasetWriter(tmp_path / "set", layout())
    with pytest.raises(UserError, match="video needs an even width and height"):
        DatasetWriter(tmp_path / "odd", DatasetLayout(FPS, JOINTS, {"top": (47, 64)}))


def test_a_session_without_an_episode_leaves_nothing(tmp_path: Path) -> None:
    recording = DatasetWriter(tmp_path / "set", layout(), wait=True)
    fill(recording, 0, 5).discard()
    with pytest.raises(UserError, match="an episode of 1 frames is too short"):
        recording.save_episode(fill(recording, 0, 1))
    recording.close()
    assert not (tmp_path / "set").exists()


# -- what survives


def test_every_half_done_commit_reads_and_goes_on(tmp_path: Path) -> None:
    """A kill between any two of the renames that add an episode: the dataset has one more or not,
    and is whole.
    """

    class Killed(DatasetWriter):
        steps = 0

        def _staged(self, *details: Any) -> list[tuple[Path, Path]]:
            return super()._staged(*details)[: self.steps]

    write(tmp_path / "first", lengths=LENGTHS[:2])
    n_moves = len(CAMERAS) + 5
    for steps in range(n_moves + 1):
        root = tmp_path / f"killed-{steps}"
        shutil.copytree(tmp_path / "first", root)
        recording = Killed(root, layout(), resume=True, wait=True)
        recording.steps = steps
        recording.save_episode(fill(recording, 2, 9))
        # the process is gone: the kernel releases its lock, nothing else is cleaned up
        recording._lock.close()
        dataset = lerobot(root)
        counted = 3 if steps == n_moves else 2
        assert dataset.meta.total_episodes == counted, steps
        assert dataset[LENGTHS[0] + LENGTHS[1] - 1]["task"] == TASKS[1]
        n_ours = len(open_dataset(str(root)).episode_ends)
        assert n_ours == (3 if steps >= n_moves - 2 else 2), steps
        again = DatasetWriter(root, layout(), resume=True, wait=True)
        assert again.n_episodes == n_ours
        again.save_episode(fill(again, 1, 7))
        again.close()
        dataset = lerobot(root)
        assert (dataset.num_episodes, len(dataset)) == (
            n_ours + 1,
            sum(LENGTHS[:2]) + 9 * (n_ours == 3) + 7,
        ), steps
        np.testing.assert_array_equal(
            dataset[len(dataset) - 1]["observation.state"].numpy(), state(1, 6)
        )
        assert len(open_dataset(str(root)).episode_ends) == n_ours + 1


RECORD = """
import sys, numpy as np
from pathlib import Path
from mtdit_robots.so101.joints import JOINTS
from mtdit_runtime.recording.dataset_layout import DatasetLayout
from mtdit_runtime.recording.dataset_writer import DatasetWriter
layout = DatasetLayout(10, JOINTS, {"top": (48, 64), "wrist": (64, 64)})
recording = DatasetWriter(Path(sys.argv[1]), layout, resume=True, wait=True)
for episode in range(3):
    taking = recording.begin("open the drawer")
    for i in range(400 if episode == 2 else 8):
        frames = {c: np.full((*s, 3), i % 256, np.uint8) for c, s in layout.cameras.items()}
        taking.add(np.full(6, i), np.full(6, i), frames)
        if episode == 2 and i == 200:
            print("under way", flush=True)
            sys.stdin.read()
    recording.save_episode(taking)
"""


def test_a_killed_recording_keeps_every_finished_episode(tmp_path: Path) -> None:
    root = tmp_path / "set"
    command = [sys.executable, "-c", RECORD, str(root)]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "under way\n"
        os.kill(process.pid, signal.SIGKILL)
    assert (root / ASIDE).is_dir(), "the third episode was under way"
    dataset = lerobot(root)
    assert (len(dataset), dataset.num_episodes) == (16, 2)
    assert float(dataset[15]["observation.state"][0]) == 7
    assert dataset[15]["observation.images.wrist"].mean() * 255 == pytest.approx(7, abs=3)
    recording = DatasetWriter(root, layout(), resume=True, wait=True)
    recording.save_episode(fill(recording, 0, 5))
    recording.close()
    dataset = lerobot(root)
    assert (len(dataset), dataset.num_episodes) == (21, 3)
    assert not (root / ASIDE).exists()


def test_two_recordings_do_not_share_a_folder(tmp_path: Path) -> None:
    """The second one would remove what the first has under way."""
    root = tmp_path / "set"
    command = [sys.executable, "-c", RECORD, str(root)]
    first = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert first.stdout is not None
    assert first.stdout.readline() == "under way\n"
    with pytest.raises(UserError, match=r"another program records into .*: wait for it"):
        DatasetWriter(root, layout(), resume=True)
    first.communicate()
    assert first.returncode == 0
    assert lerobot(root).num_episodes == 3
    DatasetWriter(root, layout(), resume=True).close()


@pytest.mark.parametrize(
    ("file", "content"),
    [
        (INFO, b'{"codebase_version": "v3.0", "fps'),
        (INFO, b"[]"),
        (INFO, b'{"codebase_version": "v3.0"}'),
        (INFO, b"\xff\xfe"),
        (TASKS_FILE, b"PAR1junk"),
        ("meta/episodes/chunk-000/file-000.parquet", b""),
        ("data/chunk-000/file-000.parquet", b"PAR1" * 9),
    ],
)
def test_damage_is_named(tmp_path: Path, file: str, content: bytes) -> None:
    """Whatever a bad disk or a bad copy made of it: one line, and nothing more is written."""
    root = tmp_path / "set"
    write(root, lengths=LENGTHS[:1])
    (root / file).write_bytes(content)
    before = {path: path.read_bytes() for path in root.rglob("*") if path.is_file()}
    if not file.startswith("data"):
        with pytest.raises(UserError, match=re.escape(str(root))):
            DatasetWriter(root, layout(), resume=True)
    with pytest.raises(UserError, match=re.escape(str(root))):
        read_episode(root, 0)
    assert {path: path.read_bytes() for path in root.rglob("*") if path.is_file()} == before


# -- an encoder that lags


class Slow:
    """Writes nothing until told to."""

    def __init__(self) -> None:
        self.go, self.written = threading.Event(), list[int]()

    def write(self, frame: np.ndarray) -> None:
        self.go.wait(60)
        self.written.append(int(frame[0, 0, 0]))

    def close(self) -> None:
        return None


@pytest.fixture
def slow() -> Iterator[Slow]:
    sink = Slow()
    yield sink
    sink.go.set()


def frame(value: int) -> np.ndarray:
    return np.full((16, 16, 3), value, np.uint8)


def test_frames_that_find_no_room_are_counted_and_their_places_filled(slow: Slow) -> None:
    encoding = Encoding(lambda: slow, waiting=3)
    for i in range(10):
        encoding.add(frame(i))
    assert encoding.repeated >= 6
    slow.go.set()
    encoding.finish()
    assert len(slow.written) == len(encoding.counts) == 10, "row i is frame i"
    shown = slow.written[: 10 - encoding.repeated]
    assert shown == list(range(len(shown)))
    assert slow.written[len(shown) :] == [shown[-1]] * encoding.repeated


def test_what_encoding_raises_reaches_whoever_records() -> None:
    def broken() -> PngSink:
        raise OSError("no space left")

    encoding = Encoding(broken)
    encoding.add(frame(1))
    with pytest.raises(OSError, match="no space left"):
        encoding.finish()
