"""`mtdit twin`: serve a simulated arm on its port and show a picture of it, until Ctrl-C."""

from __future__ import annotations

import time
from pathlib import Path

from rich.live import Live

from mtdit.terminal import console, picture
from mtdit_robots import calibration as calibrations
from mtdit_robots.robot import Frame
from mtdit_robots.twin.client import Twin
from mtdit_robots.twin.tasks import find_task

HEIGHT, WIDTH = 480, 640
REFRESH_S = 1.0


def serve(
    task: str,
    seed: int,
    clock: str,
    link: Path | None,
    picture_to: Path,
    calibration_to: Path,
    seconds: float | None,
) -> None:
    """Serve until Ctrl-C or for `seconds`. Writes the calibration once, and the picture about once
    a second.
    """
    find_task(task)
    with Twin(clock=clock, link=link) as twin:
        twin.reset(task, seed)
        calibration_to.parent.mkdir(parents=True, exist_ok=True)
        calibrations.save(twin.calibration, calibration_to)
        console.print(f"port        {twin.port}" + (f"  and {link}" if link else ""))
        console.print(f"calibration {calibration_to}")
        console.print(f"picture     {picture_to}")
        _show(twin, picture_to, seconds)


def _show(twin: Twin, picture_to: Path, seconds: float | None) -> None:
    end_s = float("inf") if seconds is None else time.monotonic() + seconds
    try:
        with Live(console=console, auto_refresh=False, transient=True) as live:
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
    import cv2

    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(".part.png")
    cv2.imwrite(str(part), frame[..., ::-1])
    part.replace(path)
