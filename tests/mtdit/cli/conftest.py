"""What the commands of the README make, once for all tests of the command line."""

from __future__ import annotations

from pathlib import Path

import pytest
from command_line import mtdit


@pytest.fixture(scope="session")
def run_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """dataset/, train/ and policy.mtdit in one folder, made by the commands of the README."""
    folder = tmp_path_factory.mktemp("road")
    task = ("--task", "open the drawer", "--task", "push the red cube to the left")
    for words in (
        ("simulate", *task, "--episodes", "1", "--out", "dataset"),
        (
            "train",
            "--dataset",
            "dataset",
            "--preset",
            "tiny",
            "--steps",
            "2",
            "--batch-size",
            "2",
            "--out",
            "train",
        ),
        ("export", "train", "--fp16", "--dataset", "dataset", "--out", "policy.mtdit"),
    ):
        done = mtdit(*words, cwd=folder)
        assert done.returncode == 0, done.stdout + done.stderr
    return folder
