"""`--help`: quick, in sentences, grouped, and true about names and defaults."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from collections.abc import Mapping
from typing import Any

import pytest
import typer
from command_line import mtdit

from mtdit.cli.app import app
from mtdit.cli.flags import FLAGS, flag_of
from mtdit.cli.terminal.help import MAX_UNGROUPED, heading
from mtdit.training.config import TrainConfig, field_help
from mtdit_runtime.run import RunOptions

COMMANDS = typer.main.get_command(app).commands  # type: ignore[attr-defined]
HEAVY = ("numpy", "rich", "torch", "cv2", "onnxruntime", "mujoco", "pyarrow", "av", "pydantic")
LOADED = f"""
import json, sys
from mtdit.cli import main
try:
    main()
except SystemExit:
    print(json.dumps([name for name in {HEAVY!r} if name in sys.modules]), file=sys.stderr)
"""
# Options of `run` that describe the robot, the film or the report, not the run.
NOT_A_RUN_OPTION = {"robot", "port", "calibration", "bus", "bus_timeout", "camera", "json_out"}
# Fields of RunOptions that no flag sets: the command makes them from several options.
NO_FLAG = {"robot", "success", "overview", "say"}


@pytest.mark.parametrize("words", [(), *((name,) for name in COMMANDS)], ids=lambda w: "".join(w))
def test_help_loads_nothing_heavy(words: tuple[str, ...]) -> None:
    """In a fresh process: a quarter of a second is lost to numpy alone."""
    done = subprocess.run(
        [sys.executable, "-c", LOADED, *words, "--help"],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert "Usage: mtdit" in done.stdout, done.stderr
    assert json.loads(done.stderr) == []


@pytest.mark.parametrize("name", COMMANDS)
def test_every_option_says_in_a_sentence_what_it_does(name: str) -> None:
    command = COMMANDS[name]
    assert len(command.help.split()) >= 5
    for option in command.params:
        words = (option.help or "").split()
        assert len(words) >= 3, option.name
        assert words[0] not in ("Of", "Whether"), option.name
        assert option.help.partition(" [default")[0].endswith("."), option.name
        assert "(" not in str(option.show_default), "typer would print it in parentheses"


@pytest.mark.parametrize("name", COMMANDS)
def test_many_options_are_listed_under_headings(name: str) -> None:
    """And only --help itself is in the group that is called Help."""
    options = COMMANDS[name].params
    told = mtdit(name, "--help").stdout.splitlines()
    headings = {heading(option) for option in options}
    assert "Help" not in headings
    if len(options) > MAX_UNGROUPED:
        assert len(headings) >= 3
        assert {f"{one}:" for one in headings} <= set(told)
    else:
        assert "Options:" in told


def test_the_list_of_commands_shows_whole_sentences() -> None:
    told = " ".join(mtdit("--help").stdout.partition("Commands:")[2].split())
    assert "Check this computer, the arm and the cameras, and print the fix for each" in told
    assert "..." not in told


def test_every_field_of_a_training_has_an_option() -> None:
    """It has the field's name, except for those in FLAGS, and its help shows the default."""
    options = {option.name: option for option in COMMANDS["train"].params}
    told = " ".join(mtdit("train", "--help").stdout.split())
    for field in dataclasses.fields(TrainConfig):
        kind, text = field_help()[field.name]
        flags = flag_of(field.name, kind).split("/")
        assert [*options[field.name].opts, *options[field.name].secondary_opts] == flags
        assert flags[0] == f"--{field.name.replace('_', '-')}" or field.name in FLAGS
        assert f"{flags[0]} " in told
        if "; default" not in text.text:
            shown = field.default
            if isinstance(shown, bool):
                shown = "yes" if shown else "no"
            assert f"[default: {shown}]" in options[field.name].help
        else:
            assert field.default in (dataclasses.MISSING, None) or field.name == "imagenet_stats"
    assert "[default: disk]" in told
    assert "[default: (" not in told
    assert set(options) - {f.name for f in dataclasses.fields(TrainConfig)} == {
        *("vision_encoder", "objective", "horizon"),  # policy fields that have an option
        "overwrite",
    }


def flags_of(name: str) -> Mapping[str, Any]:
    """Flag -> option of a command."""
    return {flag: option for option in COMMANDS[name].params for flag in option.opts}


def test_every_field_of_a_run_has_an_option() -> None:
    """With the field's name or one in FLAGS, and with its default."""
    options = flags_of("run")
    set_by = {}
    for field in dataclasses.fields(RunOptions):
        if field.name not in NO_FLAG:
            option = options[flag_of(field.name).partition("/")[0]]
            set_by[field.name] = option
            if option.default is not None and field.name not in ("lockstep", "bundle"):
                default = getattr(option.default, "value", option.default)
                assert default == field.default, field.name
    others = {option.name for option in options.values()} - {o.name for o in set_by.values()}
    assert others == NOT_A_RUN_OPTION


def test_the_table_of_other_names_is_short_and_used() -> None:
    assert len(FLAGS) <= 12
    every = {
        flag
        for name in COMMANDS
        for option in COMMANDS[name].params
        for flag in (*option.opts, *option.secondary_opts)
    }
    for flags in FLAGS.values():
        assert set(flags.split("/")) <= every
