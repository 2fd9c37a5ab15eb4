"""Every kind of policy, exported, against LeRobot's own with its own processors; and TensorRT takes
every graph of it.

Frames and positions are of the twin's demonstrations. The cases are a covering set: every value of
every axis meets every value of every other axis at least once; every fourth is exported in fp16
too. LeRobot gets the same noise, stage by stage and end to end.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from covering import assert_covered, covering
from lerobot_policy import LeRobot, lerobot_noise
from PIL import Image
from plans_ahead import PlansAhead
from workshop import Workshop

from mtdit.data.lerobot_dataset import Dataset, open_dataset
from mtdit.policies.multi_task_dit.clip import ClipShape, TextShape, VisionShape
from mtdit.policies.multi_task_dit.tiny_clip import make_tiny_clip
from mtdit_export.export import export
from mtdit_export.options import ExportOptions
from mtdit_export.reference import read_frames
from mtdit_runtime.bundle.bundle import open_bundle
from mtdit_runtime.simulate import simulate
from mtdit_runtime.verify.candidate import EngineRunner
from mtdit_runtime.verify.fixtures import Probe

SAMPLERS: Mapping[str, Mapping[str, Any]] = {
    "ddim epsilon": {"noise_scheduler_type": "DDIM", "prediction_type": "epsilon"},
    "ddim sample": {
        "noise_scheduler_type": "DDIM",
        "prediction_type": "sample",
        "clip_sample": False,
    },
    "ddpm epsilon": {"noise_scheduler_type": "DDPM", "prediction_type": "epsilon"},
    "ddpm sample": {"noise_scheduler_type": "DDPM", "prediction_type": "sample"},
    "euler": {"objective": "flow_matching", "integration_method": "euler"},
    "rk4": {"objective": "flow_matching", "integration_method": "rk4"},
}
POSITIONS: Mapping[str, Mapping[str, bool]] = {
    "rope": {"use_rope": True, "use_positional_encoding": False},
    "absolute": {"use_rope": False, "use_positional_encoding": True},
    "both": {"use_rope": True, "use_positional_encoding": True},
    "neither": {"use_rope": False, "use_positional_encoding": False},
}
PATCHES = {"B/32": 32, "B/16": 16, "L/14": 14}  # CLIP's real grids of 224 pixels, on narrow towers
FRAMES: Mapping[str, tuple[tuple[int, int], tuple[int, int] | None, tuple[int, int] | None]] = {
    "480x640": ((480, 640), (240, 320), (224, 224)),
    "240x320, not resized": ((240, 320), None, (224, 224)),
    "odd": ((251, 333), (231, 239), (224, 224)),
    "224x224 as it is": ((224, 224), None, None),
}
AXES: Mapping[str, Sequence[Any]] = {
    "sampler": tuple(SAMPLERS),
    "positions": tuple(POSITIONS),
    "separate": (False, True),
    "cameras": (0, 1, 2, 3),
    "n_obs": (1, 2, 3),
    "patches": tuple(PATCHES),
    "frames": tuple(FRAMES),
}
CAMERAS = ("top", "wrist", "side")
# a first, a middle and a last step; RK4 calls the network four times in each, and TensorRT takes
# ten times as long for twelve calls as for three
STEPS, RK4_STEPS = 3, 2
SEED = 11
FP32_LIMIT = 1e-4  # normalised
DEGREES_LIMIT = {"fp32": 0.01, "fp16": 0.1}
Case = dict[str, Any]


CASES = covering(AXES, SEED)
EXPORTS = [(case, "fp32") for case in CASES] + [(case, "fp16") for case in CASES[::4]]


def test_every_pair_of_values_is_covered() -> None:
    assert_covered(AXES, CASES)


def label(case: Case) -> str:
    towers = "separate" if case["separate"] else "shared"
    return ", ".join(
        str(v)
        for v in {**case, "separate": towers, "cameras": f"{case['cameras']} cameras"}.values()
    )


@pytest.fixture(scope="module")
def demonstrations(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """One demonstration of each of two tasks."""
    folder = tmp_path_factory.mktemp("twin") / "demonstrations"
    simulate(["open the drawer", "push the red cube to the left"], 1, folder, image_size=(120, 160))
    return open_dataset(str(folder))


@pytest.fixture(scope="module")
def workshops(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Workshop]:
    """Patches -> what makes policies around such a CLIP."""
    made = {}
    for name, patch in PATCHES.items():
        vision = VisionShape(64, 128, 2, 2, image_size=224, patch_size=patch)
        shape = ClipShape(vision, TextShape(32, 64, 2, 2, eos_token_id=49407))
        clip = make_tiny_clip(tmp_path_factory.mktemp("models") / f"clip-{patch}", shape)
        made[name] = Workshop(clip, shape)
    return made


def steps_of(case: Case) -> int:
    return RK4_STEPS if case["sampler"] == "rk4" else STEPS


def checkpoint_of(case: Case, workshop: Workshop, folder: Path) -> Path:
    size, resize, crop = FRAMES[case["frames"]]
    config = workshop.config(
        CAMERAS[: case["cameras"]],
        size,
        **SAMPLERS[case["sampler"]],
        **POSITIONS[case["positions"]],
        use_separate_rgb_encoder_per_camera=case["separate"],
        n_obs_steps=case["n_obs"],
        image_resize_shape=resize,
        image_crop_shape=crop,
        num_inference_steps=steps_of(case),
        num_integration_steps=steps_of(case),
    )
    return workshop.checkpoint(folder / "pretrained_model", config)


def real_probe(case: Case, dataset: Dataset, noise: np.ndarray, row: int) -> Probe:
    """Consecutive rows of a demonstration, its pictures brought to the case's size; a third camera
    sees a mirror.
    """
    rows = range(row, row + case["n_obs"])
    height, width = FRAMES[case["frames"]][0]

    def picture(frame: np.ndarray) -> np.ndarray:
        return np.asarray(Image.fromarray(frame).resize((width, height)))

    seen = {name: read_frames(dataset, name, set(rows)) for name in ("top", "wrist")}
    frames = {name: np.stack([picture(at[r]) for r in rows]) for name, at in seen.items()}
    frames["side"] = frames["top"][:, :, ::-1].copy()
    wanted = {name: frames[name] for name in CAMERAS[: case["cameras"]]}
    return Probe(wanted, dataset.state[list(rows)], dataset.tasks[int(dataset.task[row])], noise)


@pytest.mark.parametrize(
    ("case", "precision"), EXPORTS, ids=[f"{label(c)}, {precision}" for c, precision in EXPORTS]
)
def test_export_equals_lerobot_and_tensorrt_takes_it(
    case: Case,
    precision: str,
    workshops: dict[str, Workshop],
    demonstrations: Dataset,
    plans_ahead: PlansAhead,
    tmp_path: Path,
) -> None:
    checkpoint = checkpoint_of(case, workshops[case["patches"]], tmp_path)
    sampler = case["sampler"].split()[0]
    export(
        checkpoint,
        tmp_path / "case.mtdit",
        ExportOptions(steps=steps_of(case), sampler=sampler, precision=precision),
    )
    bundle = open_bundle(tmp_path / "case.mtdit")
    assert bundle.manifest.precision == precision
    lerobot, candidate, draws = (
        LeRobot(checkpoint),
        EngineRunner(bundle),
        bundle.manifest.sampler.draws,
    )
    for seed, row in enumerate((0, 60)):
        noise = next(lerobot_noise(seed, bundle.manifest.horizon, draws))
        probe = real_probe(case, demonstrations, noise, row)
        wanted = lerobot.stages(probe, seed)
        if precision == "fp32":
            compare_stages(candidate, probe, wanted)
        limit = DEGREES_LIMIT[precision]
        np.testing.assert_allclose(
            candidate.positions(probe), wanted["degrees"], atol=limit, rtol=0, err_msg="degrees"
        )
    graphs = [bundle.path(graph.file) for graph in bundle.manifest.graphs.values()]
    lines = plans_ahead.build(*graphs)
    assert [line.split()[:2] for line in lines] == [["built:", path.name] for path in graphs]


def compare_stages(candidate: EngineRunner, probe: Probe, wanted: Mapping[str, np.ndarray]) -> None:
    """The denoiser on LeRobot's own features and text."""
    features, (_, text) = candidate.features(probe), candidate.text(probe.task)
    if probe.frames:
        largest = max(1.0, np.abs(wanted["features"]).max())
        np.testing.assert_allclose(
            features, wanted["features"], atol=FP32_LIMIT * largest, rtol=0, err_msg="vision"
        )
    np.testing.assert_allclose(text, wanted["text"], atol=FP32_LIMIT, rtol=0, err_msg="text")
    seen = wanted["features"] if probe.frames else None
    known = candidate.history_modulation(wanted["state"], wanted["text"], seen)
    actions = candidate.actions(wanted["state"], known, probe.noise, seen)
    np.testing.assert_allclose(
        actions, wanted["actions"], atol=FP32_LIMIT, rtol=0, err_msg="denoiser"
    )
