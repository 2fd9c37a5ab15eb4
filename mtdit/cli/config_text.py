"""Writes mtdit.toml: the values that are known, and a line of comment for each other key."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping
from typing import Any

from mtdit.cli.config_keys import CAMERAS, shared_texts, shown

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
