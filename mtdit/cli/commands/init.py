"""`mtdit init`: write mtdit.toml from what is plugged in, and from what a person answers."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mtdit.cli.camera_words import named_cameras
from mtdit.cli.config_file import NAME
from mtdit.cli.config_text import config_text
from mtdit.cli.flags import option
from mtdit.cli.options import (
    BUNDLE,
    DEV,
    BusTimeout,
    CalibrationName,
    CameraList,
    Dev,
    LeaderCalibration,
    LeaderPort,
    Port,
    RobotKind,
    RunRobot,
    Units,
)
from mtdit.cli.terminal.console import console
from mtdit_robots.errors import UserError
from mtdit_robots.files import new_file

if TYPE_CHECKING:
    from mtdit_robots.cameras.v4l2 import Device
    from mtdit_robots.so101.ports import PortReport

Ask = Callable[[str], str]
_ORDER = ("robot", "port", "calibration", "leader_port", "leader_calibration", "bundle", "units")
NONE = "-"  # the answer that leaves something out


def init(
    out: Annotated[Path, option("Results", "File to write.")] = NAME,
    overwrite: Annotated[
        bool, option("Start", "Replace the file if it exists; default: stop.", "--overwrite")
    ] = False,
    yes: Annotated[
        bool,
        option(
            "Start",
            "Ask nothing: take an arm that is the only one, and leave out what is not given.",
            "--yes",
        ),
    ] = False,
    robot: RunRobot = None,
    port: Port = None,
    calibration: CalibrationName = None,
    leader_port: LeaderPort = None,
    leader_calibration: LeaderCalibration = None,
    camera: CameraList = None,
    bundle: Annotated[
        Path | None, option("Policy", "Bundle to run, NAME.mtdit; default: ask.", "--bundle")
    ] = None,
    units: Units = None,
    bus_timeout: BusTimeout = 0.05,
    dev: Dev = DEV,
) -> None:
    """Write mtdit.toml: ask which of the arms and cameras that are plugged in is which.

    Nothing moves. Every question has an option that answers it.
    """
    if out.exists() and not overwrite:
        raise UserError(f"{out} exists: add --overwrite to replace it, or choose another --out")
    given = (
        "so101" if robot is None else robot.value,
        *(port, calibration, leader_port, leader_calibration),
        None if bundle is None else str(bundle),
        None if units is None else units.value,
    )
    said = {key: value for key, value in zip(_ORDER, given, strict=True) if value is not None}
    settings = Settings(said)
    for name, options in named_cameras(camera).items():
        settings.cameras[name] = {k: v for k, v in vars(options).items() if v not in (None, 0)}
    if not yes and not sys.stdin.isatty():
        raise UserError("no terminal to ask in: add --yes, and the options of what is to be set")
    if robot is not RobotKind.twin:
        found = look(dev, bus_timeout, has_cameras=camera is None)
        fill(settings, found, None if yes else _ask)
    out.parent.mkdir(parents=True, exist_ok=True)
    with new_file(out) as part:
        part.write_text(settings.text(), encoding="utf-8")
    console.print(f"wrote {out}")
    console.print("next: mtdit doctor" + ("" if out == NAME else f" --config {out}"))


@dataclass
class Settings:
    """What the file will hold: key -> value, and camera -> its settings."""

    values: dict[str, Any] = field(default_factory=dict)
    cameras: dict[str, dict[str, Any]] = field(default_factory=dict)

    def text(self) -> str:
        """The file, in an order that does not depend on what was asked."""
        ordered = {key: self.values[key] for key in _ORDER if key in self.values}
        return config_text(ordered, self.cameras)


@dataclass(frozen=True)
class Found:
    """What is plugged in, and the arms and leaders that LeRobot's folder knows."""

    ports: Sequence[PortReport] = ()
    cameras: Sequence[Device] = ()
    ids: Sequence[str] = ()
    leader_ids: Sequence[str] = ()


