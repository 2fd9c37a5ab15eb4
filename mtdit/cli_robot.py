"""The commands between unboxing an arm and `mtdit run`: find its port, set up its servos, calibrate
it.

Knows their words and options; each stage is imported inside its command, and none of them needs
torch. Every question a command may ask has a flag that answers it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from mtdit.options import BusKind, BusOption, Json
from mtdit.terminal import console, write_json
from mtdit_robots.errors import UserError

PortOption = Annotated[
    str, typer.Option("--port", help="Serial port of the arm, e.g. /dev/ttyACM0.")
]
Leader = Annotated[
    bool, typer.Option("--leader", help="A leader arm, the one that is moved by hand.")
]
Yes = Annotated[bool, typer.Option("--yes", help="Do not ask before going on.")]


def register(app: typer.Typer) -> None:
    """Add this module's commands to the app."""
    app.command("find-port")(find_port)
    app.command("setup-motors")(setup_motors)
    app.command("calibrate")(calibrate)


def find_port(
    every_id: Annotated[
        bool, typer.Option("--all", help="Any id at any rate; some 7 s a port.")
    ] = False,
    ask: Annotated[
        bool, typer.Option("--probe/--no-probe", help="Ask who answers, or only list the ports.")
    ] = True,
    patience: Annotated[
        float, typer.Option(min=0.01, max=10.0, help="Seconds a servo may take to answer.")
    ] = 0.05,
    dev: Annotated[Path, typer.Option(help="Device folder.")] = Path("/dev"),
    json_out: Json = None,
) -> None:
    """Serial ports and the servos behind them; nothing is moved and nothing needs unplugging."""
    from mtdit_robots.ports import Report, find_ports, modem_manager_runs, probe, udev_rule

    ports = find_ports(dev)
    reports = [
        probe(port, every_id=every_id, timeout_s=patience) if ask else Report(port)
        for port in ports
    ]
    hurdles = [report.port for report in reports if "no permission" in report.problem]
    manager = modem_manager_runs()
    write_json(
        json_out, {"ports": [report.to_dict() for report in reports], "modem_manager": manager}
    )
    if not ports:
        raise UserError(
            f"no USB serial port below {dev}: plug in the arm's USB cable, and look at `dmesg`"
        )
    _show_ports(reports, ask)
    if manager:
        console.print(
            "ModemManager is running: it talks to a new port for some seconds, and may disturb the arm"
        )
    for port in hurdles or (ports[:1] if manager else []):
        console.print(
            "put this line into /etc/udev/rules.d/99-so101.rules, then unplug and plug in again:"
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
            console.print(
                "  nobody answers: switch the arm's power on, or try --all for servos that are not set up"
            )


def setup_motors(
    port: PortOption,
    leader: Leader = False,
    motor: Annotated[
        str | None, typer.Option(help="Only this joint's servo, e.g. gripper.")
    ] = None,
    yes: Annotated[
        bool, typer.Option("--yes", help="The servo is connected, alone; do not ask. With --motor.")
    ] = False,
    patience: Annotated[
        float,
        typer.Option(
            min=0.01, max=10.0, help="Seconds to listen at each of 8 rates; 0.8 reach any id."
        ),
    ] = 0.8,
) -> None:
    """Give each servo its id, one at a time; never while two servos answer."""
    from mtdit.hands_on import SetupOptions
    from mtdit.hands_on import setup_motors as set_up

    if not set_up(SetupOptions(port, leader, motor, yes, patience)):
        console.print("left; run it again to go on, what is set up already is recognised")
        raise typer.Exit(1)
    if motor is None:
        console.print(
            f"next: connect all six in a chain, then mtdit calibrate --port {port} --id my_arm"
        )


def calibrate(
    port: Annotated[
        str | None, typer.Option(help="Serial port of the arm, e.g. /dev/ttyACM0.")
    ] = None,
    name: Annotated[
        str | None,
        typer.Option("--id", help="LeRobot's id of the arm; its file is in LeRobot's folder."),
    ] = None,
    file: Annotated[Path | None, typer.Option(help="A calibration file instead of an id.")] = None,
    leader: Leader = False,
    check: Annotated[
        bool, typer.Option("--check", help="Compare file, servos and end stops; nothing moves.")
    ] = False,
    import_from: Annotated[
        Path | None, typer.Option("--import", help="Write this file to the servos.")
    ] = None,
    export_to: Annotated[
        Path | None, typer.Option("--export", help="Write what the servos hold to this file.")
    ] = None,
    diff: Annotated[
        Path | None, typer.Option(help="Compare this file with the servos, or with --id/--file.")
    ] = None,
    history: Annotated[
        bool, typer.Option("--history", help="List the file's former versions.")
    ] = False,
    restore: Annotated[
        int | None, typer.Option(help="Put the N-th newest former version back.", metavar="N")
    ] = None,
    centre_now: Annotated[
        bool, typer.Option("--centre-now", help="The arm stands mid-range; do not ask.")
    ] = False,
    sweep_s: Annotated[
        float | None,
        typer.Option(
            "--sweep-seconds", min=0.1, max=3600.0, help="Sweep for so long, without keys."
        ),
    ] = None,
    min_travel: Annotated[
        float,
        typer.Option(
            min=0.05, max=1.0, help="Share of an SO-101's travel that each joint must show."
        ),
    ] = 0.6,
    yes: Yes = False,
    bus: BusOption = BusKind.own,
    json_out: Json = None,
) -> None:
    """Calibrate an arm, as LeRobot does and in its format; or check, copy, compare, restore a
    calibration.
    """
    from mtdit import calibrate as modes
    from mtdit.hands_on import CalibrateOptions

    chosen = {
        "--check": check, "--import": import_from, "--export": export_to, "--diff": diff, "--history": history,
        "--restore": restore,
    }  # fmt: skip
    given = [flag for flag, value in chosen.items() if value is not None and value is not False]
    if len(given) > 1:
        raise UserError(f"{' and '.join(given)} exclude each other: give one")
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
