"""Batches: windows against LeRobotDataset, slices of a global batch, threads that make them
ahead.
"""

from __future__ import annotations

import threading
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from batches import batch_of
from small_dataset import TASKS

from mtdit.data.frame_cache import FrameCache
from mtdit.data.frames import frame_cache
from mtdit.data.loader import Loader
from mtdit.data.prefetch import Prefetcher
from mtdit.data.sampler import Shard
from mtdit.policies.images import normalized_images
from mtdit.policies.multi_task_dit.policy import Batch, MultiTaskDiT
from mtdit.policies.multi_task_dit.presets import with_features
from mtdit.stats import feature_stats, image_scaling, with_imagenet_stats
from mtdit.training.config import TrainConfig
from mtdit_robots.errors import UserError
from mtdit_robots.features import STATE


def lerobot_items(folder: Path, n_obs_steps: int, horizon: int) -> list[dict]:
    from lerobot.datasets.lerobot_dataset import LeRobotDataset

    past = [i / 10 for i in range(1 - n_obs_steps, 1)]
    ahead = [i / 10 for i in range(1 - n_obs_steps, 1 - n_obs_steps + horizon)]
    windows = {
        "observation.state": past,
        "observation.images.top": past,
        "observation.images.wrist": past,
    }
    dataset = LeRobotDataset(
        "mtdit/small",
        root=folder,
        delta_timestamps={**windows, "action": ahead},
        video_backend="pyav",
    )
    return [dataset[i] for i in range(len(dataset))]


@pytest.mark.parametrize("n_obs_steps", [1, 2])
def test_windows_are_lerobots(n_obs_steps: int, dataset_folder: Path, tmp_path: Path) -> None:
    cache = frame_cache(str(dataset_folder), tmp_path / "frames", None)
    policy = {"n_obs_steps": n_obs_steps, "horizon": 10, "n_action_steps": 4}
    config = with_features(policy, "tiny", cache.info.input_features, cache.info.output_features)
    stats = with_imagenet_stats(cache.stats, list(cache.info.image_keys.values()))
    items = lerobot_items(dataset_folder, n_obs_steps, 10)
    options = TrainConfig("unused", Path("unused"), batch_size=len(items), seed=0)
    loader = Loader(cache, config, options, stats, text=torch.eye(2))
    batch, rows = batch_of(loader, 0), loader.rows_of(0).tolist()
    assert sorted(rows) == list(range(len(items)))
    states, actions = feature_stats(config, stats, STATE), feature_stats(config, stats, "action")
    assert batch.actions is not None
    assert batch.is_pad is not None
    for i, item in enumerate(items[row] for row in rows):
        np.testing.assert_allclose(
            states.unnormalize(batch.state[i].numpy()), item["observation.state"], atol=1e-4
        )
        np.testing.assert_allclose(
            actions.unnormalize(batch.actions[i].numpy()), item["action"], atol=1e-4
        )
        assert torch.equal(batch.is_pad[i], item["action_is_pad"])
        assert TASKS[int(batch.text[i].argmax())] == item["task"]
        for camera in ("top", "wrist"):
            offset, scale = (
                torch.from_numpy(v).view(3, 1, 1) for v in image_scaling(config, stats, camera)
            )
            frames = item[f"observation.images.{camera}"].view(
                n_obs_steps, 3, 64, 64
            )  # LeRobot drops a single step
            expected = (frames - offset) / scale
            torch.testing.assert_close(batch.images[camera][i], expected, atol=1e-5, rtol=0)


