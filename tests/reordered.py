"""The same policy with its vectors in other orders: names, statistics and graphs move together."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
from onnx import helper, numpy_helper

from mtdit_robots.features import ACTION, STATE
from mtdit_runtime.bundle import manifest as names
from mtdit_runtime.bundle.bundle import open_bundle
from mtdit_runtime.bundle.manifest import Graph, Tensor, write_manifest
from mtdit_runtime.normalize import Stats, load_stats, save_stats


def reordered_bundle(
    source: Path,
    out: Path,
    state: Sequence[str],
    action: Sequence[str],
    rename_state: Callable[[str], str] = str,
) -> Path:
    """A copy of a bundle whose vectors have these orders. A state may lack joints: the policy then
    sees the middle of their range, normalised 0.
    """
    shutil.copytree(source, out)
    m = open_bundle(source).manifest
    old = [joint.name for joint in m.joints]
    assert tuple(old) == m.state_joints, "the source must have one order"
    seen, sent = ([old.index(name) for name in order] for order in (state, action))
    stats = load_stats(out / names.STATS)
    moved = {STATE: _taken(stats[STATE], seen), ACTION: _taken(stats[ACTION], sent)}
    save_stats(out / names.STATS, moved)
    spread = np.zeros((len(seen), len(old)), np.float32)
    spread[np.arange(len(seen)), seen] = 1  # state in the new order -> in the old one
    permuted = np.eye(len(old), dtype=np.float32)[sent]  # an action likewise
    _wrap(out / names.HISTORY, {"earlier_state": spread}, {})
    committed = {"state": spread, "noise": permuted, "prefix": permuted}
    _wrap(out / names.DENOISER, committed, {"actions": permuted.T})
    _forget_checksums(out)
    manifest = replace(
        m,
        joints=tuple(m.joints[i] for i in sent),
        state_joints=tuple(map(rename_state, state)),
        graphs={name: _narrowed(graph, len(seen)) for name, graph in m.graphs.items()},
    )
    write_manifest(out, manifest)
    return out


def _taken(stats: Stats, order: list[int]) -> Stats:
    return Stats(stats.mode, stats.low[order], stats.high[order])


def _narrowed(graph: Graph, n_state: int) -> Graph:
    def narrowed(tensor: Tensor) -> Tensor:
        is_state = tensor.name in (names.STATE, names.EARLIER_STATE)
        return replace(tensor, shape=(*tensor.shape[:-1], n_state)) if is_state else tensor

    return replace(graph, inputs=tuple(map(narrowed, graph.inputs)))


def _wrap(path: Path, inputs: dict[str, np.ndarray], outputs: dict[str, np.ndarray]) -> None:
    """Multiply inputs before the graph, and outputs behind it, by a matrix each."""
    model = onnx.load(path)
    graph, before, after = model.graph, [], []
    given_inputs = {i.name: i for i in graph.input}
    for name, matrix in inputs.items():
        if name not in given_inputs:  # no earlier state: the policy looks at one observation
            continue
        for node in graph.node:
            node.input[:] = [f"{name}.old" if n == name else n for n in node.input]
        before.append(helper.make_node("MatMul", [name, f"{name}.matrix"], [f"{name}.old"]))
        given_inputs[name].type.tensor_type.shape.dim[-1].dim_value = len(matrix)
    for name in outputs:
        for node in graph.node:
            node.output[:] = [f"{name}.old" if n == name else n for n in node.output]
        after.append(helper.make_node("MatMul", [f"{name}.old", f"{name}.matrix"], [name]))
    matrices = {f"{n}.matrix": m for n, m in {**inputs, **outputs}.items()}
    graph.initializer.extend(numpy_helper.from_array(m, n) for n, m in matrices.items())
    nodes = [*before, *graph.node, *after]
    del graph.node[:]
    graph.node.extend(nodes)
    onnx.checker.check_model(model)
    onnx.save(model, path)


def _forget_checksums(folder: Path) -> None:
    assert json.loads((folder / names.MANIFEST).read_text())["files"]
    (folder / names.MANIFEST).unlink()