def look(dev: Path, bus_timeout_s: float, has_cameras: bool) -> Found:
    """Ports with their servos, cameras, calibrations."""
    from mtdit_robots.cameras.v4l2 import find_devices
    from mtdit_robots.so101.calibration_places import known_ids
    from mtdit_robots.so101.ports import find_ports, probe

    ports = [probe(port, timeout_s=bus_timeout_s) for port in find_ports(dev)]
    devices = [one for one in find_devices(dev) if not one.problem] if has_cameras else []
    return Found(ports, devices, known_ids(), known_ids(leader=True))


def fill(settings: Settings, found: Found, ask: Ask | None) -> None:
    """Add what `found` and the answers say to what was given. ask: gets a question, returns the
    line that was typed; None: nobody is asked.
    """
    values = settings.values
    arms = {one.port.path: _servos(one) for one in found.ports if one.servos}
    if "port" not in values:
        free = [path for path in arms if path != values.get("leader_port")]
        _choose(settings, "port", "the arm that the policy moves", free, arms, ask)
    free = [path for path in arms if path != values.get("port")]
    if "leader_port" not in values and free:
        _choose(settings, "leader_port", "the leader arm", free, arms, ask, only=False)
    ids = {"calibration": found.ids, "leader_calibration": found.leader_ids}
    for key, known in ids.items():
        whose = key.replace("calibration", "port")
        if key not in values and whose in values and ask is not None:
            _choose(settings, key, f"the {key.replace('_', ' ')}", known, {}, ask, any_text=True)
    for device in found.cameras if ask else ():
        assert ask is not None
        name = _camera_name(device, settings, ask)
        if name:
            settings.cameras[name] = {"source": device.path}
    if "bundle" not in values and ask is not None:
        known = [str(BUNDLE)] if BUNDLE.is_dir() else []
        _choose(settings, "bundle", "the bundle (NAME.mtdit)", known, {}, ask, any_text=True)


def _choose(
    settings: Settings,
    key: str,
    what: str,
    known: Sequence[str],
    told: dict[str, str],
    ask: Ask | None,
    only: bool = True,
    any_text: bool = False,
) -> None:
    """Set a key to one of the known values, by number; with `any_text` to what is typed, too.

    only: ENTER, or nobody to ask, takes a value that is the only one; else it leaves the key out.
    """
    default = known[0] if only and len(known) == 1 else None
    if not known and not any_text:
        console.print(f"{what}: nothing found; `mtdit find-port` says why")
        return
    if ask is None:
        if only and len(known) > 1:
            raise UserError(f"{len(known)} arms are plugged in: add --port and --leader-port")
        answer = default
    else:
        for number, value in enumerate(known, start=1):
            console.print(f"  {number}  {value}  {told.get(value, '')}".rstrip())
        answer = _answer(what, known, default, ask, any_text)
    if answer is not None:
        settings.values[key] = answer


def _answer(
    what: str, known: Sequence[str], default: str | None, ask: Ask, any_text: bool
) -> str | None:
    """The chosen value; None: left out. Asks again after an answer that is none."""
    ways = [f"1 to {len(known)}"] if known else []
    ways += ["its path or id"] if any_text else []
    enter = f"ENTER for {default}" if default else "ENTER to leave it out"
    leave = [f"{NONE} to leave it out"] if default else []
    while True:
        answer = ask(f"{what}? {', '.join([*ways, enter, *leave])}: ").strip()
        if answer in ("", NONE):
            return default if answer == "" else None
        if answer.isdigit() and 1 <= int(answer) <= len(known):
            return known[int(answer) - 1]
        if any_text and not answer.isdigit():
            return answer
        console.print(f"{answer} is not one of them")


def _camera_name(device: Device, settings: Settings, ask: Ask) -> str:
    while True:
        console.print(f"  {device.path}  {device.card}".rstrip())
        name = ask("name of this camera in the policy, e.g. top? ENTER to leave it out: ").strip()
        if not set(name) & set(".=/") and name not in settings.cameras:
            return name
        console.print("choose a name that no other camera has, without dots, slashes and signs")


def _servos(report: PortReport) -> str:
    volts = max(servo.voltage_v for servo in report.servos)
    return f"{len(report.servos)} servos, {volts:.1f} V"


def _ask(question: str) -> str:
    try:
        return input(question)
    except EOFError:
        raise typer.Abort from None
