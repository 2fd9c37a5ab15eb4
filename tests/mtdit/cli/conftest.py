"""What the commands of the README make, once for all tests of the command line."""

from __future__ import annotations

from pathlib import Path

import pytest
from command_line import mtdit
from once import once

TASKS = ("--task", "open the drawer", "--task", "push the red cube to the left")
TINY = ("--preset", "tiny", "--steps", "2", "--batch-size", "2")
COMMANDS = (
    ("simulate", *TASKS, "--episodes", "1", "--out", "dataset"),
    ("train", "--dataset", "dataset", *TINY, "--out", "train"),
    ("export", "train", "--fp16", "--dataset", "dataset", "--out", "policy.mtdit"),
)


@pytest.fixture(scope="session")
def run_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """dataset/, train/ and policy.mtdit in one folder, made by the commands of the README."""
    return once(tmp_path_factory, "road", make)


def make(folder: Path) -> None:
    folder.mkdir()
    for words in COMMANDS:
        done = mtdit(*words, cwd=folder)
        assert done.returncode == 0, done.stdout + done.stderr
