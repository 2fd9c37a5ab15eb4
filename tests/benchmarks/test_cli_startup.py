"""The benchmark of the command line times every command, and computes ratios to the interpreter."""

from __future__ import annotations

import sys

import cli_startup

from mtdit.cli.app import COMMANDS


def test_every_command_is_timed_once() -> None:
    names = set(cli_startup.commands())
    assert {f"mtdit {name} --help" for name in COMMANDS} <= names
    assert {cli_startup.BARE, "mtdit --help", 'python -c "import mtdit"'} <= names


def test_a_process_is_timed_by_the_clock_and_by_its_work() -> None:
    took_s, cpu_s = cli_startup.timed([sys.executable, "-c", "import time; time.sleep(0.2)"])
    assert took_s > 0.2
    assert 0 < cpu_s < took_s


def test_the_table_shows_ratios_and_targets() -> None:
    times = {
        cli_startup.BARE: {"median_s": 0.02, "cpu_s": 0.01},
        "mtdit --help": {"median_s": 0.2, "cpu_s": 0.15},
    }
    facts = dict.fromkeys(("cpu", "cores", "load", "runs", "python", "typer"), 1)
    table = cli_startup.markdown(facts, times)
    assert "| `mtdit --help` | 200 | 10.0 | 150 | 15.0 | 300 |" in table
