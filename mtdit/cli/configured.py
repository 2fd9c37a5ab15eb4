"""Gives a command the values of mtdit.toml that the command line leaves out.

The file's values are the defaults of the options, so a flag goes before the file. What is for
another robot than the command drives stays out; the same flag, if typed, is refused by the command.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from functools import wraps
from pathlib import Path
from typing import Annotated, Any

import typer

from mtdit.cli.camera_words import settings_of, words_of
from mtdit.cli.config_check import Commands, check_config
from mtdit.cli.config_file import ConfigFile, find_config
from mtdit.cli.config_keys import CAMERAS, FILE, Key, keys_of, takes_cameras
from mtdit.cli.flags import option
from mtdit.cli.terminal.console import console
from mtdit.training.rank import rank
from mtdit_robots.errors import UserError

_META = "mtdit.config"
# Options that only one kind of robot has, by what `robot` is.
_ONLY = {"so101": ("port", "calibration"), "twin": ("scene",)}
_SIZES = ("width", "height", "fps")  # of all cameras, if they are typed


def configured(name: str, commands: Commands) -> Callable[..., None]:
    """The command with the option --config, and with the file's values. commands: all of them,
    because the whole file is checked. A command with a parameter `config` gets the file itself.
    """
    command = commands[name]

    def load(ctx: typer.Context, path: Path | None) -> Path | None:
        file = None if ctx.resilient_parsing else find_config(path)
        if file is not None:
            check_config(file, commands)
            ctx.default_map = {key.parameter: v for key, v in _values(file, name, command)}
            ctx.meta[_META] = file
        return path

    @wraps(command)
    def called(ctx: typer.Context, config: Path | None, **given: Any) -> None:
        file = ctx.meta.get(_META)
        if FILE in parameters:
            given[FILE] = file
        command(**(given if file is None else _Merge(ctx, file, name, command).merged(given)))

    told = option(
        "Start",
        "Settings to use, options of the command line go first; "
        "default: mtdit.toml in the current folder, if there is one.",
        "--config",
        is_eager=True,
        callback=load,
    )
    parameters = inspect.signature(command, eval_str=True).parameters
    named = [one for word, one in parameters.items() if word != FILE]
    keyword = inspect.Parameter.KEYWORD_ONLY
    context = inspect.Parameter("ctx", keyword, annotation=typer.Context)
    config = inspect.Parameter(
        "config", keyword, default=None, annotation=Annotated[Path | None, told]
    )
    made = [context, *(one.replace(kind=keyword) for one in named), config]
    called.__signature__ = inspect.Signature(made)  # type: ignore[attr-defined]
    return called


def _values(file: ConfigFile, name: str, command: Callable[..., None]) -> list[tuple[Key, Any]]:
    """The file's values for the options of a command; those of its own table go last."""
    keys = keys_of(command)
    top = {word for word, key in keys.items() if key.is_shared} & file.tables.keys()
    own = file.tables.get(name, {})
    return [(keys[word], file.tables[word]) for word in keys if word in top - own.keys()] + [
        (keys[word], value) for word, value in own.items()
    ]


class _Merge:
    """One call of a command with a file."""

    def __init__(
        self, ctx: typer.Context, file: ConfigFile, name: str, command: Callable[..., None]
    ) -> None:
        self._ctx, self._file, self._name, self._command = ctx, file, name, command
        values = _values(file, name, command)
        self._used = {
            key.parameter: key.name for key, _ in values if not self._typed(key.parameter)
        }

    def _typed(self, parameter: str) -> bool:
        source = self._ctx.get_parameter_source(parameter)
        return source is not None and source.name == "COMMANDLINE"

    def merged(self, given: dict[str, Any]) -> dict[str, Any]:
        """The command's arguments. Says which keys of the file were used."""
        if given.get("leader"):
            self._leader_port(given)
        if given.get("diff") or given.get("restore") is not None:
            self._leave_out(given, "port")  # typed, it would say to use the servos and not a file
        robot = _robot(given)
        for kind, parameters in _ONLY.items():
            for parameter in parameters if robot not in (None, "none", kind) else ():
                self._leave_out(given, parameter)
        if self._name == "eval" and given["checkpoint"] is not None:
            self._leave_out(given, "bundle")
        if takes_cameras(self._command) and robot != "twin":
            given["camera"] = self._cameras(given["camera"])
        if self._used and rank() == 0:
            console.print(f"{self._file.path}: {', '.join(self._used.values())}")
        return given

    def _leave_out(self, given: dict[str, Any], parameter: str) -> None:
        if self._used.pop(parameter, None) is not None:
            given[parameter] = inspect.signature(self._command).parameters[parameter].default

    def _leader_port(self, given: dict[str, Any]) -> None:
        """The file's `port` is the follower's: setup-motors and calibrate would write to it."""
        if "port" in self._used:
            if "leader_port" not in self._file.tables:
                raise UserError(
                    f"--leader: `port` in {self._file.path} is the follower's: add --port, or "
                    "leader_port to the file"
                )
            given["port"], self._used["port"] = self._file.tables["leader_port"], "leader_port"

    def _cameras(self, words: list[str] | None) -> list[str] | None:
        """The file's cameras, with what was typed in place of what the file says."""
        tables = self._file.tables.get(CAMERAS, {})
        typed = set(filter(self._typed, _SIZES))
        settings = {
            (name, setting): value
            for name, table in tables.items()
            for setting, value in table.items()
            if setting not in typed
        }
        if settings:
            self._used["camera"] = CAMERAS
        return words_of({**settings, **settings_of(words or ())}) or None


def _robot(given: Mapping[str, Any]) -> str | None:
    """The robot that the command drives; None: a command without one."""
    if "robot" not in given:
        return None
    if given["robot"] is None:  # as `mtdit run` does
        return "twin" if given["port"] is None else "so101"
    return str(given["robot"].value)
