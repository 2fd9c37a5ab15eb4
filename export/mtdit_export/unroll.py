"""Writes the whole sampler as one graph: the network is traced once and copied for every call.

torch's exporter would trace every call, which takes minutes for hundreds of them. Here `torch.fx`
records what the sampler itself does with the chunk: a few operations per step, each of which
becomes one node; times and coefficients are constants. Every call of the network is a copy of its
nodes under new names, since TensorRT wants neither ONNX functions nor loops; all calls share the
weights. Works for any sampler and any network.
"""

from __future__ import annotations

import itertools
import operator
from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

import numpy as np
import onnx
from numpy.typing import ArrayLike
from onnx import helper, numpy_helper
from torch import Tensor, fx, nn
from torch.fx.proxy import GraphAppendingTracer

from mtdit_export.fold.denoiser import FoldedDenoiser
from mtdit_export.trace import trace
from mtdit_runtime.bundle.manifest import (
    ACTIONS,
    FEATURES,
    KNOWN,
    NOISE,
    PREFIX,
    PREFIX_MASK,
    STATE,
    STEP_NOISE,
)

X, MODULATION, OUTPUT = "x", "modulation", "output"  # values of one call of the network
IR_VERSION = 10  # the one that belongs to opset 20
OPERATORS: Mapping[Any, str] = {
    operator.add: "Add",
    operator.sub: "Sub",
    operator.mul: "Mul",
    operator.truediv: "Div",
    "clamp": "Clip",
}


def unroll(
    denoiser: FoldedDenoiser, inputs: Mapping[str, Tensor], network: nn.Module | None = None,
    numbers: Mapping[str, Tensor] | None = None,
) -> onnx.ModelProto:  # fmt: skip
    """The denoiser with its whole sampler as a graph. `inputs` are examples by name; the output is
    actions (1, T, A).

    `network` replaces the denoiser's own. Its positional arguments are x (1, T, A), modulation
    (layers * 6 D,), one row of each of `numbers` (name -> constants (calls, ...)), and all inputs
    that the sampler and the modulation do not use.
    """
    network, numbers, calls = network or denoiser.network, numbers or {}, len(denoiser.times)
    observed = {name: inputs[name] for name in (KNOWN, STATE, FEATURES) if name in inputs}
    held = [PREFIX, PREFIX_MASK] if PREFIX_MASK in inputs else []
    further = {
        name: x for name, x in inputs.items() if name not in (*observed, *held, NOISE, STEP_NOISE)
    }
    call = {X: inputs[NOISE], MODULATION: denoiser.modulation(*observed.values()).chunk(calls)[0]}
    call |= {name: rows[0] for name, rows in numbers.items()} | further
    head, body = trace(denoiser.modulation, observed, MODULATION), trace(network, call, OUTPUT)

    graph = _Graph()
    table = graph.paste(head.graph, MODULATION, MODULATION, {})
    modulations = graph.split(table, calls)
    step_noise = (
        graph.unstack(STEP_NOISE, inputs[STEP_NOISE].shape[1]) if STEP_NOISE in inputs else []
    )
    count = itertools.count()

    def write_call(x: str) -> str:
        i = next(count)
        rows = {name: graph.constant(f"{name}.{i}", values[i]) for name, values in numbers.items()}
        return graph.paste(
            body.graph, "network", f"call.{i}", {X: x, MODULATION: modulations[i], **rows}
        )

    write_sampler(graph, record(denoiser, held, step_noise), write_call)
    return graph.model(inputs, head.opset_import)


# -- the sampler --


def denoised(x: Tensor) -> Tensor:
    """Marks the calls of the network in a recorded sampler."""
    return x


def record(denoiser: FoldedDenoiser, held: Sequence[str], step_noise: Sequence[str]) -> fx.Graph:
    """Record the operations of the sampler as a torch.fx graph. `held` and `step_noise` are the
    names of the prefix inputs and of the noise of each step, empty if there is none.
    """
    graph = fx.Graph()
    tracer = GraphAppendingTracer(graph)

    def value(name: str) -> Tensor:
        return cast(Tensor, fx.Proxy(graph.placeholder(name), tracer))

    def denoise(x: Tensor, time: Tensor) -> Tensor:
        return cast(Tensor, tracer.create_proxy("call_function", denoised, (x,), {}))

    prefix, mask = map(value, held) if held else (None, None)
    actions = denoiser.objective.sample(
        denoise, value(NOISE), [value(name) for name in step_noise], prefix, mask
    )
    graph.output(cast(fx.Proxy, actions).node)
    graph.eliminate_dead_code()  # removes the times, which the folded network does not need
    return graph


