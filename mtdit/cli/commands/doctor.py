"""`mtdit doctor`."""

from __future__ import annotations

from typing import Annotated

import typer

from mtdit.cli.camera_words import named_cameras
from mtdit.cli.flags import option
from mtdit.cli.options import (
    Bus,
    BusKind,
    BusTimeout,
    CalibrationName,
    CameraList,
    CheckedRobot,
    DoctorBundle,
    DoctorRobot,
    Json,
    Port,
    Units,
)
from mtdit.cli.terminal.console import console, write_json


def doctor(
    robot: DoctorRobot = CheckedRobot.none,
    port: Port = None,
    calibration: CalibrationName = None,
    bus: Bus = BusKind.own,
    bus_timeout: BusTimeout = 0.05,
    camera: CameraList = None,
    bundle: DoctorBundle = None,
    units: Units = None,
    servo_volts: Annotated[
        float | None,
        option("Checks", "Rated voltage of the servos, 7.4 or 12; default: not compared."),
    ] = None,
    cycles: Annotated[
        int, option("Checks", "Number of bus exchanges in which errors are counted.", min=1)
    ] = 1000,
    fast: Annotated[
        bool,
        option(
            "Checks",
            "Check only packages, GPU, disk, bundle and whether a run still ticks, in less than "
            "2 s; no port and no camera is opened.",
            "--fast",
        ),
    ] = False,
    json_out: Json = None,
) -> None:
    """Check this computer, the arm and the cameras, and print the fix for each problem.

    Nothing moves.
    """
    from mtdit.cli.rig import calibration_file
    from mtdit.cli.terminal.tables import checks_table
    from mtdit_runtime.check import healthy, to_dict
    from mtdit_runtime.doctor.doctor import DoctorOptions
    from mtdit_runtime.doctor.doctor import doctor as check

    checks = check(
        DoctorOptions(
            robot.value,
            port,
            calibration_file(calibration),
            named_cameras(camera),
            bundle,
            units=None if units is None else units.value,
            servo_volts=servo_volts,
            cycles=cycles,
            bus_timeout_s=bus_timeout,
            bus=bus.value,
            fast=fast,
        )
    )
    console.print(checks_table(checks))
    write_json(json_out, to_dict(checks))
    if not healthy(checks):
        raise typer.Exit(1)
