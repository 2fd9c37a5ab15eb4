"""Checks whether TensorRT 10.3 (JetPack 6) accepts a graph. It is an allow-list, since that version
runs only on Jetson boards.

Sources: the parser's operator table of TensorRT 10.0 to 10.3 (opset 9 to 20), and what TensorRT for
RTX, which builds ahead of time, rejects.
"""

from __future__ import annotations

import onnx
from onnx import TensorProto, helper, numpy_helper

OPSET = 20  # the newest that TensorRT 10.3 reads

OPERATORS = frozenset((
    "Add", "ArgMax", "Cast", "Clip", "Concat", "Constant", "Conv", "DequantizeLinear", "Div",
    "Equal", "Expand", "Gather", "Gelu", "Identity", "LayerNormalization", "MatMul", "Mul", "Neg",
    "QuantizeLinear", "Reciprocal", "ReduceMean", "ReduceSum", "Reshape", "Sigmoid", "Slice",
    "Softmax", "Split", "Sqrt", "Squeeze", "Sub", "Tanh", "Transpose", "Unsqueeze",
))  # fmt: skip
INPUT_TYPES = frozenset((
    TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.INT64, TensorProto.INT32, TensorProto.UINT8,
))  # fmt: skip
WEIGHT_TYPES = INPUT_TYPES - {TensorProto.UINT8} | {TensorProto.INT8}


def problems(model: onnx.ModelProto) -> list[str]:
    """One line for each part of the graph that TensorRT 10.3 would refuse."""
    graph, opsets = model.graph, [(o.domain, o.version) for o in model.opset_import]
    found = [
        f"opset {version} of domain {domain!r}"
        for domain, version in opsets
        if (domain, version) != ("", OPSET)
    ]
    found += [
        f"operator {n.op_type} ({n.name})"
        for n in graph.node
        if n.op_type not in OPERATORS or n.domain
    ]
    for weight in graph.initializer:
        if weight.data_type not in WEIGHT_TYPES:
            found.append(f"weight {weight.name} of type {_type(weight.data_type)}")
        if weight.data_location == TensorProto.EXTERNAL:
            found.append(f"weight {weight.name} outside the file")
    for value in (*graph.input, *graph.output):
        kind = value.type.tensor_type
        if kind.elem_type not in INPUT_TYPES:
            found.append(f"input or output {value.name} of type {_type(kind.elem_type)}")
        if not all(d.HasField("dim_value") and d.dim_value > 0 for d in kind.shape.dim):
            found.append(f"input or output {value.name} without a static shape")
    return found + _bytes_beyond_cast(graph) + _wrong_quantization(graph)


def _bytes_beyond_cast(graph: onnx.GraphProto) -> list[str]:
    """uint8 may enter a network, but every operation other than Cast refuses it."""
    frames = {i.name for i in graph.input if i.type.tensor_type.elem_type == TensorProto.UINT8}
    users = [n for n in graph.node if frames & set(n.input)]
    return [f"operator {n.op_type} ({n.name}) on uint8" for n in users if n.op_type != "Cast"]


def _wrong_quantization(graph: onnx.GraphProto) -> list[str]:
    """Only DequantizeLinear takes int8, and quantisation must be symmetric (zero point 0)."""
    weights = {w.name: w for w in graph.initializer}
    small = {name for name, w in weights.items() if w.data_type == TensorProto.INT8}
    nodes = [n for n in graph.node if n.op_type in ("QuantizeLinear", "DequantizeLinear")]
    shifted = [
        n for n in nodes if len(n.input) == 3 and numpy_helper.to_array(weights[n.input[2]]).any()
    ]
    users = [n for n in graph.node if n not in nodes and small & set(n.input)]
    found = [f"operator {n.op_type} ({n.name}) with a zero point other than 0" for n in shifted]
    return found + [f"operator {n.op_type} ({n.name}) on int8" for n in users]


def _type(code: int) -> str:
    return helper.tensor_dtype_to_np_dtype(code).name
