"""`mtdit train`: what it refuses, what its options mean, and how a run is resumed."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from command_line import assert_one_line, mtdit

from mtdit.cli.commands.train import train_config
from mtdit_robots.errors import UserError


def test_missing_dataset(tmp_path: Path) -> None:
    assert_one_line(
        mtdit("train", "--dataset", str(tmp_path / "nothing"), "--out", str(tmp_path / "out")),
        "nothing",
    )


def test_dataset_that_is_none(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    assert_one_line(
        mtdit("train", "--dataset", str(tmp_path / "folder"), "--out", str(tmp_path / "out")),
        "folder",
    )


def test_training_without_a_dataset(tmp_path: Path) -> None:
    assert_one_line(mtdit("train", cwd=tmp_path), "--dataset", "--resume")
    assert_one_line(mtdit("train", "--resume", cwd=tmp_path), "outputs/train", "no checkpoint")


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
        (("--grad-clip-norm", "0"), "grad_clip_norm"),
        (("--task-weight", "open the drawer"), '--task-weight "open the drawer=2"'),
        (("--task-weight", "a=1", "--task-weight", "a=2"), "--task-weight a is given twice"),
        (("--policy", "horizon=8", "--policy", "horizon=9"), "--policy horizon is given twice"),
        (("--policy", "horizon="), "--policy horizon=32"),
        (("--task-weight", "open the drawer=much"), "'much' is not a number"),
        (("--task-weight", "open the drawer=-1"), "task_weights must be positive"),
        (("--task-weight", "open the drawer=inf"), "task_weights must be positive"),
        (("--batch-size", "99999999999"), "65536"),
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


def test_policy_field_without_a_value(tmp_path: Path) -> None:
    done = mtdit("train", "--dataset", "x", "--policy", "horizon", "--out", str(tmp_path / "o"))
    assert_one_line(done, "--policy horizon=32")


def test_what_is_given_arrives_in_the_training() -> None:
    given = {
        "dataset": "d",
        "output_dir": Path("o"),
        "preset": "tiny",
        "ema": False,
        "policy": ["horizon=9", "text_encoder_name=my/clip"],
        "image_transforms": "default",
    }
    shortcuts = {"horizon": 8, "vision_encoder_name": "tiny", "text_encoder_name": "tiny"}
    with pytest.raises(UserError, match="is not a number"):
        train_config({**given, "task_weights": ["a=b=2", "c=3"]}, shortcuts)
    config, chosen = train_config({**given, "task_weights": ["a=2", "c=3"]}, shortcuts)
    assert chosen == {*given, "task_weights"}
    assert dict(config.policy) == {
        "horizon": 9,
        "vision_encoder_name": "tiny",
        "text_encoder_name": "my/clip",
    }
    assert (config.task_weights, config.image_transforms, config.ema) == (
        {"a": 2.0, "c": 3.0},
        {},
        False,
    )
    assert (config.batch_size, config.noise_samples) == (32, 4)  # the preset's


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
    flags = (
        "--dataset.repo_id=you/twin",
        f"--dataset.root={run_folder / 'dataset'}",
        "--policy.type=multi_task_dit",
        "--policy.n_action_steps=7",
        "--output_dir=run",
        "--batch_size=2",
        "--steps=2",
        "--save_freq=1",
        "--log_freq=1",
        "--num_workers=0",
        "--job_name=twin",
        "--policy.push_to_hub=false",
        "--dataset.image_transforms.enable=true",
        "--preset=tiny",
    )
    done = mtdit("train", *flags, cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "ignored: --job_name; " in done.stdout
    assert "next: mtdit export run\n" in done.stdout
    assert "add --fp16 if the robot computer has an NVIDIA GPU" in done.stdout
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
