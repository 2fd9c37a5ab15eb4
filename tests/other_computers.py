"""Computers made of folders, reached by stand-ins for ssh and rsync: HOSTS/NAME is the home folder
of NAME. The programs there write down how they were called.
"""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

import pytest
from docker_files import DOCKER
from repository import ROOT

from mtdit_runtime.deploy.deploy import DeployOptions

JETPACK_7 = "# R39 (release), REVISION: 2.0, GCID: 1, BOARD: generic, EABI: aarch64\n"
PORT = "/dev/ttyACM0"
# Drops its options, as ssh does; a host that is a fault says what ssh says.
SSH = """#!/bin/bash
while [[ $1 = -* ]]; do
  if [ "$1" = -l ]; then shift; fi
  if [ "$1" = -- ]; then shift; break; fi
  shift
done
host=${1#*@}
shift
if [ -e "$HOSTS/$host.says" ]; then cat "$HOSTS/$host.says" >&2; exit 255; fi
cd "$HOSTS/$host"
export HOME=$PWD CALLS=$PWD/calls MTDIT_ROOT=$PWD/root PATH=$PWD/programs:$PATH
exec bash -c "$*"
"""
# Copies as rsync does with our options.
RSYNC = f"""#!{sys.executable}
import os, shutil, sys
from pathlib import Path
words = sys.argv[1:]
host, _, folder = words[-1].rpartition("@")[2].partition(":")
home = Path(os.environ["HOSTS"], host)
if os.environ["FAIL"] and os.environ["FAIL"] in " ".join(words):
    sys.exit("rsync: [receiver] write failed: No space left on device (28)\\nrsync error")
left_out = [word.partition("=")[2].rstrip("/") for word in words if word.startswith("--exclude")]
for source in [word for word in words[:-1] if word.startswith("/")]:
    target = home / folder / (source.partition("/./")[2] or Path(source).name)
    target.parent.mkdir(exist_ok=True, parents=True)
    if Path(source).is_dir():
        ignored = shutil.ignore_patterns(*left_out)
        shutil.copytree(source, target, ignore=ignored, dirs_exist_ok=True)
    else:
        shutil.copy2(source, target)
print("  1,234  45%  1.00MB/s  0:00:01")
"""
CALLED = """#!/bin/bash
echo "$(basename "$0") $*" >> "$CALLS"
if [ -n "$FAIL" ] && [[ "$*" == *"$FAIL"* ]]; then
  echo "mtdit: no $FAIL here" >&2
  exit 2
fi
"""
# makes an environment as `venv` does
PYTHON = """
if [ "$2" = venv ]; then
  mkdir -p "${@: -1}/bin" && touch "${@: -1}/pyvenv.cfg" && cp "$0" "${@: -1}/bin/python"
  cp "$(dirname "$0")/mtdit" "${@: -1}/bin/mtdit"
fi
"""
FIGURES = '{"stages": {"tick": {"p50_ms": 12.5}}, "budget_ms": 800.0}'  # as of `mtdit bench`
MTDIT = f"""if [ "$1" = bench ]; then echo '{FIGURES}' > "${{@: -1}}"; fi\n"""
ID = 'case $1 in -u) echo 1000 ;; -un) echo me ;; *) echo "me dialout video" ;; esac\n'


class OtherComputers:
    """What is reached from here. source: a clone with docker/ and a wheel."""

    def __init__(self, folder: Path, patch: pytest.MonkeyPatch) -> None:
        self.hosts, self.source, here = folder / "hosts", folder / "clone", folder / "here"
        for place in (self.hosts, here, self.source / "dist"):
            place.mkdir(parents=True)
        shutil.copytree(DOCKER, self.source / "docker")
        shutil.copy(ROOT / ".dockerignore", self.source)
        (self.source / "dist/mtdit-0.1.0-py3-none-any.whl").write_bytes(b"a wheel")
        for name, text in (("ssh", SSH), ("rsync", RSYNC)):
            program(here / name, text)
        patch.setenv("PATH", f"{here}{os.pathsep}{os.environ['PATH']}")
        patch.setenv("HOSTS", str(self.hosts))
        patch.setenv("FAIL", "")
        self.options = DeployOptions(self.source, devices=(PORT,), config="port = 1\n")

    def add(self, name: str = "jetson") -> Path:
        """A Jetson with everything that a deployment needs. Returns its home folder."""
        home = self.hosts / name
        for file, text in {
            "root/etc/nv_tegra_release": JETPACK_7,
            f"root{PORT}": "",
            "calls": "",
        }.items():
            (home / file).parent.mkdir(parents=True, exist_ok=True)
            (home / file).write_text(text)
        (home / "programs").mkdir()
        for stand_in, body in {
            "python3": PYTHON, "mtdit": MTDIT, "id": ID, "docker": "", "rsync": ""
        }.items():  # fmt: skip
            program(home / "programs" / stand_in, CALLED + body)
        return home

    def says(self, name: str, line: str) -> None:
        """ssh ends with this line for a host."""
        (self.hosts / f"{name}.says").write_text(line + "\n")


def program(file: Path, text: str) -> None:
    file.write_text(text)
    file.chmod(0o755)


def calls(home: Path) -> list[str]:
    """What was called there, questions left out."""
    told = (home / "calls").read_text().splitlines()
    return [
        line for line in told if not line.startswith(("id ", "docker info", "docker compose v"))
    ]


@pytest.fixture
def others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> OtherComputers:
    return OtherComputers(tmp_path, monkeypatch)
