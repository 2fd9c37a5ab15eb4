"""`mtdit calibrate` and its modes: find the file, run the procedure or compare, print the result.

Prompts and bars are in `mtdit.cli.terminal.prompts`, the procedure in
`mtdit_robots.so101.calibrate`, the file format in `mtdit_robots.so101.calibration`.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from pathlib import Path

import typer

from mtdit.cli.terminal import prompts
from mtdit.cli.terminal.console import console, write_json
from mtdit.cli.terminal.tables import calibration_table, joint_findings_table
from mtdit_robots.bus.feetech import Bus
from mtdit_robots.errors import UserError
from mtdit_robots.signals import graceful_exit
from mtdit_robots.so101 import calibrate as procedure
from mtdit_robots.so101 import calibration as calibrations
from mtdit_robots.so101 import calibration_check, servos
from mtdit_robots.so101.calibration import Calibration
from mtdit_robots.so101.calibration_places import find, place_of


@dataclass(frozen=True)
class Arm:
    """The arm that the options name: its port, and its calibration by LeRobot id or by file."""

    port: str | None
    name: str | None = None
    file: Path | None = None
    leader: bool = False
    bus: str = "own"  # or sdk

    def needed_port(self) -> str:
        """The port. UserError if none was given."""
        if self.port is None:
            raise UserError(
                "--port is missing: add --port /dev/ttyACM0; `mtdit find-port` lists the ports"
            )
        return self.port

    def opened(self) -> AbstractContextManager[Bus]:
        """The arm's bus, closed at the end of the block. UserError if no port was given or it
        cannot be opened.
        """
        return procedure.opened(self.needed_port(), bus=self.bus)

    def place(self) -> Path:
        """The file's path, existing or not. UserError unless exactly one of --id and --file was
        given.
        """
        if self.name is not None and self.file is not None:
            raise UserError("--id and --file exclude each other: give only one of them")
        if self.file is not None:
            return self.file
        if self.name is not None:
            return place_of(self.name, self.leader)
        raise UserError(
            "the calibration file is missing: add --id my_arm (in LeRobot's folder) "
            "or --file my_arm.json"
        )

    def calibration(self) -> Calibration | None:
        """The calibration in the file; None if no file was named. UserError if the file is missing
        or damaged.
        """
        if self.name is None and self.file is None:
            return None
        if self.name is not None and self.file is None:
            return calibrations.load(find(self.name, self.leader))
        return calibrations.load(self.place())


def calibrate(options: prompts.CalibrateOptions) -> None:
    """Run the procedure; Exit(1) if the person quits."""
    before = _readable(options.place)
    made = prompts.calibrate(options)
    if made is None:
        console.print("stopped; nothing was saved")
        raise typer.Exit(1)
    console.print(calibration_table(made))
    console.print(f"saved to {options.place} and to the servos")
    _say_lost(before, made, options.place)
    if not options.leader:
        console.print(
            f"next: mtdit run --robot so101 --port {options.port} --calibration {options.place} ..."
        )


def check(arm: Arm, json_out: Path | None) -> bool:
    """Compare file, servos and end stops; True if they agree. Nothing is written or moved."""
    file = arm.calibration()
    with arm.opened() as bus:
        findings = calibration_check.inspect(bus, file)
    console.print(joint_findings_table(findings))
    if file is None:
        console.print("no file was compared: add --id or --file to compare one")
    else:
        console.print(calibrations.not_compared(file))
    healthy = all(finding.status != "fail" for finding in findings)
    write_json(json_out, {"healthy": healthy, "joints": [asdict(finding) for finding in findings]})
    return healthy


def import_file(arm: Arm, file: Path, yes: bool) -> None:
    """Write a file to the servos' EEPROM."""
    calibration = calibrations.load(file)
    _write(arm, calibration, yes)
    console.print(f"wrote {file} to the servos")


def export_file(arm: Arm, file: Path) -> None:
    """Write the servos' calibration to a file; UserError if it is not a valid one."""
    with arm.opened() as bus:
        servos.handshake(bus)
        held = servos.read_calibration(bus)
    calibrations.check(held)
    before = _readable(file)
    calibrations.save(held, file)
    console.print(f"saved the servos' calibration to {file}")
    _say_lost(before, held, file)


def diff(arm: Arm, file: Path) -> bool:
    """Compare the file with the servos, or without a port with the file of --id or --file. True if
    they are equal.
    """
    ours = calibrations.load(file)
    if arm.port is not None:
        with arm.opened() as bus:
            servos.handshake(bus)
            held = servos.read_calibration(bus)
        wrong = calibrations.servo_differences(ours, held, str(file))
        notes = [calibrations.not_compared(ours)]
    else:
        other = arm.place()
        wrong = calibrations.differences(ours, calibrations.load(other), (str(file), str(other)))
        notes = []
    console.print("\n".join((wrong or ["no difference"]) + notes))
    return not wrong


def show_history(arm: Arm) -> None:
    """Print the earlier versions, newest first, with the number that --restore takes."""
    versions = calibrations.history(arm.place())
    if not versions:
        console.print(f"{arm.place()} has no earlier versions")
        return
    for version in versions:
        console.print(
            f"{version.number:2}  replaced {version.replaced:%Y-%m-%d %H:%M:%S} UTC  {version.path}"
        )


def restore(arm: Arm, number: int, yes: bool) -> None:
    """Restore an earlier version of the file and, if a port is given, write it to the servos."""
    place = arm.place()
    version = calibrations.former(place, number)
    # the servos first: if the person quits or the arm fails, the file stays unchanged as well
    if arm.port is not None:
        import_file(arm, version.path, yes)
    calibrations.restore(place, number)
    console.print(f"restored {place} as of {version.replaced:%Y-%m-%d %H:%M:%S} UTC")
    if arm.port is None:
        console.print(f"next: mtdit calibrate --port PORT --import {place}")


def _readable(place: Path) -> Calibration | None:
    """The calibration that will be replaced; None if there is none or it is damaged."""
    try:
        return calibrations.load(place)
    except UserError:
        return None


def _say_lost(before: Calibration | None, after: Calibration, place: Path) -> None:
    """Name what a person had set in the file that was replaced and what no servo holds."""
    lines = calibrations.lost(before, after) if before is not None else []
    if lines:
        console.print(f"{'; '.join(lines)}: no servo holds it; set it in {place} if it still holds")


def _write(arm: Arm, calibration: Calibration, yes: bool) -> None:
    """Ask, then write. Exit(1) if the person quits."""
    arm.needed_port()
    question = "torque goes off while the servos are written and the arm drops: lay it down"
    if not prompts.confirm(question, yes):
        console.print("stopped; the servos were not changed")
        raise typer.Exit(1)
    with graceful_exit(), arm.opened() as bus:
        procedure.write(bus, calibration, console.print)
