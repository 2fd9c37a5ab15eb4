"""The world as a whole: determinism, units, and what resets leave behind."""

from __future__ import annotations

import numpy as np
import pytest

from mtdit_robots.twin.expert import demonstrate
from mtdit_robots.twin.tasks import find_task
from mtdit_robots.twin.world import CAMERAS, World


def trace(world: World, seed: int, ticks: int = 40) -> tuple[np.ndarray, np.ndarray]:
    """Positions and frames of the first ticks of a noisy demonstration."""
    world.reset(find_task("put the red cube in the bowl"), seed)
    positions, frames = [], []
    for _, step in zip(range(ticks), demonstrate(world, 0.02), strict=False):
        positions.append(world.positions())
        frames.append([world.render(camera, 32, 32) for camera in CAMERAS])
        world.command(step.sent)
        world.step_tick()
    return np.array(positions), np.array(frames)


def test_equal_seeds_are_equal_bit_for_bit_whatever_came_before(world: World) -> None:
    first = trace(world, 21)
    trace(world, 22)
    again = trace(world, 21)
    fresh_world = World(find_task("open the drawer"))
    fresh_world.energise()
    fresh = trace(fresh_world, 21)
    fresh_world.close()
    for other in (again, fresh):
        assert (first[0] == other[0]).all()
        assert (first[1] == other[1]).all()
    assert (first[0] != trace(world, 22)[0]).any()


def test_commands_are_clamped_to_the_calibrated_range_and_reached(world: World) -> None:
    world.reset(find_task("open the drawer"), 0)
    goal = world.positions()
    goal[0], goal[5] = 500.0, 140.0
    sent = world.command(goal)
    assert 109 < sent[0] < 111
    assert sent[5] == 100
    for _ in range(60):
        world.step_tick()
    assert abs(world.positions()[0] - sent[0]) < 1.5


def test_without_torque_the_arm_stays_propped_up_until_it_is_switched_on() -> None:
    world = World(find_task("open the drawer"))
    world.reset(find_task("open the drawer"), 6)
    start = world.positions()
    for _ in range(60):
        world.step_tick()
    assert (world.positions() == start).all()
    world.energise()
    world.step_tick()
    for servo in world.registers.values():
        servo.set("Torque_Enable", 0)
    for _ in range(20):
        world.step_tick()
    assert np.abs(world.positions() - start).max() > 5
    world.close()


def test_a_reset_holds_the_new_pose(world: World) -> None:
    world.reset(find_task("open the drawer"), 6)
    start = world.positions()
    for _ in range(30):
        world.step_tick()
    assert (
        np.abs(world.positions() - start).max() < 6
    )  # the spring gives under the arm's weight, no more
    assert world.tick == 30


def test_pictures_for_people_show_the_same_world(world: World) -> None:
    world.reset(find_task("open the drawer"), 8)
    fine, fast = world.picture("top", 64, 64), world.render("top", 64, 64)
    assert fine.shape == fast.shape == (64, 64, 3)
    red_fine, red_fast = (
        np.argwhere(p[..., 0].astype(int) - p[..., 1] > 120).mean(axis=0) for p in (fine, fast)
    )
    assert np.abs(red_fine - red_fast).max() < 2


@pytest.mark.parametrize("fps", [1, 10, 15, 30, 50, 60, 200])
def test_a_tick_lasts_as_long_as_its_rate_says(fps: int) -> None:
    world = World(find_task("open the drawer"), fps)
    world.step_tick()
    assert world.data.time == pytest.approx(1 / fps)
    assert world.substep_s <= 1 / 240 + 1e-12
    world.close()
