"""Schedules and samplers against diffusers and against numbers measured once with it."""

from __future__ import annotations

import pytest
import torch
from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from diffusers.schedulers.scheduling_ddpm import DDPMScheduler

from mtdit.policies.multi_task_dit.config import BETA_SCHEDULES, PolicyConfig
from mtdit.policies.objectives import Diffusion, FlowMatching, betas, ddpm_variance, make_objective

CONSTANT_EPSILON = [
    0.57874215,
    0.70660222,
    0.81733632,
    0.90826035,
    0.97716981,
    1.02239239,
    1.04282594,
    1.03794837,
    1.00722158,
    0.99999970,
]
CONSTANT_SAMPLE = [
    0.58572078,
    0.60338813,
    0.56374210,
    0.48413178,
    0.38905707,
    0.31171882,
    0.29848027,
    0.42353773,
    0.86844236,
    1.0,
]


def ddim(**options: object) -> Diffusion:
    return Diffusion(PolicyConfig(noise_scheduler_type="DDIM", **options))  # type: ignore[arg-type]


def test_schedule_golden_numbers() -> None:
    alpha_bar = ddim().alpha_bar
    golden = {
        0: 0.99936873,
        1: 0.99825251,
        10: 0.96671665,
        50: 0.47826457,
        90: 0.019544374,
        99: 2.4285408e-7,
    }
    for t, value in golden.items():
        assert float(alpha_bar[t]) == pytest.approx(value, rel=1e-6)
    assert [s.time for s in ddim(num_inference_steps=16).steps()][:3] == [90, 84, 78]
    assert [s.time for s in ddim(num_inference_steps=10).steps()] == list(range(90, -1, -10))


@pytest.mark.parametrize("schedule", BETA_SCHEDULES)
def test_every_beta_schedule_is_diffusers(schedule: str) -> None:
    ours = betas(PolicyConfig(beta_schedule=schedule, num_train_timesteps=50))
    assert torch.allclose(ours, DDPMScheduler(50, beta_schedule=schedule).betas, atol=1e-7)


@pytest.mark.parametrize(
    ("kind", "output", "golden"),
    [("epsilon", 0.3, CONSTANT_EPSILON), ("sample", 1.4, CONSTANT_SAMPLE)],
)
def test_ddim_golden_numbers(kind: str, output: float, golden: list[float]) -> None:
    objective, x = ddim(num_inference_steps=10, prediction_type=kind), torch.tensor(0.5)
    for step, expected in zip(objective.steps(), golden, strict=True):
        x = objective.ddim_step(step, x, torch.tensor(output))
        assert float(x) == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("kind", ["epsilon", "sample"])
@pytest.mark.parametrize("steps", [7, 10, 100])
@pytest.mark.parametrize("scheduler", [DDIMScheduler, DDPMScheduler])
def test_samplers_are_diffusers(scheduler: type, steps: int, kind: str) -> None:
    name = scheduler.__name__[:4]
    objective = Diffusion(
        PolicyConfig(noise_scheduler_type=name, num_inference_steps=steps, prediction_type=kind)
    )
    theirs = scheduler(100, beta_schedule="squaredcos_cap_v2", prediction_type=kind)
    theirs.set_timesteps(steps)

    def denoise(x: torch.Tensor, time: torch.Tensor) -> torch.Tensor:
        return torch.tanh(x * 0.7 + time.view(-1, 1, 1) / 100 - 0.4)

    torch.manual_seed(0)
    noise = torch.randn(2, 8, 6)
    expected = noise
    torch.manual_seed(1)
    for t in theirs.timesteps:
        output = denoise(expected, t.repeat(2))
        expected = theirs.step(output, t, expected).prev_sample
    torch.manual_seed(1)
    error = float((objective.sample(denoise, noise) - expected).abs().max())
    tolerance = (
        1e-6 if steps < 100 else 1e-5
    )  # diffusers keeps its coefficients in float32, which adds up
    assert error < tolerance, f"max error {error:.1e}"


def test_ddpm_takes_its_noise_as_an_argument() -> None:
    objective = Diffusion(PolicyConfig(num_inference_steps=10))
    noise, step_noise = torch.randn(1, 4, 2), torch.randn(9, 1, 4, 2)
    runs = [objective.sample(lambda x, t: 0.1 * x, noise, step_noise) for _ in range(2)]
    assert torch.equal(*runs)
    other = objective.sample(lambda x, t: 0.1 * x, noise, torch.zeros_like(step_noise))
    assert not torch.allclose(runs[0], other)


