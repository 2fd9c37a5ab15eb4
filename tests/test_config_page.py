"""docs/config.md: its tables are those of the options, and its files are read and run."""

from __future__ import annotations

import re
import runpy
from dataclasses import fields
from pathlib import Path

import pytest
from command_line import mtdit
from repository import ROOT

from mtdit.cli.app import COMMANDS
from mtdit.cli.config_check import check_config
from mtdit.cli.config_file import read_config
from mtdit_robots.cameras.options import CameraOptions

MADE = runpy.run_path(str(ROOT / "docs/config_page.py"))
TEXT = (ROOT / "docs/config.md").read_text()
BLOCKS = re.findall(r"^```toml\n(.*?)^```", TEXT, re.M | re.S)
OLD = "run python docs/config_page.py"


def test_the_tables_are_those_of_the_options() -> None:
    assert MADE["BEGIN"] + MADE["tables"]() + MADE["END"] in TEXT, OLD
    assert (ROOT / "docs/example.mtdit.toml").read_text() == MADE["example"](), OLD


def test_every_setting_of_a_camera_has_a_row() -> None:
    table = TEXT.partition("## Cameras")[2].partition("##")[0]
    cells = re.findall(r"^\| (`.*?) \|", table, re.M)
    named = set(re.findall(r"`(\w+)`", " ".join(cells)))
    assert named == {field.name for field in fields(CameraOptions)}


@pytest.mark.parametrize("block", [0, 1])
def test_the_files_of_the_page_are_right(block: int, tmp_path: Path) -> None:
    (tmp_path / "mtdit.toml").write_text(BLOCKS[block])
    check_config(read_config(tmp_path / "mtdit.toml"), COMMANDS)


def test_with_the_twins_file_run_is_enough(tmp_path: Path) -> None:
    (tmp_path / "mtdit.toml").write_text(BLOCKS[1])
    (tmp_path / "tests").symlink_to(ROOT / "tests")
    done = mtdit("run", "--clock", "lockstep", "--duration", "0.3", cwd=tmp_path)
    assert done.returncode in (0, 1), done.stderr
    assert "mtdit.toml: bundle, robot, task\n" in done.stdout
