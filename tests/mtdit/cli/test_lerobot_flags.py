"""Command lines of `lerobot-train`, as its docs print them: each flag does what it says, is said,
or is refused.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from typing import Any

import pytest

from mtdit.cli.lerobot_defaults import TRAINING
from mtdit.cli.lerobot_flags import translate
from mtdit.policies.multi_task_dit.config import PolicyConfig
from mtdit_robots.errors import UserError

POLICY = """
    horizon n_obs_steps n_action_steps objective noise_scheduler_type num_train_timesteps
    num_inference_steps beta_schedule prediction_type clip_sample clip_sample_range
    timestep_sampling_strategy timestep_sampling_alpha timestep_sampling_beta
    timestep_sampling_s num_integration_steps integration_method sigma_min num_layers hidden_dim
    num_heads use_rope rope_base use_positional_encoding dropout timestep_embed_dim
    vision_encoder_name use_separate_rgb_encoder_per_camera image_resize_shape image_crop_shape
    image_crop_is_random text_encoder_name optimizer_lr optimizer_weight_decay
    scheduler_warmup_steps vision_encoder_lr_multiplier
"""
INPUTS = (
    '{"observation.state": {"type": "STATE"}, '
    '"observation.images.wrist": {"type": "VISUAL", "shape": [3, 48, 64]}, '
    '"observation.images.top": {"type": "VISUAL", "shape": [3, 48, 64]}}'
)


@pytest.mark.parametrize(
    ("flag", "words"),
    [
        ("--dataset.repo_id=you/drawers", ["--dataset", "you/drawers"]),
        ("--output_dir=./outputs/x", ["--out", "./outputs/x"]),
        ("--batch_size=32", ["--batch-size", "32"]),
        ("--steps=30000", ["--steps=30000"]),
        ("--save_freq=1000", ["--save-every", "1000"]),
        ("--log_freq=100", ["--log-every", "100"]),
        ("--num_workers=4", ["--workers", "4"]),
        ("--num_workers=0", ["--workers", "1"]),
        ("--wandb.enable=false", []),
        ("--wandb.enable=true", ["--wandb", "lerobot"]),
        ("--wandb.project=arms", []),
        ("--dataset.image_transforms.enable=true", ["--image-transforms", "default"]),
        ("--dataset.image_transforms.max_num_transforms=4", []),
        ("--dataset.use_imagenet_stats=false", ["--dataset-stats"]),
        ("--dataset.use_imagenet_stats=true", ["--imagenet-stats"]),
        ("--dataset.eval_split=0.1", ["--val-split", "0.1"]),
        ("--eval_steps=500", ["--val-every", "500"]),
        ("--seed=7", ["--seed=7"]),
        ("--resume=true", ["--resume"]),
        ("--resume=false", []),
        ("--policy.type=multi_task_dit", []),
        ("--policy.device=cuda", ["--device", "cuda"]),
        ("--policy.push_to_hub=false", []),
        ("--policy.use_amp=false", []),
        ("--policy.path=outputs/old", ["--init-from", "outputs/old"]),
        ("--policy.image_crop_shape=None", ["--policy", "image_crop_shape=null"]),
        ("--policy.image_resize_shape=(240, 320)", ["--policy", "image_resize_shape=[240, 320]"]),
        ("--policy.use_rope=True", ["--policy", "use_rope=true"]),
        ("--ema.enable=true", ["--ema"]),
        (f"--policy.input_features={INPUTS}", ["--cameras", "wrist,top"]),
        ("--policy.input_features=null", []),
        ('--policy.output_features={"action": {"type": "ACTION", "shape": [6]}}', []),
    ],
)
def test_a_flag_in_our_words(flag: str, words: list[str]) -> None:
    assert translate([flag]).words == words
    assert translate([flag]).notes == []


@pytest.mark.parametrize("name", POLICY.split())
def test_the_docs_page_policy_flags(name: str) -> None:
    for words in ([f"--policy.{name}=7"], [f"--policy.{name}", "7"]):
        assert translate(words).words == ["--policy", f"{name}=7"]


@pytest.mark.parametrize(
    "flag",
    [
        "env_eval_freq=2000",
        "job_name=drawers",
        "policy.repo_id=you/policy",
        "dataset.video_backend=pyav",
        "wandb.disable_artifact=true",
        "env.type=aloha",
        "eval.batch_size=10",
        "prefetch_factor=2",
    ],
)
def test_what_has_no_meaning_here_is_said(flag: str) -> None:
    said = translate([f"--{flag}"])
    assert said.words == []
    assert len(said.notes) == 1
    assert said.notes[0].startswith(f"ignored: --{flag.partition('=')[0]}; ")


@pytest.mark.parametrize(
    ("flag", "says"),
    [
        ("--policy.type=diffusion", "only multi_task_dit"),
        ("--policy.type=act", "only multi_task_dit"),
        ("--policy.horizn=8", "did you mean --policy.horizon?"),
        ("--dataset.repo_d=x", "did you mean --dataset.repo_id?"),
        ("--qqq.zzz=1", "mtdit train --help"),
        ("--dataset.episodes=[0, 1]", "lerobot-edit-dataset"),
        ("--dataset.streaming=true", "leave it out"),
        ("--policy.push_to_hub=true", "hf upload"),
        ("--policy.push_to_hub=maybe", "true or false"),
        ("--optimizer.lr=1e-4", "--policy.optimizer_lr"),
        ("--peft.r=8", "adapters"),
        ("--save_checkpoint=false", "--save_freq"),
        ("--config_path=run/checkpoints/last", "--resume=true"),
        ("--wandb.enable=yes", "--wandb.enable=true"),
        ("--policy.input_features=top", "not JSON of features"),
        ("--policy.input_features=[1]", "not JSON of features"),
        (f"--policy.input_features={INPUTS.replace('state', 'effort')}", "effort is no input"),
        (f"--policy.input_features={{{INPUTS[INPUTS.index(',') + 1 :]}", "state is missing"),
        (f"--policy.output_features={INPUTS}", "action is this policy's only output"),
    ],
)
def test_what_cannot_be_had_is_refused(flag: str, says: str) -> None:
    with pytest.raises(UserError) as error:
        translate([flag])
    assert says in str(error.value)
    assert "\n" not in str(error.value)


def test_a_command_line_as_pasted() -> None:
    tfs = {
        "brightness": {"weight": 1.0, "type": "ColorJitter", "kwargs": {"brightness": [0.5, 1.5]}}
    }
    said = translate(
        [
            "--dataset.repo_id=you/drawers",
            "--dataset.root",
            "data/drawers",
            "--policy.type=multi_task_dit",
            "--policy.horizon=32",
            "--output_dir=./out",
            "--batch_size=64",
            "--wandb.enable=true",
            "--wandb.project=arms",
            "--dataset.image_transforms.enable=true",
            "--dataset.image_transforms.max_num_transforms=2",
            f"--dataset.image_transforms.tfs={json.dumps(tfs)}",
            "--policy.use_amp=true",
            "--task-weight",
            "open a_b.c=2",
            "--val_every=5",
            "--no-ema",
        ]
    )
    assert said.words[:4] == ["--task-weight", "open a_b.c=2", "--val-every=5", "--no-ema"]
    options = dict(zip(said.words[4::2], said.words[5::2], strict=True))
    assert json.loads(options.pop("--image-transforms")) == {"max_num_transforms": 2, "tfs": tfs}
    assert options == {
        "--dataset": "data/drawers",
        "--policy": "horizon=32",
        "--out": "./out",
        "--batch-size": "64",
        "--wandb": "arms",
        "--amp": "bf16",
    }
    assert len(said.notes) == 1
    assert "fp16" in said.notes[0]


@pytest.mark.parametrize(
    ("path", "run"),
    [
        ("outputs/x/checkpoints/last/pretrained_model/train_config.json", "outputs/x"),
        ("/a/checkpoints/x/checkpoints/000010/pretrained_model/", "/a/checkpoints/x"),
        ("checkpoints/last", "."),
        ("/checkpoints/last", "/"),
    ],
)
def test_resuming_by_config_path(path: str, run: str) -> None:
    assert translate([f"--config_path={path}", "--resume=true"]).words == ["--resume", "--out", run]


def test_a_config_path_outside_of_a_run() -> None:
    with pytest.raises(UserError, match="is not inside a run"):
        translate(["--config_path=somewhere/train_config.json", "--resume=true"])


def test_transforms_that_are_no_json() -> None:
    with pytest.raises(UserError, match="tfs is not valid JSON"):
        translate(
            [
                "--dataset.image_transforms.enable=true",
                "--dataset.image_transforms.tfs={brightness: }",
            ]
        )


def test_our_own_words_pass_untouched() -> None:
    words = [
        "--dataset",
        "d.e_f/g",
        "--resume",
        "--policy",
        "beta_start=0.1",
        "--out",
        "a_b",
        "--no-ema",
        "--help",
    ]
    assert translate(words).words == words
    assert translate(["--resume", "--steps", "3"]).words == ["--resume", "--steps", "3"]
    assert translate(["--resume", "true", "--steps", "3"]).words == ["--steps", "3", "--resume"]


def test_every_policy_field_has_its_flag() -> None:
    kept = {"input_features", "output_features"}  # a dataset says these
    for name in {f.name for f in fields(PolicyConfig)} - kept:
        translate([f"--policy.{name}=false"])


def flags_of(kind: Any, prefix: str = "") -> Iterator[str]:
    """Flags of one of LeRobot's dataclasses, nested ones included."""
    for f in fields(kind):
        nested = f.type if is_dataclass(f.type) else None
        if nested is not None:
            yield from flags_of(nested, f"{prefix}{f.name}.")
        else:
            yield f"{prefix}{f.name}"


