"""Every mistake is one line with the fix and exit code 2, from every way in."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from command_line import assert_one_line, mtdit

from mtdit_robots.extras import install

ENTRIES = ([str(Path(sys.executable).with_name("mtdit"))], [sys.executable, "-m", "mtdit.cli"])


@pytest.mark.parametrize("entry", ENTRIES, ids=["mtdit", "python -m mtdit.cli"])
def test_both_ways_in(entry: list[str], tmp_path: Path) -> None:
    """In a process of its own: a mistake, then a report."""

    def run(*words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run([*entry, *words], capture_output=True, text=True, timeout=600)

    assert_one_line(run("find-port", "--dev", str(tmp_path)), "no USB serial port")
    assert json.loads(run("doctor", "--robot", "none", "--json", "-").stdout)["checks"]


def test_a_report_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert_one_line(
        mtdit("doctor", "--json", str(tmp_path / "file/report.json")),
        "file is not a folder",
        "choose another place",
    )


def test_a_machine_that_fails_is_one_line_and_exit_code_1() -> None:
    """As when the twin or the arm dies: an OSError that is about no path."""
    code = (
        "import sys, mtdit.cli.app as c\n"
        "@c.app.command()\n"
        "def die() -> None: raise OSError('the twin stopped answering')\n"
        "sys.argv = ['mtdit', 'die']; c.main()"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stderr) == (1, "mtdit: the twin stopped answering\n")


@pytest.mark.parametrize("command", ["simulate", "eval"])
def test_unknown_task_suggests_the_nearest(command: str, tmp_path: Path) -> None:
    more = ("--out", str(tmp_path / "d")) if command == "simulate" else ()
    assert_one_line(
        mtdit(command, "--task", "open the drawr", *more), "did you mean 'open the drawer'?"
    )


@pytest.mark.parametrize("command", [("run", "--task", "open the drawer", "--bundle"), ("bench",)])
def test_no_bundle(command: tuple[str, ...], tmp_path: Path) -> None:
    assert_one_line(mtdit(*command, str(tmp_path / "x.mtdit")), "no bundle at", "mtdit export")


def test_no_checkpoint(tmp_path: Path) -> None:
    assert_one_line(mtdit("export", str(tmp_path / "none")), "no checkpoint", "mtdit train")


def test_missing_extra_names_its_install_line(run_folder: Path) -> None:
    """onnxruntime cannot be found: as in an installation without the runtime extra."""
    code = (
        "import sys; sys.modules['onnxruntime'] = None\n"
        "sys.argv = ['mtdit', 'bench', 'policy.mtdit']\n"
        "from mtdit.cli import main; main()"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=120, cwd=run_folder
    )
    assert_one_line(done, install("runtime"))


def test_a_missing_extra_of_training(run_folder: Path) -> None:
    """As in an installation without the train extra, then as in one of before TensorBoard was in
    it.
    """
    for name in ("torch", "tensorboard"):
        code = (
            f"import sys; sys.modules[{name!r}] = None\n"
            "words = 'train --dataset dataset --preset tiny --steps 1 --out n'\n"
            "sys.argv = ['mtdit', *words.split()]\n"
            "from mtdit.cli import main; main()"
        )
        done = subprocess.run(
            [sys.executable, "-c", code],
            capture_output=True,
            text=True,
            timeout=120,
            cwd=run_folder,
        )
        assert_one_line(done, name, install("train"))


@pytest.mark.parametrize("words", ["export train", "verify policy.mtdit --checkpoint train"])
def test_a_missing_extra_of_export(words: str, run_folder: Path) -> None:
    """As on the robot computer, where the train extra is not installed either."""
    code = (
        "import sys; sys.modules['torch'] = None\n"
        f"sys.argv = ['mtdit', *{words!r}.split()]\n"
        "from mtdit.cli import main; main()"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=120, cwd=run_folder
    )
    assert_one_line(done, "this command needs torch", install("export"))


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("simulat",), "simulat"),
        (("simulate", "--task", "open the drawer"), "--out"),
        (("simulate", "--task", "open the drawer", "--out", "o", "--seed", "-1"), "--seed"),
        (
            ("simulate", "--task", "open the drawer", "--out", "o", "--episodes", "many"),
            "--episodes",
        ),
        (("run", "--task", "open the drawer", "--duration", "-1"), "--duration"),
        (("run", "--task", "open the drawer", "--bus", "usb"), "--bus"),
        (("eval", "--task", "open the drawer", "--max-seconds", "0"), "--max-seconds"),
        (("bench", "--backend", "tensort"), "tensorrt"),
    ],
)
def test_a_slip_of_the_pen_is_one_line(words: tuple[str, ...], says: str, tmp_path: Path) -> None:
    assert_one_line(mtdit(*words, cwd=tmp_path), says, "--help")


def test_doctor_of_an_arm_that_is_not_there_fails_with_advice() -> None:
    done = mtdit("doctor", "--robot", "so101", "--port", "/dev/ttyNOPE")
    assert done.returncode == 1
    assert "/dev/ttyNOPE" in done.stdout


@pytest.mark.parametrize("command", ["resume", "init-from", "export", "eval"])
def test_a_diffusion_policy_is_refused_by_name(command: str, tmp_path: Path) -> None:
    """LeRobot's `type: diffusion`, in a run as its trainer leaves it."""
    folder = tmp_path / "run/checkpoints/000002/pretrained_model"
    folder.mkdir(parents=True)
    (folder / "config.json").write_text('{"type": "diffusion", "vision_backbone": "resnet18"}')
    (folder / "train_config.json").write_text(
        '{"steps": 2, "batch_size": 2, "policy": {"type": "diffusion"}}'
    )
    (tmp_path / "dataset/meta").mkdir(parents=True)
    (tmp_path / "dataset/meta/info.json").write_text("{}")
    run, dataset = str(tmp_path / "run"), str(tmp_path / "dataset")
    words = {
        "resume": ("train", "--dataset", dataset, "--out", run, "--resume"),
        "init-from": (
            "train",
            "--dataset",
            dataset,
            "--out",
            str(tmp_path / "new"),
            "--init-from",
            run,
        ),
        "export": ("export", run, "--out", str(tmp_path / "policy.mtdit")),
        "eval": ("eval", "--checkpoint", run, "--task", "open the drawer", "--episodes", "1"),
    }[command]
    assert_one_line(
        mtdit(*words, cwd=tmp_path), "Diffusion Policy (ResNet + U-Net", "not supported yet"
    )
