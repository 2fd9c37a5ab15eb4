"""The check on the target: what passes, what fails and is named, and what a fixture must be."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mtdit_robots.errors import UserError
from mtdit_robots.features import ACTION, STATE
from mtdit_runtime.bundle.bundle import Bundle, open_bundle
from mtdit_runtime.bundle.manifest import (
    GOLDEN,
    PREFIX_MASK,
    STATS,
    write_manifest,
)
from mtdit_runtime.engines.choose import choose_engines
from mtdit_runtime.engines.engine import Engines
from mtdit_runtime.normalize import load_stats, save_stats
from mtdit_runtime.verify.candidate import EngineRunner
from mtdit_runtime.verify.fixtures import (
    Probe,
    ReferenceOutputs,
    prefix_rows,
    read_golden,
    write_golden,
)
from mtdit_runtime.verify.gates import check_bundle
from mtdit_runtime.verify.verify import verify

Wreck = Callable[[np.ndarray], np.ndarray]


class Wrecked:
    """An engine that gives the wrong answer."""

    def __init__(self, engine: Any, wreck: Wreck) -> None:
        self.engine, self.wreck, self.name = engine, wreck, engine.name

    def __call__(self, inputs: Mapping[str, Any]) -> dict[str, np.ndarray]:
        return {name: self.wreck(array) for name, array in self.engine(inputs).items()}

    def describe(self) -> str:
        return "wrecked"


def by_hand(toy: Any, bundle: Bundle, seed: int) -> tuple[Probe, ReferenceOutputs]:
    """A fixture whose every stage is computed in numpy."""
    rng, m = np.random.default_rng(seed), bundle.manifest
    n_obs, task = m.n_obs_steps, m.tasks[seed % 2]
    frames = {
        c.name: rng.integers(0, 256, (n_obs, c.height, c.width, 3), np.uint8) for c in m.cameras
    }
    positions = np.stack(
        [rng.uniform([j.low for j in m.joints], [j.high for j in m.joints]) for _ in range(n_obs)]
    )
    noise = rng.standard_normal((m.horizon, len(m.joints)), np.float32)
    steps = [{name: f[i] for name, f in frames.items()} for i in range(n_obs)]
    chunk = toy.chunk(list(zip(positions, steps, strict=True)), task, noise)
    ids = EngineRunner(bundle, choose_engines(bundle, "onnx")).tokens(task)
    actions = bundle.stats[ACTION].normalize(chunk)[None].astype(np.float32)
    rows = prefix_rows(actions)
    features, state = (
        np.stack([toy.vision(step) for step in steps])[None],
        bundle.stats[STATE].normalize(positions)[None],
    )
    e = ReferenceOutputs(
        features=features,
        state=state,
        token_ids=ids,
        text=toy.tasks[task][None],
        history_modulation=toy.known(features, state, toy.tasks[task][None]),
        actions=actions,
        positions=chunk.astype(np.float32),
        prefixed=np.concatenate([rows[None], actions[:, len(rows) :]], axis=1),
        spread=1.0,
    )
    return Probe(frames, positions.astype(np.float32), task, noise), e


def with_golden(folder: Path, toy: Any, **changes: Any) -> Bundle:
    """The bundle with two fixtures made by hand. Its text graph gives other features than its
    tasks.npz.
    """
    bundle = open_bundle(folder)
    probes, expected = zip(*(by_hand(toy, bundle, seed) for seed in (0, 1)), strict=True)
    write_golden(folder / GOLDEN, probes, expected)
    write_manifest(folder, replace(bundle.manifest, **changes))
    return open_bundle(folder)


@pytest.fixture
def copy(bundle_folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(bundle_folder, tmp_path / "copy.mtdit"))


@pytest.fixture
def golden(copy: Path, toy: Any) -> Bundle:
    return with_golden(copy, toy)


@pytest.fixture
def engines(golden: Bundle) -> Engines:
    return choose_engines(golden, "onnx")


def test_engines_that_compute_the_policy_pass(golden: Bundle, engines: Engines) -> None:
    result = check_bundle(golden, engines, text=False)
    assert result.failures == []
    assert list(result.stages) == [
        "state",
        "units",
        "vision",
        "history",
        "denoiser",
        "held",
        "chunk",
        "robot",
        "held robot",
        "tasks",
    ]
    assert result.stages["robot"]["max_error"] < 1e-2
    assert all(
        result.stages[stage]["latency_ms"] > 0 for stage in ("vision", "history", "denoiser")
    )


def test_verify_takes_a_folder_or_an_opened_bundle(golden: Bundle) -> None:
    by_path, opened = verify(str(golden.folder), "onnx"), verify(golden, "onnx")
    assert by_path.failures == opened.failures
    assert not opened.ok, "the text graph of these bundles gives other features than tasks.npz"
    assert {line.partition(":")[0] for line in opened.failures} >= {"text", "all tasks"}
    assert opened.backend == "onnx, as requested"
    with pytest.raises(UserError, match="backend 'tpu' is unknown"):
        verify(golden, "tpu")


def test_fixtures_come_back_as_they_were_written(golden: Bundle, toy: Any) -> None:
    probes, expected = read_golden(golden)
    for seed in (0, 1):
        probe, e = by_hand(toy, golden, seed)
        assert probes[seed].task == probe.task
        np.testing.assert_array_equal(probes[seed].frames["top"], probe.frames["top"])
        np.testing.assert_array_equal(probes[seed].noise, probe.noise)
        np.testing.assert_array_equal(expected[seed].actions, e.actions)
        np.testing.assert_array_equal(expected[seed].token_ids, e.token_ids)


@pytest.mark.parametrize(
    ("wreck", "says"),
    [
        (
            lambda x: np.full_like(x, np.nan),
            "max error inf, the output holds NaN or infinite values",
        ),
        (lambda x: x * np.inf, "max error inf"),
        (
            lambda x: x + np.float32(2 / 180),
            "denoiser: max error 0.011 exceeds 0.0001",
        ),  # a degree of the first joint
        (
            lambda x: x[:, 1:],
            "denoiser: actions has shape (1, 11, 3), the manifest says (1, 12, 3)",
        ),
    ],
)
def test_a_wrecked_denoiser_is_named(
    golden: Bundle, engines: Engines, wreck: Wreck, says: str
) -> None:
    result = check_bundle(
        golden, replace(engines, denoiser=Wrecked(engines.denoiser, wreck)), text=False
    )
    assert any(says in line for line in result.failures), result.failures
    assert result.failures[0].startswith("denoiser")


@pytest.mark.parametrize(
    ("wreck", "says"),
    [
        (lambda x: x * np.float32(1.001), "vision: max error"),
        (lambda x: x * np.nan, "vision: max error inf"),
        (lambda x: x[:, :2], "vision: features has shape (1, 2), the manifest says (1, 6)"),
    ],
)
def test_a_wrecked_encoder_is_named(
    golden: Bundle, engines: Engines, wreck: Wreck, says: str
) -> None:
    result = check_bundle(
        golden, replace(engines, vision=Wrecked(engines.vision, wreck)), text=False
    )
    assert result.failures[0].startswith(says), result.failures


def test_fp16_engines_are_judged_in_degrees_and_the_guilty_stage_is_told(
    copy: Path, toy: Any
) -> None:
    at_export = {s: {"rms_error": 1e-4, "max_error": 1e-3} for s in ("vision", "denoiser", "chunk")}
    stages = {**at_export, "robot": {"rms_error": 1e-3, "max_error": 1e-2, "spread": 5.0}}
    golden = with_golden(copy, toy, precision="fp16", verification={"stages": stages})
    engines = choose_engines(golden, "onnx")

    def off_by(degrees: float) -> list[str]:
        denoiser = Wrecked(engines.denoiser, lambda x: x + np.float32(degrees * 2 / 180))
        return check_bundle(golden, replace(engines, denoiser=denoiser), text=False).failures

    assert off_by(0.05) == [], "half of a tenth of a degree, and the policy varies by five"
    rms, tail, held_rms, held_tail, where = off_by(1.0)
    assert rms.startswith("robot: rms error")
    assert tail.startswith("robot: p99.9 error 1 exceeds 0.5")
    assert held_rms.startswith("held robot: rms error")
    assert held_tail.startswith("held robot: p99.9 error 1 exceeds 0.5")
    assert where == "denoiser has rms error 0.011, it was 0.0001 at export"


def test_exact_actions_in_other_units_are_not_the_policys(golden: Bundle) -> None:
    stats = load_stats(golden.path(STATS))
    wider = replace(stats[ACTION], high=stats[ACTION].high * np.float32(1.01))
    save_stats(golden.path(STATS), {**stats, ACTION: wider})
    write_manifest(golden.folder, golden.manifest)
    changed = open_bundle(golden.folder)
    (line,) = check_bundle(changed, choose_engines(changed, "onnx"), text=False).failures
    assert line.startswith("units: max error")
    assert line.endswith("exceeds 0.02 degrees")


def test_a_denoiser_that_ignores_committed_rows_is_found(golden: Bundle, engines: Engines) -> None:
    def without_prefix(inputs: Mapping[str, Any]) -> dict[str, np.ndarray]:
        return engines.denoiser({**inputs, PREFIX_MASK: np.zeros_like(inputs[PREFIX_MASK])})

    careless = Wrecked(engines.denoiser, lambda x: x)
    careless.engine = without_prefix
    result = check_bundle(golden, replace(engines, denoiser=careless), text=False)
    assert [line.partition(":")[0] for line in result.failures] == ["held"]


def test_another_tokenizer_is_found(golden: Bundle, engines: Engines) -> None:
    result = check_bundle(golden, engines)
    assert [line.partition(":")[0] for line in result.failures] == ["text", "all tasks", "chunk"], (
        "the toy's text graph is another"
    )
    for path in (golden.folder / GOLDEN).glob("*.npz"):
        with np.load(path) as file:
            arrays = dict(file)
        np.savez(path, **{**arrays, "token_ids": arrays["token_ids"][:, ::-1]})
    write_manifest(golden.folder, golden.manifest)
    (line,) = check_bundle(open_bundle(golden.folder), engines).failures
    assert line.startswith("text: the tokens of 'open the drawer' differ")


def test_a_bundle_without_fixtures_says_so(bundle: Bundle, copy: Path) -> None:
    with pytest.raises(
        UserError, match="has no golden fixtures to check against: run `mtdit export` again"
    ):
        read_golden(bundle)


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 not a zip", b"\x93NUMPY"])
def test_a_fixture_that_is_none_is_a_user_error(golden: Bundle, content: bytes) -> None:
    (golden.folder / GOLDEN / "0.npz").write_bytes(content)
    write_manifest(golden.folder, golden.manifest)
    with pytest.raises(UserError, match=r"0\.npz is malformed \(.+\): re-run `mtdit export`"):
        read_golden(open_bundle(golden.folder))


def test_a_fixture_that_lacks_an_array_is_a_user_error(golden: Bundle) -> None:
    np.savez(golden.folder / GOLDEN / "1.npz", noise=np.zeros(3))
    write_manifest(golden.folder, golden.manifest)
    with pytest.raises(UserError, match=r"1\.npz lacks task: run `mtdit export` again"):
        read_golden(open_bundle(golden.folder))


@pytest.mark.parametrize(
    "name",
    [
        "frame.top",
        "positions",
        "noise",
        "features",
        "state",
        "token_ids",
        "text",
        "actions",
        "actions_units",
    ],
)
@pytest.mark.parametrize(
    "change", [lambda a: a[..., :-1], lambda a: a.astype(np.float64)], ids=["shape", "dtype"]
)
def test_a_fixture_with_another_array_is_a_user_error(
    golden: Bundle, name: str, change: Wreck
) -> None:
    path = golden.folder / GOLDEN / "1.npz"
    with np.load(path) as file:
        arrays = dict(file)
    np.savez(path, **{**arrays, name: change(arrays[name])})
    write_manifest(golden.folder, golden.manifest)
    with pytest.raises(
        UserError, match=rf"1\.npz: {name} is \w+ \(.*\), not \w+ \(.*\): run `mtdit export` again"
    ):
        read_golden(open_bundle(golden.folder))


@pytest.mark.parametrize("task", [np.array(3.5), np.array(["a", "b"]), np.array(b"open")])
def test_a_fixture_whose_task_is_no_text_is_a_user_error(golden: Bundle, task: np.ndarray) -> None:
    path = golden.folder / GOLDEN / "1.npz"
    with np.load(path) as file:
        arrays = dict(file)
    np.savez(path, **{**arrays, "task": task})
    write_manifest(golden.folder, golden.manifest)
    with pytest.raises(
        UserError, match=r"1\.npz: task is .*, not a string: run `mtdit export` again"
    ):
        read_golden(open_bundle(golden.folder))


@pytest.mark.parametrize("spread", [1e200, -1.0, float("nan"), float("inf")])
def test_a_spread_that_cannot_be_is_a_user_error(golden: Bundle, spread: float) -> None:
    stages = {"robot": {"spread": spread}}
    write_manifest(golden.folder, replace(golden.manifest, verification={"stages": stages}))
    with pytest.raises(
        UserError, match="over noise, which is impossible: run `mtdit export` again"
    ):
        read_golden(open_bundle(golden.folder))
