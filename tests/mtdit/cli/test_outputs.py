"""What --overwrite replaces, and what stays."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from command_line import assert_one_line, mtdit


def test_an_output_folder_that_is_not_ours_stays(tmp_path: Path) -> None:
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis/chapter.txt").write_text("years of work")
    out = str(tmp_path / "thesis")
    assert_one_line(mtdit("simulate", "--task", "open the drawer", "--out", out), "--overwrite")
    assert_one_line(
        mtdit("simulate", "--task", "open the drawer", "--out", out, "--overwrite"),
        "not a result of mtdit",
    )
    assert (tmp_path / "thesis/chapter.txt").read_text() == "years of work"


def test_a_project_with_checkpoints_of_its_own_stays(tmp_path: Path) -> None:
    (tmp_path / "project/checkpoints").mkdir(parents=True)
    (tmp_path / "project/model.py").write_text("years of work")
    done = mtdit("train", "--dataset", "x", "--out", str(tmp_path / "project"), "--overwrite")
    assert_one_line(done, "model.py", "not a result of mtdit")
    assert (tmp_path / "project/model.py").is_file()


def test_a_linked_output_folder_stays(run_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(run_folder / "dataset")
    done = mtdit(
        "simulate", "--task", "open the drawer", "--out", str(tmp_path / "link"), "--overwrite"
    )
    assert_one_line(done, "is a link")
    assert (run_folder / "dataset/meta/info.json").is_file()


@pytest.mark.parametrize(
    "command", [("simulate", "--task", "open the drawer"), ("train", "--dataset", "x")]
)
def test_an_output_that_is_a_file(command: tuple[str, ...], tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    assert_one_line(mtdit(*command, "--out", str(tmp_path / "file"), "--overwrite"), "not a folder")
    assert (tmp_path / "file").read_text() == "x"


def test_an_output_below_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    done = mtdit(
        "simulate",
        "--task",
        "open the drawer",
        "--episodes",
        "1",
        "--out",
        str(tmp_path / "file/set"),
    )
    assert_one_line(done, "file/", "choose another place")


def test_a_training_that_never_began_is_simply_repeated(run_folder: Path, tmp_path: Path) -> None:
    options = (
        "--preset",
        "tiny",
        "--steps",
        "1",
        "--batch-size",
        "2",
        "--out",
        str(tmp_path / "run"),
    )
    dataset = ("--dataset", str(run_folder / "dataset"))
    assert_one_line(
        mtdit("train", *dataset, *options, "--policy", "horizo=8"), "did you mean 'horizon'?"
    )
    (tmp_path / "run/clip-tiny").mkdir(parents=True, exist_ok=True)
    done = mtdit("train", *dataset, *options)
    assert done.returncode == 0, done.stdout + done.stderr
    assert_one_line(mtdit("train", *dataset, *options), "--overwrite")


def test_overwriting_spares_what_the_run_starts_from(run_folder: Path, tmp_path: Path) -> None:
    run, dataset = tmp_path / "run", str(run_folder / "dataset")
    shutil.copytree(run_folder / "train", run, symlinks=True)
    words = ("train", "--preset", "tiny", "--out", str(run), "--overwrite", "--dataset")
    assert_one_line(mtdit(*words, dataset, "--init-from", str(run)), "--init-from", "empties")
    assert_one_line(mtdit(*words, dataset + "s"), "no dataset")
    assert (run / "checkpoints/last").is_dir()
