"""The files of docker/ as tests read them: Dockerfiles in instructions, tools, documented runs."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path

from repository import ROOT

DOCKER = ROOT / "docker"
DOCKERFILES = sorted(DOCKER.glob("Dockerfile.*"))
SCRIPTS = sorted(DOCKER.glob("*.sh"))


@dataclass(frozen=True)
class Instruction:
    """One instruction of a Dockerfile; stage: the number of FROM lines up to here."""

    word: str
    text: str
    stage: int


def instructions(dockerfile: Path) -> list[Instruction]:
    lines = [line for line in dockerfile.read_text().splitlines() if not line.startswith("#")]
    found: list[Instruction] = []
    stage = 0
    for line in re.sub(r"\\\n\s*", "", "\n".join(lines)).splitlines():
        if line.strip():
            word, text = line.split(maxsplit=1)
            stage += word == "FROM"
            found.append(Instruction(word, text, stage))
    return found


def bases(dockerfile: Path) -> set[str]:
    """The images that a Dockerfile takes from a registry."""
    froms = [i.text.split() for i in instructions(dockerfile) if i.word == "FROM"]
    own = {words[2] for words in froms if len(words) == 3}
    return {words[0] for words in froms} - own


def tool(name: str) -> str:
    """A program of the environment that runs the tests."""
    places = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    found = shutil.which(name, path=places)
    assert found, f"{name} is not installed: run `make setup`"
    return found


def documented_runs() -> list[tuple[str, list[str]]]:
    """(service, words of mtdit) of each `docker run` and `docker compose run` in docker/."""
    texts = [
        path.read_text() for path in (DOCKER / "README.md", DOCKER / "compose.yaml", *DOCKERFILES)
    ]
    text = re.sub(r"\\\n\s*", " ", "\n".join(texts))
    lines = re.findall(r"(?:compose\.yaml run --rm |docker run .*mtdit:)([^`\n]+)", text)
    words = [shlex.split(line) for line in lines]
    return [(service, rest) for service, *rest in words if rest]
