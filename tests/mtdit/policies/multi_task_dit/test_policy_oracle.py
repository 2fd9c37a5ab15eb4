"""Our policy against LeRobot's installed one: same weights, same noise.

The grid covers every pair of values of what decides the network (positions, encoders, cameras,
observation steps), each with everything that is computed with it (objective, sampler, prediction).
LeRobot 0.6.1 builds all of it, separate encoders too. The full product is among the slow tests.
"""

from __future__ import annotations

import inspect
import itertools
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from covering import assert_covered, covering
from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from diffusers.schedulers.scheduling_ddpm import DDPMScheduler
from lerobot.configs.types import FeatureType, PolicyFeature
from lerobot.policies.multi_task_dit.modeling_multi_task_dit import MultiTaskDiTPolicy
from lerobot_oracle import batches, lerobot_policy, our_config, our_policy, set_objective
from torchvision.transforms import RandomCrop

from mtdit.config import Feature
from mtdit.policies.multi_task_dit.clip import ClipShape, TextShape, VisionShape
from mtdit.policies.multi_task_dit.config import BETA_SCHEDULES, DDPM_SCHEDULES, PolicyConfig
from mtdit.policies.multi_task_dit.policy import Batch, MultiTaskDiT
from mtdit.policies.multi_task_dit.presets import with_features
from mtdit.policies.multi_task_dit.tiny_clip import make_tiny_clip
from mtdit.policies.objectives import Diffusion
from mtdit_robots.errors import UserError

POSITIONS = {
    "rope": (True, False),
    "absolute": (False, True),
    "both": (True, True),
    "neither": (False, False),
}
DDPM = {"objective": "diffusion", "noise_scheduler_type": "DDPM", "num_inference_steps": 6}
DDIM = {"objective": "diffusion", "noise_scheduler_type": "DDIM", "num_inference_steps": 6}
FLOW = {"objective": "flow_matching", "num_integration_steps": 6}
OBJECTIVES: list[dict[str, Any]] = [
    *(
        {**sampler, "prediction_type": kind}
        for sampler in (DDPM, DDIM)
        for kind in ("epsilon", "sample")
    ),
    {**FLOW, "integration_method": "euler", "timestep_sampling_strategy": "beta"},
    {**FLOW, "integration_method": "rk4", "timestep_sampling_strategy": "uniform"},
]
HUNDRED = {"num_train_timesteps": 100, "num_inference_steps": 100, "num_integration_steps": 100}


