"""TensorRT takes the graphs: the real builder code with TensorRT for RTX, which builds ahead of
time without a GPU.

What decides whether an engine is kept runs too, with ONNX Runtime in the engines' place: see
engines_ahead.py.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from plans_ahead import SCRIPT, PlansAhead

from mtdit_export.export import export
from mtdit_export.options import ExportOptions
from mtdit_runtime.bundle.bundle import open_bundle
from mtdit_runtime.engines.trt_builder import known_problem


def ahead(*words: str | Path) -> dict[str, Any]:
    done = subprocess.run(
        [sys.executable, SCRIPT, *words], capture_output=True, text=True, timeout=500
    )
    assert done.returncode == 0, done.stderr[-3000:]
    told: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return told


def test_tensorrt_builds_every_graph(int8_bundle: Path, tmp_path: Path) -> None:
    """In int8; test_parity_grid.py has them in fp32 and fp16."""
    opened = open_bundle(int8_bundle)
    files = [opened.path(graph.file) for graph in opened.manifest.graphs.values()]
    builder = PlansAhead(tmp_path)
    lines = builder.build(*files)
    builder.close()
    assert [line.split()[1] for line in lines] == [
        "vision.onnx",
        "text.onnx",
        "history.onnx",
        "denoiser.onnx",
    ]
    for line in lines:
        _, name, size = line.split()
        assert int(size) == (tmp_path / name).with_suffix(".plan").stat().st_size > 0
    assert (tmp_path / "timing.cache").is_file()


def mixed(folder: Path) -> Path:
    """Strong typing at work: float16 plus float32 is nobody's sum."""
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 4])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 4])
    half = numpy_helper.from_array(np.ones((1, 4), np.float16), "half")
    graph = helper.make_graph(
        [helper.make_node("Add", ["x", "half"], ["y"])], "mixed", [x], [y], [half]
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)])
    onnx.save(model, folder / "mixed.onnx")
    return folder / "mixed.onnx"


def test_refusal_names_the_graph_and_the_reason(plans_ahead: PlansAhead, tmp_path: Path) -> None:
    whole = mixed(tmp_path)
    (tmp_path / "cut.onnx").write_bytes(whole.read_bytes()[:40])
    refusal, cut = plans_ahead.build(whole, tmp_path / "cut.onnx")
    assert refusal.startswith("refused: TensorRT")
    assert "mixed.onnx" in refusal
    assert "type" in refusal
    assert "cut.onnx" in cut


def test_a_crash_names_its_graph_and_the_next_one_is_built_all_the_same(tmp_path: Path) -> None:
    """What the tests build plans with; a graph like one before is not built again."""
    builder = PlansAhead(tmp_path)
    (missing,) = builder.build(mixed(tmp_path))
    assert missing.startswith("refused")
    builder._process.kill()  # type: ignore[union-attr]  # as TensorRT does now and then
    (tmp_path / "other.onnx").write_bytes(b"")
    (crashed,) = builder.build(tmp_path / "other.onnx")
    assert crashed.startswith(f"crashed: {tmp_path}/other.onnx: exit code -9")
    assert builder.build(tmp_path / "mixed.onnx") == [missing]
    assert (builder.n_started, builder.n_built) == (1, 2)
    (tmp_path / "another.onnx").write_bytes(b"other")
    (refused,) = builder.build(tmp_path / "another.onnx")
    assert refused.startswith("refused")
    assert builder.n_started == 2
    builder.close()


def test_a_jetson_whose_system_is_known_to_fail_is_told(tmp_path: Path) -> None:
    (tmp_path / "etc").mkdir()
    release = tmp_path / "etc/nv_tegra_release"
    release.write_text("# R36 (release), REVISION: 4.7, GCID: 1, BOARD: generic, EABI: aarch64")
    (line,) = known_problem(tmp_path)
    assert "L4T 36.4.7" in line
    assert "36.5.0" in line
    release.write_text("# R36 (release), REVISION: 5.0, GCID: 1, BOARD: generic, EABI: aarch64")
    assert known_problem(tmp_path) == []


