"""Our policy beside LeRobot's: its parameters, its crops, where LeRobot itself fails, and what only
we have.
"""

from __future__ import annotations

import inspect
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from diffusers.schedulers.scheduling_ddpm import DDPMScheduler
from lerobot.configs.types import FeatureType, PolicyFeature
from lerobot.policies.multi_task_dit.modeling_multi_task_dit import MultiTaskDiTPolicy
from lerobot_oracle import (
    DDIM,
    SIZES,
    assert_close,
    batches,
    lerobot_policy,
    our_config,
    our_policy,
)
from torchvision.transforms import RandomCrop

from mtdit.config import Feature
from mtdit.policies.multi_task_dit.config import BETA_SCHEDULES, DDPM_SCHEDULES, PolicyConfig
from mtdit.policies.multi_task_dit.policy import MultiTaskDiT
from mtdit.policies.multi_task_dit.presets import with_features
from mtdit.policies.objectives import Diffusion
from mtdit_robots.errors import UserError


def test_state_dict_has_lerobots_keys_in_its_order(clip: Path) -> None:
    theirs = lerobot_policy(clip, 2, use_separate_rgb_encoder_per_camera=True, **SIZES)
    ours = our_policy(theirs)
    shapes = {k: v.shape for k, v in theirs.state_dict().items()}
    assert {k: v.shape for k, v in ours.state_dict().items()} == shapes
    assert [n for n, _ in ours.named_parameters()] == [n for n, _ in theirs.named_parameters()]


@pytest.mark.parametrize("separate", [False, True], ids=["shared", "separate"])
@pytest.mark.parametrize("cameras", [0, 2])
def test_optimizer_groups_are_lerobots(cameras: int, separate: bool, clip: Path) -> None:
    theirs = lerobot_policy(clip, cameras, use_separate_rgb_encoder_per_camera=separate, **SIZES)
    ours = our_policy(theirs)
    assert names(ours, ours.parameter_groups()) == names(theirs, theirs.get_optim_params())
    assert (
        ours.parameter_groups()[1]["lr"]
        == theirs.get_optim_params()[1]["lr"]
        == pytest.approx(2e-6)
    )


def names(policy: torch.nn.Module, groups: list[dict[str, Any]]) -> list[list[str]]:
    known = {id(p): name for name, p in policy.named_parameters()}
    return [[known[id(p)] for p in group["params"]] for group in groups]


def test_separate_encoders_with_the_shared_ones_weights_see_the_same(clip: Path) -> None:
    shared = our_policy(lerobot_policy(clip, 3, **SIZES))
    separate = our_policy(
        lerobot_policy(clip, 3, use_separate_rgb_encoder_per_camera=True, **SIZES)
    )
    tower = shared.observation_encoder.vision_encoder.state_dict()
    for encoder in separate.observation_encoder.vision_encoders:
        encoder.load_state_dict(tower)
    separate.observation_encoder.text_encoder.load_state_dict(
        shared.observation_encoder.text_encoder.state_dict()
    )
    _, batch = batches(shared, clip)
    assert_close("conditioning", separate.conditioning(batch), shared.conditioning(batch))


def test_a_random_crop_is_cut_where_it_is_told(clip: Path) -> None:
    """LeRobot draws one offset for all its shared encoder sees; ours, given that offset, sees the
    same.
    """
    theirs = lerobot_policy(clip, 2, **{**SIZES, "image_crop_is_random": True}).train()
    ours = our_policy(theirs).train()
    their_batch, batch = batches(ours, clip)
    for seed in range(3):
        torch.manual_seed(seed)
        top, left, _, _ = RandomCrop.get_params(torch.empty(3, 38, 36), (32, 32))
        torch.manual_seed(seed)
        conditioning = theirs.observation_encoder.encode(theirs._prepare_batch(their_batch))
        at = torch.tensor([[top, left]]).expand(3, 2)
        seen = ours.conditioning(replace(batch, crop={"top": at, "wrist": at}))
        assert_close(f"conditioning, seed {seed}, crop at {top}, {left}", seen, conditioning)
        assert not torch.allclose(ours.conditioning(batch), conditioning, atol=1e-3), (
            f"seed {seed} cuts the middle"
        )


# --- where LeRobot itself fails


def unequal(clip: Path, **sizes: Any) -> MultiTaskDiT:
    """Three cameras of three sizes; the same network as for three of one size."""
    like = lerobot_policy(clip, 3, **SIZES)
    config = replace(our_config(like), **sizes)
    features = {k: f for k, f in config.input_features.items() if f.type != "VISUAL"}
    shapes = {c: Feature("VISUAL", (3, h, w)) for c, (h, w) in UNEQUAL.items()}
    config = replace(
        config,
        input_features={**features, **{f"observation.images.{c}": f for c, f in shapes.items()}},
    )
    policy = MultiTaskDiT(config).eval()
    policy.load_state_dict(like.state_dict())
    return policy


