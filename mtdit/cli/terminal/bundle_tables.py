"""The tables about bundles: what is in one, and how exactly it computes the trained policy."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from itertools import zip_longest
from typing import TYPE_CHECKING, Any

from mtdit.cli.terminal.tables import table

if TYPE_CHECKING:
    from rich.table import Table

    from mtdit_export.export import ExportReport

Columns = list[tuple[str, str, Callable[[float], str]]]  # heading, key of the fact, format

EXPORT_COLUMNS: Columns = [
    ("parameters", "parameters", lambda v: f"{v / 1e6:.2f} M"),
    ("file", "megabytes", lambda v: f"{v:.1f} MB"),
    ("max error", "max_error", lambda v: f"{v:.1e}"),
    ("mean error", "mean_error", lambda v: f"{v:.1e}"),
    ("latency here", "latency_ms", lambda v: f"{v:.1f} ms"),
]
CHECK_COLUMNS: Columns = [
    ("max error", "max_error", lambda v: f"{v:.1e}"),
    ("p99.9", "p99.9_error", lambda v: f"{v:.1e}"),
    ("rms", "rms_error", lambda v: f"{v:.1e}"),
    ("largest", "largest", lambda v: f"{v:.3g}"),
    ("ms here", "latency_ms", lambda v: f"{v:.1f}"),
]


def export_table(report: ExportReport) -> Table:
    """One row per stage of an export: its size, its error against torch, its latency here."""
    title = (
        f"{report.bundle}: {report.precision}, {report.sampler.kind} {report.sampler.steps} steps"
    )
    return _stages(title, report.stages, EXPORT_COLUMNS)


def check_table(title: str, stages: Mapping[str, Mapping[str, float]]) -> Table:
    """One row per stage that was compared with the trained policy."""
    return _stages(title, stages, CHECK_COLUMNS)


def _stages(title: str, stages: Mapping[str, Mapping[str, Any]], columns: Columns) -> Table:
    from mtdit_runtime.verify.gates import labelled

    rows = [
        [labelled(name), *(form(f[key]) if key in f else "" for _, key, form in columns)]
        for name, f in stages.items()
    ]
    return table(title, ["stage", *(heading for heading, _, _ in columns)], rows)


def inspect_parts(facts: Mapping[str, Any]) -> Iterator[Any]:
    """The facts of `mtdit_runtime.verify.inspect` as tables and lines, ready to print."""
    from mtdit_runtime.joint_order import difference

    yield table(facts["bundle"], ["", ""], _overview(facts))
    joints = [
        (
            j["name"],
            f"{_number(j['low'])} to {_number(j['high'])}",
            j["unit"],
            f"{j['max_speed']:.4g}/s",
        )
        for j in facts["joints"]
    ]
    yield table("joints, as trained", ["joint", "range", "unit", "max speed"], joints)
    orders = difference(facts["state_joints"], [j["name"] for j in facts["joints"]])
    if orders is not None:
        yield orders
    cameras = [
        (c["name"], _size((c["height"], c["width"])), _size(c["resize"]), _size(c["crop"]))
        for c in facts["cameras"]
    ]
    if cameras:
        yield table("cameras", ["camera", "frame", "resized to", "cropped to"], cameras)
    graphs = [row for name, graph in facts["graphs"].items() for row in _tensors(name, graph)]
    yield table("graphs", ["graph", "size", "in", "out"], graphs)
    checked = facts["verification"]
    if checked.get("stages"):
        yield check_table(
            f"checked at export on {checked.get('frames', 'frames')}", checked["stages"]
        )
    if not facts["engines"]:
        yield "no TensorRT engines: run `mtdit build` on the robot computer to build them"
    for engine in facts["engines"]:
        yield table("TensorRT engines", ["", ""], _engines(engine))


def _overview(facts: Mapping[str, Any]) -> list[tuple[str, str]]:
    made, sampler = facts["provenance"], facts["sampler"]
    versions = ", ".join(f"{name} {version}" for name, version in made.get("versions", {}).items())
    needs = ", ".join(f"{name} {version}" for name, version in facts["requirements"].items())
    chunk = (
        f"{facts['n_action_steps']} of {facts['horizon']} actions at {facts['fps']} Hz, "
        f"from {facts['n_obs_steps']} observations"
    )
    return [
        ("policy", f"{facts['name']}, {facts['precision']}, {facts['bytes'] / 1e6:.0f} MB"),
        ("sampler", f"{sampler['kind']}, {sampler['steps']} steps"),
        ("chunk", chunk),
        *(("task" if i == 0 else "", task) for i, task in enumerate(facts["tasks"])),
        ("made from", f"{made.get('checkpoint', '?')}, dataset {made.get('dataset', '?')}"),
        ("made on", f"{made.get('date', '?')} with {versions}"),
        ("needs", needs),
        ("format", f"schema {facts['schema_version']}, ONNX opset {facts['opset']}"),
    ]


def _tensors(name: str, graph: Mapping[str, Any]) -> Iterator[tuple[str, ...]]:
    """A row for each pair of an input and an output tensor."""
    lines = zip_longest(graph["inputs"], graph["outputs"], fillvalue="")
    for i, (given, got) in enumerate(lines):
        first = (name, f"{graph['bytes'] / 1e6:.1f} MB") if i == 0 else ("", "")
        yield (*first, given, got)


def _engines(engine: Mapping[str, Any]) -> list[tuple[str, str]]:
    return [
        ("built for", f"{engine['gpu']}, TensorRT {engine['tensorrt']}"),
        ("size", f"{sum(engine['bytes'].values()) / 1e6:.0f} MB"),
        ("on", engine["built"]),
        ("on this computer", "usable" if engine["fits"] else engine["why"]),
    ]


def _number(value: float) -> str:
    return f"{value:.1f}" if abs(value) < 1e5 else f"{value:.3g}"


def _size(size: Any) -> str:
    return f"{size[1]}x{size[0]}" if size else "unchanged"
