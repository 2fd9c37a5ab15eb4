"""Instructions, layouts and experts."""

from __future__ import annotations

import numpy as np
import pytest

from mtdit_robots.errors import UserError
from mtdit_robots.twin.expert import demonstrate
from mtdit_robots.twin.layout import draw_layout
from mtdit_robots.twin.tasks import AJAR, CLOSED_M, SHUT, TASKS, find_task
from mtdit_robots.twin.world import World

EPISODES = 8


def perform(world: World, noise_rad: float = 0.0) -> int:
    """Ticks the expert took."""
    ticks = 0
    for step in demonstrate(world, noise_rad):
        world.command(step.sent)
        world.step_tick()
        ticks += 1
    return ticks


@pytest.mark.parametrize("task", TASKS)
def test_the_expert_does_it(world: World, task: str) -> None:
    """100 of 100 seeds, measured by benchmarks/experts.py; here a sample, one failure forgiven."""
    successes = 0
    for seed in range(1000, 1000 + EPISODES):
        world.reset(find_task(task), seed)
        assert not world.success(), f"seed {seed} starts done"
        ticks = perform(world)
        assert ticks <= 300
        successes += world.success()
    assert successes >= EPISODES - 1


@pytest.mark.parametrize("task", TASKS)
def test_doing_nothing_does_not_do_it(world: World, task: str) -> None:
    world.reset(find_task(task), 5)
    for _ in range(45):
        world.step_tick()
    assert not world.success()


def test_noise_is_sent_but_not_recorded(world: World) -> None:
    world.reset(find_task("open the drawer"), 2)
    deviations = []
    for step in demonstrate(world, noise_rad=0.02):
        deviations.append(step.sent - step.action)
        world.command(step.sent)
        world.step_tick()
    spread = np.std(deviations, axis=0)
    assert np.degrees(0.01) < spread[:5].mean() < np.degrees(0.04)
    assert spread[5] == 0
    assert world.success()


def test_a_layout_follows_from_its_seed_alone() -> None:
    first, again, other = draw_layout(12, SHUT), draw_layout(12, SHUT), draw_layout(13, SHUT)
    assert first.cube == again.cube
    assert (first.arm_rad == again.arm_rad).all()
    assert first.cube != other.cube
    assert draw_layout(12, AJAR).cube == first.cube


def test_the_picture_does_not_tell_the_task(world: World) -> None:
    pictures = []
    for name, task in TASKS.items():
        if task.drawer_range_m == SHUT:
            world.reset(find_task(name), 4)
            pictures.append(world.render("top", 48, 48))
    assert len(pictures) == 4
    assert all((picture == pictures[0]).all() for picture in pictures)


def test_only_closing_starts_open(world: World) -> None:
    for name in TASKS:
        world.reset(find_task(name), 3)
        assert (world.drawer_m() > CLOSED_M) == (name == "close the drawer")


def test_left_is_the_robots_left(world: World) -> None:
    world.reset(find_task("push the red cube to the left"), 1)
    before = world.position("cube")[1]
    perform(world)
    assert world.position("cube")[1] > before + 0.05


@pytest.mark.parametrize(
    ("typed", "hint"),
    [
        ("open drawer", "did you mean 'open the drawer'"),
        ("push cube left", "the left"),
        ("zzz", "use one of"),
    ],
)
def test_an_unknown_task_names_the_nearest(typed: str, hint: str) -> None:
    with pytest.raises(UserError, match=hint) as raised:
        find_task(typed)
    assert "\n" not in str(raised.value)
