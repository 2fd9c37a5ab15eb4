"""The Dockerfiles: nothing but scripts runs, little and listed things are copied, all end alike."""

from __future__ import annotations

import json
import os
import re
from fnmatch import fnmatch
from pathlib import Path

import pytest
from command_line import mtdit
from docker_files import DOCKER, DOCKERFILES, bases, documented_runs, instructions
from repository import ROOT
from typer.main import get_command

from mtdit.cli.app import app

COMMANDS = get_command(app).commands  # type: ignore[attr-defined]
TARGETS = {"jetson-jp6": "jp6", "jetson-jp7": "jp7", "rtx": "rtx", "train": "train"}
COPIED = {
    "docker/lib.sh", "docker/packages.sh", "docker/user.sh", "docker/python.sh", "docker/sbom.sh",
    "docker/locks/cuda12.txt", "docker/locks/cuda13.txt", "docker/locks/train.txt",
    "dist/mtdit-*.whl",
}  # fmt: skip

each = pytest.mark.parametrize("file", DOCKERFILES, ids=lambda file: file.suffix[1:])


def test_there_is_one_for_each_box() -> None:
    assert {file.suffix[1:] for file in DOCKERFILES} == set(TARGETS)


@each
def test_every_run_line_is_one_of_the_scripts(file: Path) -> None:
    runs = [i for i in instructions(file) if i.word == "RUN"]
    assert len(runs) == 4
    for run in runs:
        script, *words = json.loads(run.text)
        name = script.removeprefix("/setup/docker/")
        assert os.access(DOCKER / name, os.X_OK), f"{run.text}: no such script"
        copied = [i.text for i in instructions(file) if i.word == "COPY" and i.stage <= run.stage]
        assert any(f"docker/{name} " in f"{text} " for text in copied), f"{name} is not copied"
        assert words[0] in (TARGETS[file.suffix[1:]], "create", "/opt/mtdit")


@each
def test_what_is_copied_is_listed_and_small(file: Path) -> None:
    sources: set[str] = set()
    for copy in [i.text.split() for i in instructions(file) if i.word in ("COPY", "ADD")]:
        if copy[0].startswith("--from="):
            assert copy == ["--from=build", "/opt/mtdit", "/opt/mtdit"]
        else:
            sources |= set(copy[:-1])
    assert sources <= COPIED
    allowed = [line[1:] for line in ignored() if line.startswith("!")]
    assert all(any(fnmatch(source, line) for line in allowed) for source in sources)
    there = [ROOT / source for source in sources if "*" not in source]
    assert sum(path.stat().st_size for path in there) < 400_000, "bytes, without the wheel"


def ignored() -> list[str]:
    lines = (ROOT / ".dockerignore").read_text().splitlines()
    return [line for line in lines if line and not line.startswith("#")]


def test_nothing_else_is_sent_to_docker() -> None:
    assert ignored()[0] == "*"
    sent = {path for line in ignored()[1:] for path in ROOT.glob(line[1:])}
    assert all(path.suffix in (".sh", ".txt", ".whl") for path in sent)


@each
def test_bases_have_an_exact_tag_and_are_in_the_readme_as_they_are(file: Path) -> None:
    (base,) = bases(file)
    assert re.fullmatch(
        r"nvcr\.io/nvidia/[\w-]+:[\w.-]*\d+\.\d+[\w.-]*(@sha256:[0-9a-f]{64})?", base
    )
    row = next(
        line for line in (DOCKER / "README.md").read_text().splitlines() if f"`{file.name}`" in line
    )
    assert f"`{base}`" in row
    labels = [i.text for i in instructions(file) if i.word == "LABEL"]
    assert f'base.name="{base}"' in labels[0]


def test_all_end_alike() -> None:
    """Apart from base, target, lock and description they are one file."""
    alike = set()
    for file in DOCKERFILES:
        target = TARGETS[file.suffix[1:]]
        kept = []
        for i in instructions(file):
            text = i.text.replace(next(iter(bases(file))), "BASE")
            text = re.sub(r"locks/\w+\.txt", "locks/LOCK", text)
            text = re.sub(r'description="[^"]*"', "", text)
            text = text.replace(f'"{target}"', "TARGET").replace(f"mtdit:{target}", "TARGET")
            kept.append((i.word, text))
        alike.add(tuple(kept))
    assert len(alike) == 1


@each
def test_the_user_is_not_root_and_the_health_check_is_a_command(file: Path) -> None:
    last = max(i.stage for i in instructions(file))
    end = {i.word: i.text for i in instructions(file) if i.stage == last}
    assert end["USER"] == "1000"
    assert end["STOPSIGNAL"] == "SIGINT"
    assert json.loads(end["ENTRYPOINT"]) == ["mtdit"]
    assert json.loads(end["CMD"]) == ["doctor"], "starting a container moves no arm"
    check = json.loads(end["HEALTHCHECK"].partition("CMD ")[2])
    assert check == ["mtdit", "doctor", "--fast", "--json", "-"]
    COMMANDS["doctor"].make_context("doctor", check[2:])


def test_the_health_check_answers_in_json(tmp_path: Path) -> None:
    done = mtdit("doctor", "--fast", "--json", "-", cwd=tmp_path, MTDIT_RUN_DIR=str(tmp_path))
    told = json.loads(done.stdout)
    assert done.returncode == (0 if told["healthy"] else 1)
    assert {"python", "disk", "run"} <= {check["id"] for check in told["checks"]}


def test_documented_runs_are_commands() -> None:
    runs = documented_runs()
    assert {service for service, _ in runs} == set(TARGETS.values())
    for _, (command, *words) in runs:
        if command != "...":
            COMMANDS[command].make_context(command, words)
