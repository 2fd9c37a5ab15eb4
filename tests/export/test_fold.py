"""The folded modules against the policy they came from, for every architecture and sampler."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torchvision
from torchvision.transforms.v2.functional import InterpolationMode

from mtdit.policies.images import normalized_images
from mtdit.policies.multi_task_dit.clip import TextShape, TextTower
from mtdit.policies.multi_task_dit.policy import Batch
from mtdit_export.fold.clip import FoldedText
from mtdit_export.fold.denoiser import with_sampler
from mtdit_export.fold.fold import fold
from mtdit_export.fold.frames import Axis, Preprocess, crop_window, resize_matrix

VARIANTS: dict[str, dict[str, Any]] = {
    "default": {},
    "no cameras": {"cameras": ()},
    "three cameras": {"cameras": ("a", "b", "c")},
    "separate encoders": {"use_separate_rgb_encoder_per_camera": True},
    "one observation": {"n_obs_steps": 1},
    "three observations": {"n_obs_steps": 3},
    "absolute positions": {"use_rope": False, "use_positional_encoding": True},
    "both positions": {"use_positional_encoding": True},
    "no positions": {"use_rope": False},
    "crop only": {"image_resize_shape": None},
    "resize only": {"image_resize_shape": (32, 32), "image_crop_shape": None},
    "predicts the sample": {"prediction_type": "sample"},
    "no clipping": {"clip_sample": False},
    "euler": {"objective": "flow_matching", "num_integration_steps": 3},
    "rk4": {"objective": "flow_matching", "num_integration_steps": 2, "integration_method": "rk4"},
}


def token_ids(seed: int = 0) -> torch.Tensor:
    ids = torch.full((1, 77), 49407)
    ids[0, :6] = torch.tensor(
        [49406, *torch.randint(1, 40000, (5,), generator=torch.Generator().manual_seed(seed))]
    )
    return ids


@pytest.mark.parametrize("variant", VARIANTS)
@torch.no_grad()
def test_folded_policy_equals_the_policy(workshop: Any, variant: str) -> None:
    config = workshop.config(**VARIANTS[variant])
    policy, scaling = workshop.policy(config), workshop.scaling(config)
    folded, steps = fold(policy, scaling), config.n_obs_steps
    torch.manual_seed(1)
    frames = {
        c: torch.randint(0, 256, (steps, *size), dtype=torch.uint8)
        for c, size in config.cameras.items()
    }
    images = {c: normalized_images(f, *scaling[c])[None] for c, f in frames.items()}
    state, noise, ids = torch.randn(1, steps, 6), torch.randn(1, config.horizon, 6), token_ids()

    features = policy.features(images)
    if features is not None:
        per_step = [folded.vision(*(f[i] for f in frames.values())) for i in range(steps)]
        torch.testing.assert_close(torch.stack(per_step, dim=1), features, atol=1e-5, rtol=0)
    pooled = policy.pooled_text(ids)
    text = folded.text(ids)
    torch.testing.assert_close(
        text, policy.observation_encoder.text_encoder(pooled), atol=1e-5, rtol=0
    )
    wanted = policy.sample_from(policy.conditioning(Batch(images, state, pooled)), noise)
    nothing = torch.zeros_like(noise), torch.zeros(1, config.horizon, 1)
    seen = [state] if features is None else [features, state]
    known = folded.history(text, *(x[:, :-1] for x in seen if steps > 1))
    newest = None if features is None else features[:, -1]
    actions = folded.denoiser(known, state[:, -1], noise, *nothing, newest)
    torch.testing.assert_close(actions, wanted, atol=1e-5, rtol=0)


def test_network_times_are_the_samplers(workshop: Any) -> None:
    config = workshop.config(num_train_timesteps=100)
    policy = workshop.policy(config)
    assert fold(policy, workshop.scaling(config)).denoiser.times == [75.0, 50.0, 25.0, 0.0]
    assert with_sampler(config, "ddim", 10).inference_steps == 10
    flow = with_sampler(workshop.config(objective="flow_matching"), "rk4", 7)
    assert (flow.integration_method, flow.num_integration_steps) == ("rk4", 7)


def test_folding_takes_no_memory_from_the_policy(workshop: Any) -> None:
    config = workshop.config()
    policy = workshop.policy(config)
    before = {name: w.clone() for name, w in policy.state_dict().items()}
    for parameter in fold(policy, workshop.scaling(config)).denoiser.parameters():
        parameter.zero_()
    assert all(torch.equal(w, before[name]) for name, w in policy.state_dict().items())


@pytest.mark.parametrize("eos", [2, 49407])
@torch.no_grad()
def test_text_is_read_at_the_first_eos(eos: int) -> None:
    """Both ways in which transformers finds it: OpenAI's configs say 2 and mean the highest id."""
    torch.manual_seed(0)
    shape = TextShape(32, 64, 2, 2, eos_token_id=eos)
    tower, projection = TextTower(shape), torch.nn.Linear(32, 8)
    folded = FoldedText(tower.state_dict(), projection.state_dict(), shape, 77)
    for seed in range(3):
        ids = token_ids(seed)
        torch.testing.assert_close(folded(ids), projection(tower(ids)), atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("size", "crop", "start"),
    [(129, 32, 48), (131, 32, 50), (41, 32, 4), (47, 32, 8), (240, 224, 8), (224, 224, 0)],
)
def test_crop_starts_at_the_even_half(size: int, crop: int, start: int) -> None:
    """48.5 -> 48, 49.5 -> 50, 4.5 -> 4, 7.5 -> 8: Python rounds to even, and torchvision crops with
    Python's round.
    """
    assert crop_window(size, crop) == slice(start, start + crop)
    rows = torch.arange(size, dtype=torch.float32).repeat(size, 1)[None]
    assert torchvision.transforms.CenterCrop(crop)(rows)[0, 0, 0] == start


