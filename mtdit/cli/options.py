"""Options that several commands share."""

from __future__ import annotations

import os
from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

from mtdit.cli.terminal.console import console
from mtdit_robots.errors import UserError

OUTPUTS = Path("outputs")
RUN, BUNDLE = OUTPUTS / "train", OUTPUTS / "policy.mtdit"
MAX_SEED = 2**31 - 1


class Backend(str, Enum):
    auto = "auto"
    onnx = "onnx"
    cuda = "cuda"
    tensorrt = "tensorrt"


Seed = Annotated[
    int,
    typer.Option(min=0, max=MAX_SEED, help="Random seed; the same seed gives the same result."),
]
Overwrite = Annotated[
    bool,
    typer.Option(
        "--overwrite",
        help="Replace the result of an earlier run in --out; default: stop if there is one.",
    ),
]
BundleOption = Annotated[
    Path,
    typer.Option("--bundle", help="Bundle to run: a folder NAME.mtdit that `mtdit export` wrote."),
]
BackendOption = Annotated[
    Backend,
    typer.Option(help="Backend that computes the policy; auto: the fastest one that works here."),
]
Calibration = Annotated[
    str | None,
    typer.Option(help="Calibration of the real arm: a JSON file, or the arm's id in LeRobot."),
]
CameraList = Annotated[
    list[str] | None,
    typer.Option(
        "--camera",
        help="Camera as NAME=SOURCE, repeat for each camera; SOURCE is a device (/dev/video0), "
        "file:CLIP.mp4 or dataset:FOLDER:CAMERA.",
    ),
]


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
