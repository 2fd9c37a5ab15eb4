"""Reads mtdit.toml, and says in which line of it a key is; what keys mean is in `config_keys`."""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mtdit_robots.errors import UserError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

NAME = Path("mtdit.toml")
_PLACE = re.compile(r" \(at (?:line (\d+), column \d+|end of document)\)$")
_NO_QUOTES = re.compile(r"""^\s*([\w.-]+)\s*=\s*([^\s"'\[{#][^#]*)""")


@dataclass(frozen=True)
class ConfigFile:
    """A file as it was read. UserErrors about it begin with path and line."""

    path: Path
    text: str
    tables: dict[str, Any]

    def error(self, keys: Sequence[str], problem: str) -> UserError:
        """An error about a key, which is given as the path to it: ("cameras", "top", "fps")."""
        return UserError(f"{self.path}:{self.line_of(keys)}: {problem}")

    def line_of(self, keys: Sequence[str]) -> int:
        """The line, from 1, in which a key or table of the file begins.

        It is the one behind the longest beginning of the file that is whole and lacks the key:
        parsers of TOML tell no lines of what is right.
        """
        lines = self.text.split("\n")
        whole = 0
        for end in range(1, len(lines) + 1):
            try:
                part = tomllib.loads("\n".join(lines[:end]) + "\n")
            except tomllib.TOMLDecodeError:
                continue  # in the middle of a value of several lines
            if _has(part, keys):
                break
            whole = end
        return whole + 1


def _has(tables: Any, keys: Sequence[str]) -> bool:
    for key in keys:
        if not isinstance(tables, dict) or key not in tables:
            return False
        tables = tables[key]
    return True


def find_config(path: Path | None) -> ConfigFile | None:
    """The file of --config, or mtdit.toml of the current folder; None: there is none. UserError for
    one that cannot be read or is not TOML.
    """
    if path is None and not NAME.exists():
        return None
    return read_config(path or NAME)


def read_config(path: Path) -> ConfigFile:
    """The file. UserError for one that cannot be read or is not TOML."""
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not text in UTF-8: save it as UTF-8") from error
    except OSError as error:
        raise UserError(
            f"cannot read {path} ({error.strerror}): give --config another file, or write one with "
            "`mtdit init`"
        ) from error
    return parse_config(path, text)


def parse_config(path: Path, text: str) -> ConfigFile:
    """The file with this text. UserError for one that is not TOML."""
    try:
        return ConfigFile(path, text, tomllib.loads(text))
    except tomllib.TOMLDecodeError as error:
        raise UserError(_not_toml(path, text, str(error))) from error


def _not_toml(path: Path, text: str, message: str) -> str:
    lines = text.split("\n")
    place = _PLACE.search(message)
    number = int(place[1]) if place and place[1] else len(lines)
    line, why = lines[number - 1].strip(), _PLACE.sub("", message)
    if "overwrite" in why or "twice" in why:
        twice = line if line.startswith("[") else line.partition("=")[0].strip()
        return f"{path}:{number}: {twice} is given twice: give it once"
    unquoted = _NO_QUOTES.match(line)
    if unquoted and why == "Invalid value":
        key, value = unquoted[1], unquoted[2].strip()
        return f'{path}:{number}: {key} is text without quotes: write {key} = "{value}"'
    return f"{path}:{number}: {line!r} is not TOML ({why}): write KEY = VALUE, or [TABLE]"
