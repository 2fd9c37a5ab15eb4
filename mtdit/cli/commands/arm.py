"""The commands that prepare a new arm: `mtdit find-port`, `setup-motors` and `calibrate`.

Each stage is imported inside its command, and none of them needs torch. Every question that a
command may ask can be answered by a flag instead.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from mtdit.cli.flags import option
from mtdit.cli.options import DEV, ArmPort, Bus, BusKind, BusTimeout, Dev, Json, NeededArmPort
from mtdit.cli.terminal.console import console, write_json
from mtdit_robots.errors import UserError

Leader = Annotated[
    bool,
    option("Robot", "The arm is a leader (moved by hand); default: a follower.", "--leader"),
]


def find_port(
    every_id: Annotated[
        bool,
        option(
            "Robot",
            "Scan every id at every baud rate, about 7 s per port; default: ids 1 to 6.",
            "--all",
        ),
    ] = False,
    ask: Annotated[
        bool,
        option("Robot", "Look for servos on each port, or only list ports.", "--probe/--no-probe"),
    ] = True,
    bus_timeout: BusTimeout = 0.05,
    dev: Dev = DEV,
    json_out: Json = None,
) -> None:
    """List the serial ports and the servos on them; nothing moves, nothing has to be unplugged."""
    from mtdit_robots.so101.ports import (
        PortReport,
        find_ports,
        modem_manager_runs,
        probe,
        udev_rule,
    )

    ports = find_ports(dev)
    reports = [
        probe(port, every_id=every_id, timeout_s=bus_timeout) if ask else PortReport(port)
        for port in ports
    ]
    forbidden = [report.port for report in reports if "no permission" in report.problem]
    manager = modem_manager_runs()
    write_json(
        json_out, {"ports": [report.to_dict() for report in reports], "modem_manager": manager}
    )
    if not ports:
        raise UserError(
            f"no USB serial port in {dev}: plug in the arm's USB cable and check `dmesg`"
        )
    _show_ports(reports, ask)
    if manager:
        console.print(
            "ModemManager is running: it writes to a new port for a few seconds and may disturb "
            "the arm"
        )
    for port in forbidden or (ports[:1] if manager else []):
        console.print(
            "add this line to /etc/udev/rules.d/99-so101.rules, then plug the arm in again:"
        )
        console.print(udev_rule(port.device))
    if ask and not any(report.servos for report in reports):
        raise typer.Exit(1)


def _show_ports(reports: list[Any], asked: bool) -> None:
    for report in reports:
        console.print(
            report.port.path
            + ("" if report.port.path == report.port.device else f"  ({report.port.device})")
        )
        for servo in report.servos:
            console.print(f"  {servo}")
        if report.problem:
            console.print(f"  {report.problem}")
        elif asked and not report.servos:
            console.print("  no servo answered: check the arm's power, or scan all ids with --all")


def setup_motors(
    port: NeededArmPort,
    leader: Leader = False,
    motor: Annotated[
        str | None,
        option("Robot", "Set up only this joint's servo, e.g. gripper; default: all six."),
    ] = None,
    yes: Annotated[
        bool,
        option(
            "Robot",
            "With --motor: do not ask, the joint's servo is connected and no other one is.",
            "--yes",
        ),
    ] = False,
    bus_timeout: Annotated[
        float,
        option(
            "Robot",
            "Seconds a servo may take to answer, at each of 8 baud rates; 0.8 is enough for "
            "every id.",
            "--bus-timeout",
            min=0.01,
            max=10.0,
        ),
    ] = 0.8,
) -> None:
    """Give each servo its id, one servo at a time; refuses to write while two servos answer."""
    from mtdit.cli.terminal.prompts import SetupOptions
    from mtdit.cli.terminal.prompts import setup_motors as set_up

    if not set_up(SetupOptions(port, leader, motor, yes, bus_timeout)):
        console.print("stopped; run the command again to continue with the remaining servos")
        raise typer.Exit(1)
    if motor is None:
        console.print(
            "next: connect all six servos in a chain, then run "
            f"mtdit calibrate --port {port} --id my_arm"
        )


def calibrate(
    port: ArmPort = None,
    name: Annotated[
        str | None,
        option("Calibration", "The arm's id in LeRobot; the file is in LeRobot's folder.", "--id"),
    ] = None,
    file: Annotated[
        Path | None, option("Calibration", "Calibration file to use instead of --id.")
    ] = None,
    leader: Leader = False,
    check: Annotated[
        bool,
        option(
            "Instead of calibrating",
            "Compare file, servos and end stops; nothing is written.",
            "--check",
        ),
    ] = False,
    import_from: Annotated[
        Path | None,
        option(
            "Instead of calibrating",
            "Write the calibration in this file to the servos.",
            "--import",
        ),
    ] = None,
    export_to: Annotated[
        Path | None,
        option("Instead of calibrating", "Write the servos' calibration to this file.", "--export"),
    ] = None,
    diff: Annotated[
        Path | None,
        option(
            "Instead of calibrating",
            "Compare this file with the servos on --port, or with the file of --id or --file.",
        ),
    ] = None,
    history: Annotated[
        bool,
        option("Instead of calibrating", "List the earlier versions of the file.", "--history"),
    ] = False,
    restore: Annotated[
        int | None,
        option(
            "Instead of calibrating",
            "Restore the N-th newest earlier version of the file, with --port to the servos "
            "as well.",
            metavar="N",
        ),
    ] = None,
    centre_now: Annotated[
        bool,
        option(
            "Procedure",
            "Do not ask: every joint is already in the middle of its travel.",
            "--centre-now",
        ),
    ] = False,
    sweep_s: Annotated[
        float | None,
        option(
            "Procedure",
            "Record the joints' ranges for this many seconds; default: until ENTER.",
            "--sweep-seconds",
            min=0.1,
            max=3600.0,
        ),
    ] = None,
    min_travel: Annotated[
        float,
        option(
            "Procedure",
            "Fraction of an SO-101's travel that each joint has to be moved.",
            min=0.05,
            max=1.0,
        ),
    ] = 0.6,
    yes: Annotated[
        bool,
        option(
            "Procedure",
            "Continue without asking; default: ask before torque goes off.",
            "--yes",
        ),
    ] = False,
    bus: Bus = BusKind.own,
    json_out: Json = None,
) -> None:
    """Calibrate an arm the way LeRobot does and in its file format; or check, copy, compare or
    restore a calibration.
    """
    from mtdit.cli.commands import calibrate as modes
    from mtdit.cli.terminal.prompts import CalibrateOptions

    chosen = {
        "--check": check,
        "--import": import_from,
        "--export": export_to,
        "--diff": diff,
        "--history": history,
        "--restore": restore,
    }
    given = [flag for flag, value in chosen.items() if value is not None and value is not False]
    if len(given) > 1:
        raise UserError(f"{' and '.join(given)} exclude each other: give only one of them")
    arm = modes.Arm(port, name, file, leader, bus.value)
    if check:
        healthy = modes.check(arm, json_out)
        raise typer.Exit(0 if healthy else 1)
    if import_from is not None:
        modes.import_file(arm, import_from, yes)
    elif export_to is not None:
        modes.export_file(arm, export_to)
    elif diff is not None:
        raise typer.Exit(0 if modes.diff(arm, diff) else 1)
    elif history:
        modes.show_history(arm)
    elif restore is not None:
        modes.restore(arm, restore, yes)
    else:
        options = CalibrateOptions(
            arm.needed_port(), arm.place(), leader, min_travel, centre_now, sweep_s, yes, bus.value
        )
        modes.calibrate(options)
