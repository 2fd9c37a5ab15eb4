"""Describes a bundle as JSON: policy, cameras, joints, graphs, verification, provenance, engines.

Reads the manifest and file sizes and opens no graph. The CLI does the printing.
"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

from mtdit_robots.errors import UserError
from mtdit_runtime.bundle.bundle import Bundle
from mtdit_runtime.bundle.manifest import Graph, Tensor
from mtdit_runtime.engines.cache import (
    Device,
    EngineRecord,
    engine_records,
    incompatibility,
    plan_problem,
)
from mtdit_runtime.engines.trt import this_device


def describe(bundle: Bundle) -> dict[str, Any]:
    """An opened bundle as JSON values. The keys are those of the manifest; sizes are in bytes.

    "engines": what was built and whether it fits this computer; "fits" is None when that cannot be
    determined, and "why" says what differs.
    """
    m = bundle.manifest
    sizes = ("n_obs_steps", "horizon", "n_action_steps", "fps")
    scalars = ("name", "schema_version", "precision", "opset", *sizes)
    lists = ("tasks", "requirements", "verification", "provenance")
    files = [bundle.path(name) for name in (*m.files, "manifest.json")]
    return {
        "bundle": str(bundle.folder),
        "bytes": sum(path.stat().st_size for path in files),
        **{name: getattr(m, name) for name in scalars},
        "sampler": asdict(m.sampler),
        "joints": [asdict(joint) for joint in m.joints],
        "state_joints": m.state_joints,
        "cameras": [asdict(camera) for camera in m.cameras],
        "graphs": {name: _graph(bundle, graph) for name, graph in m.graphs.items()},
        **{name: getattr(m, name) for name in lists},
        "engines": _engines(bundle),
    }


def _graph(bundle: Bundle, graph: Graph) -> dict[str, Any]:
    return {
        "file": graph.file,
        "bytes": bundle.path(graph.file).stat().st_size,
        "inputs": [tensor_line(tensor) for tensor in graph.inputs],
        "outputs": [tensor_line(tensor) for tensor in graph.outputs],
    }


def tensor_line(tensor: Tensor) -> str:
    """E.g. "state float32 1x2x6"."""
    return f"{tensor.name} {tensor.dtype} {'x'.join(map(str, tensor.shape))}"


def _engines(bundle: Bundle) -> list[dict[str, Any]]:
    records = engine_records(bundle)
    if not records:
        return []
    device: Device | None = None
    try:
        device, unknown = this_device(), ""
    except UserError as error:
        unknown = f"unknown here: {error}"
    return [
        {"folder": folder.name, **_fit(bundle, folder, record, device, unknown), **asdict(record)}
        for folder, record in records.items()
    ]


def _fit(
    bundle: Bundle, folder: Path, record: EngineRecord, device: Device | None, unknown: str
) -> dict[str, Any]:
    if damage := plan_problem(folder, record, bundle):
        return {"fits": False, "why": damage}
    if device is None:
        return {"fits": None, "why": unknown}
    why = incompatibility(folder, record, bundle, device)
    return {"fits": not why, "why": why}