@pytest.fixture(scope="module")
def blind(workshop: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As little as builds: no cameras, one layer, one step."""
    folder = tmp_path_factory.mktemp("blind")
    checkpoint = workshop.checkpoint(
        folder / "pretrained_model", workshop.config(cameras=(), num_layers=1)
    )
    export(checkpoint, folder / "blind.mtdit", ExportOptions(steps=1))
    return folder / "blind.mtdit"


@pytest.fixture
def copy(blind: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(blind, tmp_path / "copy.mtdit"))


def plans_of(files: list[str]) -> list[str]:
    return [name.split("/")[-1] for name in files if name.endswith(".plan")]


@pytest.fixture(scope="module")
def built(bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """A copy of the small bundle whose engines were built four times, and what was told."""
    folder = Path(shutil.copytree(bundle, tmp_path_factory.mktemp("built") / "small.mtdit"))
    return folder, ahead("again", folder)


def test_engines_are_built_checked_and_kept(
    bundle: Path, built: tuple[Path, dict[str, Any]]
) -> None:
    folder, told = built
    before, first = open_bundle(bundle).manifest, told["first"]
    assert first["ended"] == "well"
    assert plans_of(first["files"]) == ["denoiser.plan", "history.plan", "vision.plan"]
    (record,) = [name for name in first["files"] if name.endswith("engine.json")]
    kept = json.loads((folder / record).read_text())
    assert kept["gpu"] == "Test GPU"
    assert kept["onnx"] == {
        name: before.files[f"{name}.onnx"] for name in ("vision", "history", "denoiser")
    }
    assert kept["checked"]["chunk"]["max_error"] <= 1e-4
    assert any(name.startswith("engines/timing-sm86-") for name in first["files"])
    assert "verified on Test GPU" in first["said"][-1]
    assert open_bundle(folder).manifest == before

    assert [line.partition(":")[0] for line in told["second"]["said"]] == ["engines are up to date"]
    assert any(line.startswith("built denoiser.plan") for line in told["third"]["said"]), (
        "a plan was cut short"
    )
    assert told["size"] == kept["bytes"]["denoiser"]
    assert "they failed their check: denoiser: max error inf" in told["fourth"]["said"][0]
    assert told["fourth"]["ended"] == "well"
    assert told["fourth"]["files"] == first["files"]


def test_progress_is_told_while_it_builds(built: tuple[Path, dict[str, Any]]) -> None:
    told = built[1]["progress"]
    assert {graph for graph, _, _ in told} == {"vision", "history", "denoiser"}
    for graph in ("vision", "denoiser"):  # a single product is built at once
        shares = [share for name, share, _ in told if name == graph]
        times = [elapsed_s for name, _, elapsed_s in told if name == graph]
        assert shares == sorted(shares)
        assert 0 < shares[-1] <= 1
        assert times == sorted(times)


def test_an_engine_that_is_not_the_policy_is_not_kept(copy: Path) -> None:
    told = ahead("refused", copy)
    assert told["nan"]["ended"].startswith(
        "ExportError: the outputs of the fp32 engines differ from the trained policy"
    )
    assert "denoiser: max error inf" in told["nan"]["ended"]
    assert "denoiser: max error 0.025 exceeds 0.0001" in told["off"]["ended"]
    assert (
        "denoiser: actions has shape (1, 15, 6), the manifest says (1, 16, 6)"
        in told["shape"]["ended"]
    )
    assert told["interrupted"]["ended"].startswith("KeyboardInterrupt")
    for story in told.values():
        assert all(Path(name).name.startswith("timing-") for name in story["files"]), (
            "nothing else is left behind"
        )
    assert told["beside"]["ended"].startswith("UserError: another build is running")


def test_engines_of_other_computers_are_kept_until_cleaned(copy: Path) -> None:
    told = ahead("others", copy)
    assert "of engines for Orin, TensorRT 10.3.0: sm87-trt10.3.0" in told["kept"]["said"][-1]
    assert any("sm87" in name for name in told["kept"]["files"])
    assert told["cleaned"]["said"][-1].startswith("removed ")
    assert told["cleaned"]["files"] == told["first"]["files"]
