"""The policy's configuration: LeRobot's defaults, LeRobot's JSON, and one line per mistake."""

from __future__ import annotations

import json
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mtdit.config import NORMALIZATIONS, Feature
from mtdit.policies.multi_task_dit import presets
from mtdit.policies.multi_task_dit.config import BETA_SCHEDULES, SCHEDULERS, PolicyConfig
from mtdit.policies.multi_task_dit.config_json import (
    policy_config_from_dict,
    policy_config_from_json,
    policy_config_to_dict,
)
from mtdit.policies.multi_task_dit.presets import with_features
from mtdit.training.config import TrainConfig
from mtdit.training.presets import training_defaults
from mtdit_robots.errors import UserError

INPUTS = {
    "observation.state": Feature("STATE", (6,)),
    "observation.images.top": Feature("VISUAL", (3, 480, 640)),
}
OUTPUTS = {"action": Feature("ACTION", (6,))}


def test_defaults_are_lerobots() -> None:
    import draccus
    from lerobot.configs.policies import PreTrainedConfig
    from lerobot.policies.multi_task_dit.configuration_multi_task_dit import MultiTaskDiTConfig

    theirs = draccus.encode(MultiTaskDiTConfig(device="cpu"), PreTrainedConfig)
    ours = policy_config_to_dict(PolicyConfig(device="cpu"))
    differs = {k for k in ours if ours[k] != theirs[k]}
    assert differs == {"push_to_hub"}, "we never push by ourselves"


def test_json_round_trip_through_lerobot(tmp_path: Path) -> None:
    from lerobot.configs.policies import PreTrainedConfig

    config = with_features(
        {"num_layers": 3, "optimizer_betas": [0.9, 0.99]}, "base", INPUTS, OUTPUTS
    )
    (tmp_path / "config.json").write_text(json.dumps(policy_config_to_dict(config)))
    assert policy_config_from_json(tmp_path / "config.json") == config
    theirs = PreTrainedConfig.from_pretrained(tmp_path)
    assert theirs.num_layers == 3
    assert list(theirs.image_features) == ["observation.images.top"]
    theirs._save_pretrained(tmp_path)
    raw = json.loads((tmp_path / "config.json").read_text())
    assert policy_config_from_dict({k: v for k, v in raw.items() if k != "type"}).cameras == {
        "top": (480, 640, 3)
    }


