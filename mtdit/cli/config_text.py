"""Writes mtdit.toml: the values that are known, and a line of comment for each other key; or the
text of a file with other values.
"""

from __future__ import annotations

import textwrap
from collections.abc import Mapping
from typing import Any

from mtdit.cli.config_file import NAME, ConfigFile, parse_config
from mtdit.cli.config_keys import CAMERAS, shared_texts, shown
from mtdit_robots.errors import UserError

_HEAD = """\
# Settings of mtdit, for the commands that are typed in this folder. An option of a command goes
# before its key here. Keys of one command only stand below its name: [run], [record] and so on.
"""
_OTHERS = "# Keys that are not set, with their meaning:\n"
_CAMERA = """\
# width = 640      # of a frame after the rotation; a bundle gives its own to `mtdit run`
# height = 480
# fps = 30
# fourcc = "MJPG"  # pixel format of the device
# rotation = 0     # clockwise: 90, 180 or -90
# warmup_s = 0     # seconds until the exposure has settled
"""


def config_text(values: Mapping[str, Any], cameras: Mapping[str, Mapping[str, Any]]) -> str:
    """The text of the file. values: key of the top -> value. cameras: name -> settings."""
    parts = [_HEAD, _lines(values), _OTHERS + _comments(values)]
    for name, settings in cameras.items():
        plain = name if name.isidentifier() and name.isascii() else shown(name)
        parts.append(f"[{CAMERAS}.{plain}]\n{_lines(settings)}" + _not_said(settings))
    return "\n".join(part for part in parts if part)


def changed_text(file: ConfigFile | None, values: Mapping[str, Any]) -> str:
    """The text of a file with other values for keys of the top, below the commands' names too; the
    rest stays as it is. None: a file that is not there yet.

    UserError for a key that shares its line with others.
    """
    before = file or ConfigFile(NAME, "", {})
    lines, added = before.text.split("\n"), dict(values)
    for key, value in values.items():
        tables = [[name] for name, table in before.tables.items() if isinstance(table, dict)]
        for place in ([], *tables):
            holder = before.tables[place[0]] if place else before.tables
            if key in holder:
                lines[before.line_of([*place, key]) - 1] = f"{key} = {shown(value)}"
                holder[key] = value
                added.pop(key, None)
    text = _lines(added) + "\n".join(lines)
    if parse_config(before.path, text).tables != {**before.tables, **added}:
        raise UserError(f"{before.path}: write {' and '.join(values)} in lines of their own")
    return text


def _lines(values: Mapping[str, Any]) -> str:
    return "".join(f"{key} = {shown(value)}\n" for key, value in values.items())


def _not_said(settings: Mapping[str, Any]) -> str:
    lines = _CAMERA.splitlines(keepends=True)
    return "".join(line for line in lines if line.split()[1] not in settings)


def _comments(values: Mapping[str, Any]) -> str:
    texts = {key: text for key, text in shared_texts().items() if key not in values}
    lines = (
        textwrap.wrap(f"{key}: {text}", 100, initial_indent="# ", subsequent_indent="#     ")
        for key, text in texts.items()
    )
    return "".join(f"{line}\n" for wrapped in lines for line in wrapped)
