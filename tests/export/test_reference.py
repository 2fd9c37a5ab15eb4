"""The gates: what passes, what fails, and that a failure leaves nothing behind."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper
from workshop import overflow_half

from mtdit.checkpoint.read import open_checkpoint
from mtdit_export.export import export
from mtdit_export.options import FP16, FP32, INT8, ExportOptions
from mtdit_export.reference import synthetic_probes
from mtdit_robots.errors import ExportError
from mtdit_runtime.bundle.bundle import Bundle, open_bundle, save_task_features
from mtdit_runtime.bundle.manifest import STATS, TASKS, write_manifest
from mtdit_runtime.engines.choose import choose_engines
from mtdit_runtime.files import sha256
from mtdit_runtime.normalize import load_stats, save_stats
from mtdit_runtime.verify.candidate import EngineRunner
from mtdit_runtime.verify.fixtures import Probe
from mtdit_runtime.verify.gates import FP32_LIMIT, check_bundle, failures, figures


def stage(
    max_error: float,
    largest: float = 1.0,
    rms_error: float = 0.0,
    spread: float = 1.0,
    p99: float = 0.0,
    p999: float | None = None,
) -> dict[str, float]:
    """p99.9 is the largest error unless it is given."""
    tail = {"p99_error": p99, "p99.9_error": max_error if p999 is None else p999}
    errors = {"max_error": max_error, "rms_error": rms_error, **tail}
    return {**errors, "largest": largest, "spread": spread}


def test_exact_graphs_pass_every_gate() -> None:
    stages = {
        name: stage(0.0)
        for name in ("vision", "text", "history", "denoiser", "held", "chunk", "robot")
    }
    assert failures(stages, FP32) == failures(stages, FP16) == failures(stages, INT8) == []


@pytest.mark.parametrize("name", ["vision", "text", "history", "denoiser", "held", "chunk"])
@pytest.mark.parametrize("error", [1.1e-4, float("inf"), float("nan")])
def test_fp32_stage_over_its_limit_is_named(name: str, error: float) -> None:
    stages = {
        **{
            n: stage(0.0)
            for n in ("vision", "text", "history", "denoiser", "held", "chunk", "robot")
        },
        name: stage(error),
    }
    (line,) = failures(stages, FP32)
    assert line.startswith(f"{name}: max error")


def test_features_are_judged_against_their_size() -> None:
    stages = {
        "vision": stage(9 * FP32_LIMIT, largest=10.0),
        "denoiser": stage(0.0),
        "chunk": stage(0.0),
    }
    assert failures(stages, FP32) == []


@pytest.mark.parametrize(
    ("robot", "broken"),
    [
        (stage(0.09, rms_error=0.019, spread=1.0), []),
        (stage(0.09, rms_error=0.03, spread=1.0), ["rms error"]),
        (stage(0.3, rms_error=0.01, spread=1.0, p999=0.09), []),
        (stage(0.3, rms_error=0.01, spread=1.0, p999=0.11), ["p99.9 error"]),
        (stage(0.4, rms_error=0.05, spread=25.0, p99=0.2), []),  # a random policy at full size
        (
            stage(0.09, rms_error=0.015, spread=0.001),
            [],
        ),  # hardly varies, but a quarter of a servo tick is nothing
        (stage(float("nan"), rms_error=float("nan")), ["rms error", "p99.9 error"]),
    ],
)
def test_fp16_is_judged_in_degrees_and_against_the_spread(
    robot: dict[str, float], broken: list[str]
) -> None:
    found = failures({"robot": robot}, FP16)
    assert len(found) == len(broken)
    assert all(word in line for word, line in zip(broken, found, strict=True))


@pytest.mark.parametrize(("p99", "broken"), [(0.1, 0), (0.11, 1)])
def test_a_trained_policys_errors_stay_below_a_servo_tick(p99: float, broken: int) -> None:
    robot = {"robot": stage(0.4, rms_error=0.05, spread=25.0, p99=p99)}
    found = failures(robot, FP16, trained=True)
    assert len(found) == broken
    assert all(line == "robot: p99 error 0.11 exceeds 0.1 degrees" for line in found)
    assert failures(robot, FP16) == failures(robot, INT8, trained=True) == []


@pytest.mark.parametrize("name", ["vision", "text", "history", "denoiser"])
@pytest.mark.parametrize(("rms_error", "broken"), [(3.9e-3, 0), (4.1e-3, 1)])
def test_a_stage_may_err_by_twice_what_rounding_costs(
    name: str, rms_error: float, broken: int
) -> None:
    stages = {name: {**stage(5e-3, rms_error=rms_error), "rounding": 2e-3}}
    says = f"{name}: rms error 0.0041 exceeds 0.004, 2 times what rounding to float16 costs"
    assert failures(stages, FP16) == [says] * broken


@pytest.mark.parametrize("name", ["robot", "text robot", "guided robot"])
@pytest.mark.parametrize(("rms_error", "broken"), [(0.099, 0), (0.101, 1)])
def test_int8_may_err_by_a_tenth_of_the_spread(name: str, rms_error: float, broken: int) -> None:
    stages = {"robot": stage(0.0), name: stage(0.5, rms_error=rms_error)}
    found = failures(stages, INT8)
    assert len(found) == broken
    assert all(
        line.startswith(f"{name}: rms error 0.1 exceeds 0.1 degrees, 10% of the spread")
        for line in found
    )


def test_int8_leaves_the_denoiser_exact() -> None:
    stages = {
        "vision": stage(0.1),
        "denoiser": stage(2e-4),
        "guided": stage(2e-4),
        "robot": stage(0.0),
    }
    assert [line.partition(":")[0] for line in failures(stages, INT8)] == ["denoiser", "guided"]


def test_a_single_nan_is_an_infinite_error() -> None:
    got = np.array([0.0, np.nan], np.float32)
    assert figures([(got, np.zeros(2, np.float32))])["max_error"] == np.inf


@pytest.mark.parametrize("fixture", ["bundle", "half_bundle", "int8_bundle"])
def test_record_in_the_manifest_holds_every_stage(
    fixture: str, request: pytest.FixtureRequest
) -> None:
    manifest = open_bundle(request.getfixturevalue(fixture)).manifest
    stages = manifest.verification["stages"]
    features, robot = ["vision", "text", "history"], ["robot", "text robot", "held robot"]
    in_order = [
        "state",
        "units",
        *features,
        "denoiser",
        "held",
        "chunk",
        *robot,
        "tasks",
        "all tasks",
    ]
    assert [stage for stage in stages if stage != "tasks"] == [
        stage for stage in in_order if stage != "tasks"
    ]
    assert ("tasks" in stages) == (fixture != "int8_bundle"), "its dataset is of other tasks"
    assert failures(stages, manifest.precision) == []
    if manifest.precision == FP32:
        assert stages["chunk"]["max_error"] < 1e-5


def test_golden_files_replay(bundle: Path) -> None:
    """What lies in golden/ is enough to check every stage without torch."""
    opened = open_bundle(bundle)
    candidate = EngineRunner(opened)
    for path in sorted((bundle / "golden").glob("*.npz")):
        with np.load(path, allow_pickle=False) as file:
            golden = dict(file)
        frames = {c.name: golden[f"frame.{c.name}"] for c in opened.manifest.cameras}
        probe = Probe(frames, golden["positions"], str(golden["task"]), golden["noise"])
        ids, text = candidate.text(probe.task)
        np.testing.assert_array_equal(ids, golden["token_ids"])
        np.testing.assert_allclose(text, golden["text"], atol=1e-5)
        np.testing.assert_allclose(candidate.features(probe), golden["features"], atol=1e-5)
        known = candidate.history_modulation(golden["state"], golden["text"], golden["features"])
        np.testing.assert_allclose(known, golden["known"], atol=1e-5)
        actions = candidate.actions(
            golden["state"], golden["known"], probe.noise, golden["features"]
        )
        np.testing.assert_allclose(actions, golden["actions"], atol=1e-4)
        np.testing.assert_allclose(candidate.positions(probe), golden["actions_units"], atol=1e-2)


@pytest.mark.parametrize("fixture", ["half_bundle", "int8_bundle"])
def test_wrecked_text_graph_is_caught_though_known_tasks_do_not_need_it(
    fixture: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    folder = tmp_path / "wrecked.mtdit"
    shutil.copytree(request.getfixturevalue(fixture), folder)
    model = onnx.load(folder / "text.onnx")
    (weight,) = (w for w in model.graph.initializer if w.name == "projection.weight")
    weight.CopyFrom(numpy_helper.from_array(-numpy_helper.to_array(weight), weight.name))
    onnx.save(model, folder / "text.onnx")
    wrecked = Bundle(
        folder, write_manifest(folder, open_bundle(folder, check_files=False).manifest)
    )
    assert any(
        line.startswith("text robot: rms error")
        for line in check_bundle(wrecked, choose_engines(wrecked, "onnx")).failures
    )


@pytest.mark.parametrize("precision", [FP32, FP16, INT8])
@pytest.mark.parametrize("name", ["state", "tasks", "units"])
def test_what_is_float32_in_every_bundle_is_exact_in_every_bundle(
    precision: str, name: str
) -> None:
    error = 0.03 if name == "units" else 2e-4
    assert [line.partition(":")[0] for line in failures({name: stage(error)}, precision)] == [name]


CHANGED = [
    (fixture, stage)
    for fixture in ("bundle", "half_bundle", "int8_bundle")
    for stage in ("state", "units", "tasks", "all tasks", "vision")
]
CHANGED.remove(("int8_bundle", "tasks"))  # was checked on a dataset of other tasks


@pytest.mark.parametrize(("fixture", "stage"), CHANGED)
def test_what_the_tolerances_of_actions_would_let_pass_is_named(
    fixture: str, stage: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    """Of int8, a tenth of an untrained policy's spread is a lot."""
    bundle = open_bundle(
        shutil.copytree(request.getfixturevalue(fixture), tmp_path / "changed.mtdit")
    )
    SPOIL[stage](bundle)
    changed = Bundle(bundle.folder, write_manifest(bundle.folder, bundle.manifest))
    found = check_bundle(changed, choose_engines(changed, "onnx")).failures
    assert stage in [line.partition(":")[0] for line in found]


