"""`mtdit service`: the words of `mtdit run` are checked before a unit is written."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from command_line import assert_one_line, mtdit


@pytest.fixture(autouse=True)
def unit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    program = tmp_path / "bin/systemctl"
    program.parent.mkdir()
    program.write_text("#!/bin/sh\nexit 1\n")  # no session of systemd answers
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(program.parent))
    return tmp_path / "config/systemd/user/mtdit-run.service"


def test_it_is_installed_and_removed(unit: Path, tmp_path: Path) -> None:
    words = ("--task", "open the drawer", "--port", "/dev/mtdit/follower")
    done = mtdit("service", "install", "--", *words, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    text = unit.read_text()
    assert f'ExecStart="{sys.executable}" "-m" "mtdit" "run" "--task" "open the drawer"' in text
    assert f"WorkingDirectory={tmp_path}\n" in text
    for line in ("start mtdit-run.service", "stop mtdit-run.service", "daemon-reload"):
        assert f"systemctl --user {line}" in done.stdout
    assert mtdit("service", "uninstall").returncode == 0
    assert not unit.exists()
    assert_one_line(mtdit("service", "uninstall"), str(unit), "nothing to remove")


def test_a_dry_run_prints_the_unit(unit: Path) -> None:
    done = mtdit("service", "install", "--dry-run", "--", "--task", "open the drawer")
    assert "Restart=no" in done.stdout
    assert not unit.exists()


def test_the_task_may_be_in_the_file(unit: Path, tmp_path: Path) -> None:
    assert_one_line(mtdit("service", "install", cwd=tmp_path), "'--task'", "mtdit run --help")
    (tmp_path / "mtdit.toml").write_text('[run]\ntask = "open the drawer"\n')
    assert mtdit("service", "install", cwd=tmp_path).returncode == 0
    assert '"-m" "mtdit" "run"\n' in unit.read_text()


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("install", "--", "--taks", "x"), "No such option: --taks"),
        (("install", "--", "--task", "x", "--backend", "cpu"), "'cpu' is not one of"),
        (("start",), "'start' is not one of 'install', 'uninstall'"),
        (("uninstall", "--", "--task", "x"), "leave out the rest"),
    ],
)
def test_a_mistake_is_told_and_nothing_is_written(
    words: tuple[str, ...], says: str, unit: Path
) -> None:
    assert_one_line(mtdit("service", *words), says)
    assert not unit.exists()
