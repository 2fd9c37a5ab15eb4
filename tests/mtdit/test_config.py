"""The policy's configuration: LeRobot's defaults, LeRobot's JSON, and one line for every mistake."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from mtdit.config import (
    Feature,
    PolicyConfig,
    policy_config_from_dict,
    policy_config_from_json,
    policy_config_to_dict,
    with_features,
)
from mtdit.train_config import TrainConfig, training_defaults
from mtdit_robots.errors import UserError

INPUTS = {"observation.state": Feature("STATE", (6,)), "observation.images.top": Feature("VISUAL", (3, 480, 640))}
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

    config = with_features({"num_layers": 3, "optimizer_betas": [0.9, 0.99]}, "base", INPUTS, OUTPUTS)
    (tmp_path / "config.json").write_text(json.dumps(policy_config_to_dict(config)))
    assert policy_config_from_json(tmp_path / "config.json") == config
    theirs = PreTrainedConfig.from_pretrained(tmp_path)
    assert theirs.num_layers == 3
    assert list(theirs.image_features) == ["observation.images.top"]
    theirs._save_pretrained(tmp_path)
    raw = json.loads((tmp_path / "config.json").read_text())
    assert policy_config_from_dict({k: v for k, v in raw.items() if k != "type"}).cameras == {"top": (480, 640, 3)}


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
        ({"beta_start": 0.5}, "beta_start"),
        ({"sigma_min": 2.0}, "sigma_min"),
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
        ({"input_features": {"observation.state": {"type": "STATE", "shape": [6]}}}, "output_features"),
    ],
)
def test_invalid_fields_are_named_in_one_line(options: dict[str, Any], names: str) -> None:
    with pytest.raises(UserError, match=names) as caught:
        policy_config_from_dict(options)
    assert "\n" not in str(caught.value)


def test_a_crop_larger_than_the_frame_is_refused() -> None:
    with pytest.raises(UserError, match=r"image_crop_shape.*'top'.*image_resize_shape"):
        with_features({"image_resize_shape": None, "image_crop_shape": [500, 224]}, "base", INPUTS, OUTPUTS)


@pytest.mark.parametrize(
    ("text", "says"),
    [("{", "not valid JSON"), ('{"type": "diffusion"}', "'diffusion'"), ("[]", "None"), (None, "does not exist")],
)
def test_files_that_are_not_our_config(text: str | None, says: str, tmp_path: Path) -> None:
    if text is not None:
        (tmp_path / "config.json").write_text(text)
    with pytest.raises(UserError, match=says):
        policy_config_from_json(tmp_path / "config.json")


@pytest.mark.parametrize(
    "options",
    [
        {"steps": 0}, {"batch_size": 0}, {"noise_samples": 0}, {"preset": "huge"}, {"amp": "int8"},
        {"max_minutes": 0.0}, {"ema_max_decay": 1.0}, {"grad_clip_norm": 0.0}, {"random_shift_px": -1},
        {"random_brightness": 1.0},
    ],
    ids=lambda o: next(iter(o)),
)  # fmt: skip
def test_invalid_training_options_are_named(options: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=next(iter(options))):
        TrainConfig(dataset="d", output_dir=Path("o"), **options)


def test_presets_give_training_defaults() -> None:
    TrainConfig(dataset="d", output_dir=Path("o"), preset="tiny", **training_defaults("tiny"))
    with pytest.raises(UserError, match="preset"):
        training_defaults("large")
