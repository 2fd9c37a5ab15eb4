"""`mtdit calibrate` and its modes: which file is meant, what is compared with what, what is said
afterwards.

Knows the words. Refuses to know keys and bars (`hands_on`), the procedure
(`mtdit_robots.calibrate`) and the file's format (`mtdit_robots.calibration`).
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from pathlib import Path

import typer

from mtdit import hands_on
from mtdit.terminal import console, table, write_json
from mtdit_robots import calibrate as procedure
from mtdit_robots import calibration as calibrations
from mtdit_robots import servos
from mtdit_robots.calibration import Calibration
from mtdit_robots.errors import UserError
from mtdit_robots.feetech import Bus
from mtdit_robots.so101 import IDS
from mtdit_runtime.loop import dying_in_order


@dataclass(frozen=True)
class Arm:
    """The arm a person means: its port, and its file by LeRobot id or by path."""

    port: str | None
    name: str | None = None
    file: Path | None = None
    leader: bool = False
    bus: str = "own"  # or sdk

    def needed_port(self) -> str:
        """UserError when none was given."""
        if self.port is None:
            raise UserError("which arm? add --port /dev/ttyACM0; `mtdit find-port` lists the ports")
        return self.port

    def opened(self) -> AbstractContextManager[Bus]:
        """UserError when no port was given, or it does not open."""
        return procedure.opened(self.needed_port(), bus=self.bus)

    def place(self) -> Path:
        """The file's path, whether it exists or not. UserError unless exactly one of --id and
        --file was given.
        """
        if self.name is not None and self.file is not None:
            raise UserError("--id and --file exclude each other: give one")
        if self.file is not None:
            return self.file
        if self.name is not None:
            return calibrations.place_of(self.name, self.leader)
        raise UserError("which file? add --id my_arm (LeRobot's folder) or --file my_arm.json")

    def calibration(self) -> Calibration | None:
        """What the file holds; None when no file was named. UserError when it is missing or
        damaged.
        """
        if self.name is None and self.file is None:
            return None
        if self.name is not None and self.file is None:
            return calibrations.load(calibrations.find(self.name, self.leader))
        return calibrations.load(self.place())


def calibrate(options: hands_on.CalibrateOptions) -> None:
    """Run the procedure; Exit(1) when the person leaves."""
    made = hands_on.calibrate(options)
    if made is None:
        console.print("left; nothing was saved")
        raise typer.Exit(1)
    rows = [
        (joint, IDS[joint], c.homing_offset, c.range_min, c.range_max) for joint, c in made.items()
    ]
    console.print(table("", ["joint", "id", "homing offset", "min", "max"], rows))
    console.print(f"saved {options.place}; the servos hold the same")
    if not options.leader:
        console.print(
            f"next: mtdit run --robot so101 --port {options.port} --calibration {options.place} ..."
        )


def check(arm: Arm, json_out: Path | None) -> bool:
    """Whether file, servos and end stops go together. Nothing is written or moved."""
    file = arm.calibration()
    with arm.opened() as bus:
        findings = procedure.inspect(bus, file)
    rows = [
        (finding.joint, finding.status, finding.finding, finding.remedy) for finding in findings
    ]
    console.print(table("", ["joint", "", "finding", "what to do"], rows))
    if file is None:
        console.print("no file was compared: add --id or --file")
    healthy = all(finding.status != "fail" for finding in findings)
    write_json(json_out, {"healthy": healthy, "joints": [asdict(finding) for finding in findings]})
    return healthy


def import_file(arm: Arm, file: Path, yes: bool) -> None:
    """Write a file to the servos' EEPROM."""
    calibration = calibrations.load(file)
    _write(arm, calibration, yes)
    console.print(f"the servos hold {file}")


def export_file(arm: Arm, file: Path) -> None:
    """Write what the servos hold to a file; UserError when that is no calibration."""
    with arm.opened() as bus:
        servos.handshake(bus)
        held = servos.read_calibration(bus)
    calibrations.check(held)
    calibrations.save(held, file)
    console.print(f"saved what the servos hold to {file}")


def diff(arm: Arm, file: Path) -> bool:
    """Whether the file equals what the servos hold, or the file of --id/--file when no port is
    given.
    """
    ours = calibrations.load(file)
    if arm.port is not None:
        with arm.opened() as bus:
            servos.handshake(bus)
            theirs: Calibration = servos.read_calibration(bus)
        other = "servo"
    else:
        other, theirs = str(arm.place()), calibrations.load(arm.place())
    wrong = calibrations.differences(ours, theirs, (str(file), other))
    console.print("\n".join(wrong) if wrong else "no difference")
    return not wrong


def show_history(arm: Arm) -> None:
    """The former versions, newest first, with the number that --restore takes."""
    versions = calibrations.history(arm.place())
    if not versions:
        console.print(f"{arm.place()} has no former versions")
        return
    for version in versions:
        console.print(
            f"{version.number:2}  replaced {version.replaced:%Y-%m-%d %H:%M:%S} UTC  {version.path}"
        )


def restore(arm: Arm, number: int, yes: bool) -> None:
    """Put a former version back in the file and, when a port is given, in the servos."""
    place = arm.place()
    version = calibrations.former(place, number)
    if (
        arm.port is not None
    ):  # first: whoever leaves here, or has an arm that fails, keeps the file too
        import_file(arm, version.path, yes)
    calibrations.restore(place, number)
    console.print(f"{place} is again as before {version.replaced:%Y-%m-%d %H:%M:%S} UTC")
    if arm.port is None:
        console.print(f"next: mtdit calibrate --port PORT --import {place}")


def _write(arm: Arm, calibration: Calibration, yes: bool) -> None:
    """Ask, then write. Exit(1) when the person leaves."""
    arm.needed_port()
    if not hands_on.confirm("the arm goes limp while its servos are written: lay it down", yes):
        console.print("left; the servos are as they were")
        raise typer.Exit(1)
    with dying_in_order(), arm.opened() as bus:
        procedure.write(bus, calibration, console.print)
