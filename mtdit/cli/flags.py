"""Makes options of a command from the fields of dataclasses, and reads NAME=VALUE words."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable
from dataclasses import fields, is_dataclass
from functools import wraps
from typing import Annotated, Any, get_type_hints

import typer

from mtdit_robots.errors import UserError
from mtdit_robots.features import IMAGES

# Fields of TrainConfig and of the options of calls (RunOptions, ...) whose flag has another name.
FLAGS = {
    "output_dir": "--out",
    "task_weights": "--task-weight",
    "imagenet_stats": "--imagenet-stats/--dataset-stats",
    "resume": "--resume",
    "duration_s": "--duration",
    "prefetch_ticks": "--prefetch",
    "log_frames_mb": "--log-frames",
    "lockstep": "--clock",
    "safety": "--max-speed",
    "precision": "--fp16/--int8",
}


def option(heading: str, text: str, *flags: str, **limits: Any) -> Any:
    """An option, and the heading under which `--help` lists it."""
    return typer.Option(*flags, help=text, rich_help_panel=heading, **limits)


def flag_of(name: str, kind: Any = None) -> str:
    """The flag of a field: `home_s` -> --home-seconds; a switch also has a flag for "no"."""
    words = f"{name[:-2]}_seconds" if name.endswith("_s") else name
    flag = f"--{words.replace('_', '-')}"
    return FLAGS.get(name, f"{flag}/--no-{flag[2:]}" if kind is bool else flag)


def options_from(config: type, help_of: Callable[[], Any], **words: Any) -> Callable[[Any], Any]:
    """Gives a command that takes **keywords an option for each field of a dataclass.

    An option that is left out is None, which is not the same as the field's default: a preset or an
    earlier run may have set another value. help_of: name -> (type, Help). words: the type of the
    option where the field's type is not one that can be typed.
    """

    def parameter(name: str, kind: Any, default: Any, text: Any) -> inspect.Parameter:
        kind = words.get(name, kind)
        shown = "yes" if default is True else "no" if default is False else default
        full_text = text.text if "; default" in text.text else f"{text.text} [default: {shown}]"
        # typer prints a `show_default` string in parentheses, so the default is part of the text
        described = option(
            text.heading,
            full_text,
            flag_of(name, kind),
            show_default=False,
            min=text.low,
            max=text.high,
        )
        return inspect.Parameter(
            name,
            inspect.Parameter.KEYWORD_ONLY,
            default=None,
            annotation=Annotated[kind | None, described],
        )

    def decorate(command: Any) -> Any:
        defaults = {field.name: field.default for field in fields(config)}
        made = [
            parameter(name, kind, defaults[name], text) for name, (kind, text) in help_of().items()
        ]
        own = inspect.signature(command, eval_str=True).parameters.values()
        named = [
            one.replace(kind=inspect.Parameter.KEYWORD_ONLY)
            for one in own
            if one.kind is not inspect.Parameter.VAR_KEYWORD
        ]
        command.__signature__ = inspect.Signature([*made, *named])
        return command

    return decorate


def grouped(command: Callable[..., None]) -> Callable[..., None]:
    """The command with an option for each field of its parameters that are dataclasses."""
    parameters = inspect.signature(command, eval_str=True).parameters
    groups: dict[str, Any] = {
        name: one.annotation for name, one in parameters.items() if is_dataclass(one.annotation)
    }

    @wraps(command)
    def called(**given: Any) -> None:
        for name, group in groups.items():
            given[name] = group(**{field.name: given.pop(field.name) for field in fields(group)})
        command(**given)

    flat: list[inspect.Parameter] = []
    for name, one in parameters.items():
        if name not in groups:
            flat.append(one.replace(kind=inspect.Parameter.KEYWORD_ONLY))
            continue
        hints = get_type_hints(groups[name], include_extras=True)
        flat.extend(
            inspect.Parameter(
                field.name,
                inspect.Parameter.KEYWORD_ONLY,
                default=field.default,
                annotation=hints[field.name],
            )
            for field in fields(groups[name])
        )
    called.__signature__ = inspect.Signature(flat)  # type: ignore[attr-defined]
    return called


def pairs(flag: str, words: Iterable[str], example: str) -> dict[str, str]:
    """Name -> value of NAME=VALUE words. UserError for a word of another form, and for a name that
    is given twice. example: a correct word, shown in the error.
    """
    found: dict[str, str] = {}
    for word in words:
        name, _, value = word.partition("=")
        if not (name and value):
            raise UserError(f"{flag} {word!r} is not NAME=VALUE: write {flag} {example}")
        if name in found:
            raise UserError(f"{flag} {name} is given twice: give every name once")
        found[name] = value
    return found


def read_rename_map(word: str) -> dict[str, str]:
    """LeRobot's rename_map: A=B words with commas, or JSON; old name -> new name.

    A name without a dot is a camera's. UserError for a word of another form. Quotes may be of any
    kind or missing, as LeRobot accepts them: a shell may have taken them away.
    """
    inside = word.strip()
    sign = ":" if inside.startswith("{") and inside.endswith("}") else "="
    parts = [part for part in inside.strip("{}").split(",") if part.strip()]
    names: dict[str, str] = {}
    for part in parts:
        old, found, new = (piece.strip().strip("\"'").strip() for piece in part.partition(sign))
        if not (old and found and new) or _full_name(old) in names:
            raise UserError(
                f"--rename-map {word!r} does not map names to names: "
                "write --rename-map top=camera1,wrist=camera2"
            )
        names[_full_name(old)] = _full_name(new)
    return names


def _full_name(name: str) -> str:
    return name if "." in name else f"{IMAGES}{name}"
