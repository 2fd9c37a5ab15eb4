"""`mtdit inspect`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import zip_longest
from typing import Any

from mtdit.cli.commands.export import BundleArgument
from mtdit.cli.options import BUNDLE, Json
from mtdit.cli.terminal.console import console, write_json
from mtdit.cli.terminal.tables import table
from mtdit_runtime.text import printable


def _number(value: float) -> str:
    return f"{value:.1f}" if abs(value) < 1e5 else f"{value:.3g}"


def inspect(bundle: BundleArgument = BUNDLE, json_out: Json = None) -> None:
    """Show what a bundle contains: policy, cameras, joints, graphs, checks, origin and engines."""
    from mtdit_runtime.bundle.bundle import open_bundle
    from mtdit_runtime.verify.inspect import describe

    facts = describe(open_bundle(bundle))
    write_json(json_out, facts)
    for part in shown(facts):
        console.print(part)


def shown(facts: Mapping[str, Any]) -> Iterator[Any]:
    """The facts of `mtdit_runtime.verify.inspect` as tables and lines, ready to print."""
    sampler = facts["sampler"]
    yield table(facts["bundle"], ["", ""], _overview(facts, sampler))
    rows = [
        (
            printable(j["name"], 40),
            f"{_number(j['low'])} to {_number(j['high'])}",
            j["unit"],
            f"{j['max_speed']:.4g}/s",
        )
        for j in facts["joints"]
    ]
    yield table("joints, as trained", ["joint", "range", "unit", "max speed"], rows)
    sizes = [
        (
            printable(c["name"], 40),
            _size((c["height"], c["width"])),
            _size(c["resize"]),
            _size(c["crop"]),
        )
        for c in facts["cameras"]
    ]
    if sizes:
        yield table("cameras", ["camera", "frame", "resized to", "cropped to"], sizes)
    graphs = [row for name, graph in facts["graphs"].items() for row in _tensors(name, graph)]
    yield table("graphs", ["graph", "size", "in", "out"], graphs)
    stages = facts["verification"].get("stages", {})
    if stages:
        yield stages(
            f"checked at export on {facts['verification'].get('frames', 'frames')}", stages
        )
    if not facts["engines"]:
        yield "no TensorRT engines: run `mtdit build` on the robot computer to build them"
    for engine in facts["engines"]:
        yield table("TensorRT engines", ["", ""], _engines(engine))


def _overview(facts: Mapping[str, Any], sampler: Mapping[str, Any]) -> list[tuple[str, str]]:
    made = facts["provenance"]
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
        yield (
            *((name, f"{graph['bytes'] / 1e6:.1f} MB") if i == 0 else ("", "")),
            printable(given, 60),
            printable(got, 60),
        )


def _engines(engine: Mapping[str, Any]) -> list[tuple[str, str]]:
    megabytes = sum(engine["bytes"].values()) / 1e6
    return [
        (
            "built for",
            f"{printable(engine['gpu'], 60)}, TensorRT {printable(engine['tensorrt'], 20)}",
        ),
        ("size", f"{megabytes:.0f} MB"),
        ("on", printable(engine["built"], 60)),
        ("on this computer", "usable" if engine["fits"] else engine["why"]),
    ]


def _size(size: Any) -> str:
    return f"{size[1]}x{size[0]}" if size else "unchanged"