def spoil_stats(key: str) -> Callable[[Bundle], None]:
    """Two joints swapped, and another range, because theirs are equal."""

    def spoil(bundle: Bundle) -> None:
        stats = load_stats(bundle.path(STATS))
        low, high = (
            side[[1, 0, *range(2, len(side))]] for side in (stats[key].low - 3, stats[key].high)
        )
        save_stats(bundle.path(STATS), {**stats, key: replace(stats[key], low=low, high=high)})

    return spoil


def spoil_task(number: int) -> Callable[[Bundle], None]:
    def spoil(bundle: Bundle) -> None:
        features = dict(bundle.task_features)
        features[list(features)[number]] *= -1
        save_task_features(bundle.path(TASKS), features)

    return spoil


def negate_features(bundle: Bundle) -> None:
    model = onnx.load(bundle.path("vision.onnx"))
    for node in model.graph.node:
        node.output[:] = ["negative" if name == "features" else name for name in node.output]
    model.graph.node.append(helper.make_node("Neg", ["negative"], ["features"]))
    onnx.save(model, bundle.path("vision.onnx"))


SPOIL = {
    "state": spoil_stats("observation.state"),
    "units": spoil_stats("action"),
    "tasks": spoil_task(0),
    "all tasks": spoil_task(-1),
    "vision": negate_features,
}


