"""Who may import whom, proved by running it: the robot side comes up where torch cannot even be
found.
"""

from __future__ import annotations

import ast
import pkgutil
import subprocess
import sys
from pathlib import Path

import pytest
from repository import ROOT

import mtdit_robots
import mtdit_runtime
from mtdit_runtime.recording.dataset_reader import read_episode

FORBIDDEN = ("torch", "lerobot", "transformers", "diffusers", "onnx", "onnxscript", "accelerate")
ROBOT_SIDE = sorted(
    m.name
    for package in (mtdit_runtime, mtdit_robots)
    for m in pkgutil.walk_packages(package.__path__, package.__name__ + ".")
)
BLOCK = f"""
import sys
from importlib.machinery import ModuleSpec
class Wall:
    # Looking whether a package is there is allowed, loading it is not.
    def find_spec(self, name, path=None, target=None):
        return ModuleSpec(name, self) if name.partition(".")[0] in {FORBIDDEN!r} else None
    def create_module(self, spec):
        raise AssertionError("reached " + spec.name)
    def exec_module(self, module):
        pass
sys.meta_path.insert(0, Wall())
"""


def run_behind_wall(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", BLOCK + code], capture_output=True, text=True, timeout=300
    )


def test_robot_side_has_modules() -> None:
    assert len(ROBOT_SIDE) > 20


@pytest.mark.parametrize(
    "names", [ROBOT_SIDE, ["mtdit.cli.app", "mtdit"]], ids=["robot side", "entry"]
)
def test_imports_never_reach_torch(names: list[str]) -> None:
    done = run_behind_wall("".join(f"import {name}\n" for name in names))
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("command", ["--help", "run --help", "doctor --robot none", "twin --help"])
def test_commands_run_where_torch_is_absent(command: str) -> None:
    code = f"sys.argv = ['mtdit', *{command.split()!r}]\nfrom mtdit.cli import main\nmain()\n"
    done = run_behind_wall(code)
    assert done.returncode == 0, done.stdout + done.stderr


def test_demonstrations_are_recorded_where_torch_is_absent(tmp_path: Path) -> None:
    """A robot computer records them too, with the extras runtime, twin and record."""
    out = tmp_path / "set"
    words = ["mtdit", "simulate", "--task", "open the drawer", "--episodes", "1", "--out", str(out)]
    done = run_behind_wall(f"sys.argv = {words!r}\nfrom mtdit.cli import main\nmain()\n")
    assert done.returncode == 0, done.stdout + done.stderr
    assert read_episode(out, 0).task == "open the drawer"


def test_the_wall_stands() -> None:
    assert "reached torch" in run_behind_wall("import torch\n").stderr


def test_the_contracts_see_every_file() -> None:
    """import-linter skips a folder without __init__.py, and finds no circle of a package and its
    own modules: each folder has the file, and only the entry points have code in it.
    """
    packages = [ROOT / "mtdit", *(Path(p.__path__[0]) for p in (mtdit_runtime, mtdit_robots))]
    packages.append(ROOT / "export/mtdit_export")
    files = [file for package in packages for file in package.rglob("*.py")]
    assert {file.parent for file in files if not (file.parent / "__init__.py").exists()} == set()
    with_code = {
        file.parent.relative_to(ROOT).as_posix()
        for file in files
        if file.name == "__init__.py" and len(ast.parse(file.read_text()).body) > 1
    }
    assert with_code == {"mtdit", "mtdit/cli"}