def test_no_flag_of_lerobots_trainer_is_unknown() -> None:
    """Those of the installed version; what a flag is translated to is for the tests above."""
    from lerobot.configs.train import TrainPipelineConfig
    from lerobot.policies.multi_task_dit.configuration_multi_task_dit import MultiTaskDiTConfig

    groups = {
        "env",
        "policy",
        "reward_model",
        "optimizer",
        "scheduler",
        "peft",
        "sample_weighting",
    }  # of other flags
    names = [
        n
        for n in (*flags_of(TrainPipelineConfig), *flags_of(MultiTaskDiTConfig, "policy."))
        if n not in groups
    ]
    assert {"dataset.image_transforms.tfs", "wandb.project", "policy.horizon", "steps"} <= set(
        names
    )
    unknown = []
    for name in names:
        try:
            said = translate([f"--{name}=x"])
        except UserError as error:
            if "has no flag" in str(error):
                unknown.append(name)
        else:
            if any(word.startswith(f"--{name.replace('_', '-')}=") for word in said.words):
                unknown += [name] if name not in ("steps", "seed") else []
    assert unknown == []


PASTED = ("--policy.type=multi_task_dit", "--dataset.repo_id=you/drawers")


def test_defaults_that_are_not_lerobots_are_one_line() -> None:
    assert translate(PASTED).unlike == (
        "not as LeRobot's defaults, which are in brackets: --batch_size=64 (8), "
        "--steps=30000 (100000), --save_freq=5000 (20000), --log_freq=50 (200), "
        "--ema.enable=true (false), --policy.noise_scheduler_type=DDIM (DDPM), "
        "--policy.num_inference_steps=10 (None), --policy.image_resize_shape=(240,240) (None), "
        "the random crop is drawn per sample (per batch), nothing is uploaded (to the Hub)"
    )


