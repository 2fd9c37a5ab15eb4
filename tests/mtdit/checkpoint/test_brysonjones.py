"""Checkpoints of brysonjones/multitask_dit_policy: the libraries it calls compute what we
compute.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from brysonjones_oracle import CAMERAS, FRAME, TASK, Theirs, config_json, diffusion, flow
from safetensors.torch import load_file, save_file

from mtdit.checkpoint.brysonjones import renamed
from mtdit.checkpoint.find import find_pretrained
from mtdit.checkpoint.read import open_checkpoint, open_to_train
from mtdit.policies.multi_task_dit.config import PolicyConfig
from mtdit.torch_policy import TorchPolicy
from mtdit_robots.errors import UserError

ROPE = {"use_rope": True, "use_positional_encoding": False}
POLICIES: list[tuple[dict[str, Any], dict[str, Any]]] = [
    ({}, diffusion("DDIM")),
    (ROPE, diffusion("DDIM", clip_sample=False, prediction_type="sample")),
    ({"use_rope": True}, flow()),
    ({}, diffusion("DDIM", clip_sample_range=0.25, num_inference_steps=None)),
]


@pytest.fixture
def theirs(clip_folder: Path) -> Theirs:
    return Theirs(config_json(clip_folder, {}, diffusion("DDIM")))


def observations() -> tuple[np.ndarray, dict[str, np.ndarray], np.ndarray]:
    """Positions (2, 6), frames, noise (12, 6)."""
    rng = np.random.default_rng(1)
    positions = rng.uniform(-60, 20, (2, 6)).astype(np.float32)
    positions[:, 4] = -30.0
    frames = {c: rng.integers(0, 256, (2, *FRAME, 3), np.uint8) for c in CAMERAS}
    return positions, frames, rng.standard_normal((12, 6), np.float32)


@pytest.mark.parametrize(("transformer", "objective"), POLICIES, ids=str)
def test_chunks_are_theirs(
    transformer: dict[str, Any], objective: dict[str, Any], clip_folder: Path, tmp_path: Path
) -> None:
    theirs = Theirs(config_json(clip_folder, transformer, objective))
    policy = TorchPolicy(open_checkpoint(theirs.save(tmp_path / "final_model")))
    positions, frames, noise = observations()
    policy.reset(TASK, seed=0)
    for i, position in enumerate(positions):
        policy.observe(position, {c: f[i] for c, f in frames.items()})
    wanted = theirs.chunk(positions, frames, noise)
    np.testing.assert_allclose(policy.chunk(noise), wanted, atol=1e-3, rtol=0)
    assert np.ptp(wanted, axis=0)[[0, 1, 2, 3, 5]].min() > 1.0, (
        "the arm moves, so there is something to compare"
    )


@pytest.mark.parametrize("activation", ["gelu", "quick_gelu"])
def test_features_are_theirs(activation: str, clip_folder: Path, tmp_path: Path) -> None:
    """Each activation under the name that timm gives it; the other one would be found out."""
    raw = config_json(clip_folder, {}, diffusion("DDIM"))
    if activation == "quick_gelu":
        raw["observation_encoder"]["vision"]["backbone"] = (
            "vit_base_patch16_clip_quickgelu_224.openai"
        )
    theirs = Theirs(raw, act_layer=activation)
    policy = open_checkpoint(theirs.save(tmp_path / "final_model")).policy()
    assert policy.clip_shape.vision.hidden_act == activation
    pixels = torch.randn(3, 3, 32, 32)
    wanted = theirs.observation_encoder.vision_encoder.model.forward_features(pixels)[:, 0]
    encoder = policy.observation_encoder
    assert torch.allclose(encoder.vision_encoder(pixels), wanted, atol=1e-5)
    tokens = theirs.tokenizer([TASK], padding=True, return_tensors="pt")["input_ids"]
    assert torch.allclose(
        encoder.text_encoder(policy.pooled_text(tokens)), theirs.text(TASK), atol=1e-5
    )


def test_what_its_file_says_and_what_it_does_not(clip_folder: Path, tmp_path: Path) -> None:
    raw = config_json(
        clip_folder, ROPE, diffusion("DDPM", clip_sample=False, clip_sample_range=9.0)
    )
    folder = Theirs(raw).save(tmp_path / "final_model")
    config = open_checkpoint(folder).config
    assert (config.noise_scheduler_type, config.clip_sample, config.clip_sample_range) == (
        "DDPM",
        True,
        1.0,
    )
    assert (config.image_resize_shape, config.use_positional_encoding, config.use_rope) == (
        (41, 47),
        False,
        True,
    )
    for missing in ("horizon", "n_action_steps", "drop_n_last_frames"):
        del raw[missing]
    del raw["transformer"]["use_positional_encoding"], raw["transformer"]["use_rope"]
    (folder / "config.json").write_text(json.dumps(raw))
    config = open_checkpoint(folder).config
    assert (config.horizon, config.n_action_steps, config.drop_n_last_frames) == (100, 24, 75)
    assert (config.use_positional_encoding, config.use_rope) == (True, False)


def test_flow_matchings_timesteps(clip_folder: Path, tmp_path: Path) -> None:
    folder = Theirs(config_json(clip_folder, {}, flow(integration_method="rk4"))).save(
        tmp_path / "final_model"
    )
    c = open_checkpoint(folder).config
    assert (c.objective, c.integration_method, c.num_integration_steps) == (
        "flow_matching",
        "rk4",
        4,
    )
    sampling = (c.timestep_sampling_strategy, c.timestep_sampling_s, c.timestep_sampling_alpha)
    assert sampling == ("beta", 0.9, 1.25)


def test_the_run_means_its_last_policy(theirs: Theirs, tmp_path: Path) -> None:
    for name in ("checkpoint_500", "checkpoint_1500", "checkpoint_best"):
        theirs.save(tmp_path / name)
    assert find_pretrained(tmp_path).name == "checkpoint_1500"
    theirs.save(tmp_path / "final_model")
    assert find_pretrained(tmp_path).name == "final_model"
    assert find_pretrained(tmp_path / "checkpoint_500").name == "checkpoint_500"


def test_it_can_be_moved_but_not_trained_further(theirs: Theirs, tmp_path: Path) -> None:
    """The text tower's shape from clip/config.json, its tokenizer from the vocabulary all CLIPs
    share.
    """
    folder = theirs.save(tmp_path / "final_model")
    clip = Path(theirs.raw["observation_encoder"]["text"]["model"])
    theirs.raw["observation_encoder"]["text"]["model"] = "/gone/clip-tiny"
    (folder / "config.json").write_text(json.dumps(theirs.raw))
    with pytest.raises(
        UserError, match=r"copy that CLIP's config\.json to .*final_model/clip/config\.json"
    ):
        open_checkpoint(folder).policy()
    (folder / "clip").mkdir()
    shutil.copyfile(clip / "config.json", folder / "clip/config.json")
    policy = TorchPolicy(open_checkpoint(folder))
    policy.reset(TASK, seed=0)
    with pytest.raises(UserError, match=r"brysonjones.*export or evaluate it"):
        open_to_train(folder)


def test_towers_of_their_own_keep_their_number() -> None:
    weights = {
        f"observation_encoder.vision_encoders.{i}.model.cls_token": torch.full((1, 1, 4), i)
        for i in (0, 1)
    }
    found = renamed(weights, PolicyConfig())
    name = "observation_encoder.vision_encoders.{}.model.vision_model.embeddings.class_embedding"
    assert {key: value.tolist() for key, value in found.items()} == {
        name.format(i): [i] * 4 for i in (0, 1)
    }


# --- broken and foreign ones
# --------------------------------------------------------------------------------------


def edit(folder: Path, change: Any) -> None:
    raw = json.loads((folder / "config.json").read_text())
    change(raw)
    (folder / "config.json").write_text(json.dumps(raw))


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (
            lambda r: r["observation_encoder"]["vision"].update(type="dinov3"),
            "type 'dinov3' is not supported",
        ),
        (
            lambda r: r["observation_encoder"]["text"].update(type="t5"),
            "type 't5' is not supported",
        ),
        (lambda r: r.update(transformer=[1]), "transformer must be a JSON object"),
        (lambda r: r["transformer"].update(hidden_dmi=3), "hidden_dmi"),
        (lambda r: r["normalization_mapping"].update(STATE="QUANTILES"), "QUANTILES"),
        (lambda r: r["objective"].update(type="consistency"), "objective must be one of"),
    ],
)
def test_configs_that_are_refused(change: Any, says: str, theirs: Theirs, tmp_path: Path) -> None:
    folder = theirs.save(tmp_path / "final_model")
    edit(folder, change)
    with pytest.raises(UserError, match=says):
        open_checkpoint(folder)


def test_files_that_are_refused(theirs: Theirs, tmp_path: Path) -> None:
    folder = theirs.save(tmp_path / "final_model")
    weights = load_file(folder / "model.safetensors")
    other = {name.replace(".blocks.", ".stages."): value for name, value in weights.items()}
    save_file(other, folder / "model.safetensors")
    with pytest.raises(UserError, match="do not contain a CLIP vision tower"):
        open_checkpoint(folder).policy()
    save_file(
        {**weights, "observation_encoder.vision_encoder.model.reg_token": torch.zeros(1)},
        folder / "w",
    )
    (folder / "w").replace(folder / "model.safetensors")
    with pytest.raises(UserError, match=r"unknown .*reg_token"):
        open_checkpoint(folder).policy()
    (folder / "dataset_stats.json").write_text("[1]")
    with pytest.raises(UserError, match="does not contain statistics"):
        open_checkpoint(folder)
    (folder / "dataset_stats.json").unlink()
    with pytest.raises(UserError, match=r"no dataset_stats\.json"):
        open_checkpoint(folder)
