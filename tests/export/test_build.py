"""TensorRT takes the graphs: the real builder code with TensorRT for RTX, which builds ahead of time without a GPU.

In a subprocess, because the library can crash the interpreter it lives in.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from mtdit_robots.errors import UserError
from mtdit_runtime.bundle import open_bundle
from mtdit_runtime.engine import device_key, engine_key

AHEAD_OF_TIME = """
import sys
from pathlib import Path
import tensorrt_rtx
from mtdit_robots.errors import UserError
from mtdit_export.build import PlanBuilder
builder = PlanBuilder(tensorrt_rtx, 512, Path(sys.argv[1]) / "timing.cache", compute_capability="SM86")
for file in sys.argv[2:]:
    try:
        print("built:", Path(file).name, builder.plan(Path(file), Path(sys.argv[1]) / (Path(file).stem + ".plan")))
    except UserError as error:
        print("refused:", error)
"""


def build_ahead(folder: Path, *files: Path) -> list[str]:
    command = [sys.executable, "-c", AHEAD_OF_TIME, str(folder), *map(str, files)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stderr[-3000:]
    return [line for line in done.stdout.splitlines() if line.startswith(("built:", "refused:"))]


@pytest.mark.parametrize("fixture", ["bundle", "half_bundle"])
def test_tensorrt_builds_every_graph(fixture: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    opened = open_bundle(request.getfixturevalue(fixture))
    files = [opened.path(graph.file) for graph in opened.manifest.graphs.values()]
    lines = build_ahead(tmp_path, *files)
    assert [line.split()[1] for line in lines] == ["vision.onnx", "text.onnx", "denoiser.onnx"]
    for line in lines:
        _, name, size = line.split()
        assert int(size) == (tmp_path / name).with_suffix(".plan").stat().st_size > 0
    assert (tmp_path / "timing.cache").is_file()


def test_refusal_names_the_graph_and_the_reason(tmp_path: Path) -> None:
    """Strong typing at work: float16 plus float32 is nobody's sum."""
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 4])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 4])
    half = numpy_helper.from_array(np.ones((1, 4), np.float16), "half")
    graph = helper.make_graph([helper.make_node("Add", ["x", "half"], ["y"])], "mixed", [x], [y], [half])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)]), tmp_path / "mixed.onnx")
    (line,) = build_ahead(tmp_path, tmp_path / "mixed.onnx")
    assert line.startswith("refused: TensorRT")
    assert "mixed.onnx" in line


def test_engines_are_keyed_by_graphs_device_and_version(bundle: Path, half_bundle: Path) -> None:
    full, half = open_bundle(bundle), open_bundle(half_bundle)
    key = engine_key(full, "Orin", (8, 7), "10.3.0")
    assert key.startswith("sm87-trt10.3.0-fp32-")
    others = [
        engine_key(half, "Orin", (8, 7), "10.3.0"),
        engine_key(full, "Orin NX", (8, 7), "10.3.0"),
        engine_key(full, "Orin", (8, 7), "10.16.2"),
        engine_key(full, "Orin", (8, 6), "10.3.0"),
    ]
    assert len({key, *others}) == 5


def test_without_tensorrt_the_extra_is_named(bundle: Path) -> None:
    with pytest.raises(UserError, match=r"mtdit\[tensorrt\]"):
        device_key(open_bundle(bundle))