def write_sampler(graph: _Graph, recorded: fx.Graph, write_call: Callable[[str], str]) -> None:
    """Write one node per recorded operation; the result is named actions."""
    (result,) = recorded.output_node().args
    names: dict[Any, str] = {}
    for node in recorded.nodes:
        if node.op == "placeholder":
            names[node] = node.target
        elif node.target is denoised:
            names[node] = write_call(names[node.args[0]])
        elif node.op != "output":
            values = [
                names[a] if isinstance(a, fx.Node) else graph.constant(f"number.{a!r}", a)
                for a in node.args
            ]
            name = ACTIONS if node is result else f"sampler/{node.name}"
            names[node] = graph.add(OPERATORS[node.target], values, [name])[0]


# -- the graph --


class _Graph:
    """An ONNX graph under construction. Values are names: those of weights contain dots, those of
    other values slashes.
    """

    def __init__(self) -> None:
        self._nodes: list[onnx.NodeProto] = []
        self._weights: dict[str, onnx.TensorProto] = {}
        self._fixed: set[str] = set()  # nodes that compute with weights alone

    def add(
        self, op: str, inputs: Sequence[str], outputs: list[str], **attributes: Any
    ) -> list[str]:
        self._nodes.append(helper.make_node(op, inputs, outputs, name=outputs[0], **attributes))
        return outputs

    def constant(self, name: str, value: ArrayLike, dtype: type = np.float32) -> str:
        if name not in self._weights:
            self._weights[name] = numpy_helper.from_array(np.asarray(value, dtype), name)
        return name

    def paste(
        self, part: onnx.GraphProto, weights: str, nodes: str, feeds: Mapping[str, str]
    ) -> str:
        """Add a copy of the part's nodes under the name `nodes`, and its weights under `weights` if
        they are not there yet. Returns the name of the output.

        Nodes that depend on weights alone, such as transposed weights in a derivative, are also
        added only once.
        """
        names = {"": ""} | {value.name: feeds.get(value.name, value.name) for value in part.input}
        fixed = {"", *(weight.name for weight in part.initializer)}
        for weight in part.initializer:
            names[weight.name] = self._share(weight, f"{weights}.{weight.name}")
        for node in part.node:
            is_fixed = fixed.issuperset(node.input)
            where = weights if is_fixed else nodes
            names |= {value: f"{where}/{value}" for value in node.output if value}
            name = f"{where}/{node.name}"
            if name not in self._fixed:
                self._copy(node, name, names)
            if is_fixed:
                fixed.update(node.output)
                self._fixed.add(name)
        return names[part.output[0].name]

    def _share(self, weight: onnx.TensorProto, name: str) -> str:
        if name not in self._weights:
            self._weights[name] = onnx.TensorProto()
            self._weights[name].CopyFrom(weight)
            self._weights[name].name = name
        return name

    def _copy(self, node: onnx.NodeProto, name: str, names: Mapping[str, str]) -> None:
        copy = onnx.NodeProto()
        copy.CopyFrom(node)
        copy.name, copy.input[:], copy.output[:] = (
            name,
            [names[v] for v in node.input],
            [names[v] for v in node.output],
        )
        self._nodes.append(copy)

    def split(self, value: str, count: int) -> list[str]:
        """`count` equal parts along the first axis."""
        return self.add(
            "Split", [value], [f"{value}/{i}" for i in range(count)], axis=0, num_outputs=count
        )

    def unstack(self, value: str, count: int) -> list[str]:
        """(1, count, ...) -> `count` values (1, ...)."""
        axes = self.constant("first_axis", [0], np.int64)
        return self.split(self.add("Squeeze", [value, axes], [f"{value}/rows"])[0], count)

    def model(
        self, inputs: Mapping[str, Tensor], opsets: Sequence[onnx.OperatorSetIdProto]
    ) -> onnx.ModelProto:
        def described(name: str, example: Tensor) -> onnx.ValueInfoProto:
            kind = helper.np_dtype_to_tensor_dtype(
                np.dtype(str(example.dtype).removeprefix("torch."))
            )
            return helper.make_tensor_value_info(name, kind, example.shape)

        values = [described(name, example) for name, example in inputs.items()]
        actions = described(ACTIONS, inputs[NOISE])
        graph = helper.make_graph(
            self._nodes, "unrolled", values, [actions], list(self._weights.values())
        )
        return helper.make_model(graph, opset_imports=opsets, ir_version=IR_VERSION)