@pytest.mark.parametrize(
    ("options", "names"),
    [
        ({"n_obs_steps": 0}, "n_obs_steps"),
        ({"horizon": 8}, "n_action_steps"),
        ({"n_action_steps": 32}, "n_action_steps"),
        ({"hidden_dim": 100}, "hidden_dim"),
        ({"hidden_dim": 40}, "use_rope"),
        ({"num_layers": 2.5}, "num_layers"),
        ({"num_layers": True}, "num_layers"),
        ({"dropout": 1.0}, "dropout"),
        ({"timestep_embed_dim": 7}, "timestep_embed_dim"),
        ({"objective": "ddpm"}, "objective"),
        ({"noise_scheduler_type": "ddim"}, "noise_scheduler_type"),
        ({"beta_schedule": "cosine"}, "beta_schedule"),
        ({"prediction_type": "v"}, "prediction_type"),
        ({"num_inference_steps": 101}, "num_inference_steps"),
        ({"num_inference_steps": "10"}, "num_inference_steps"),
        ({"beta_start": 0.5, "beta_schedule": "linear"}, "beta_start"),
        ({"beta_end": 1.0, "beta_schedule": "scaled_linear"}, "beta_end"),
        ({"sigma_min": 2.0}, "sigma_min"),
        ({"sigma_min": 1.0}, "sigma_min"),
        ({"horizon": 1, "n_action_steps": 1}, "horizon must be at least n_obs_steps"),
        ({"drop_n_last_frames": -1}, "drop_n_last_frames"),
        ({"num_train_timesteps": 0}, "num_train_timesteps"),
        ({"clip_sample": 1}, "clip_sample must be bool"),
        ({"device": 3}, "device"),
        ({"optimizer_eps": 0.0}, "optimizer_eps"),
        ({"optimizer_weight_decay": -0.1}, "optimizer_weight_decay"),
        ({"optimizer_lr": float("inf")}, "optimizer_lr must be a finite number"),
        ({"rope_base": float("nan")}, "rope_base"),
        ({"scheduler_name": "piecewise_constant"}, "scheduler_name"),
        ({"tokenizer_max_length": 2}, "tokenizer_max_length"),
        (
            {"normalization_mapping": {"STAT": "MIN_MAX"}},
            "normalization_mapping has the unknown feature type 'STAT'",
        ),
        (
            {"input_features": {"observation.state": {"type": "STAT", "shape": [6]}}},
            "input_features",
        ),
        ({"output_features": {"action": {"type": "ACTION", "shape": [0]}}}, "output_features"),
        ({"integration_method": "heun"}, "integration_method"),
        ({"timestep_sampling_s": 0.0}, "timestep_sampling_s"),
        ({"vision_encoder_name": "dinov3"}, "vision_encoder_name"),
        ({"text_encoder_name": "t5"}, "text_encoder_name"),
        ({"tokenizer_padding_side": "left"}, "tokenizer_padding_side"),
        ({"image_crop_shape": [224]}, "image_crop_shape"),
        ({"image_resize_shape": [0, 10]}, "image_resize_shape"),
        ({"normalization_mapping": {"STATE": "QUANTILES"}}, "normalization_mapping"),
        ({"optimizer_lr": 0.0}, "optimizer_lr"),
        ({"learning_rate": 1e-4}, "learning_rate"),
        ({"horizo": 16}, "did you mean 'horizon'"),
        ({"image_resize_shape": 64}, "image_resize_shape"),
        ({"normalization_mapping": 3}, "normalization_mapping"),
        ({"optimizer_betas": 0.9}, "optimizer_betas"),
        ({"optimizer_betas": [0.9, 1.0]}, "optimizer_betas"),
        ({"tokenizer_max_length": 200}, "tokenizer_max_length"),
        ({"input_features": {"observation.state": {"type": "STATE"}}}, "input_features"),
        (
            {"input_features": {"observation.state": {"type": "STATE", "shape": [6]}}},
            "output_features",
        ),
    ],
)
def test_invalid_fields_are_named_in_one_line(options: dict[str, Any], names: str) -> None:
    with pytest.raises(UserError, match=names) as caught:
        policy_config_from_dict(options)
    assert "\n" not in str(caught.value)


VALUES = (
    st.integers(-2, 130),
    st.floats(width=32),
    st.booleans(),
    st.none(),
    st.text(max_size=8),
    st.lists(st.integers(-1, 300), max_size=3),
    st.dictionaries(st.text(max_size=6), st.integers(), max_size=2),
    st.sampled_from(
        [*NORMALIZATIONS, *BETA_SCHEDULES, *SCHEDULERS, "DDIM", "flow_matching", "sample", "rk4"]
    ),
    st.just({"STATE": "MEAN_STD"}),
    st.just({"observation.state": {"type": "STATE", "shape": [6]}}),
)


@settings(max_examples=600, deadline=None, derandomize=True)
@given(
    st.dictionaries(
        st.sampled_from([f.name for f in fields(PolicyConfig)]), st.one_of(*VALUES), max_size=3
    )
)
def test_anything_builds_or_is_named_in_one_line(options: dict[str, Any]) -> None:
    said = message_of(options)
    if said is None:
        again = {
            k: v
            for k, v in policy_config_to_dict(policy_config_from_dict(options)).items()
            if k != "type"
        }
        assert policy_config_from_dict(again) == policy_config_from_dict(options)
        return
    named = {
        *options,
        *(FEATURES if FEATURES & set(options) else ()),
    }  # inputs without an action are half a policy
    assert any(name in said for name in named), f"{options}: {said}"
    assert "\n" not in said


FEATURES = {"input_features", "output_features"}