@pytest.mark.parametrize(
    ("n_in", "n_out"), [(60, 41), (80, 47), (480, 240), (640, 320), (48, 64), (32, 32)]
)
def test_resize_matrix_is_torchvisions_resize(n_in: int, n_out: int) -> None:
    column = torch.rand(1, n_in, 5, dtype=torch.float64)
    resized = torchvision.transforms.Resize(
        [n_out, 5], interpolation=InterpolationMode.BILINEAR, antialias=True
    )(column)
    torch.testing.assert_close(
        resize_matrix(n_in, n_out) @ column[0], resized[0], atol=1e-6, rtol=0
    )


@pytest.mark.parametrize("resize", [None, (41, 47), (60, 100), (33, 80)])
@pytest.mark.parametrize("crop", [None, (32, 32), (31, 33)])
@torch.no_grad()
def test_preprocess_is_lerobots(
    workshop: Any, resize: tuple[int, int] | None, crop: tuple[int, int] | None
) -> None:
    """Against LeRobot's order: divide, normalise, resize, crop, each by torchvision."""
    config = workshop.config(image_resize_shape=resize, image_crop_shape=crop)
    offset, scale = workshop.scaling(config)["top"]
    frame = torch.randint(
        0, 256, (60, 80, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
    )
    image = normalized_images(frame, offset, scale)
    if resize:
        image = torchvision.transforms.Resize(list(resize), antialias=True)(image)
    if crop:
        image = torchvision.transforms.CenterCrop(crop)(image)
    prepared = Preprocess((60, 80), config, (offset, scale))(frame)
    torch.testing.assert_close(prepared, image, atol=2e-5, rtol=0)


def test_an_axis_that_is_not_resized_has_no_matrix() -> None:
    assert Axis(60, None, 32).matrix is None
    assert Axis(60, 60, 32).matrix is None
    assert Axis(60, 41, 32).matrix.shape == (60, 32)