@pytest.mark.parametrize(
    "words",
    [
        ["--steps=100000", "--batch_size=8", "--ema.enable=false"],
        ["--steps", "100000", "--batch-size", "8", "--no-ema"],
    ],
)
def test_what_was_said_in_either_spelling_is_no_default(words: list[str]) -> None:
    line = translate([*PASTED, *words]).unlike
    for flag in ("--steps", "--batch_size", "--ema"):
        assert flag not in line
    assert "--log_freq" in line


def test_lerobots_values_can_be_typed_as_they_are_printed() -> None:
    """With all of them, nothing is left that a flag could set."""
    line = translate(PASTED).unlike
    flags = [f"{flag}={value}" for flag, value in re.findall(r"(--\S+?)=\S+ \((\S+)\)", line)]
    assert len(flags) == 8
    assert "--" not in translate([*PASTED, *flags]).unlike
    policy = [word for word in translate(flags).words if "=" in word]
    assert sorted(policy) == [
        "--steps=100000",
        "image_resize_shape=null",
        "noise_scheduler_type=DDPM",
        "num_inference_steps=null",
    ]


@pytest.mark.parametrize(
    "words",
    [
        ["--dataset", "d", "--batch-size", "8"],
        [*PASTED, "--preset=tiny"],
        ["--resume=true", "--config_path=run/checkpoints/last"],
    ],
)
def test_who_does_not_ask_for_lerobots_training_reads_no_line(words: list[str]) -> None:
    assert translate(words).unlike == ""


def test_an_earlier_policys_fields_are_no_defaults() -> None:
    line = translate(["--policy.path=outputs/old"]).unlike
    assert "--steps=30000" in line
    assert "--policy." not in line


def test_the_table_holds_lerobots_defaults() -> None:
    """Of the installed version, which has no EMA."""
    from lerobot.configs.train import TrainPipelineConfig

    theirs = {f.name: f.default for f in fields(TrainPipelineConfig)}
    for flag, (_, default) in TRAINING.items():
        assert theirs.get(flag, False) == default, flag
