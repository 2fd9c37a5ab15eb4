"""The unrolled sampler: each one against the torch policy with the same noise, its prefix, and its
hundred steps.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import Tensor

from mtdit.checkpoint.read import open_checkpoint
from mtdit.policies.multi_task_dit.policy import Batch
from mtdit.torch_policy import TorchPolicy
from mtdit_export.export import example_inputs, export
from mtdit_export.fold.fold import Folded, fold
from mtdit_export.options import ExportOptions
from mtdit_export.trace import write
from mtdit_export.trt_compat import problems
from mtdit_export.unroll import unroll
from mtdit_runtime.bundle.bundle import open_bundle
from mtdit_runtime.bundle.manifest import KNOWN, PREFIX, PREFIX_MASK, STATE
from mtdit_runtime.engines.choose import choose_engines
from mtdit_runtime.policy.bundle_policy import BundlePolicy

BLIND: Mapping[str, Any] = {
    "cameras": (),
    "num_layers": 1,
    "num_inference_steps": 3,
    "num_integration_steps": 3,
}
SAMPLERS: dict[str, dict[str, Any]] = {
    "ddim": {},
    "ddim, predicts the sample, no clipping": {"prediction_type": "sample", "clip_sample": False},
    "ddpm": {"noise_scheduler_type": "DDPM"},
    "ddpm, predicts the sample": {"noise_scheduler_type": "DDPM", "prediction_type": "sample"},
    "ddpm, one step": {"noise_scheduler_type": "DDPM", "num_inference_steps": 1},
    "euler": {"objective": "flow_matching"},
    "rk4": {"objective": "flow_matching", "integration_method": "rk4"},
}
HELD = 5  # rows


def examples(folded: Folded, config: Any) -> dict[str, Tensor]:
    """Random inputs; the first rows are held."""
    torch.manual_seed(3)
    inputs = {
        name: torch.randn(x.shape) for name, x in example_inputs("denoiser", folded, config).items()
    }
    return inputs | {PREFIX_MASK: (torch.arange(config.horizon) < HELD).float()[None, :, None]}


def run(model: onnx.ModelProto, inputs: Mapping[str, Tensor], path: Path) -> np.ndarray:
    write(model, path, {})
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return session.run(None, {name: x.numpy() for name, x in inputs.items()})[0]


@pytest.mark.parametrize("name", SAMPLERS)
@torch.no_grad()
def test_every_sampler_is_the_policys_with_and_without_a_prefix(
    workshop: Any, tmp_path: Path, name: str
) -> None:
    config = workshop.config(**{**BLIND, **SAMPLERS[name]})
    policy = workshop.policy(config)
    folded = fold(policy, {})
    inputs = examples(folded, config)
    pooled = policy.pooled_text(torch.full((1, 77), 49407))
    states = torch.randn(1, config.n_obs_steps, 6)
    inputs |= {
        KNOWN: folded.history(policy.observation_encoder.text_encoder(pooled), states[:, :-1])
    }
    inputs[STATE] = states[:, -1]
    conditioning = policy.conditioning(Batch({}, states, pooled))
    noise, step_noise = (
        inputs["noise"],
        inputs["step_noise"].transpose(0, 1) if "step_noise" in inputs else None,
    )

    model = unroll(folded.denoiser, inputs)
    held = run(model, inputs, tmp_path / "held.onnx")
    wanted = policy.sample_from(
        conditioning, noise, step_noise, inputs[PREFIX], inputs[PREFIX_MASK]
    )
    np.testing.assert_allclose(held, wanted.numpy(), atol=1e-5, rtol=0)
    np.testing.assert_array_equal(held[0, :HELD], inputs[PREFIX][0, :HELD].numpy())

    free = run(
        model, inputs | {PREFIX_MASK: torch.zeros_like(inputs[PREFIX_MASK])}, tmp_path / "free.onnx"
    )
    assert np.abs(free - held)[0, HELD:].max() > 1e-4, "the prefix did not reach the other rows"
    np.testing.assert_allclose(
        free, policy.sample_from(conditioning, noise, step_noise).numpy(), atol=1e-5, rtol=0
    )
    without = {name: x for name, x in inputs.items() if name not in (PREFIX, PREFIX_MASK)}
    plain = run(unroll(folded.denoiser, without), without, tmp_path / "plain.onnx")
    np.testing.assert_array_equal(free, plain)


@torch.no_grad()
def test_a_hundred_steps_of_ddpm_are_plain_nodes_that_share_their_weights(
    workshop: Any, tmp_path: Path
) -> None:
    config = workshop.config(
        **{**BLIND, "noise_scheduler_type": "DDPM", "num_inference_steps": 100}
    )
    folded = fold(workshop.policy(config), {})
    inputs = examples(folded, config)
    model = unroll(folded.denoiser, inputs)
    assert problems(model) == []
    parts = {node.name.partition("/")[0] for node in model.graph.node}
    assert parts == {
        "modulation",
        "step_noise",
        "sampler",
        "actions",
        *(f"call.{i}" for i in range(100)),
    }
    assert len({node.name for node in model.graph.node}) == len(model.graph.node)
    of_network = [w for w in model.graph.initializer if w.name.startswith("network.")]
    parameters = sum(p.numel() for p in folded.denoiser.network.parameters())
    assert parameters <= sum(int(np.prod(w.dims)) for w in of_network) < parameters + 100
    got = run(model, inputs, tmp_path / "ddpm.onnx")
    np.testing.assert_allclose(got, folded.denoiser(**inputs).numpy(), atol=1e-4, rtol=0)


@pytest.mark.parametrize("sampler", ["ddim", "ddpm"])
def test_bundle_and_torch_policy_draw_equal_chunks_from_equal_seeds(
    workshop: Any, tmp_path: Path, sampler: str
) -> None:
    """DDPM's noise on the way included; the committed rows come back to the bit from both."""
    config = workshop.config(**BLIND, noise_scheduler_type=sampler.upper())
    checkpoint = workshop.checkpoint(tmp_path / "pretrained_model", config)
    export(checkpoint, tmp_path / "p.mtdit", ExportOptions(steps=3, sampler=sampler))
    bundle = open_bundle(tmp_path / "p.mtdit")
    policies = (
        TorchPolicy(open_checkpoint(checkpoint)),
        BundlePolicy(bundle, choose_engines(bundle, "onnx")),
    )
    committed = np.random.default_rng(1).uniform(-10, 10, (HELD, 6))
    for policy in policies:
        policy.reset("open the drawer", seed=4)
        policy.observe(np.zeros(6), {})
    (free, other_free), (held, other_held) = (
        [p.chunk(None, c) for p in policies] for c in (None, committed)
    )
    np.testing.assert_allclose(other_free, free, atol=1e-2, rtol=0)
    np.testing.assert_allclose(other_held, held, atol=1e-2, rtol=0)
    for chunk in (held, other_held):
        np.testing.assert_array_equal(chunk[:HELD], committed)
    shape = bundle.manifest.sampler.draws, policies[0].horizon, 6
    noise = np.random.default_rng(2).standard_normal(shape, np.float32)[
        : 1 if sampler == "ddim" else None
    ]
    (one, again), (other, _) = (
        [p.chunk(noise[0] if sampler == "ddim" else noise) for _ in "ab"] for p in policies
    )
    np.testing.assert_array_equal(one, again)
    np.testing.assert_allclose(other, one, atol=1e-2, rtol=0)
