"""`mtdit doctor`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mtdit.cli.options import (
    BusKind,
    BusOption,
    BusTimeout,
    Calibration,
    CameraList,
    Json,
)
from mtdit.cli.rig import pairs_of
from mtdit.cli.terminal.console import console, write_json
from mtdit.cli.terminal.tables import table
from mtdit_robots.errors import UserError


def doctor(
    robot: Annotated[
        str, typer.Option(help="Robot to check: none, twin or so101 (a real arm).")
    ] = "none",
    port: Annotated[
        str | None, typer.Option(help="Serial port of the real arm; nothing moves.")
    ] = None,
    calibration: Calibration = None,
    camera: CameraList = None,
    bundle: Annotated[
        Path | None,
        typer.Option(
            "--bundle", help="Bundle to compare the computer, arm and cameras with, NAME.mtdit."
        ),
    ] = None,
    servo_volts: Annotated[
        float | None,
        typer.Option(help="Rated voltage of the servos, 7.4 or 12; default: not compared."),
    ] = None,
    cycles: Annotated[
        int, typer.Option(min=1, help="Number of bus exchanges in which errors are counted.")
    ] = 1000,
    bus_timeout: BusTimeout = 0.05,
    bus: BusOption = BusKind.own,
    json_out: Json = None,
) -> None:
    """Check this computer, the arm and the cameras, and print the fix for each problem."""
    from mtdit.cli.rig import calibration_file
    from mtdit_runtime.check import healthy, to_dict
    from mtdit_runtime.doctor.doctor import DoctorOptions
    from mtdit_runtime.doctor.doctor import doctor as check

    if robot not in ("none", "twin", "so101"):
        raise UserError(f"--robot {robot} is unknown: use none, twin or so101")
    cameras = dict(pairs_of("--camera", camera or []))
    checks = check(
        DoctorOptions(
            robot,
            port,
            calibration_file(calibration),
            cameras,
            bundle,
            servo_volts=servo_volts,
            cycles=cycles,
            patience_s=bus_timeout,
            bus=bus.value,
        )
    )
    rows = [(c.id, c.status, c.finding, c.remedy) for c in checks]
    console.print(table("", ["check", "", "finding", "what to do"], rows))
    write_json(json_out, to_dict(checks))
    if not healthy(checks):
        raise typer.Exit(1)