TOWERS = ClipShape(
    VisionShape(
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=32,
        patch_size=16,
    ),
    TextShape(hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2),
)
SIZES = {"image_resize_shape": (38, 36), "image_crop_shape": (32, 32)}


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Smaller than the tiny CLIP: there are many policies around it."""
    return make_tiny_clip(tmp_path_factory.mktemp("models") / "clip-smallest", TOWERS)


AXES: dict[str, tuple[Any, ...]] = {
    "positions": tuple(POSITIONS),
    "separate": (False, True),
    "cameras": (0, 1, 2, 3),
    "n_obs_steps": (1, 2, 3),
}
CASES = covering(AXES, seed=0)
PRODUCT = [dict(zip(AXES, values, strict=True)) for values in itertools.product(*AXES.values())]


def label(case: dict[str, Any]) -> str:
    towers = "separate" if case["separate"] else "shared"
    return f"{case['positions']}-{towers}-{case['cameras']}-{case['n_obs_steps']}"


def test_every_pair_of_values_is_covered() -> None:
    assert_covered(AXES, CASES)


@pytest.mark.parametrize("case", CASES, ids=label)
def test_equal_to_lerobot(case: dict[str, Any], clip: Path) -> None:
    compare_networks(**case, clip=clip)


@pytest.mark.slow(minutes=4)  # all of them together
@pytest.mark.parametrize("case", [case for case in PRODUCT if case not in CASES], ids=label)
def test_equal_to_lerobot_in_the_rest_of_the_product(case: dict[str, Any], clip: Path) -> None:
    compare_networks(**case, clip=clip)


def compare_networks(
    positions: str, separate: bool, cameras: int, n_obs_steps: int, clip: Path
) -> None:
    """One network, every objective."""
    use_rope, absolute = POSITIONS[positions]
    options = {"use_separate_rgb_encoder_per_camera": separate, "n_obs_steps": n_obs_steps, **SIZES}
    theirs = lerobot_policy(
        clip, cameras, use_rope=use_rope, use_positional_encoding=absolute, **options
    )
    ours = our_policy(theirs)
    data = batches(ours, clip)
    for objective in OBJECTIVES:
        compare(theirs, ours, data, objective)


DETAILS: list[dict[str, Any]] = [
    *({**DDPM, "beta_schedule": name} for name in BETA_SCHEDULES),
    *({**DDIM, "beta_schedule": name} for name in BETA_SCHEDULES if name not in DDPM_SCHEDULES),
    {
        **DDPM,
        "beta_schedule": "linear",
        "beta_start": 0.001,
        "beta_end": 0.2,
        "prediction_type": "sample",
    },
    *(
        {**s, "prediction_type": k, "clip_sample": False}
        for s in (DDPM, DDIM)
        for k in ("epsilon", "sample")
    ),
    *(
        {**s, "prediction_type": k, "clip_sample_range": 0.7}
        for s in (DDPM, DDIM)
        for k in ("epsilon", "sample")
    ),
    {**DDIM, "num_inference_steps": 7},
    {**DDPM, "num_inference_steps": None},
    {**DDIM, "num_train_timesteps": 1, "num_inference_steps": 1},
    *({**o, "do_mask_loss_for_padding": True} for o in (DDPM, FLOW)),
    *(
        {
            **FLOW,
            "timestep_sampling_strategy": strategy,
            "sigma_min": sigma,
            "integration_method": method,
        }
        for strategy in ("uniform", "beta")
        for sigma in (0.0, 0.05)
        for method in ("euler", "rk4")
    ),
    {
        **FLOW,
        "timestep_sampling_s": 0.5,
        "timestep_sampling_alpha": 3.0,
        "timestep_sampling_beta": 2.0,
    },
]


@pytest.mark.parametrize("options", DETAILS, ids=lambda o: "-".join(str(v) for v in o.values()))
def test_details_of_the_objectives(options: dict[str, Any], clip: Path) -> None:
    theirs = lerobot_policy(clip, 1, **SIZES)
    ours = our_policy(theirs)
    for seed in (0, 1):
        compare(theirs, ours, batches(ours, clip, seed=seed), options, seed)


@pytest.mark.parametrize("options", OBJECTIVES, ids=lambda o: "-".join(str(v) for v in o.values()))
def test_a_hundred_steps(options: dict[str, Any], clip: Path) -> None:
    theirs = lerobot_policy(clip, 2, **SIZES)
    ours = our_policy(theirs)
    compare(theirs, ours, batches(ours, clip), {**options, **HUNDRED}, chunk_tolerance=1e-4)


def compare(
    theirs: MultiTaskDiTPolicy,
    ours: MultiTaskDiT,
    data: tuple[dict[str, torch.Tensor], Batch],
    options: dict[str, Any],
    seed: int = 0,
    chunk_tolerance: float = 1e-5,
) -> None:
    """Conditioning, loss, every gradient and a sampled chunk."""
    set_objective(theirs, ours, **options)
    their_batch, batch = data
    label = f"seed {seed}, {options}"
    conditioning = theirs.observation_encoder.encode(theirs._prepare_batch(their_batch))
    assert_close(f"conditioning, {label}", ours.conditioning(batch), conditioning)

    theirs.zero_grad(set_to_none=True)
    ours.zero_grad(set_to_none=True)
    torch.manual_seed(seed)
    their_loss, _ = theirs.forward(their_batch)
    torch.manual_seed(seed)
    our_loss = ours.loss(batch)
    assert_close(f"loss, {label}", our_loss, their_loss)
    their_loss.backward()
    our_loss.backward()
    for (name, mine), other in zip(ours.named_parameters(), theirs.parameters(), strict=True):
        assert_close(f"gradient of {name}, {label}", gradient(mine), gradient(other))

    torch.manual_seed(seed)
    with torch.no_grad():
        their_chunk = theirs.objective.conditional_sample(theirs.noise_predictor, 3, conditioning)
    torch.manual_seed(seed)
    with torch.no_grad():
        chunk = ours.sample_from(ours.conditioning(batch), torch.randn(3, 12, 6))
    assert_close(f"chunk, {label}", chunk, their_chunk, chunk_tolerance)


def gradient(parameter: torch.Tensor) -> torch.Tensor:
    """Zero where none arrives: LeRobot runs some of what does not matter, we leave it out."""
    return torch.zeros_like(parameter) if parameter.grad is None else parameter.grad


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
# -----------------------------------------------------------------------------------


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
# --------------------------------------------------------------------------------------------


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


def assert_close(
    what: str, mine: torch.Tensor, theirs: torch.Tensor, tolerance: float = 1e-5
) -> None:
    error = float((mine - theirs).detach().abs().max())
    assert error <= tolerance, f"{what}: max error {error:.2e} > {tolerance}"
