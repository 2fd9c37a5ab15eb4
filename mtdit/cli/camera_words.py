"""The words of --camera: NAME=SOURCE, or NAME.SETTING=VALUE with a field of `CameraOptions`."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from contextlib import suppress
from typing import TYPE_CHECKING, Any, get_args, get_type_hints

from mtdit.cli.flags import pairs
from mtdit_robots.errors import UserError

if TYPE_CHECKING:
    from mtdit_robots.cameras.options import CameraOptions

_SOURCE = "source"


def named_cameras(words: Iterable[str] | None) -> dict[str, CameraOptions]:
    """The cameras that the words describe. UserError for a setting that no camera has, with the
    nearest, for a value that is none, and for a camera without a source.
    """
    from mtdit_robots.cameras.options import CameraOptions

    kinds = get_type_hints(CameraOptions)
    cameras: dict[str, dict[str, Any]] = {}
    for (name, setting), value in settings_of(words or ()).items():
        if setting not in kinds:
            near = difflib.get_close_matches(setting, kinds, n=1, cutoff=0.0)[0]
            raise UserError(
                f"--camera {name}.{setting}: a camera has no {setting!r}: "
                f"did you mean {name}.{near}?"
            )
        cameras.setdefault(name, {})[setting] = _as_kind(value, kinds[setting])
    return {name: _camera(name, settings) for name, settings in cameras.items()}


def settings_of(words: Iterable[str]) -> dict[tuple[str, str], str]:
    """(camera, setting) -> text. UserError for a word of another form and for one given twice."""
    found: dict[tuple[str, str], str] = {}
    for word, value in pairs("--camera", words, "top=/dev/video0").items():
        name, _, setting = word.partition(".")
        if (name, setting or _SOURCE) in found:
            raise UserError(f"--camera {name} is given twice: give every name once")
        found[name, setting or _SOURCE] = value
    return found


def words_of(settings: dict[tuple[str, str], Any]) -> list[str]:
    """The words that `settings_of` reads."""
    return [f"{name}.{setting}={value}" for (name, setting), value in settings.items()]


def _as_kind(value: str, kind: Any) -> Any:
    """The number that a setting needs, where the text is one; else the text, to be refused."""
    for number in (int, float):
        if number in (kind, *get_args(kind)):
            with suppress(ValueError):
                return number(value)
    return value


def _camera(name: str, settings: dict[str, Any]) -> CameraOptions:
    from mtdit_robots.cameras.options import CameraOptions

    if _SOURCE not in settings:
        raise UserError(f"camera {name!r} has no source: add --camera {name}=/dev/video0")
    try:
        return CameraOptions(**settings)
    except UserError as error:
        raise UserError(f"camera {name!r}: {error}") from None
