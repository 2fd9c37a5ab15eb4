"""`mtdit service`: `mtdit run` in the background, by systemd."""

from __future__ import annotations

import sys
from enum import Enum
from pathlib import Path
from typing import Annotated, Any

import typer

from mtdit.cli.flags import option
from mtdit.cli.terminal.console import console
from mtdit_robots.errors import UserError


class Action(str, Enum):
    install = "install"
    uninstall = "uninstall"


def service(
    ctx: typer.Context,
    action: Annotated[
        Action, typer.Argument(help="install: write the unit, or replace it; uninstall: remove it.")
    ],
    words: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[-- WORDS]", help='Options of `mtdit run`, e.g. -- --task "open the drawer".'
        ),
    ] = None,
    dry_run: Annotated[
        bool, option("Start", "Print the unit and write nothing.", "--dry-run")
    ] = False,
) -> None:
    """Install `mtdit run` as a systemd user unit, which is started by hand and never by itself.

    It runs in the current folder, with its mtdit.toml.
    """
    from mtdit_runtime import service as unit

    given = words or []
    if action is Action.uninstall:
        if given or dry_run:
            raise UserError("`mtdit service uninstall` takes nothing else: leave out the rest")
        console.print(f"removed {unit.uninstall(console.print)}")
        return
    _check(ctx, given)
    text = unit.unit_text([sys.executable, "-m", "mtdit", "run", *given], Path.cwd())
    if dry_run:
        console.print(text.rstrip())
        return
    console.print(f"wrote {unit.install(text, console.print)}")
    console.print(
        f"start it: systemctl --user start {unit.NAME} (the arm moves)\n"
        f"stop it:  systemctl --user stop {unit.NAME} (the arm returns to its start pose)\n"
        f"watch it: journalctl --user --follow --unit {unit.NAME}\n"
        "it ends when you log out; to let it go on: loginctl enable-linger"
    )


def _check(ctx: typer.Context, words: list[str]) -> None:
    """A mistake in the words of `mtdit run` is told now, as `mtdit run` tells it."""
    commands: Any = ctx.find_root().command
    commands.commands["run"].make_context("mtdit run", list(words))