@pytest.fixture(scope="module")
def cache(dataset_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> FrameCache:
    return frame_cache(str(dataset_folder), tmp_path_factory.mktemp("cache") / "frames", None)


def make_loader(
    cache: FrameCache, batch_size: int, policy: dict[str, Any] | None = None, **options: Any
) -> Loader:
    size = {
        "image_resize_shape": (72, 70),
        "image_crop_shape": (64, 64),
        "n_obs_steps": 2,
        "n_action_steps": 6,
    }
    config = with_features(
        {**size, **(policy or {})}, "tiny", cache.info.input_features, cache.info.output_features
    )
    train = TrainConfig("unused", Path("unused"), batch_size=batch_size, seed=3, **options)
    return Loader(cache, config, train, cache.stats, torch.eye(2, 32))


EVERYTHING: dict[str, Any] = {
    "random_shift_px": 2,
    "random_brightness": 0.2,
    "noise_samples": 2,
    "balance_tasks": True,
    "image_transforms": {"enable": True, "random_order": True},
}


def flat(batch: Batch) -> dict[str, Any]:
    """Every tensor of a batch by name."""
    out: dict[str, Any] = {}
    for f in fields(batch):
        value = getattr(batch, f.name)
        out.update(
            {f"{f.name}.{k}": v for k, v in value.items()}
            if isinstance(value, dict)
            else {f.name: value}
        )
    return out


def assert_equal(a: Batch, b: Batch) -> None:
    for name, value in flat(a).items():
        other = flat(b)[name]
        assert torch.equal(value, other) if isinstance(value, torch.Tensor) else value == other, (
            name
        )


@pytest.mark.parametrize("options", [{}, EVERYTHING])
@pytest.mark.parametrize("masked", [False, True])
def test_parts_of_a_step_are_slices_of_the_whole(
    options: dict[str, Any], masked: bool, cache: FrameCache
) -> None:
    policy = {"do_mask_loss_for_padding": masked}
    for step in (0, 30):
        whole = flat(batch_of(make_loader(cache, 12, policy, **options), step))
        assert whole["noise"].shape[0] == 12 * options.get("noise_samples", 1)
        for world, parts in ((2, 1), (1, 3), (3, 2)):
            loader = make_loader(cache, 12 // world // parts, policy, **options)
            order = [Shard(r, world, i, parts) for i in range(parts) for r in range(world)]
            pieces = [flat(batch_of(loader, step, part)) for part in order]
            for name, value in whole.items():
                if isinstance(value, torch.Tensor):
                    joined = torch.cat([p[name] for p in pieces])
                    assert torch.equal(joined, value), (
                        f"{name}, step {step}, {world} processes, {parts} parts"
                    )
            if masked:
                assert sum(p["valid_actions"] for p in pieces) == pytest.approx(
                    whole["valid_actions"]
                )
                assert whole["valid_actions"] == (~whole["is_pad"]).sum() * options.get(
                    "noise_samples", 1
                )


@pytest.mark.parametrize("masked", [False, True])
def test_mean_over_parts_of_the_loss_is_the_loss_of_the_whole(
    masked: bool, cache: FrameCache, clip_folder: Path
) -> None:
    policy_options = {
        "do_mask_loss_for_padding": masked,
        "vision_encoder_name": str(clip_folder),
        "text_encoder_name": str(clip_folder),
        "drop_n_last_frames": 0,
        "hidden_dim": 32,
        "num_layers": 1,
    }
    loaders = {size: make_loader(cache, size, policy_options, **EVERYTHING) for size in (12, 3)}
    torch.manual_seed(0)
    policy = MultiTaskDiT(loaders[12].config).eval()
    for parameter in policy.noise_predictor.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    text = policy.pooled_text(torch.tensor([[49406, 320, 49407], [49406, 321, 49407]]))
    for loader in loaders.values():
        loader.text = text
    with torch.no_grad():
        whole = policy.loss(batch_of(loaders[12], 5), 2)
        parts = [
            policy.loss(batch_of(loaders[3], 5, Shard(r, 2, i, 2)), 2)
            for i in range(2)
            for r in range(2)
        ]
    assert masked == (
        not torch.allclose(
            whole, policy.loss(replace(batch_of(loaders[12], 5), is_pad=None), 2), rtol=1e-3
        )
    )
    torch.testing.assert_close(torch.stack(parts).mean(), whole, rtol=1e-6, atol=0)


def test_every_sample_and_camera_has_its_own_crop(cache: FrameCache) -> None:
    loader = make_loader(cache, 64)
    crop = batch_of(loader, 0).crop
    assert crop is not None
    for places in crop.values():
        assert places.min() == 0
        assert places.max(dim=0).values.tolist() == [8, 6]
    assert not torch.equal(crop["top"], crop["wrist"])
    assert batch_of(make_loader(cache, 4, {"image_crop_is_random": False}), 0).crop is None


def test_noise_and_time_are_the_objectives(cache: FrameCache) -> None:
    batch = batch_of(make_loader(cache, 64), 0)
    assert batch.noise is not None
    assert batch.time is not None
    assert abs(float(batch.noise.std()) - 1) < 0.05
    assert (batch.time.dtype, int(batch.time.min()) < 10, int(batch.time.max()) > 85) == (
        torch.int64,
        True,
        True,
    )
    flow = batch_of(make_loader(cache, 64, {"objective": "flow_matching"}), 0).time
    assert flow is not None
    assert flow.dtype == torch.float32


def test_brightness_scales_pixels_not_normalised_values() -> None:
    frames = torch.randint(
        0, 256, (16, 1, 4, 4, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
    )
    offset, scale = np.array([0.4, 0.5, 0.6], np.float32), np.array([0.2, 0.3, 0.25], np.float32)
    factors = torch.linspace(0.5, 1.5, 16)
    bright = normalized_images(frames, offset, scale, factors)
    shape = (3, 1, 1)
    pixels = bright * torch.from_numpy(scale).view(shape) + torch.from_numpy(offset).view(shape)
    torch.testing.assert_close(pixels, frames.movedim(-1, -3) / 255 * factors.view(-1, 1, 1, 1, 1))


def test_images_are_normalised_per_channel() -> None:
    frames = torch.tensor([0, 51, 255], dtype=torch.uint8).view(1, 1, 3)
    offset, scale = np.array([0, 0.1, 0.5], np.float32), np.array([1, 0.5, 0.25], np.float32)
    torch.testing.assert_close(
        normalized_images(frames, offset, scale).flatten(), torch.tensor([0.0, 0.2, 2.0])
    )
    mirrored = frames.expand(2, 4, 3).flip(0)
    torch.testing.assert_close(
        normalized_images(mirrored, offset, scale)[1, 0], torch.full((4,), 0.2)
    )
    pixels = torch.ones(1, 1, 3)
    normalized_images(pixels, offset, scale)
    assert (pixels == 1).all(), "the frames that are given stay as they are"


def test_frames_from_videos_make_the_same_batches(cache: FrameCache, dataset_folder: Path) -> None:
    direct = frame_cache(str(dataset_folder), Path("unused"), None, kind="video")
    assert_equal(
        batch_of(make_loader(direct, 6, **EVERYTHING), 4),
        batch_of(make_loader(cache, 6, **EVERYTHING), 4),
    )


def test_where_names_episodes_and_frames(cache: FrameCache) -> None:
    loader = make_loader(cache, 4)
    assert (
        loader.describe_rows([0, 23, 24, 72])
        == "episode 0 frame 0, episode 0 frame 23, episode 1 frame 0, episode 2 frame 17"
    )
    assert loader.describe_rows(np.arange(20)).endswith("episode 0 frame 7 and 12 more")


# --- held out


@pytest.fixture(scope="module")
def long_cache(cache: FrameCache) -> FrameCache:
    """The same frames as twelve episodes of six, tasks in turn, and one frame more."""
    ends = np.array([*range(6, 72, 6), 73])
    task = np.repeat(np.arange(12) % 2, np.diff([0, *ends]))
    return replace(cache, episode_ends=ends, task=task)


def test_held_out_episodes_are_never_trained_on(long_cache: FrameCache) -> None:
    loader = make_loader(long_cache, 5, {"horizon": 8}, val_split=0.3, balance_tasks=True)
    held = {*range(48, 73)}  # the last two of each task's six episodes
    assert set(loader.held_out.tolist()) == held
    trained = np.concatenate([loader.rows_of(step) for step in range(100)])
    assert set(trained.tolist()) == set(range(73)) - held
    assert not list(make_loader(long_cache, 5).validation())
    assert loader.summary() == [
        "share of the samples: 'open the drawer' 50%, 'close the drawer' 50%",
        "4 of 12 episodes are held out for the validation loss",
    ]
    assert make_loader(long_cache, 5).summary() == []


def test_validation_is_the_same_whoever_computes_it(long_cache: FrameCache) -> None:
    options = {"val_split": 0.3, "random_shift_px": 2, "random_brightness": 0.3, "noise_samples": 2}
    alone = list(
        make_loader(long_cache, 4, {"do_mask_loss_for_padding": True}, **options).validation()
    )
    assert sum(len(b.state) for b in alone) == 25
    assert all(b.crop is None for b in alone)
    again = make_loader(long_cache, 4, {"do_mask_loss_for_padding": True}, **options)
    batch_of(again, 3)
    shared = [list(again.validation(rank, 2)) for rank in range(2)]
    for i, batch in enumerate(alone):
        assert_equal(batch, shared[i % 2][i // 2])
    assert sum(len(s) for s in shared) == len(alone)
    bigger = list(
        make_loader(long_cache, 10, {"do_mask_loss_for_padding": True}, **options).validation()
    )
    for name in ("state", "noise", "actions"):
        joined = [torch.cat([getattr(b, name) for b in batches]) for batches in (alone, bigger)]
        assert torch.equal(*joined), name
    total = 2 * sum(int((~b.is_pad).sum()) for b in alone)  # type: ignore[operator]
    for batch in (*alone, *bigger):
        assert batch.valid_actions == pytest.approx(total * len(batch.state) / 25)


def test_a_task_with_one_episode_is_left_out_of_the_split(cache: FrameCache) -> None:
    """It is trained on, and a line says so."""
    loader = make_loader(cache, 4, val_split=0.2)
    lines = "\n".join(loader.summary())
    assert "trained on and not held out, because they are a task's only episode" in lines
    assert "'close the drawer'" in lines
    assert "1 of 3 episodes are held out" in lines


# --- made ahead


@pytest.mark.parametrize("workers", [1, 3])
def test_batches_come_in_order_and_are_the_loaders(workers: int, cache: FrameCache) -> None:
    loader = make_loader(cache, 4, **EVERYTHING)
    with Prefetcher(loader, 5, parts=2, rank=1, world=2, workers=workers) as batches:
        for step in range(5, 15):
            for index, batch in enumerate(batches.next()):
                assert_equal(batch, batch_of(loader, step, Shard(1, 2, index, 2)))
        assert batches.wait_s > 0


def test_what_goes_wrong_in_a_thread_is_raised_in_order(cache: FrameCache) -> None:
    class Frames:
        """A camera's frames, of which one cannot be read."""

        def __init__(self, camera: str) -> None:
            self.frames = cache.frames[camera]
            self.shape = self.frames.shape

        def __getitem__(self, rows: np.ndarray) -> np.ndarray:
            if bad in rows:
                raise UserError("frame cannot be decoded")
            return self.frames[rows]

    plain = make_loader(cache, 4)
    seen = [set(plain.rows_of(step).tolist()) for step in range(4)]
    bad = next(r for r in sorted(seen[3]) if not any({r, r + 1} & s for s in seen[:3]))
    loader = make_loader(replace(cache, frames={c: Frames(c) for c in cache.frames}), 4)  # type: ignore[dict-item]
    with Prefetcher(loader, 0, workers=2) as batches:
        for step in range(3):
            assert_equal(batches.next()[0], batch_of(plain, step))
        with pytest.raises(UserError, match="cannot be decoded"):
            batches.next()


def test_close_ends_the_threads(cache: FrameCache) -> None:
    before = set(threading.enumerate())

    def interrupted() -> None:
        with Prefetcher(make_loader(cache, 8), 0, workers=3) as batches:
            batches.next()
            assert set(threading.enumerate()) - before
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert not set(threading.enumerate()) - before


def test_shifts_stay_within_a_frame(long_cache: FrameCache) -> None:
    side = min(long_cache.frames["top"].shape[1:3])
    batch_of(make_loader(long_cache, 4, random_shift_px=side - 1), 0)
    with pytest.raises(UserError, match="random_shift_px"):
        make_loader(long_cache, 4, random_shift_px=side)
