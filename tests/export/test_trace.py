"""The ONNX files: types, shapes, operators, descriptions, and nothing of the machine that wrote
them.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from mtdit_export.export import example_inputs
from mtdit_export.fold.denoiser import with_sampler
from mtdit_export.fold.fold import fold
from mtdit_export.precision import to_fp16
from mtdit_export.trace import trace, write
from mtdit_export.trt_compat import OPSET, problems
from mtdit_export.unroll import unroll
from mtdit_robots.errors import ExportError
from mtdit_runtime.bundle.bundle import open_bundle

GRAPHS = ("vision", "text", "history", "denoiser")


def nodes_reading(model: onnx.ModelProto, name: str) -> list[onnx.NodeProto]:
    return [node for node in model.graph.node if name in node.input]


@pytest.mark.parametrize("name", GRAPHS)
def test_lone_file_says_what_it_is(bundle: Path, name: str) -> None:
    model = onnx.load(bundle / f"{name}.onnx")
    props = {p.key: p.value for p in model.metadata_props}
    assert props["mtdit.graph"] == name
    assert props["mtdit.bundle"] == "small"
    assert props["mtdit.sampler"] == "ddim 4"
    assert props["mtdit.precision"] == "fp32"
    assert "open the drawer" in props["mtdit.tasks"]


@pytest.mark.parametrize("name", GRAPHS)
def test_files_hold_nothing_of_this_machine(bundle: Path, name: str) -> None:
    data = (bundle / f"{name}.onnx").read_bytes()
    for trace_of_home in (b"fold.py", str(Path.cwd()).encode(), b"site-packages"):
        assert trace_of_home not in data


@pytest.mark.parametrize("fixture", ["bundle", "half_bundle"])
def test_frames_meet_a_cast_first(fixture: str, request: pytest.FixtureRequest) -> None:
    """TensorRT takes uint8 as an input and for nothing else."""
    model = onnx.load(request.getfixturevalue(fixture) / "vision.onnx")
    for camera in ("top", "wrist"):
        assert [node.op_type for node in nodes_reading(model, f"frame.{camera}")] == ["Cast"]


def test_manifest_describes_the_files(bundle: Path) -> None:
    for graph in open_bundle(bundle).manifest.graphs.values():
        session = onnxruntime.InferenceSession(
            str(bundle / graph.file), providers=["CPUExecutionProvider"]
        )
        assert [(t.name, list(t.shape)) for t in graph.inputs] == [
            (i.name, i.shape) for i in session.get_inputs()
        ]
        assert [(t.name, list(t.shape)) for t in graph.outputs] == [
            (o.name, o.shape) for o in session.get_outputs()
        ]


EDGE_WEIGHTS = (
    "input.weight",
    "output.weight",
    "projection.weight",
    ".matrix",
)  # the last: resizing frames


def test_half_precision_is_in_weights_and_products_only(half_bundle: Path) -> None:
    """float32 in and out; every product in float16 but for the documented edges; norms, softmax,
    sampler in float32.
    """
    for name in GRAPHS:
        graph = onnx.shape_inference.infer_shapes(onnx.load(half_bundle / f"{name}.onnx")).graph
        types = {
            v.name: v.type.tensor_type.elem_type
            for v in (*graph.value_info, *graph.input, *graph.output)
        }
        types |= {w.name: w.data_type for w in graph.initializer}
        assert TensorProto.FLOAT16 not in {
            types[value.name] for value in (*graph.input, *graph.output)
        }
        products = [n for n in graph.node if n.op_type in ("MatMul", "Conv", "Gemm")]
        halves = [n for n in products if {types[i] for i in n.input} == {TensorProto.FLOAT16}]
        assert len(halves) > len(products) / 2
        for node in (n for n in products if n not in halves):
            assert {types[i] for i in node.input} == {TensorProto.FLOAT}
            assert any(i.endswith(EDGE_WEIGHTS) for i in node.input), (
                f"{name}: {node.name} is float32"
            )
        for node in graph.node:
            if node.op_type in ("LayerNormalization", "Softmax", "Clip", "Div"):
                assert {types[i] for i in node.input if i} == {TensorProto.FLOAT}, (
                    f"{name}: {node.name}"
                )
        assert all(
            w.data_type == TensorProto.FLOAT
            for w in graph.initializer
            if w.name.endswith("of_time")
        )


def test_weights_beyond_half_precision_are_refused(workshop: Any) -> None:
    config = workshop.config()
    denoiser = fold(workshop.policy(config), workshop.scaling(config)).denoiser
    denoiser.network.blocks[1].up.weight[0, 0] = 1e6
    with pytest.raises(ExportError, match=r"blocks\.1\.up .*export without --fp16"):
        to_fp16(denoiser)


CONFIGS: dict[str, dict[str, Any]] = {
    "no cameras": {"cameras": ()},
    "separate encoders, crop only": {
        "use_separate_rgb_encoder_per_camera": True,
        "image_resize_shape": None,
    },
    "absolute positions, one observation": {
        "use_rope": False,
        "use_positional_encoding": True,
        "n_obs_steps": 1,
        "cameras": ("top",),
    },
    "rk4": {"objective": "flow_matching", "integration_method": "rk4"},
}


ONE_OBSERVATION = "absolute positions, one observation"


@pytest.mark.parametrize(
    ("name", "half"), [*((name, False) for name in CONFIGS), (ONE_OBSERVATION, True)]
)
def test_every_kind_of_policy_is_traced(
    workshop: Any, tmp_path: Path, name: str, half: bool
) -> None:
    """Vision and denoiser, the sampler shortened to two steps; onnxruntime computes what torch
    does.
    """
    config = workshop.config(num_layers=1, **CONFIGS[name])
    config = with_sampler(config, "rk4" if config.objective == "flow_matching" else "ddim", 2)
    folded = fold(workshop.policy(config), workshop.scaling(config))
    modules = {k: m for k, m in folded.modules().items() if k != "text"}
    for key, module in modules.items():
        if half:
            to_fp16(module)
        torch.manual_seed(2)
        inputs = {
            k: torch.randint(0, 256, v.shape, dtype=v.dtype)
            if v.dtype == torch.uint8
            else torch.randn(v.shape)
            for k, v in example_inputs(key, folded, config).items()
        }
        model = unroll(module, inputs) if key == "denoiser" else trace(module, inputs, "out")
        graph = write(model, tmp_path / f"{key}.onnx", {"mtdit.graph": key})
        assert [t.name for t in graph.inputs] == list(inputs)
        session = onnxruntime.InferenceSession(
            str(tmp_path / graph.file), providers=["CPUExecutionProvider"]
        )
        (got,) = session.run(None, {k: v.numpy() for k, v in inputs.items()})
        with torch.no_grad():
            wanted = (module(**inputs) if key == "denoiser" else module(*inputs.values())).numpy()
        np.testing.assert_allclose(got, wanted, atol=5e-3 if half else 1e-5, rtol=0)


def tiny_model(
    op: str, dtype: int = TensorProto.FLOAT, opset: int = OPSET, dim: int | str = 3
) -> onnx.ModelProto:
    x = helper.make_tensor_value_info("x", dtype, [1, dim])
    y = helper.make_tensor_value_info("y", dtype, [1, dim])
    graph = helper.make_graph([helper.make_node(op, ["x"], ["y"], name="node")], "g", [x], [y])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)])


@pytest.mark.parametrize(
    ("model", "complaint"),
    [
        (tiny_model("Erf"), "operator Erf"),
        (tiny_model("Sigmoid", opset=21), "opset 21"),
        (tiny_model("Sigmoid", dim="batch"), "x without a static shape"),
        (tiny_model("Sigmoid", dtype=TensorProto.DOUBLE), "x of type float64"),
        (tiny_model("Transpose", dtype=TensorProto.UINT8), "Transpose (node) on uint8"),
    ],
    ids=["operator", "opset", "dynamic", "double", "bytes"],
)
def test_lint_names_what_tensorrt_would_refuse(model: onnx.ModelProto, complaint: str) -> None:
    assert any(complaint in line for line in problems(model)), problems(model)


def test_lint_wants_plain_weights_inside_the_file() -> None:
    model = tiny_model("Sigmoid")
    model.graph.initializer.append(numpy_helper.from_array(np.zeros(2, np.bool_), "flags"))
    outside = model.graph.initializer.add(name="far", data_type=TensorProto.FLOAT, dims=[1])
    outside.data_location = TensorProto.EXTERNAL
    assert problems(model) == ["weight flags of type bool", "weight far outside the file"]
