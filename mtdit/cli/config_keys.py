"""The keys of mtdit.toml: every option of every command, by the name of its flag.

An option that is declared in `mtdit.cli.options` is a key of the file's top, for all commands that
have it. Every option of a command is a key of the table with the command's name, which goes before
the top. --camera is the tables [cameras.NAME].
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, is_dataclass
from enum import Enum
from functools import cache
from pathlib import Path
from types import NoneType
from typing import Any, get_args, get_origin, get_type_hints

import typer

from mtdit.cli import options

CAMERAS = "cameras"  # the tables that stand for --camera
_CAMERA = "camera"
FILE = "config"  # the parameter of a command that gets the file itself


@dataclass(frozen=True)
class Key:
    """An option as a key. parameter: its name in the command. kind: the type of its value, or of
    each of them if it may be given several times.
    """

    name: str
    parameter: str
    kind: type
    is_list: bool
    low: float | None
    high: float | None
    text: str
    default: Any
    is_shared: bool

    def problem(self, value: Any) -> str:
        """What a value from a file must be, if it is not that; else empty."""
        values = value if self.is_list and isinstance(value, list) else [value]
        fits = isinstance(value, list) == self.is_list and all(map(self._fits, values))
        return "" if fits else self.wanted

    @property
    def wanted(self) -> str:
        """What a value is: "a number from 1 to 60"."""
        return f"a list in brackets, each {self._one()}" if self.is_list else self._one()

    def _fits(self, value: Any) -> bool:
        if issubclass(self.kind, Enum):
            return value in [one.value for one in self.kind]
        if self.kind is bool or isinstance(value, bool):
            return self.kind is bool and isinstance(value, bool)
        if self.kind is float:
            return isinstance(value, int | float) and self._is_within(value)
        if self.kind is int:
            return isinstance(value, int) and self._is_within(value)
        return isinstance(value, str)

    def _is_within(self, value: float) -> bool:
        low = float("-inf") if self.low is None else self.low
        return low <= value <= (float("inf") if self.high is None else self.high)

    def _one(self) -> str:
        if issubclass(self.kind, Enum):
            return f"one of {', '.join(json.dumps(one.value) for one in self.kind)}"
        if self.kind is bool:
            return "true or false"
        if self.kind not in (int, float):
            return "text in quotes"
        limits = "" if self.low is None else f" from {_number(self.low)}"
        limits += "" if self.high is None else f" to {_number(self.high)}"
        return f"{'a whole number' if self.kind is int else 'a number'}{limits}"


def _number(value: float) -> str:
    return str(int(value)) if value == int(value) else str(value)


@cache
def keys_of(command: Callable[..., None]) -> dict[str, Key]:
    """The keys of a command's table."""
    shared, found = _shared(), {}
    for name, one in inspect.signature(command, eval_str=True).parameters.items():
        if name not in (_CAMERA, FILE):
            kind, told = get_args(one.annotation)[:2]
            key = _key(name, kind, told, one.default, told.help in shared)
            found[key.name] = key
    return found


def takes_cameras(command: Callable[..., None]) -> bool:
    return _CAMERA in inspect.signature(command, eval_str=True).parameters


def _key(parameter: str, kind: Any, told: Any, default: Any, is_shared: bool) -> Key:
    (plain,) = [one for one in get_args(kind) or (kind,) if one is not NoneType] or [str]
    is_list = get_origin(kind) is list or get_origin(plain) is list
    if is_list:
        plain = (get_args(plain) or get_args(kind))[0]
    return Key(
        _name(parameter, told),
        parameter,
        plain,
        is_list,
        told.min,
        told.max,
        told.help or "",
        None if default in (inspect.Parameter.empty, None) else getattr(default, "value", default),
        is_shared,
    )


def _name(parameter: str, told: Any) -> str:
    """The option's longest flag, without the one for "no": --home-seconds -> home_seconds."""
    flags = [word for word in (told.default, *(told.param_decls or ())) if isinstance(word, str)]
    if isinstance(told, typer.models.ArgumentInfo) or not flags:
        return parameter
    return flags[0].partition("/")[0].removeprefix("--").replace("-", "_")


@cache
def _shared() -> set[str]:
    """The sentences of the options that `mtdit.cli.options` declares. Evaluating an annotation
    again makes an equal option and not the same one.
    """
    return {told.help for told in _declared()}


def shared_texts() -> dict[str, str]:
    """What each key of the file's top means, in the words of `--help`."""
    texts: dict[str, str] = {}
    for told in _declared():
        if not isinstance(told, typer.models.ArgumentInfo):
            texts.setdefault(_name("", told), told.help)
    return {word: text for word, text in texts.items() if word and word != _CAMERA}


def _declared() -> Iterator[Any]:
    for value in vars(options).values():
        hints = get_type_hints(value, include_extras=True) if is_dataclass(value) else {}
        for annotation in (value, *hints.values()):
            yield from getattr(annotation, "__metadata__", ())


def shown(value: Any) -> str:
    """A value as it is written in the file."""
    if isinstance(value, list):
        return f"[{', '.join(map(shown, value))}]"
    if isinstance(value, str | Path):
        # JSON's text is TOML's, but for one character
        return json.dumps(str(value), ensure_ascii=False).replace("\x7f", "\\u007f")
    return json.dumps(value, default=str)
