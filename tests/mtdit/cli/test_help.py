"""`--help`: quick, in sentences, grouped, and true about names and defaults."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys

import pytest
import typer
from command_line import mtdit

from mtdit.cli.app import app
from mtdit.cli.flags import FLAGS, flag_of
from mtdit.cli.terminal.help import MAX_UNGROUPED, heading
from mtdit.training.config import TrainConfig, field_help
from mtdit_export.options import ExportOptions
from mtdit_runtime.evaluate import EvalOptions
from mtdit_runtime.record import RecordOptions
from mtdit_runtime.run import RunOptions
from mtdit_runtime.teleoperate import DriveOptions
from mtdit_runtime.verify.build import BuildOptions

COMMANDS = typer.main.get_command(app).commands  # type: ignore[attr-defined]
HEAVY = ("numpy", "rich", "torch", "PIL", "onnxruntime", "mujoco", "pyarrow", "av", "pydantic")
LOADED = f"""
import json, sys
from mtdit.cli import main
try:
    main()
except SystemExit:
    print(json.dumps([name for name in {HEAVY!r} if name in sys.modules]), file=sys.stderr)
"""
ARM = {"robot", "port", "calibration", "bus", "bus_timeout", "camera"}
LEADER = {"leader_port", "leader_calibration", "height", "width", "seed"}
# The options of each call, and what the command takes besides: what runs, on which robot, where the
# result goes.
CALLS = {
    "run": (RunOptions, {"bundle", "task", "scene", "rename_map", *ARM, "json_out"}),
    "export": (ExportOptions, {"checkpoint", "out", "int8", "build", "json_out"}),
    "eval": (
        EvalOptions,
        {"bundle", "checkpoint", "dataset", "robot", "task", "backend", "json_out"},
    ),
    "build": (BuildOptions, {"bundle"}),
    "teleoperate": (DriveOptions, {*ARM, *LEADER, "json_out"}),
    "record": (RecordOptions, {"out", "task", *ARM, *LEADER, "images", "json_out"}),
}
# Fields that a Python user sets and no flag does; `record --images` is the opposite of `video`.
NO_FLAG = {
    "eval": {"prefetch_ticks", "success_ticks", "joints"},
    "teleoperate": {"safety"},
    "record": {"safety", "video"},
}


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
        *("overwrite", "config"),
    }


@pytest.mark.parametrize("name", CALLS)
def test_every_field_of_the_options_of_a_call_has_a_flag(name: str) -> None:
    """With the field's name or one in FLAGS, and with the field's default."""
    kind, besides = CALLS[name]
    flags = {flag: option for option in COMMANDS[name].params for flag in option.opts}
    set_by = set()
    for field in dataclasses.fields(kind):
        if field.name in NO_FLAG.get(name, ()):
            continue
        option = flags[flag_of(field.name).partition("/")[0]]
        set_by.add(option.name)
        # the clock and the precision are words, made from a switch; None: the help says the default
        if option.default is not None and field.name not in ("lockstep", "precision"):
            assert getattr(option.default, "value", option.default) == field.default, field.name
    assert {option.name for option in COMMANDS[name].params} - set_by == besides | {"config"}


def test_the_table_of_other_names_is_short_and_used() -> None:
    assert len(FLAGS) <= 10
    every = {
        flag
        for name in COMMANDS
        for option in COMMANDS[name].params
        for flag in (*option.opts, *option.secondary_opts)
    }
    for flags in FLAGS.values():
        assert set(flags.split("/")) <= every
