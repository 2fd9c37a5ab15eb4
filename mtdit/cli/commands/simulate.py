"""`mtdit simulate`."""

from __future__ import annotations

from pathlib import Path
from shlex import quote
from typing import Annotated

from mtdit.cli.flags import option
from mtdit.cli.options import Overwrite, Seed
from mtdit.cli.outputs import DATASET_PARTS, DATASET_PROOF, clear_output
from mtdit.cli.terminal.console import console, progress


def simulate(
    task: Annotated[
        list[str],
        option("Session", 'Task to demonstrate, e.g. "open the drawer"; repeat for more tasks.'),
    ],
    out: Annotated[Path, option("Results", "Folder to write the new LeRobotDataset to.")],
    episodes: Annotated[int, option("Session", "Number of demonstrations per task.", min=1)] = 50,
    seed: Seed = 0,
    image_size: Annotated[
        int,
        option("Cameras", "Width and height of the camera frames, in pixels.", min=16, max=640),
    ] = 64,
    overwrite: Overwrite = False,
) -> None:
    """Record scripted demonstrations of the simulated arm as a LeRobotDataset v3."""
    from mtdit_robots.twin.tasks import find_task
    from mtdit_runtime.simulate import check_installed
    from mtdit_runtime.simulate import simulate as record

    names = [find_task(name).name for name in task]
    clear_output(out, overwrite, DATASET_PROOF, DATASET_PARTS, check=check_installed)
    with progress("recording") as bars:
        bar = bars.add_task("", total=episodes * len(names))
        report = record(
            names,
            episodes,
            out,
            seed=seed,
            image_size=(image_size, image_size),
            on_progress=lambda done, total: bars.update(bar, completed=done, total=total),
        )
    console.print(report.summary())
    console.print(f"next: mtdit train --dataset {quote(str(out))}")
