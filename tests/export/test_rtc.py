"""The guided denoiser's graph against autograd through the trained policy."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from plans_ahead import PlansAhead
from workshop import CAMERA, STEPS, TASKS

from mtdit.policies.multi_task_dit.policy import MultiTaskDiT
from mtdit.policies.multi_task_dit.rtc import sample_guided
from mtdit_export.export import export
from mtdit_export.fold.fold import fold
from mtdit_export.options import ExportOptions
from mtdit_export.rtc import unroll_guided
from mtdit_export.trace import write
from mtdit_robots.errors import UserError
from mtdit_runtime.bundle.bundle import Bundle, open_bundle
from mtdit_runtime.engines.choose import choose_engines
from mtdit_runtime.engines.ort import OnnxEngine
from mtdit_runtime.policy.bundle_policy import BundlePolicy
from mtdit_runtime.policy.policy import draw_noise
from mtdit_runtime.policy.rtc import prefix_weights
from mtdit_runtime.verify.gates import failures

VARIANTS: dict[str, dict[str, Any]] = {
    "ddim": {},
    "ddim otherwise": {
        "prediction_type": "sample",
        "clip_sample": False,
        "use_rope": False,
        "use_positional_encoding": True,
    },
    "ddpm": {"noise_scheduler_type": "DDPM"},
    "euler": {"objective": "flow_matching", "num_integration_steps": 3},
    "rk4": {"objective": "flow_matching", "num_integration_steps": 2, "integration_method": "rk4"},
}


class Case:
    """A policy without cameras, which change nothing here, and what its denoiser is called with."""

    def __init__(self, workshop: Any, folder: Path, **changes: Any) -> None:
        self.folder, self.config = folder, workshop.config(cameras=(), **changes)
        self.policy: MultiTaskDiT = workshop.policy(self.config)
        folded = fold(self.policy, {})
        self.folded = folded.denoiser
        torch.manual_seed(1)
        chunk = (1, self.config.horizon, 6)
        state, pooled = (
            torch.randn(1, self.config.n_obs_steps, 6),
            torch.randn(1, workshop.shape.text.hidden_size),
        )
        encoder = self.policy.observation_encoder
        with torch.no_grad():
            self.conditioning, text = encoder(state, None, pooled), encoder.text_encoder(pooled)
            seen = {"known": folded.history(text, state[:, :-1]), "state": state[:, -1]}
        self.weights = torch.from_numpy(prefix_weights(self.config.horizon, 3, 8)).reshape(1, -1, 1)
        self.inputs = {**seen, "noise": torch.randn(chunk), "prefix": torch.randn(chunk)}
        draws = self.folded.objective.draws - 1
        self.step_noise = {"step_noise": torch.randn(1, draws, *chunk[1:])} if draws else {}

    @cached_property
    def guided(self) -> OnnxEngine:
        model = unroll_guided(self.folded, self._inputs(prefix_weights=self.weights))
        path = self.folder / "guided.onnx"
        return OnnxEngine(path, write(model, path, {}), "guided")

    def run(self, weights: torch.Tensor) -> torch.Tensor:
        inputs = {name: x.numpy() for name, x in self._inputs(prefix_weights=weights).items()}
        return torch.from_numpy(self.guided(inputs)["actions"])

    def plain(self) -> torch.Tensor:
        return self.policy.sample_from(self.conditioning, self.inputs["noise"], self._step_noise())

    def reference(self) -> torch.Tensor:
        noise, prefix = self.inputs["noise"], self.inputs["prefix"]
        return sample_guided(
            self.policy, self.conditioning, noise, prefix, self.weights, self._step_noise()
        )

    def _step_noise(self) -> torch.Tensor | None:
        return self.step_noise["step_noise"].transpose(0, 1) if self.step_noise else None

    def _inputs(self, **rows: torch.Tensor) -> dict[str, torch.Tensor]:
        return {**self.inputs, **rows, **self.step_noise}


@pytest.mark.parametrize("variant", VARIANTS)
def test_graph_equals_autograd_through_the_policy(
    workshop: Any, tmp_path: Path, variant: str
) -> None:
    case = Case(workshop, tmp_path, **VARIANTS[variant])
    guided, plain = case.run(case.weights), case.plain()
    torch.testing.assert_close(guided, case.reference(), atol=1e-5, rtol=0)
    assert (guided - plain).abs().max() > 0.1
    torch.testing.assert_close(case.run(torch.zeros_like(case.weights)), plain, atol=1e-5, rtol=0)


@pytest.fixture(scope="module", params=["fp32", "fp16"])
def guided_bundle(
    request: pytest.FixtureRequest, checkpoint: Path, tmp_path_factory: pytest.TempPathFactory
) -> Bundle:
    out = tmp_path_factory.mktemp("bundles") / f"{request.param}.mtdit"
    export(checkpoint, out, ExportOptions(steps=STEPS, precision=request.param, rtc=True))
    return open_bundle(out)


def test_export_verifies_the_guided_graph(guided_bundle: Bundle) -> None:
    stages, half = (
        guided_bundle.manifest.verification["stages"],
        guided_bundle.manifest.precision == "fp16",
    )
    assert 0 < stages["guided"]["max_error"] <= (1e-2 if half else 1e-4)
    assert 0 < stages["guided robot"]["max_error"] <= 0.1
    wrong = {**stages, "guided": {**stages["guided"], "max_error": 2e-4}}
    wrong["guided robot"] = {**stages["guided robot"], "p99.9_error": 9.0}
    (failure,) = failures(wrong, guided_bundle.manifest.precision)
    assert failure.startswith("guided robot: p99.9 error 9" if half else "guided: max error 0.0002")


def test_weights_are_those_of_the_plain_graph(guided_bundle: Bundle) -> None:
    plain, guided = (named_weights(guided_bundle, name) for name in ("denoiser", "guided"))
    assert len(plain) > 20
    assert set(guided) == set(plain)
    for name, values in plain.items():
        np.testing.assert_array_equal(guided[name], values, err_msg=name)


def named_weights(bundle: Bundle, graph: str) -> dict[str, np.ndarray]:
    weights = onnx.load(bundle.path(bundle.manifest.graphs[graph].file)).graph.initializer
    return {
        w.name: onnx.numpy_helper.to_array(w)
        for w in weights
        if w.name.endswith((".weight", ".bias"))
    }


def test_tensorrt_builds_the_guided_graph(guided_bundle: Bundle, plans_ahead: PlansAhead) -> None:
    (line,) = plans_ahead.build(guided_bundle.path("guided.onnx"))
    assert line.startswith("built: guided.onnx")


def test_policy_continues_a_chunk(guided_bundle: Bundle) -> None:
    """Drawn from other noise, but towards the chunk being executed: near it where the weight is 1,
    itself where 0.
    """
    policy = BundlePolicy(guided_bundle, choose_engines(guided_bundle, "onnx"), rtc=True)
    policy.reset(TASKS[0], seed=0)
    rng = np.random.default_rng(0)
    policy.observe(
        np.zeros(6), {name: rng.integers(0, 256, (*CAMERA, 3), np.uint8) for name in policy.cameras}
    )
    old, noise = policy.chunk(), draw_noise(rng, policy.horizon, 6)
    weights, plain = prefix_weights(policy.horizon, 4, 8), policy.chunk(noise)
    guided = policy.request_guided(old[:8], weights, noise)()
    assert np.abs(guided - old)[:4].mean() < 0.5 * np.abs(plain - old)[:4].mean()
    free = policy.request_guided(old[:0], weights, noise)()
    half = (
        guided_bundle.manifest.precision == "fp16"
    )  # of which ONNX Runtime on a CPU rounds not all it is told to
    np.testing.assert_allclose(free, plain, atol=0.05 if half else 1e-5)  # degrees
    assert len(policy.timings.durations("guided")) == 2
    assert policy.frames_encoded == 2


def test_a_bundle_without_the_graph_says_so(bundle: Path) -> None:
    opened = open_bundle(bundle)
    with pytest.raises(UserError, match="has no guided denoiser: export it again with --rtc"):
        BundlePolicy(opened, choose_engines(opened, "onnx"), rtc=True)