def test_task_features_are_the_text_graphs(bundle: Path) -> None:
    opened = open_bundle(bundle)
    candidate = EngineRunner(opened)
    assert list(opened.task_features) == list(opened.manifest.tasks)
    for task, feature in opened.task_features.items():
        np.testing.assert_allclose(candidate.text(task)[1][0], feature, atol=1e-5)


def test_probes_are_repeatable_and_within_the_training_range(checkpoint: Path) -> None:
    opened = open_checkpoint(checkpoint)
    first, second = (synthetic_probes(opened, ["a", "b"], count=3, seed=5) for _ in range(2))
    assert [p.task for p in first] == ["a", "b", "a"]
    for one, two in zip(first, second, strict=True):
        np.testing.assert_array_equal(one.frames["top"], two.frames["top"])
        assert one.positions.min() >= -40.0
        assert one.positions.max() <= 40.0


def test_failing_gate_keeps_the_bundle_before_and_nothing_else(
    workshop: Any, tmp_path_factory: pytest.TempPathFactory, tmp_path: Path
) -> None:
    config = workshop.config(cameras=(), num_layers=1, num_train_timesteps=10)
    checkpoint = workshop.checkpoint(tmp_path_factory.mktemp("wild") / "pretrained_model", config)
    overflow_half(checkpoint)
    out = tmp_path / "wild.mtdit"
    report = export(checkpoint, out, ExportOptions(steps=1))
    assert "vision" not in report.stages
    assert choose_engines(open_bundle(out), "onnx").vision is None
    before = {p: sha256(p) for p in out.rglob("*") if p.is_file()}
    with pytest.raises(
        ExportError,
        match=r"fp16 graphs differ from .*: text: a value is beyond .* float16.*without --fp16",
    ) as refusal:
        export(checkpoint, out, ExportOptions(steps=1, precision="fp16"))
    assert not np.isfinite(refusal.value.stages["text"]["rounding"])
    assert {p: sha256(p) for p in out.rglob("*") if p.is_file()} == before
    assert json.loads((out / "manifest.json").read_text())["precision"] == FP32
    assert [p.name for p in tmp_path.iterdir()] == ["wild.mtdit"]
