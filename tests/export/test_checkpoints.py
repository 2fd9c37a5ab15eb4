"""The export of brysonjones/multitask_dit_policy's folders, against the libraries that repository
calls.
"""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import numpy as np
import onnx
import pytest
from brysonjones_oracle import CAMERAS, FRAME, TASK, Theirs, config_json, diffusion
from workshop import TASKS, Workshop

from mtdit.stats import DatasetFacts
from mtdit_export.export import export
from mtdit_export.options import ExportOptions, Precision
from mtdit_robots.errors import UserError
from mtdit_robots.so101.joints import JOINTS
from mtdit_runtime.bundle.bundle import open_bundle
from mtdit_runtime.engines.choose import choose_engines
from mtdit_runtime.policy.bundle_policy import BundlePolicy

STEPS = 4


@pytest.fixture(scope="module")
def theirs(workshop: Workshop) -> Theirs:
    return Theirs(config_json(workshop.clip, {}, diffusion("DDIM", num_inference_steps=STEPS)))


@pytest.fixture(scope="module")
def folder(theirs: Theirs, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As that repository leaves it."""
    return theirs.save(tmp_path_factory.mktemp("theirs") / "final_model")


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_the_bundle_acts_as_their_policy(
    precision: Precision, theirs: Theirs, folder: Path, tmp_path: Path
) -> None:
    facts = DatasetFacts("demo", 30, JOINTS, TASKS, (90.0,) * 6, "so_follower")
    (folder / "mtdit.json").write_text(json.dumps(asdict(facts)))
    export(folder, tmp_path / "theirs.mtdit", ExportOptions(steps=STEPS, precision=precision))
    (folder / "mtdit.json").unlink()
    opened, rng = open_bundle(tmp_path / "theirs.mtdit"), np.random.default_rng(2)
    policy = BundlePolicy(opened, choose_engines(opened, "onnx"))
    positions = rng.uniform(-60, 20, (2, 6)).astype(np.float32)
    positions[:, 4] = -30.0  # never moved in training
    frames = {c: rng.integers(0, 256, (2, *FRAME, 3), np.uint8) for c in CAMERAS}
    noise = rng.standard_normal((12, 6), np.float32)
    policy.reset(TASK, seed=0)
    for i, position in enumerate(positions):
        policy.observe(position.astype(np.float64), {c: f[i] for c, f in frames.items()})
    wanted = theirs.chunk(positions, frames, noise)
    np.testing.assert_allclose(
        policy.chunk(noise), wanted, atol=0.1 if precision == "fp16" else 5e-3, rtol=0
    )
    operators = {
        node.op_type for node in onnx.load(tmp_path / "theirs.mtdit/vision.onnx").graph.node
    }
    assert "Gelu" in operators, "the exact one"


def test_joints_and_tasks_are_asked_for(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="does not state its joints, rate and tasks: add --dataset"):
        export(folder, tmp_path / "theirs.mtdit", ExportOptions(steps=STEPS))
    assert not (tmp_path / "theirs.mtdit").exists()
