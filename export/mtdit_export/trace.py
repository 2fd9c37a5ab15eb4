"""Turns a folded module into one ONNX file: opset 20, static shapes, weights inside the file, names
for inputs and outputs, metadata. Cleans up after torch's exporter.
"""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path

import onnx
import torch
from onnx import helper
from torch import Tensor, nn

from mtdit_export.trt_compat import OPSET, problems
from mtdit_robots.errors import ExportError
from mtdit_runtime.bundle.manifest import Graph
from mtdit_runtime.bundle.manifest import Tensor as TensorInfo

PROTOBUF_LIMIT = 2_000_000_000  # bytes; ONNX cannot hold more in one file


def trace(module: nn.Module, inputs: Mapping[str, Tensor], output: str) -> onnx.ModelProto:
    """The module as a graph. `inputs` are examples of its arguments, in order. ExportError when it
    has more than 2 GB of weights.
    """
    size = sum(p.numel() * p.element_size() for p in module.parameters())
    if size > PROTOBUF_LIMIT:
        raise ExportError(
            f"one graph would hold {size / 1e9:.1f} GB, an ONNX file can hold 2 GB: "
            "export with --fp16"
        )
    with quiet():
        program = torch.onnx.export(
            module.eval(),
            tuple(inputs.values()),
            input_names=list(inputs),
            output_names=[output],
            opset_version=OPSET,
            dynamo=True,
            verbose=False,
        )
    assert program is not None  # only the old exporter returns nothing
    return program.model_proto


def write(model: onnx.ModelProto, path: Path, metadata: Mapping[str, str]) -> Graph:
    """Write the graph with its metadata. ExportError when TensorRT 10.3 would refuse it."""
    set_metadata(model, path.stem, metadata)
    if found := problems(model):
        raise ExportError(
            f"TensorRT 10.3 would not accept {path.name}: {found[0]}; please report this"
        )
    onnx.save(model, path)
    return Graph(path.name, tensors(model.graph.input), tensors(model.graph.output))


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Silences the exporter, which prints to stdout, logs and warns. Errors are still raised."""
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(logging.NOTSET)


def set_metadata(model: onnx.ModelProto, name: str, metadata: Mapping[str, str]) -> None:
    """Name the graph, store the metadata, and delete source lines and paths of this computer."""
    model.graph.name, model.producer_name, model.doc_string = name, "mtdit", ""
    helper.set_model_props(model, dict(metadata))
    graph = model.graph
    values = *graph.input, *graph.output, *graph.value_info, *graph.initializer
    for part in (graph, *graph.node, *values):
        part.ClearField("metadata_props")
        part.ClearField("doc_string")


def tensors(values: list[onnx.ValueInfoProto]) -> tuple[TensorInfo, ...]:
    kinds = [(v.name, v.type.tensor_type) for v in values]
    return tuple(
        TensorInfo(
            name,
            tuple(d.dim_value for d in kind.shape.dim),
            helper.tensor_dtype_to_np_dtype(kind.elem_type).name,
        )
        for name, kind in kinds
    )