def message_of(options: dict[str, Any]) -> str | None:
    """What the user reads; any other exception passes through."""
    try:
        policy_config_from_dict(options)
    except UserError as error:
        return str(error)
    return None


def table() -> dict[str, tuple[str, str]]:
    """What the module's table says: field -> (LeRobot's, ours)."""
    rows = [
        line.strip("| ").split(" | ")
        for line in (presets.__doc__ or "").splitlines()
        if line[:1] == "|"
    ]
    return {row[0]: (row[1], row[2]) for row in rows[2:]}


def test_the_table_names_all_that_differs() -> None:
    """The base preset against the installed LeRobot; random crops are tested with the loader."""
    from lerobot.configs.train import TrainPipelineConfig
    from lerobot.policies.multi_task_dit.configuration_multi_task_dit import MultiTaskDiTConfig

    theirs, ours = (
        MultiTaskDiTConfig(device="cpu"),
        with_features({"device": "cpu"}, "base", {}, {}),
    )
    written = {
        **{f.name: getattr(ours, f.name) for f in fields(PolicyConfig)},
        "push_to_hub": False,
    }
    differs = {
        k: (getattr(theirs, k), v) for k, v in written.items() if not equal(getattr(theirs, k), v)
    }
    train = {f.name: f.default for f in fields(TrainPipelineConfig)}
    own = TrainConfig(dataset="d", output_dir=Path("o"), **training_defaults("base"))
    differs |= {
        k: (train[k], getattr(own, k))
        for k in ("batch_size", "steps", "seed")
        if train[k] != getattr(own, k)
    }
    assert "ema" not in train, "LeRobot keeps an average now: does it by default?"
    differs["ema"] = (False, own.ema)
    said = {k: v for k, v in table().items() if k != "random crop"}
    assert said == {k: (str(a), str(b)) for k, (a, b) in differs.items()}


def equal(theirs: Any, ours: Any) -> bool:
    return json.loads(json.dumps(theirs, default=str)) == json.loads(json.dumps(ours, default=str))


def test_a_crop_larger_than_the_frame_is_refused() -> None:
    with pytest.raises(UserError, match=r"image_crop_shape.*'top'.*image_resize_shape"):
        with_features(
            {"image_resize_shape": None, "image_crop_shape": [500, 224]}, "base", INPUTS, OUTPUTS
        )


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("{", "not valid JSON"),
        (
            '{"type": "diffusion"}',
            r"Diffusion Policy \(ResNet \+ U-Net.*not supported yet.*mtdit train",
        ),
        ('{"type": "act"}', "'act'.*not supported"),
        ('{"type": "smolvla"}', "'smolvla'.*not supported"),
        ('{"type": "pi0"}', "'pi0'.*not supported"),
        ('{"model_type": "clip", "text_config": {}}', "a transformers model .*not a policy"),
        ("[]", "has no 'type'"),
        (None, "does not exist"),
    ],
)
def test_files_that_are_not_our_config(text: str | None, says: str, tmp_path: Path) -> None:
    if text is not None:
        (tmp_path / "config.json").write_text(text)
    with pytest.raises(UserError, match=says) as caught:
        policy_config_from_json(tmp_path / "config.json")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "options",
    [
        {"steps": 0},
        {"batch_size": 0},
        {"noise_samples": 0},
        {"preset": "huge"},
        {"amp": "int8"},
        {"max_minutes": 0.0},
        {"ema_max_decay": 1.0},
        {"grad_clip_norm": 0.0},
        {"random_shift_px": -1},
        {"random_brightness": 1.0},
    ],
    ids=lambda o: next(iter(o)),
)
def test_invalid_training_options_are_named(options: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=next(iter(options))):
        TrainConfig(dataset="d", output_dir=Path("o"), **options)


def test_presets_give_training_defaults() -> None:
    TrainConfig(dataset="d", output_dir=Path("o"), preset="tiny", **training_defaults("tiny"))
    with pytest.raises(UserError, match="preset"):
        training_defaults("large")
