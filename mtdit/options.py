"""Options that several commands share, with their names, limits and help texts."""

from __future__ import annotations

import os
from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

from mtdit.terminal import console
from mtdit_robots.errors import UserError


class RobotKind(str, Enum):
    twin = "twin"
    so101 = "so101"


class Clock(str, Enum):
    real = "real"
    lockstep = "lockstep"


class BusKind(str, Enum):
    own = "own"
    sdk = "sdk"


def _json_place(where: Path | None) -> Path | None:
    """With `--json -` standard output gets only JSON, and everything else goes to standard error.

    UserError for a file that cannot be written: before the work starts, not after it.
    """
    console.stderr = str(where) == "-"
    if where is not None and not console.stderr:
        _check_writable(where)
    return where


def _check_writable(file: Path) -> None:
    there = next(path for path in (file, *file.absolute().parents) if os.path.lexists(path))
    if there == file and file.is_dir():
        raise UserError(f"--json {file} is a folder: name a file in it")
    if there != file and not there.is_dir():
        raise UserError(f"{there} is not a folder: choose another place for --json")
    if not os.access(there, os.W_OK):
        raise UserError(f"{there} is not writable: choose another place for --json")


Json = Annotated[
    Path | None,
    typer.Option(
        "--json",
        callback=_json_place,
        help="Also write the result to this file as JSON; - for standard output.",
    ),
]
BusOption = Annotated[
    BusKind,
    typer.Option(
        "--bus", help="Servo driver: own (mtdit's) or sdk (Feetech's SDK); both behave the same."
    ),
]
BusTimeout = Annotated[
    float,
    typer.Option("--bus-timeout", min=0.01, max=10.0, help="Seconds a servo may take to answer."),
]
