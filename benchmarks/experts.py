"""Success rate, duration and CPU time of the twin's scripted experts, and CPU time of a rendered
frame.

    python benchmarks/experts.py --episodes 100

Prints a table, and one line of JSON at the end.
"""

from __future__ import annotations

import argparse
import json
import time
from typing import Any

import numpy as np

from mtdit_robots.twin.expert import demonstrate
from mtdit_robots.twin.render import choose_renderer
from mtdit_robots.twin.tasks import TASKS, find_task
from mtdit_robots.twin.world import CAMERAS, World


def measure(world: World, task: str, episodes: int, seed: int, noise_rad: float) -> dict[str, Any]:
    """Successes, mean length and CPU time of `episodes` demonstrations with the seeds seed,
    seed + 1, ...
    """
    lengths, failed, began = [], [], time.process_time()
    for k in range(seed, seed + episodes):
        world.reset(find_task(task), k)
        ticks = 0
        for step in demonstrate(world, noise_rad):
            world.command(step.sent)
            world.step_tick()
            ticks += 1
        lengths.append(ticks)
        if not world.success():
            failed.append(k)
    cpu_ms = (time.process_time() - began) / episodes * 1000
    return {
        "task": task,
        "noise_rad": noise_rad,
        "episodes": episodes,
        "successes": episodes - len(failed),
        "failed_seeds": failed,
        "mean_s": round(float(np.mean(lengths)) / 30, 2),
        "cpu_ms_per_episode": round(cpu_ms),
    }


def picture_ms(world: World, size: int, repeats: int = 40) -> float:
    """CPU milliseconds to render one size x size frame of every camera."""
    for camera in CAMERAS:
        world.render(camera, size, size)
    began = time.process_time()
    for _ in range(repeats):
        for camera in CAMERAS:
            world.render(camera, size, size)
    return (time.process_time() - began) / repeats * 1000


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--episodes", type=int, default=100, help="per task and noise level")
    parser.add_argument("--seed", type=int, default=0, help="seed of the first episode")
    parser.add_argument(
        "--noise", type=float, nargs="*", default=[0.0, 0.02], help="noise levels in rad"
    )
    options = parser.parse_args()
    world = World(find_task("open the drawer"))
    world.energise()
    rows = []
    print(f"{'task':34} {'noise rad':>9} {'success':>9} {'mean s':>7} {'cpu ms':>7}")
    for noise_rad in options.noise:
        for task in TASKS:
            row = measure(world, task, options.episodes, options.seed, noise_rad)
            rows.append(row)
            rate, cpu_ms = f"{row['successes']}/{row['episodes']}", row["cpu_ms_per_episode"]
            print(
                f"{task:34} {noise_rad:9.3f} {rate:>9} {row['mean_s']:7.2f} {cpu_ms:7}", flush=True
            )
    pictures = {size: round(picture_ms(world, size), 2) for size in (64, 96, 224)}
    print(
        f"both cameras, {choose_renderer().name}: "
        + ", ".join(f"{s} px {ms} ms" for s, ms in pictures.items())
    )
    world.close()
    print(
        json.dumps(
            {"experts": rows, "renderer": choose_renderer().name, "picture_pair_ms": pictures}
        )
    )


if __name__ == "__main__":
    main()
