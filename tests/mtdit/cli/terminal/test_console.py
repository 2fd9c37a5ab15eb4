"""What a person sees, and what a script gets from a command."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from mtdit.cli.terminal.console import Terminal, write_json


def test_json_without_numbers_that_json_lacks(tmp_path: Path) -> None:
    """A failed check errs infinitely; strict readers, such as jq and browsers, take no Infinity."""
    write_json(
        tmp_path / "new" / "a.json",
        {"stages": [{"error": np.inf}, (float("nan"), 0.5)], "ok": False},
    )
    text = (tmp_path / "new" / "a.json").read_text()
    assert json.loads(text, parse_constant=pytest.fail) == {
        "stages": [{"error": None}, [None, 0.5]],
        "ok": False,
    }


def test_nothing_that_is_printed_steers_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    """Also not what a live display or another module prints to the same console."""
    hostile = "task \x1b[2J\x07 done\nnext line"
    terminal = Terminal()
    terminal.print(hostile)
    terminal.rich.print(hostile)
    line = "task \\x1b[2J\\x07 done\nnext line\n"
    assert capsys.readouterr() == (2 * line, "")
    terminal.stderr = True
    terminal.print("aside")
    assert capsys.readouterr() == ("", "aside\n")
