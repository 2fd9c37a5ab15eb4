"""What a person types: every mistake is one line with the fix and exit code 2, and the whole road
works end to end.
"""

from __future__ import annotations

import dataclasses
import json
import os
import pty
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import typer
from command_line import mtdit

from mtdit.cli.app import app, main
from mtdit_robots.errors import UserError
from mtdit_robots.extras import install
from mtdit_runtime.control.safety import SafetyConfig
from mtdit_runtime.recording.run_log import load_log

if TYPE_CHECKING:
    from mtdit_runtime.run import RunOptions


def assert_one_line(done: subprocess.CompletedProcess[str], *parts: str) -> None:
    """Exit code 2, one line on stderr, no traceback, and every part of the message there."""
    assert done.returncode == 2, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    lines = done.stderr.strip().splitlines()
    assert len(lines) == 1, done.stderr
    for part in parts:
        assert part in lines[0]


@pytest.fixture(scope="session")
def run_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which dataset/, train/ and policy.mtdit were made by the commands of the README."""
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


ENTRIES = ([str(Path(sys.executable).with_name("mtdit"))], [sys.executable, "-m", "mtdit.cli"])


@pytest.mark.parametrize("entry", ENTRIES, ids=["mtdit", "python -m mtdit.cli"])
def test_both_ways_in(entry: list[str], tmp_path: Path) -> None:
    """In a process of its own: a mistake, then a report."""

    def run(*words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run([*entry, *words], capture_output=True, text=True, timeout=600)

    assert_one_line(run("find-port", "--dev", str(tmp_path)), "no USB serial port")
    assert json.loads(run("doctor", "--robot", "none", "--json", "-").stdout)["checks"]


def test_missing_dataset(tmp_path: Path) -> None:
    assert_one_line(
        mtdit("train", "--dataset", str(tmp_path / "nothing"), "--out", str(tmp_path / "out")),
        "nothing",
    )


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
        "import sys, mtdit.cli as c\n"
        "@c.app.command()\n"
        "def die() -> None: raise OSError('the twin stopped answering')\n"
        "sys.argv = ['mtdit', 'die']; c.main()"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stderr) == (1, "mtdit: the twin stopped answering\n")


def test_dataset_that_is_none(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    assert_one_line(
        mtdit("train", "--dataset", str(tmp_path / "folder"), "--out", str(tmp_path / "out")),
        "folder",
    )


@pytest.mark.parametrize("command", ["simulate", "eval"])
def test_unknown_task_suggests_the_nearest(command: str, tmp_path: Path) -> None:
    more = ("--out", str(tmp_path / "d")) if command == "simulate" else ()
    assert_one_line(
        mtdit(command, "--task", "open the drawr", *more), "did you mean 'open the drawer'?"
    )


def test_run_of_an_unknown_task_suggests_the_nearest(run_folder: Path) -> None:
    done = mtdit("run", "--bundle", "policy.mtdit", "--task", "open the drawr", cwd=run_folder)
    assert_one_line(done, "did you mean 'open the drawer'?")


@pytest.mark.parametrize("command", [("run", "--task", "open the drawer", "--bundle"), ("bench",)])
def test_no_bundle(command: tuple[str, ...], tmp_path: Path) -> None:
    assert_one_line(mtdit(*command, str(tmp_path / "x.mtdit")), "no bundle at", "mtdit export")


def test_no_checkpoint(tmp_path: Path) -> None:
    assert_one_line(mtdit("export", str(tmp_path / "none")), "no checkpoint", "mtdit train")


def so101(folder: Path, *more: str) -> subprocess.CompletedProcess[str]:
    cameras = ("--camera", "top=/dev/video90", "--camera", "wrist=/dev/video91")
    words = (
        "run",
        "--robot",
        "so101",
        "--bundle",
        "policy.mtdit",
        "--task",
        "open the drawer",
        *cameras,
        *more,
    )
    return mtdit(*words, cwd=folder)


def write_calibration(path: Path, wrong: str | None = None) -> Path:
    joints = ["shoulder_pan", "shoulder_lift", "elbow_flex", "wrist_flex", "wrist_roll", "gripper"]
    entries = {
        ("shoulder_pam" if joint == wrong else joint): {
            "id": i, "drive_mode": 0, "homing_offset": 0, "range_min": 800, "range_max": 3300,
        }
        for i, joint in enumerate(joints, start=1)
    }  # fmt: skip
    path.write_text(json.dumps(entries))
    return path


def test_wrong_joint_in_a_calibration(run_folder: Path, tmp_path: Path) -> None:
    path = write_calibration(tmp_path / "arm.json", wrong="shoulder_pan")
    assert_one_line(
        so101(run_folder, "--port", "/dev/null", "--calibration", str(path)), "shoulder_pa"
    )


def test_port_that_does_not_exist(run_folder: Path, tmp_path: Path) -> None:
    path = write_calibration(tmp_path / "arm.json")
    done = so101(run_folder, "--port", "/dev/ttyNOPE", "--calibration", str(path))
    assert_one_line(done, "/dev/ttyNOPE")


def test_port_that_is_busy(run_folder: Path, tmp_path: Path) -> None:
    import serial

    ours, theirs = pty.openpty()
    name = os.ttyname(theirs)
    path = write_calibration(tmp_path / "arm.json")
    with serial.Serial(name, exclusive=True):
        done = so101(run_folder, "--port", name, "--calibration", str(path))
    os.close(ours)
    os.close(theirs)
    assert_one_line(done, name, "in use")


def test_arm_without_a_port(run_folder: Path) -> None:
    assert_one_line(so101(run_folder), "--port")


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


def test_resume_goes_on_as_the_run_began(run_folder: Path, tmp_path: Path) -> None:
    shutil.copytree(run_folder / "train", tmp_path / "run", symlinks=True)
    options = (
        "--dataset",
        str(run_folder / "dataset"),
        "--out",
        str(tmp_path / "run"),
        "--resume",
        "--steps",
        "3",
    )
    done = mtdit("train", *options)
    assert done.returncode == 0, done.stdout + done.stderr
    kept = json.loads(
        (tmp_path / "run/checkpoints/000003/pretrained_model/train_config.json").read_text()
    )
    assert (kept["preset"], kept["batch_size"], kept["steps"]) == ("tiny", 2, 3)


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
        (("eval", "--task", "open the drawer", "--max-s", "0"), "--max-s"),
        (("bench", "--backend", "tensort"), "tensorrt"),
    ],
)
def test_a_slip_of_the_pen_is_one_line(words: tuple[str, ...], says: str, tmp_path: Path) -> None:
    assert_one_line(mtdit(*words, cwd=tmp_path), says, "--help")


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("--steps", "0"), "--steps"),
        (("--batch-size", "many"), "--batch-size"),
        (("--keep-checkpoints", "0"), "--keep-checkpoints"),
        (("--grad-acumulation", "2"), "--grad-accumulation"),
        (("--amp", "fp8"), "no, bf16, fp16"),
        (("--frames", "tape"), "disk, memory, video"),
        (("--preset", "huge"), "base, tiny"),
        (("--val-split", "1.5"), "val_split"),
        (("--max-minutes", "0"), "max_minutes"),
        (("--grad-clip", "0"), "grad_clip_norm"),
        (("--task-weight", "open the drawer"), "--task-weight name=value"),
        (("--task-weight", "open the drawer=much"), "'much' is not a number"),
        (("--task-weight", "open the drawer=-1"), "task_weights must be positive"),
        (("--task-weight", "open the drawer=inf"), "task_weights must be positive"),
        (("--batch-size", "99999999999"), "batch_size must be at most"),
        (("--wandb", ""), "name of a project"),
        (("--image-transforms", "{brightness: 1}"), "not valid JSON"),
        (("--image-transforms", "nothing.json"), "nothing.json"),
        (("--image-transforms", "list.json"), "not a JSON object"),
        (("--policy.type=diffusion",), "only multi_task_dit"),
        (("--policy.horizn=8",), "did you mean --policy.horizon?"),
        (("--config_path=run/checkpoints/last",), "--resume=true"),
        (("--resume", "--init-from", "old"), "exclude each other"),
    ],
)
def test_a_training_that_cannot_be_asked_for(
    words: tuple[str, ...], says: str, tmp_path: Path
) -> None:
    (tmp_path / "list.json").write_text("[]")
    assert_one_line(mtdit("train", "--dataset", "x", *words, "--out", "o", cwd=tmp_path), says)
    assert not (tmp_path / "o").exists()


def test_training_without_a_dataset(tmp_path: Path) -> None:
    assert_one_line(mtdit("train", cwd=tmp_path), "--dataset", "--resume")
    assert_one_line(mtdit("train", "--resume", cwd=tmp_path), "outputs/train", "no checkpoint")


COMMANDS = typer.main.get_command(app).commands  # type: ignore[attr-defined]


@pytest.mark.parametrize("name", COMMANDS)
def test_every_option_says_in_a_sentence_what_it_does(name: str) -> None:
    command = COMMANDS[name]
    assert len(command.help.split()) >= 5
    for option in command.params:
        words = (option.help or "").split()
        assert len(words) >= 3, option.name
        assert words[0] not in ("Of", "Whether"), option.name
        assert option.help.partition(" [default")[0].endswith("."), option.name
        assert "(" not in str(option.show_default), "typer would print it in parentheses"


def test_the_list_of_commands_shows_whole_sentences() -> None:
    told = " ".join(mtdit("--help").stdout.partition("Commands:")[2].split())
    assert "Check this computer, the arm and the cameras, and print the fix for each" in told
    assert "..." not in told


def test_the_help_of_train_shows_plain_defaults() -> None:
    told = " ".join(mtdit("train", "--help").stdout.split())
    assert "[default: disk]" in told
    assert "[default: (" not in told


def test_every_field_of_a_training_has_an_option() -> None:
    """The help names it, under a heading, and what is given arrives in the TrainConfig."""
    from mtdit.cli.commands.train import _train_config
    from mtdit.training.config import TrainConfig

    names = {"output_dir": "out", "grad_clip_norm": "grad-clip", "random_shift_px": "random-shift",
             "task_weights": "task-weight"}  # fmt: skip
    told = mtdit("train", "--help").stdout
    for field in dataclasses.fields(TrainConfig):
        assert f"--{names.get(field.name, field.name).replace('_', '-')} " in told
    assert {"Data:", "Policy:", "Results:"} <= set(told.splitlines())
    given = {"dataset": "d", "out": Path("o"), "resume": False, "preset": "tiny", "vision_encoder": "tiny",
             "horizon": 8, "policy": ["horizon=9", "text_encoder_name=my/clip"], "task_weights": ["a=b=2", "c=3"],
             "image_transforms": "default", "ema": False}  # fmt: skip
    with pytest.raises(UserError, match="is not a number"):
        _train_config(given)
    config, chosen = _train_config({**given, "task_weights": ["a=2", "c=3"]})
    assert chosen == {
        "dataset",
        "preset",
        "task_weights",
        "image_transforms",
        "ema",
        "policy",
        "resume",
    }
    assert dict(config.policy) == {
        "horizon": 9, "vision_encoder_name": "tiny", "text_encoder_name": "my/clip"
    }  # fmt: skip
    assert (config.task_weights, config.image_transforms, config.ema) == (
        {"a": 2.0, "c": 3.0},
        {},
        False,
    )
    assert (config.batch_size, config.noise_samples) == (32, 4)  # the preset's


def test_only_the_first_process_speaks_and_makes_room(tmp_path: Path) -> None:
    (tmp_path / "o").mkdir()
    (tmp_path / "o/file").write_text("x")
    words = ("train", "--dataset", "nothing", "--job_name=x", "--out", "o")
    says = {rank: mtdit(*words, cwd=tmp_path, RANK=rank) for rank in ("0", "1")}
    assert_one_line(says["0"], "o exists")
    assert "ignored: --job_name" in says["0"].stdout
    assert_one_line(says["1"], "mtdit: rank 1: ", "nothing")
    assert says["1"].stdout == ""


def test_a_command_line_of_lerobots_docs_trains(run_folder: Path, tmp_path: Path) -> None:
    """Then resumes by --config_path, and by a bare --resume: with the run's own options, dataset
    and curves.
    """
    flags = ("--dataset.repo_id=you/twin", f"--dataset.root={run_folder / 'dataset'}", "--policy.type=multi_task_dit",
             "--policy.n_action_steps=7", "--output_dir=run", "--batch_size=2", "--steps=2", "--save_freq=1",
             "--log_freq=1", "--num_workers=0", "--job_name=twin", "--policy.push_to_hub=false",
             "--dataset.image_transforms.enable=true", "--preset=tiny")  # fmt: skip
    done = mtdit("train", *flags, cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "ignored: --job_name; " in done.stdout
    last = "run/checkpoints/last/pretrained_model/train_config.json"
    for words in (
        (f"--config_path={last}", "--resume=true", "--steps=3"),
        ("--resume", "--out", "run", "--steps=4"),
    ):
        done = mtdit("train", *words, cwd=tmp_path)
        assert done.returncode == 0, done.stdout + done.stderr
    kept = json.loads((tmp_path / last).read_text())
    assert (kept["steps"], kept["batch_size"], kept["workers"], kept["policy"]) == (
        4,
        2,
        1,
        {"n_action_steps": 7},
    )
    logged = [
        json.loads(line)["step"]
        for line in (tmp_path / "run/train_log.jsonl").read_text().splitlines()
    ]
    assert logged == [1, 2, 3, 4]
    assert (tmp_path / "run/curves.png").stat().st_size > 10_000
    assert len(list((tmp_path / "run/tensorboard").iterdir())) == 3


def test_a_missing_extra_of_training(run_folder: Path) -> None:
    """As in an installation without the train extra, then as in one of before TensorBoard was in
    it.
    """
    for name in ("torch", "tensorboard"):
        code = (
            f"import sys; sys.modules[{name!r}] = None\n"
            "sys.argv = ['mtdit', 'train', '--dataset', 'dataset', '--preset', 'tiny', '--steps', '1', '--out', 'n']\n"
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


def test_policy_field_without_a_value(tmp_path: Path) -> None:
    done = mtdit("train", "--dataset", "x", "--policy", "horizon", "--out", str(tmp_path / "o"))
    assert_one_line(done, "--policy name=value")


def test_run_eval_and_bench_report_as_json(run_folder: Path) -> None:
    robot = ("--robot", "twin", "--bundle", "policy.mtdit", "--task", "open the drawer")
    done = mtdit("run", *robot, "--clock", "lockstep", "--duration", "1", "--video", "run.mp4", "--json", "run.json",
                 cwd=run_folder)  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert json.loads((run_folder / "run.json").read_text())["ticks"] == 30
    assert (run_folder / "run.mp4").stat().st_size > 1000
    rates = {}
    for name, source in (("bundle", "policy.mtdit"), ("checkpoint", "train")):
        options = (
            "--task",
            "open the drawer",
            "--episodes",
            "1",
            "--max-s",
            "1",
            "--json",
            f"{name}.json",
        )
        done = mtdit("eval", "--robot", "twin", f"--{name}", source, *options, cwd=run_folder)
        assert done.returncode == 0, done.stdout + done.stderr
        rates[name] = json.loads((run_folder / f"{name}.json").read_text())
    assert [e["seed"] for e in rates["bundle"]["each"]] == [
        e["seed"] for e in rates["checkpoint"]["each"]
    ]
    done = mtdit("bench", "policy.mtdit", "--repeats", "4", "--json", "-", cwd=run_folder)
    assert done.returncode == 0, done.stdout + done.stderr
    assert '"denoiser"' in done.stdout


class Started(Exception):  # noqa: N818, not an error
    """Instead of a run: its options, and how the arm was built."""

    def __init__(self, options: RunOptions, arm: dict[str, Any]) -> None:
        super().__init__(options)
        self.options, self.arm = options, arm


@pytest.fixture
def started(
    run_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., Started]:
    """What `mtdit run WORDS` would have run, in this process."""
    arm: dict[str, Any] = {}

    def build_arm(port: str, *_: Any, **options: Any) -> str:
        arm.update(options, port=port)
        return "arm"

    def run_policy(options: RunOptions) -> None:
        raise Started(options, arm)

    monkeypatch.setattr("mtdit_robots.so101.arm.So101Arm", build_arm)
    monkeypatch.setattr("mtdit_runtime.run.run_policy", run_policy)
    monkeypatch.chdir(run_folder)

    def run(*words: str) -> Started:
        task = ("--bundle", "policy.mtdit", "--task", "open the drawer")
        monkeypatch.setattr(sys, "argv", ["mtdit", "run", *task, *words])
        with pytest.raises(Started) as caught:
            main()
        return caught.value

    return run


@pytest.fixture
def real_arm(run_folder: Path, tmp_path: Path) -> Iterator[tuple[str, ...]]:
    """The options of an arm without --robot: a port that opens, and films as cameras."""
    ours, theirs = pty.openpty()
    cameras = (f"--camera={name}=dataset:dataset:{name}" for name in ("top", "wrist"))
    calibration = write_calibration(tmp_path / "arm.json")
    yield ("--port", os.ttyname(theirs), "--calibration", str(calibration), *cameras)
    os.close(ours)
    os.close(theirs)


def test_the_options_of_run_reach_the_arm_and_the_loop(
    started: Callable[..., Started], real_arm: tuple[str, ...]
) -> None:
    given = ("--max-speed", "40", "--home-seconds", "1.5", "--bus-timeout", "0.2", "--bus", "sdk")
    run = started(*real_arm, *given)
    assert run.options.robot == "arm", "a port without --robot means a real arm"
    assert run.arm == {"port": real_arm[1], "timeout_s": 0.2, "bus": "sdk"}
    assert (run.options.safety, run.options.home_s) == (SafetyConfig(max_speed=40.0), 1.5)


def test_the_defaults_of_run(started: Callable[..., Started], real_arm: tuple[str, ...]) -> None:
    run = started(*real_arm)
    assert run.arm == {"port": real_arm[1], "timeout_s": 0.05, "bus": "own"}
    assert (run.options.safety, run.options.home_s) == (SafetyConfig(), 3.0)
    for words in ((), ("--robot", "twin")):
        run = started(*words)
        assert run.options.success is not None, "without a port it is the twin"
        assert (run.options.safety, run.options.home_s) == (SafetyConfig(), 0.0)
    assert started("--home-seconds", "2").options.home_s == 2.0


def test_a_run_is_no_faster_than_max_speed(run_folder: Path, tmp_path: Path) -> None:
    def fastest(*more: str) -> float:
        log = tmp_path / "run.npz"
        words = ("run", "--bundle", "policy.mtdit", "--task", "open the drawer", "--robot", "twin")
        options = ("--clock", "lockstep", "--duration", "2", "--log", str(log), *more)
        done = mtdit(*words, *options, cwd=run_folder)
        assert done.returncode == 0, done.stdout + done.stderr
        return float(np.abs(np.diff(load_log(log).columns["sent"], axis=0)).max()) * 30

    assert fastest("--max-speed", "5") <= 5 + 360 / 4095 * 30 < fastest()  # within one tick


def test_twin_serves_a_port_a_calibration_and_a_picture(tmp_path: Path) -> None:
    import cv2

    options = (
        "--link",
        "tty",
        "--picture",
        "twin.png",
        "--calibration",
        "twin.json",
        "--seconds",
        "2",
    )
    done = mtdit("twin", *options, cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "port" in done.stdout
    assert set(json.loads((tmp_path / "twin.json").read_text())) >= {"shoulder_pan", "gripper"}
    assert cv2.imread(str(tmp_path / "twin.png")).std() > 10


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
