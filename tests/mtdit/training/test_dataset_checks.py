"""Every warning before a training: a case that deserves it, and a clean one that does not."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mtdit.config import Feature
from mtdit.data.frame_cache import CacheInfo, FrameCache
from mtdit.policies.multi_task_dit.presets import with_features
from mtdit.stats import DatasetFacts
from mtdit.training.config import TrainConfig
from mtdit.training.dataset_checks import dataset_warnings
from mtdit_robots.features import ACTION, STATE

TASKS = ("open the drawer", "push the red cube to the left")
JOINTS = ("shoulder_pan", "elbow_flex", "gripper")
LENGTH, FPS = 60, 30
MEAN_STD = {"VISUAL": "MEAN_STD", "STATE": "MEAN_STD", "ACTION": "MEAN_STD"}


def clean(
    lengths: list[int] | None = None,
    tasks: tuple[str, ...] = TASKS,
    size: tuple[int, int] = (480, 640),
) -> FrameCache:
    """120 episodes of two seconds, two tasks in turn, every joint moving all the time."""
    lengths = lengths or [LENGTH] * 120
    time = np.concatenate([np.arange(n) for n in lengths]) / FPS
    action = np.stack([50 * np.sin(2 * time + 2 * j) + j for j in range(3)], axis=1).astype(
        np.float32
    )
    task = np.repeat(np.arange(len(lengths)) % len(tasks), lengths)
    inputs = {
        STATE: Feature("STATE", (3,)),
        "observation.images.top": Feature("VISUAL", (3, *size)),
    }
    facts = DatasetFacts("clean", FPS, JOINTS, tasks, (100.0,) * 3, "so_follower")
    info = CacheInfo(
        facts, inputs, {ACTION: Feature("ACTION", (3,))}, {"top": "observation.images.top"}
    )
    return with_actions(
        FrameCache(Path(), info, {}, {}, action, action, task, np.cumsum(lengths)), action
    )


def with_actions(cache: FrameCache, action: np.ndarray) -> FrameCache:
    stats = {
        "min": action.min(0),
        "max": action.max(0),
        "mean": action.mean(0),
        "std": action.std(0),
    }
    return replace(cache, action=action, state=action, stats={STATE: stats, ACTION: stats})


def said(
    cache: FrameCache,
    policy: dict[str, Any] | None = None,
    world: int = 1,
    stats: Any = None,
    **train: Any,
) -> list[str]:
    config = with_features(
        policy or {}, "base", cache.info.input_features, cache.info.output_features
    )
    return dataset_warnings(TrainConfig("clean", Path("out"), **train), config, cache, world, stats)


def test_different_orders_of_state_and_action_are_said() -> None:
    cache = clean()
    facts = replace(cache.info.facts, state_joints=JOINTS[::-1])
    turned = replace(cache, info=replace(cache.info, facts=facts))
    only(said(turned), "in different orders (state: ", ", ".join(JOINTS[::-1]), "by its joint's")


def only(lines: list[str], *says: str) -> None:
    assert len(lines) == 1, lines
    assert "\n" not in lines[0]
    for part in says:
        assert part in lines[0], lines[0]


def test_a_clean_dataset_needs_no_advice() -> None:
    assert said(clean()) == []


def test_few_episodes() -> None:
    only(said(clean([LENGTH] * 49)), "only 49 episodes", "fewer than 50")
    assert said(clean([LENGTH] * 50, tasks=TASKS[:1])) == []
    lengths = [LENGTH] * 98
    only(
        said(clean(lengths)),
        "fewer than 50 episodes",
        "'open the drawer' (49)",
        "'push the red cube to the left' (49)",
    )


def test_tasks_written_twice() -> None:
    a, b = "open the drawer", "Open the  drawer."
    only(said(clean(tasks=(a, b))), repr(a), repr(b), "one wording")


def test_uneven_tasks() -> None:
    uneven = clean([LENGTH * 4, LENGTH] * 60)
    only(said(uneven), "'open the drawer' has 4.0 times the frames", "--balance-tasks")
    assert said(uneven, balance_tasks=True) == []
    assert said(uneven, task_weights={TASKS[1]: 2.0}) == []
    assert said(clean([LENGTH * 3, LENGTH] * 60)) == []


def test_idle_frames() -> None:
    cache = clean()
    action = cache.action.copy().reshape(120, LENGTH, 3)
    action[:, :20] = action[:, 20:21]
    action[:, -18:] = action[:, -18:-17]
    only(
        said(with_actions(cache, action.reshape(-1, 3))),
        "more than 0.5 s",
        "35% at the start",
        "30% at the end",
    )
    brief = cache.action.copy().reshape(120, LENGTH, 3)
    brief[:, :14] = brief[:, 14:15]  # under half a second
    assert said(with_actions(cache, brief.reshape(-1, 3))) == []
    one = cache.action.copy()
    one[:, 0] = np.where(np.arange(len(one)) % LENGTH < 30, 0.0, one[:, 0])
    assert said(with_actions(cache, one)) == [], "the other joints move"


def test_joints_that_do_not_move() -> None:
    cache = clean()
    action = cache.action.copy()
    action[:, 1] = 7.0
    stuck = with_actions(cache, action)
    only(said(stuck), "elbow_flex (0)", "MIN_MAX")
    (line,) = said(stuck, {"normalization_mapping": MEAN_STD, "clip_sample": False})
    assert "MIN_MAX" not in line
    action[:, 1] += np.linspace(0, 0.2, len(action))
    assert said(with_actions(cache, action)) == []


def test_statistics_of_another_dataset() -> None:
    cache = clean()
    narrow = {n: v * 0.8 for n, v in cache.stats[ACTION].items()}
    only(
        said(cache, stats={STATE: cache.stats[STATE], ACTION: narrow}),
        "action is outside the range",
        "%",
        "stats.json",
    )
    close = {n: v * 0.99 for n, v in cache.stats[ACTION].items()}
    assert said(cache, stats={STATE: close, ACTION: close}) == []


def test_small_batches() -> None:
    only(said(clean(), batch_size=20), "20 samples", "--grad-accumulation to 4")
    assert said(clean(), batch_size=16, grad_accumulation=2, world=2) == []
    assert said(clean(), batch_size=32, noise_samples=2) == []


def test_images() -> None:
    only(said(clean(size=(720, 1280))), "240x240 squashes 1280x720", "1.78")
    only(
        said(clean(), {"image_resize_shape": None}), "16% of a 640x480 frame", "image_resize_shape"
    )
    assert said(clean(), {"image_resize_shape": None, "image_crop_shape": None}) == []
    assert said(clean(), {"image_resize_shape": [240, 320], "image_crop_shape": [224, 300]}) == []


def test_horizon() -> None:
    only(
        said(clean([200] * 120), {"horizon": 120}),
        "horizon 120 is 4.0 s at 30 fps",
        "horizon 30, n_action_steps 24",
    )
    only(said(clean(), {"horizon": 12, "n_action_steps": 8}), "horizon 12 is 0.4 s")


def test_short_episodes() -> None:
    only(
        said(clean([*([LENGTH] * 118), 20, 31])),
        "2 of 120 episodes",
        "32 frames",
        "shortest has 20",
    )
    assert said(clean([*([LENGTH] * 118), 32, 32])) == []


@pytest.mark.parametrize(
    ("policy", "says"),
    [
        (
            {"normalization_mapping": MEAN_STD},
            ("MEAN_STD", "add --policy clip_sample_range=2.3", "MIN_MAX"),
        ),
        (
            {"normalization_mapping": {**MEAN_STD, "ACTION": "IDENTITY"}},
            ("IDENTITY", "can reach only -1 to 1", "and 2 more joints"),
        ),
        ({"clip_sample_range": 0.5}, ("cuts normalised actions at +-0.5", "clip_sample_range=1")),
    ],
)
def test_actions_that_the_sampler_cuts(policy: dict[str, Any], says: tuple[str, ...]) -> None:
    only(said(clean(), policy), "clip_sample", *says)
    for change in ({"clip_sample": False}, {"objective": "flow_matching"}):
        assert said(clean(), {**policy, **change}) == []


def test_the_remedy_for_cut_actions_helps() -> None:
    policy = {"normalization_mapping": MEAN_STD}
    (line,) = said(clean(), policy, resume=True)
    name, _, needed = line.rpartition("add --policy ")[2].partition("=")
    assert (name, said(clean(), {**policy, name: float(needed)})) == ("clip_sample_range", [])
    assert said(clean(), {**policy, name: float(needed) - 0.2})


def test_a_joint_that_does_not_move_is_not_cut() -> None:
    cache = clean()
    action = np.array(cache.action)
    action[:, 1] = 12.3
    policy = {"normalization_mapping": MEAN_STD, "clip_sample_range": 2.3}
    only(said(with_actions(cache, action), policy), "hardly changes")
