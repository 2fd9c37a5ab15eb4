"""The live status of a driven arm, and the keys that a person may press meanwhile."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING

import typer

from mtdit.cli.terminal.console import console
from mtdit.cli.terminal.keys import Keys
from mtdit.cli.terminal.tables import table

if TYPE_CHECKING:
    from rich.console import Group

    from mtdit_runtime.control.report import RunReport
    from mtdit_runtime.teleoperate import LiveStatus

REFRESH_HZ = 5.0


@contextmanager
def screen(status: LiveStatus, help_line: str = "Ctrl-C ends it") -> Iterator[None]:
    """Show joints and rates while the block runs; without a terminal, show nothing."""
    from rich.console import Group
    from rich.live import Live
    from rich.text import Text

    def picture() -> Group:
        joints = table("", ["joint", "leader", "commanded", "measured"], status.rows())
        return Group(Text(status.headline), joints, Text(status.line()), Text(help_line))

    live = Live(
        get_renderable=picture, console=console.rich, refresh_per_second=REFRESH_HZ, transient=True
    )
    with live if console.is_terminal else nullcontext():
        yield


@contextmanager
def keys_if_any() -> Iterator[Callable[[], str | None]]:
    """A function that returns the key pressed since the last call, or None. Without a terminal, and
    after the terminal was closed, it always returns None: the hang-up signal then ends the run.
    """
    if not sys.stdin.isatty():
        yield lambda: None
        return
    with Keys("") as keys:

        def pressed() -> str | None:
            try:
                return keys.get(0.0)
            except KeyboardInterrupt:
                return None

        yield pressed


def leave(report: RunReport) -> None:
    """Exit with 130 after Ctrl-C, with 1 after a run that failed; return after one that is ok."""
    if report.reason == "interrupted":
        raise typer.Exit(130)
    if not report.ok:
        raise typer.Exit(1)
