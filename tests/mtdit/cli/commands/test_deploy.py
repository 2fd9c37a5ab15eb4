"""`mtdit deploy` from a folder with mtdit.toml, to computers made of folders."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from command_line import assert_one_line, mtdit
from other_computers import PORT, OtherComputers, others
from repository import DEMO, EXAMPLE

from mtdit.cli.config_file import read_config

__all__ = ["others"]
SETTINGS = f"""\
# my robot
bundle = "outputs/policy.mtdit"
port = "/dev/ttyACM9"  # of the desk
calibration = "{EXAMPLE}"
max_speed = 60
[run]
bundle = "elsewhere.mtdit"
duration = 5
[cameras.top]
source = "/dev/video0"
"""


def test_the_settings_there_name_what_is_there(others: OtherComputers, tmp_path: Path) -> None:
    home, config = others.add(), tmp_path / "mtdit.toml"
    (home / "root/dev/video0").touch()
    config.write_text(SETTINGS)
    words = ("deploy", "me@jetson", DEMO, "--port", PORT, "--repository", others.source)
    done = mtdit(*words, "--json", "done.json", cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.splitlines()[-1].startswith("start it: ssh -t me@jetson 'cd mtdit && ")
    there = read_config(home / "mtdit/mtdit.toml")
    assert there.text.splitlines()[0] == "# my robot"
    expected = {"bundle": "demo.mtdit", "port": PORT, "calibration": EXAMPLE.name}
    assert {key: there.tables[key] for key in expected} == expected
    assert there.tables["run"] == {"bundle": "demo.mtdit", "duration": 5}
    assert there.tables["cameras"] == {"top": {"source": "/dev/video0"}}
    assert (home / "mtdit" / EXAMPLE.name).exists()
    assert config.read_text() == SETTINGS
    (report,) = json.loads((tmp_path / "done.json").read_text())
    assert (report["host"], report["error"], report["chunk_ms"]) == ("me@jetson", "", 12.5)


def test_a_folder_without_settings_gives_some(others: OtherComputers, tmp_path: Path) -> None:
    home = others.add()
    done = mtdit("deploy", "jetson", DEMO, "--repository", others.source, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert (home / "mtdit/mtdit.toml").read_text() == 'bundle = "demo.mtdit"\n'
    assert "no port is set" in done.stdout


def test_several_computers_end_in_a_table(others: OtherComputers, tmp_path: Path) -> None:
    others.add()
    others.says("other", "me@other: Permission denied (publickey,password).")
    words = ("me@jetson", DEMO, "--also", "me@other", "--port", PORT, "--repository", others.source)
    done = mtdit("deploy", *words, cwd=tmp_path)
    assert done.returncode == 1
    table = done.stdout.partition("chunk, ms")[2]
    assert "12.5 of 800" in table
    assert "ssh-copy-id" in table
    assert table.count("start it:") == 1


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("me@jetson", DEMO, "--port", "/dev/ttyUSB7"), "no /dev/ttyUSB7 there: plug it in"),
        (("me@jetson", "no.mtdit"), "no.mtdit"),
        (("me@jetson", DEMO, "--calibration", "no.json"), "no calibration file no.json"),
        (("me@jetson", DEMO, "--ssh", "no-ssh"), "no-ssh is not installed here"),
        ((), "Missing argument 'HOST'"),
        (("me@jetson:x", DEMO), "is no host"),
        (("me@jetson", DEMO, "--config", "twice.toml"), "in lines of their own"),
    ],
)
def test_one_line_says_what_to_type(
    others: OtherComputers, tmp_path: Path, words: tuple[str | Path, ...], says: str
) -> None:
    home = others.add()
    (tmp_path / "twice.toml").write_text('run = {bundle = "a.mtdit"}\n')
    done = mtdit("deploy", *words, "--repository", others.source, cwd=tmp_path)
    assert_one_line(done, says)
    assert not (home / "mtdit").exists()
