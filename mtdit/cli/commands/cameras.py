"""`mtdit find-cameras`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from mtdit.cli.camera_words import named_cameras
from mtdit.cli.flags import option
from mtdit.cli.options import DEV, CameraList, Dev, Height, Json, Width
from mtdit.cli.terminal.console import console, write_json
from mtdit_robots.errors import UserError


def find_cameras(
    camera: CameraList = None,
    height: Height = 480,
    width: Width = 640,
    fps: Annotated[
        float,
        option("Cameras", "Frame rate to request from every camera, in Hz.", min=1.0, max=1000.0),
    ] = 30.0,
    seconds: Annotated[
        float, option("Checks", "Seconds to run all cameras at once.", min=0.1, max=3600.0)
    ] = 3.0,
    snapshots: Annotated[
        Path | None,
        option("Results", "Folder for a PNG of each camera's last frame; default: none is saved."),
    ] = None,
    dev: Dev = DEV,
    json_out: Json = None,
) -> None:
    """List the cameras and their modes, and measure what they deliver when all run at once."""
    from mtdit.cli.terminal.tables import cameras_table
    from mtdit_robots.cameras.check import watch
    from mtdit_robots.cameras.images import save_png
    from mtdit_robots.cameras.options import CameraOptions
    from mtdit_robots.cameras.v4l2 import find_devices

    devices = find_devices(dev)
    found = {
        Path(device.path).name: CameraOptions(device.path)
        for device in devices
        if not device.problem
    }
    cameras = named_cameras(camera) or found
    if not cameras and not devices:
        raise UserError(
            f"no camera in {dev}: plug one in and check `dmesg`, or name one with --camera"
        )
    watched = (
        watch(cameras, dict.fromkeys(cameras, (height, width)), fps, seconds) if cameras else []
    )
    for one in watched if snapshots else ():
        if one.frame is not None and snapshots is not None:
            save_png(snapshots / f"{one.name}.png", one.frame)
    _show_devices(devices)
    if watched:
        console.print(cameras_table(watched))
    result = {
        "devices": [vars(device) | {"modes": [vars(m) for m in device.modes]} for device in devices]
    }
    write_json(json_out, {**result, "watched": [_plain(one) for one in watched]})
    if any(one.problem for one in watched) or any(device.problem for device in devices):
        raise typer.Exit(1)


def _show_devices(devices: list[Any]) -> None:
    for device in devices:
        console.print(f"{device.path}  {device.card}  {device.bus}".rstrip())
        if device.problem:
            console.print(f"  {device.problem}")
        for mode in device.modes:
            size = f"{mode.width}x{mode.height}" if mode.width else "any size"
            rates = ", ".join(f"{rate:g}" for rate in mode.rates_hz)
            console.print(f"  {mode.pixel_format} {size} {rates} Hz")


def _plain(watched: Any) -> dict[str, Any]:
    return {key: value for key, value in vars(watched).items() if key != "frame"} | {
        "exposure": watched.exposure
    }