def test_ddpm_variance_golden_numbers() -> None:
    steps = Diffusion(PolicyConfig(num_inference_steps=100)).steps()
    values = {s.time: ddpm_variance(s) for s in steps}
    for time, golden in {1: 4.0348663e-4, 50: 0.030604381, 99: 0.99875766}.items():
        assert values[time] == pytest.approx(golden, rel=1e-3)


def test_flow_matching_integrates_a_known_field() -> None:
    """dx/dt = -x from x(0) = 1 ends at exp(-1); RK4 gets there, Euler nearly."""
    ends = {}
    for method in ("euler", "rk4"):
        config = PolicyConfig(
            objective="flow_matching", integration_method=method, num_integration_steps=20
        )
        ends[method] = float(FlowMatching(config).sample(lambda x, t: -x, torch.ones(1, 1, 1)))
    assert ends["rk4"] == pytest.approx(0.36787944, abs=1e-6)
    assert ends["euler"] == pytest.approx(0.95**20, abs=1e-6)


SAMPLERS = {
    "ddim": {"noise_scheduler_type": "DDIM", "num_inference_steps": 4},
    "ddim, no clipping": {
        "noise_scheduler_type": "DDIM",
        "num_inference_steps": 4,
        "clip_sample": False,
    },
    "ddpm": {"noise_scheduler_type": "DDPM", "num_inference_steps": 4},
    "ddpm, predicts the sample": {
        "noise_scheduler_type": "DDPM",
        "num_inference_steps": 4,
        "prediction_type": "sample",
    },
    "euler": {"objective": "flow_matching", "num_integration_steps": 4},
    "rk4": {"objective": "flow_matching", "num_integration_steps": 2, "integration_method": "rk4"},
}


def joining(x: torch.Tensor, time: torch.Tensor) -> torch.Tensor:
    """A network in which every row hears of every other."""
    return torch.tanh(x.cumsum(1).flip(1) * 0.3 + x.mean(1, keepdim=True))


def draw(objective: Diffusion | FlowMatching, **held: torch.Tensor) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    noise, *step_noise = torch.randn(objective.draws, 2, 8, 3, generator=generator)
    return objective.sample(joining, noise, step_noise, **held)


@pytest.mark.parametrize("name", SAMPLERS)
def test_a_prefix_is_held_and_felt_and_nothing_without_its_mask(name: str) -> None:
    objective = make_objective(PolicyConfig(**SAMPLERS[name]))  # type: ignore[arg-type]
    prefix = torch.randn(2, 8, 3, generator=torch.Generator().manual_seed(1))
    mask = (torch.arange(8) < 3).float().expand(2, 8)[:, :, None]
    plain, held = draw(objective), draw(objective, prefix=prefix, mask=mask)
    assert torch.equal(draw(objective, prefix=prefix, mask=torch.zeros_like(mask)), plain)
    assert torch.equal(draw(objective, prefix=prefix, mask=torch.ones_like(mask)), prefix)
    assert torch.equal(held[:, :3], prefix[:, :3])
    assert (held - plain)[:, 3:].abs().max() > 1e-3
    one = mask * torch.tensor([1.0, 0.0]).view(
        2, 1, 1
    )  # only the first chunk of the batch holds anything
    assert torch.equal(draw(objective, prefix=prefix, mask=one)[1], plain[1])


def test_the_network_sees_held_rows_at_its_own_noise_level() -> None:
    """Half way through flow matching a row is half noise; at diffusion's time t it has alpha_bar[t]
    of signal left.
    """
    noise, prefix, mask = (
        torch.full((1, 4, 1), 2.0),
        torch.full((1, 4, 1), 10.0),
        torch.ones(1, 4, 1),
    )
    seen: list[tuple[float, float]] = []

    def look(x: torch.Tensor, time: torch.Tensor) -> torch.Tensor:
        seen.append((float(time), float(x[0, 0, 0])))
        return x

    flow = PolicyConfig(
        objective="flow_matching", num_integration_steps=2, integration_method="rk4", sigma_min=0.0
    )
    FlowMatching(flow).sample(look, noise, prefix=prefix, mask=mask)
    expected = {0.0: 2.0, 0.25: 4.0, 0.5: 6.0, 0.75: 8.0, 1.0: 10.0}
    assert [time for time, _ in seen] == [0.0, 0.25, 0.25, 0.5, 0.5, 0.75, 0.75, 1.0]
    assert all(x == pytest.approx(expected[time]) for time, x in seen)

    seen.clear()
    diffusion = ddim(num_inference_steps=2)
    diffusion.sample(look, noise, prefix=prefix, mask=mask)
    for time, x in seen:
        signal = float(diffusion.alpha_bar[int(time)])
        assert x == pytest.approx(10 * signal**0.5 + 2 * (1 - signal) ** 0.5, rel=1e-5)
