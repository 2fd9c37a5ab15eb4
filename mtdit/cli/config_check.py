"""Checks the whole of mtdit.toml: every key exists, and its option takes the value."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from mtdit.cli.config_file import ConfigFile
from mtdit.cli.config_keys import CAMERAS, Key, keys_of, shown
from mtdit_robots.errors import UserError

Commands = Mapping[str, Callable[..., None]]


def check_config(file: ConfigFile, commands: Commands) -> None:
    """UserError for a key that does not exist, with the nearest, and for a value that its option
    does not take, of any command.
    """
    tables = {name: keys_of(command) for name, command in commands.items()}
    shared: dict[str, list[Key]] = {}
    for keys in tables.values():
        for key in keys.values():
            if key.is_shared:
                shared.setdefault(key.name, []).append(key)
    for word, value in file.tables.items():
        if word in tables or word == CAMERAS:
            if not isinstance(value, dict):
                table = f"{CAMERAS}.top" if word == CAMERAS else word
                raise file.error([word], f"{word} must be a table: write [{table}]")
        elif word not in shared:
            raise file.error([word], _unknown(word, shared, tables))
        for key in shared.get(word, ()):
            _check_value(file, [word], key, value)
    for name in (word for word in file.tables if word in tables):
        for word, value in file.tables[name].items():
            if word not in tables[name]:
                near = _nearest(word, tables[name])
                raise file.error(
                    [name, word], f"[{name}] has no key {word!r}: did you mean {near!r}?"
                )
            _check_value(file, [name, word], tables[name][word], value)
    for name, table in file.tables.get(CAMERAS, {}).items():
        _check_camera(file, name, table)


def _check_value(file: ConfigFile, keys: list[str], key: Key, value: Any) -> None:
    wanted = key.problem(value)
    if wanted:
        raise file.error(keys, f"{key.name} = {shown(value)} must be {wanted}")


def _unknown(word: str, shared: Mapping[str, Any], tables: Mapping[str, Mapping[str, Key]]) -> str:
    places = [f"[{name}]" for name, keys in tables.items() if word in keys]
    if places:
        return f"{word!r} is not for all commands: write it under {' or '.join(places)}"
    return f"unknown key {word!r}: did you mean {_nearest(word, [*shared, *tables, CAMERAS])!r}?"


def _check_camera(file: ConfigFile, name: str, table: Any) -> None:
    from mtdit_robots.cameras.options import CameraOptions

    place = [CAMERAS, name]
    settings = list(CameraOptions.__dataclass_fields__)
    if not isinstance(table, dict):
        raise file.error(place, f'write [{CAMERAS}.{name}], and below it source = "/dev/video0"')
    if set(name) & set(".="):
        raise file.error(place, f"camera {name!r}: choose a name without dots and signs")
    for setting, value in table.items():
        if setting not in settings:
            near = _nearest(setting, settings)
            raise file.error(
                [*place, setting],
                f"[{CAMERAS}.{name}] has no key {setting!r}: did you mean {near!r}?",
            )
        try:
            CameraOptions(**{"source": "0", setting: value})
        except UserError as error:
            raise file.error([*place, setting], f"[{CAMERAS}.{name}] {error}") from None
    if "source" not in table:
        raise file.error(place, f'[{CAMERAS}.{name}] has no source: add source = "/dev/video0"')


def _nearest(word: str, known: Iterable[str]) -> str:
    return difflib.get_close_matches(word, list(known), n=1, cutoff=0.0)[0]