UNEQUAL = {"top": (80, 96), "wrist": (40, 40), "side": (33, 120)}


def test_lerobot_refuses_cameras_of_unequal_size(clip: Path) -> None:
    theirs = lerobot_policy(clip, 2, **SIZES).config
    theirs.input_features["observation.images.wrist"] = PolicyFeature(
        FeatureType.VISUAL, (3, 40, 40)
    )
    with pytest.raises(ValueError, match=r"observation\.images\.wrist.*shape"):
        MultiTaskDiTPolicy(theirs)


@pytest.mark.parametrize("resize", [(38, 36), (32, 32), None], ids=str)
def test_cameras_of_unequal_size_are_resized(resize: tuple[int, int] | None, clip: Path) -> None:
    """Each as LeRobot would treat a camera of that size: the features equal those of one-camera
    policies.
    """
    ours = unequal(clip, image_resize_shape=resize)
    generator = torch.Generator().manual_seed(0)
    images = {c: torch.randn(2, 2, 3, *size, generator=generator) for c, size in UNEQUAL.items()}
    features = ours.features(images)
    assert features is not None
    alone = lerobot_policy(
        clip, 1, image_resize_shape=resize, image_crop_shape=(32, 32)
    ).observation_encoder
    alone.vision_encoder.load_state_dict(ours.observation_encoder.vision_encoder.state_dict())
    with torch.no_grad():
        each = [
            alone.vision_encoder(alone._apply_preprocessing(x.flatten(0, 1))).flatten(1)
            for x in images.values()
        ]
    assert_close("features", features, torch.cat(each, dim=-1).unflatten(0, (2, 2)))


def test_cameras_too_small_to_crop_are_named(clip: Path) -> None:
    with pytest.raises(UserError, match=r"image_crop_shape .* camera 'side'.*image_resize_shape"):
        unequal(clip, image_resize_shape=None, image_crop_shape=(34, 34))
    with pytest.raises(UserError, match=r"'top'.*80x96.*32x32.*image_resize_shape"):
        unequal(clip, image_resize_shape=None, image_crop_shape=None)


@pytest.mark.parametrize("schedule", DDPM_SCHEDULES)
def test_lerobot_has_no_ddim_for_some_schedules(schedule: str, clip: Path) -> None:
    """So a new training refuses the pair; a policy trained for DDPM may still be sampled by our
    DDIM.
    """
    with pytest.raises(NotImplementedError, match=schedule):
        lerobot_policy(clip, 0, **{**DDIM, "beta_schedule": schedule})
    with pytest.raises(UserError, match="noise_scheduler_type DDPM"):
        with_features({"beta_schedule": schedule}, "base", {}, {})
    few = Diffusion(
        PolicyConfig(noise_scheduler_type="DDIM", num_inference_steps=10, beta_schedule=schedule)
    )
    assert torch.isfinite(few.sample(lambda x, t: 0.1 * x, torch.randn(2, 4, 6))).all()


def test_every_schedule_of_diffusers_is_ours() -> None:
    """What diffusers takes and we do not: nothing but numbers given one by one, which LeRobot
    cannot pass.
    """
    source = inspect.getsource(DDPMScheduler.__init__)
    assert set(re.findall(r'beta_schedule == "(\w+)"', source)) == set(BETA_SCHEDULES)
    source = inspect.getsource(DDIMScheduler.__init__)
    assert set(re.findall(r'beta_schedule == "(\w+)"', source)) == set(BETA_SCHEDULES) - set(
        DDPM_SCHEDULES
    )


# --- what only we have


def test_noise_samples_average_independent_draws_of_one_encoding(clip: Path) -> None:
    """K draws per observation equal K copies of the observation, so the expected loss is the
    same.
    """
    ours = our_policy(lerobot_policy(clip, 1, **DDIM, **SIZES))
    _, batch = batches(ours, clip)
    conditioning = ours.conditioning(batch)
    assert batch.actions is not None
    torch.manual_seed(5)
    loss = ours.loss(batch, noise_samples=4)
    torch.manual_seed(5)
    actions = batch.actions.repeat_interleave(4, 0)
    noise, time = ours.objective.draw(actions)
    each = [
        ours.objective.loss(
            lambda x, t, i=i: ours.noise_predictor(x, t, conditioning[i // 4][None]),
            actions[i][None],
            noise[i][None],
            time[i][None],
            None,
        )
        for i in range(len(actions))
    ]
    assert_close("loss", loss, torch.stack(each).mean())


def test_executed_part_starts_at_the_newest_observation(clip: Path) -> None:
    ours = our_policy(lerobot_policy(clip, 1, n_obs_steps=2, **SIZES))
    chunk = torch.arange(12.0).view(1, 12, 1)
    assert ours.executed(chunk).flatten().tolist() == [1, 2, 3, 4, 5, 6]
