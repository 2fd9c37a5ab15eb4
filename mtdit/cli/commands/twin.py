"""`mtdit twin`: serve a simulated arm on its port and show a picture of it, until Ctrl-C."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from mtdit.cli.flags import option
from mtdit.cli.options import OUTPUTS, ClockKind, Seed
from mtdit.cli.terminal.console import console

if TYPE_CHECKING:
    from mtdit_robots.robot import Frame
    from mtdit_robots.twin.client import Twin


def twin(
    link: Annotated[
        Path | None,
        option("Robot", "Path to link to the port, e.g. /tmp/ttySIM0; default: no link."),
    ] = None,
    task: Annotated[str, option("Robot", "Task whose scene is set up.")] = "open the drawer",
    seed: Seed = 0,
    clock: Annotated[
        ClockKind,
        option("Robot", "Clock: real time, or lockstep (each goal write is one tick)."),
    ] = ClockKind.real,
    any_baud: Annotated[
        bool,
        option("Robot", "Answer at any baud rate: clients in an emulator cannot set one."),
    ] = False,
    picture_to: Annotated[
        Path,
        option("Results", "File for a picture of the scene, updated each second.", "--picture"),
    ] = OUTPUTS / "twin.png",
    calibration_to: Annotated[
        Path, option("Results", "File for the twin's calibration JSON.", "--calibration")
    ] = OUTPUTS / "twin.json",
    seconds: Annotated[
        float | None, option("Length", "Stop after this many seconds; default: at Ctrl-C.")
    ] = None,
) -> None:
    """Serve the simulated arm on a pseudo-terminal to any Feetech client, and show a picture."""
    serve(task, seed, clock.value, link, any_baud, picture_to, calibration_to, seconds)


HEIGHT, WIDTH = 480, 640
REFRESH_S = 1.0


def serve(
    task: str,
    seed: int,
    clock: str,
    link: Path | None,
    any_baud: bool,
    picture_to: Path,
    calibration_to: Path,
    seconds: float | None,
) -> None:
    """Serve until Ctrl-C or for `seconds`. Writes the calibration once, and the picture about once
    a second.
    """
    from mtdit_robots.so101 import calibration as calibrations
    from mtdit_robots.twin.client import Twin
    from mtdit_robots.twin.tasks import find_task

    find_task(task)
    with Twin(clock=clock, link=link, any_baud=any_baud) as twin:
        twin.reset(task, seed)
        calibration_to.parent.mkdir(parents=True, exist_ok=True)
        calibrations.save(twin.calibration, calibration_to)
        console.print(f"port        {twin.port}" + (f"  and {link}" if link else ""))
        console.print(f"calibration {calibration_to}")
        console.print(f"picture     {picture_to}")
        _show(twin, picture_to, seconds)


def _show(twin: Twin, picture_to: Path, seconds: float | None) -> None:
    from rich.live import Live

    from mtdit.cli.terminal.tables import picture

    end_s = float("inf") if seconds is None else time.monotonic() + seconds
    try:
        with Live(console=console.rich, auto_refresh=False, transient=True) as live:
            while time.monotonic() < end_s:
                frame = twin.picture("overview", HEIGHT, WIDTH)
                _save(frame, picture_to)
                if console.is_terminal:
                    live.update(picture(frame), refresh=True)
                time.sleep(min(REFRESH_S, max(0.0, end_s - time.monotonic())))
    except KeyboardInterrupt:
        console.print("stopped")


def _save(frame: Frame, path: Path) -> None:
    """Write under a temporary name, then rename: nobody reads an incomplete picture."""
    from mtdit_robots.cameras.images import png
    from mtdit_robots.files import new_file

    path.parent.mkdir(parents=True, exist_ok=True)
    with new_file(path) as part:
        part.write_bytes(png(frame))
