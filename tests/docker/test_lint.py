"""The linters of shell scripts and Dockerfiles find nothing, and find what is wrong."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from docker_files import DOCKER, DOCKERFILES, SCRIPTS, tool
from repository import ROOT


def lint(*words: str | Path) -> subprocess.CompletedProcess[str]:
    command = [tool(str(words[0])), *words[1:]]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT)


def hadolint(file: Path) -> subprocess.CompletedProcess[str]:
    return lint("hadolint", "--no-color", "--config", DOCKER / ".hadolint.yaml", file)


@pytest.mark.parametrize("file", DOCKERFILES, ids=lambda file: file.name)
def test_a_dockerfile(file: Path) -> None:
    done = hadolint(file)
    assert done.returncode == 0, done.stdout


def test_the_scripts() -> None:
    done = lint("shellcheck", "--color=never", *SCRIPTS, *ROOT.glob(".ci/*"))
    assert done.returncode == 0, done.stdout


def test_the_linters_are_awake(tmp_path: Path) -> None:
    (tmp_path / "Dockerfile").write_text("FROM debian\nRUN cd /tmp && sudo ls\n")
    assert "DL3006" in hadolint(tmp_path / "Dockerfile").stdout
    (tmp_path / "x.sh").write_text("#!/bin/bash\nrm -rf $1/*\n")
    assert "SC2086" in lint("shellcheck", "--color=never", tmp_path / "x.sh").stdout


def test_lines_are_as_short_as_pythons() -> None:
    for file in (*SCRIPTS, *DOCKERFILES, DOCKER / "compose.yaml"):
        assert [line for line in file.read_text().splitlines() if len(line) > 100] == [], file.name


def test_every_script_can_be_called_and_says_what_it_does() -> None:
    for script in SCRIPTS:
        assert script.stat().st_mode & 0o111, script
        assert script.read_text().startswith("#!/usr/bin/env bash\n# ")
