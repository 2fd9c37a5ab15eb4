"""Find running programs and those that have a device open, through /proc."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

_PROC = Path("/proc")
_MULTIPLEXER = "/dev/ptmx"  # the master end, open in the program that made a pseudo-terminal


def holders(device: str, proc: Path = _PROC) -> list[str]:
    """Other programs that have `device` open, as "python (pid 123)". Programs of other users are
    visible to root only.

    The program that made a pseudo-terminal is not counted: the twin keeps both ends open.
    """
    others = [folder for folder in _processes(proc) if int(folder.name) != os.getpid()]
    files = {folder: set(_open_files(folder)) for folder in others}
    return [
        f"{_name(folder)} (pid {folder.name})"
        for folder in others
        if device in files[folder]
        and not (device.startswith("/dev/pts/") and _MULTIPLEXER in files[folder])
    ]


def runs(name: str, proc: Path = _PROC) -> bool:
    """Whether a program of this name is running."""
    return any(_name(folder) == name for folder in _processes(proc))


def _processes(proc: Path) -> Iterator[Path]:
    return (folder for folder in sorted(proc.glob("[0-9]*")) if folder.name.isdigit())


def _open_files(process: Path) -> Iterator[str]:
    try:
        links = list((process / "fd").iterdir())
    except OSError:
        return
    for link in links:
        with contextlib.suppress(OSError):  # closed meanwhile
            yield os.readlink(link)


def _name(process: Path) -> str:
    try:
        return (process / "comm").read_text().strip()
    except OSError:
        return ""
