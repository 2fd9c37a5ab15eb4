"""What we write, LeRobot reads: frames, tables, statistics, windows."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from small_recording import (
    CAMERAS,
    FPS,
    LENGTHS,
    TASKS,
    fill,
    layout,
    lerobot,
    picture,
    state,
    write,
)

from mtdit_runtime.recording import dataset_stats
from mtdit_runtime.recording.dataset_layout import INFO
from mtdit_runtime.recording.dataset_writer import DatasetWriter


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
