"""Options that several commands share, word for word. Knows typer; refuses to know what they do."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

from mtdit.terminal import console


class RobotKind(str, Enum):
    twin = "twin"
    so101 = "so101"


class Clock(str, Enum):
    real = "real"
    lockstep = "lockstep"


class BusKind(str, Enum):
    own = "own"
    sdk = "sdk"


def _words_aside(where: Path | None) -> Path | None:
    """With `--json -` standard output is JSON and nothing else; words for people go to standard error."""
    console.stderr = str(where) == "-"
    return where


Json = Annotated[
    Path | None,
    typer.Option("--json", callback=_words_aside, help="Also write the result to this file; - for standard output."),
]
BusOption = Annotated[
    BusKind, typer.Option("--bus", help="sdk: Feetech's own packets instead of ours; both do the same.")
]
