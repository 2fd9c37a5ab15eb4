"""Datasets and batches against LeRobotDataset, and everything that can be wrong with a dataset."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import JOINTS, LENGTHS, TASKS, write_dataset

from mtdit.checkpoint import feature_stats, image_scaling
from mtdit.config import STATE, with_features
from mtdit.data import (
    Loader,
    frame_cache,
    normalized_images,
    open_cache,
    random_brightness,
    random_shift,
    rows_of_step,
    usable_rows,
    with_imagenet_stats,
)
from mtdit.dataset import open_dataset
from mtdit_robots.errors import UserError


def lerobot_items(folder: Path, n_obs_steps: int, horizon: int) -> list[dict]:
    from lerobot.datasets.lerobot_dataset import LeRobotDataset

    past = [i / 10 for i in range(1 - n_obs_steps, 1)]
    ahead = [i / 10 for i in range(1 - n_obs_steps, 1 - n_obs_steps + horizon)]
    windows = {"observation.state": past, "observation.images.top": past, "observation.images.wrist": past}
    dataset = LeRobotDataset(
        "mtdit/small", root=folder, delta_timestamps={**windows, "action": ahead}, video_backend="pyav"
    )
    return [dataset[i] for i in range(len(dataset))]


@pytest.mark.parametrize("n_obs_steps", [1, 2])
def test_windows_are_lerobots(n_obs_steps: int, dataset_folder: Path, tmp_path: Path) -> None:
    cache = frame_cache(str(dataset_folder), tmp_path / "frames", None)
    options = {"n_obs_steps": n_obs_steps, "horizon": 10, "n_action_steps": 4}
    config = with_features(options, "tiny", cache.info.input_features, cache.info.output_features)
    stats = with_imagenet_stats(cache.stats, list(cache.info.image_keys.values()))
    loader = Loader(cache, config, stats, text=torch.eye(2), batch_size=4, seed=0)
    items = lerobot_items(dataset_folder, n_obs_steps, 10)
    batch = loader.rows(np.arange(len(items)))
    states, actions = feature_stats(config, stats, STATE), feature_stats(config, stats, "action")
    assert batch.actions is not None
    assert batch.is_pad is not None
    for i, item in enumerate(items):
        np.testing.assert_allclose(states.unnormalize(batch.state[i].numpy()), item["observation.state"], atol=1e-4)
        np.testing.assert_allclose(actions.unnormalize(batch.actions[i].numpy()), item["action"], atol=1e-4)
        assert torch.equal(batch.is_pad[i], item["action_is_pad"])
        assert TASKS[int(batch.text[i].argmax())] == item["task"]
        for camera in ("top", "wrist"):
            offset, scale = (torch.from_numpy(v).view(3, 1, 1) for v in image_scaling(config, stats, camera))
            frames = item[f"observation.images.{camera}"].view(n_obs_steps, 3, 64, 64)  # LeRobot drops a single step
            expected = (frames - offset) / scale
            torch.testing.assert_close(batch.images[camera][i], expected, atol=1e-5, rtol=0)


def test_png_datasets_read_like_videos(dataset_folder: Path, tmp_path: Path) -> None:
    stills = open_dataset(str(write_dataset(tmp_path / "png", use_videos=False)))
    video = open_dataset(str(dataset_folder))
    pairs = zip(sorted(stills.frames("top"), key=lambda p: p[0]), video.frames("top"), strict=True)
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


def test_cache_is_kept_until_the_dataset_or_the_size_changes(dataset_folder: Path, tmp_path: Path) -> None:
    calls: list[int] = []
    folder = tmp_path / "frames"

    def cache(size: tuple[int, int] | None, dataset: Path = dataset_folder) -> tuple[int, ...]:
        return frame_cache(str(dataset), folder, size, lambda done, total: calls.append(done)).frames["top"].shape

    assert cache((32, 40)) == (73, 32, 40, 3)
    decoded = len(calls)
    assert cache((32, 40)) == (73, 32, 40, 3)
    assert len(calls) == decoded
    assert cache(None) == (73, 64, 64, 3)
    assert len(calls) > decoded
    assert frame_cache(str(folder), tmp_path / "unused", None).frames["top"].shape == (73, 64, 64, 3)
    assert not (tmp_path / "unused").exists()


def test_every_row_once_per_epoch_and_the_same_after_a_resume() -> None:
    usable = usable_rows(np.array([10, 25]), drop_n_last_frames=3)
    assert len(usable) == 7 + 12
    assert not {7, 8, 9, 22, 23, 24} & set(usable.tolist())
    rows = np.concatenate([rows_of_step(usable, step, 5, seed=1) for step in range(19)])
    for epoch in range(5):
        assert sorted(rows[epoch * 19 : (epoch + 1) * 19]) == usable.tolist()
    assert rows_of_step(usable, 7, 5, seed=1).tolist() == rows[35:40].tolist()
    assert rows_of_step(usable, 7, 5, seed=2).tolist() != rows[35:40].tolist()
    with pytest.raises(UserError, match="drop_n_last_frames"):
        usable_rows(np.array([3, 6]), drop_n_last_frames=4)


def test_random_shift_moves_whole_samples() -> None:
    frames = np.zeros((8, 2, 9, 9, 3), np.uint8)
    frames[:, :, 4, 4] = 255
    torch.manual_seed(0)
    moved = random_shift(frames, 2)
    places = [tuple(np.argwhere(sample[0, :, :, 0])[0]) for sample in moved]
    assert len(set(places)) > 3
    assert all(abs(y - 4) <= 2 and abs(x - 4) <= 2 for y, x in places)
    assert (moved[:, 0] == moved[:, 1]).all(), "the steps of one sample move together"


def test_random_brightness_scales_pixels_not_normalised_values() -> None:
    frames = torch.randint(0, 256, (16, 1, 4, 4, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    offset, scale = np.array([0.4, 0.5, 0.6], np.float32), np.array([0.2, 0.3, 0.25], np.float32)
    torch.manual_seed(0)
    bright = random_brightness(normalized_images(frames, offset, scale), offset, scale, 0.2)
    shape = (3, 1, 1)
    pixels = bright * torch.from_numpy(scale).view(shape) + torch.from_numpy(offset).view(shape)
    factors = (pixels / (frames.movedim(-1, -3).clamp_min(1) / 255)).flatten(1)
    torch.manual_seed(0)
    expected = (1 + 0.2 * torch.randn(16))[:, None]
    seen = frames.movedim(-1, -3).flatten(1) > 0
    assert ((factors - expected)[seen].abs() < 1e-3).all()


def test_images_are_normalised_per_channel() -> None:
    frames = torch.tensor([0, 51, 255], dtype=torch.uint8).view(1, 1, 3)
    offset, scale = np.array([0, 0.1, 0.5], np.float32), np.array([1, 0.5, 0.25], np.float32)
    torch.testing.assert_close(normalized_images(frames, offset, scale).flatten(), torch.tensor([0.0, 0.2, 2.0]))


# --- what can be wrong --------------------------------------------------------------------------------------------


@pytest.fixture
def broken(dataset_folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(dataset_folder, tmp_path / "broken"))


def refuses(folder: Path | str, says: str) -> None:
    with pytest.raises(UserError, match=says) as caught:
        read_all(folder)
    assert "\n" not in str(caught.value)


def read_all(folder: Path | str) -> None:
    dataset = open_dataset(str(folder))
    for camera in dataset.cameras:
        list(dataset.frames(camera))


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
    edit_info(broken, fps=10, features={k: f for k, f in features.items() if k != "observation.state"})
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
    refuses(broken, "remove it")
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


def test_incomplete_cache(dataset_folder: Path, tmp_path: Path) -> None:
    frame_cache(str(dataset_folder), tmp_path / "frames", None)
    (tmp_path / "frames/frames.top.npy").unlink()
    with pytest.raises(UserError, match="not a complete frame cache"):
        open_cache(tmp_path / "frames")
