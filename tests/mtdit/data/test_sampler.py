"""The order of rows, weights of tasks, held-out episodes: counted, and against LeRobot's rules."""

from __future__ import annotations

import math
from collections import Counter
from types import SimpleNamespace

import numpy as np
import pytest

from mtdit.data.sampler import Sampler, Shard, held_out_episodes, quotas, task_shares, usable_rows
from mtdit_robots.errors import UserError


def test_every_row_once_per_epoch_and_the_same_after_a_resume() -> None:
    usable = usable_rows(np.array([10, 25]), drop_n_last_frames=3)
    assert len(usable) == 7 + 12
    assert not {7, 8, 9, 22, 23, 24} & set(usable.tolist())
    sampler = Sampler(usable, seed=1)
    rows = np.concatenate([sampler.step(step, 5) for step in range(19)])
    for epoch in range(5):
        assert sorted(rows[epoch * 19 : (epoch + 1) * 19]) == usable.tolist()
    assert Sampler(usable, seed=1).step(7, 5).tolist() == rows[35:40].tolist()
    assert Sampler(usable, seed=2).step(7, 5).tolist() != rows[35:40].tolist()
    assert Sampler(usable, seed=1).step(0, 95).tolist() == rows.tolist(), (
        "a step may be longer than an epoch"
    )
    with pytest.raises(UserError, match="drop_n_last_frames"):
        usable_rows(np.array([3, 6]), drop_n_last_frames=4)


def test_usable_rows_are_lerobots() -> None:
    from lerobot.datasets.sampler import EpisodeAwareSampler

    ends = np.array([10, 14, 40])
    theirs = EpisodeAwareSampler([0, 10, 14], ends.tolist(), drop_n_last_frames=7, shuffle=False)
    assert usable_rows(ends, 7).tolist() == list(theirs)


def test_parts_share_a_batch_without_rest_or_overlap() -> None:
    for world, parts in ((1, 1), (2, 1), (1, 3), (3, 2)):
        slices = [Shard(r, world, i, parts).rows(4) for i in range(parts) for r in range(world)]
        assert np.concatenate([np.arange(24)[s] for s in slices]).tolist() == list(
            range(4 * world * parts)
        )


@pytest.mark.parametrize("balance", [False, True])
def test_shares_of_tasks_over_epochs(balance: bool) -> None:
    rows = {"often": np.arange(90), "rare": np.arange(90, 100), "odd": np.arange(100, 107)}
    shares = task_shares({t: len(r) for t, r in rows.items()}, balance, {"rare": 3.0})
    expected = np.array([1, 3, 1]) / 5 if balance else np.array([90, 30, 7]) / 127
    np.testing.assert_allclose(list(shares.values()), expected)
    counts = quotas(list(shares.values()), 107)
    assert sum(counts) == 107
    assert np.abs(np.array(counts) - expected * 107).max() < 1
    sampler = Sampler(np.arange(107), 5, list(zip(rows.values(), counts, strict=True)))
    seen = sampler.step(0, 107 * 9)
    for epoch in seen.reshape(9, 107):
        assert [int(np.isin(epoch, r).sum()) for r in rows.values()] == counts
    for task_rows in rows.values():
        times = [Counter(seen.tolist())[row] for row in task_rows]
        assert max(times) - min(times) <= 1, "within a task every row comes equally often"
    assert sampler.step(3, 50).tolist() == seen[150:200].tolist()
    assert (np.diff(np.searchsorted([90, 100], seen[:107], side="right")) != 0).sum() > 10, (
        "tasks are mixed"
    )


def test_a_task_that_is_not_there() -> None:
    with pytest.raises(UserError, match="did you mean 'open the drawer'"):
        task_shares({"open the drawer": 3, "push": 4}, False, {"open teh drawer": 2.0})
    with pytest.raises(UserError, match="'push'"):
        task_shares({"push": 4}, False, {"zzz": 2.0})


def test_held_out_episodes_are_lerobots() -> None:
    tasks = ["a", "b", "c"]
    of = np.random.default_rng(3).integers(0, 3, 100).tolist()
    for split in (0.05, 0.1, 0.07, 0.33, 0.5):
        assert held_out_episodes(of, tasks, split).tolist() == lerobot_eval_episodes(
            [tasks[t] for t in of], split
        )
    assert held_out_episodes(of, tasks, 0.0).tolist() == []
    with pytest.raises(UserError, match=r"leaves no training episode of 'b', which has 2"):
        held_out_episodes([0, 0, 0, 1, 1], ["a", "b"], 0.6)


def test_a_task_with_one_episode_is_not_held_out() -> None:
    """LeRobot would leave nothing of it to train on."""
    assert held_out_episodes([0, 0, 0, 1], ["a", "b"], 0.1).tolist() == [2]
    with pytest.raises(UserError, match="every task has one"):
        held_out_episodes([0, 1], ["a", "b"], 0.1)


def lerobot_eval_episodes(tasks: list[str], split: float) -> list[int]:
    """Which episodes LeRobot's own function asks for as evaluation set; only the reading of
    datasets is replaced.
    """
    from lerobot.datasets import factory

    asked: list[list[int]] = []
    meta = SimpleNamespace(episodes={"tasks": [[t] for t in tasks]}, camera_keys=[])
    whole = SimpleNamespace(episodes=None, num_episodes=len(tasks), meta=meta)

    def dataset(*_: object, episodes: list[int], **__: object) -> SimpleNamespace:
        asked.append(episodes)
        return SimpleNamespace(meta=meta)

    images = SimpleNamespace(enable=False)
    config = SimpleNamespace(
        dataset=SimpleNamespace(
            eval_split=split,
            image_transforms=images,
            repo_id="x",
            root=None,
            revision=None,
            video_backend="pyav",
            use_imagenet_stats=False,
        ),
        trainable_config=None,
        tolerance_s=1e-4,
    )
    code = (
        factory.make_train_eval_datasets.__code__
    )  # run with names of ours, nothing in the module is touched
    names = {
        **vars(factory),
        "make_dataset": lambda _: whole,
        "LeRobotDataset": dataset,
        "resolve_delta_timestamps": lambda *_: None,
    }
    type(lerobot_eval_episodes)(code, names)(config)
    train, held = asked
    assert sorted(train + held) == list(range(len(tasks)))
    assert math.isclose(len(held) / len(tasks), split, abs_tol=0.05)
    return sorted(held)
