"""The commands for an existing bundle: `mtdit build`, `verify` and `inspect`.

Each stage is imported inside its command. Only `verify --checkpoint` needs torch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from itertools import zip_longest
from pathlib import Path
from shlex import quote
from typing import Annotated, Any

import typer
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn

from mtdit.options import Json
from mtdit.terminal import console, table, write_json
from mtdit_robots.errors import UserError
from mtdit_runtime.words import plain

BUNDLE = Path("outputs/policy.mtdit")
AGAINST = {"golden": "golden fixtures", "checkpoint": "checkpoint"}
BACKENDS = "Backend: onnx, cuda, tensorrt, or auto (the fastest one that works here)."

BundleArgument = Annotated[
    Path, typer.Argument(metavar="BUNDLE", help="Bundle folder, NAME.mtdit.")
]


def register(app: typer.Typer) -> None:
    """Add this module's commands to the app."""
    app.command("build")(build)
    app.command("verify")(verify)
    app.command("inspect")(inspect)


def build(
    bundle: BundleArgument = BUNDLE,
    workspace_mb: Annotated[
        int,
        typer.Option(
            min=64,
            help="Memory in MB that TensorRT may use while it tries kernels; "
            "the default suits boards with 8 GB.",
        ),
    ] = 1024,
    clean: Annotated[
        bool,
        typer.Option(
            "--clean",
            help="Delete engines built for other GPUs, TensorRT versions and graphs; "
            "default: keep them.",
        ),
    ] = False,
) -> None:
    """Build TensorRT engines for this computer's GPU, and check them against the bundle's golden
    fixtures.
    """
    from mtdit_runtime.bundle import open_bundle

    _build(open_bundle(bundle), workspace_mb, clean)
    console.print(f"next: mtdit bench {quote(str(bundle))} --backend tensorrt")


def build_if_possible(bundle: Path) -> str:
    """Build engines if this computer has TensorRT and a GPU. Returns one line that says what was
    done; ExportError as from `build`.
    """
    from mtdit_runtime.bundle import open_bundle
    from mtdit_runtime.engine import this_device

    try:
        this_device()
    except UserError as error:
        return (
            f"no TensorRT engines built ({str(error).partition(':')[0]}): "
            "run `mtdit build NAME.mtdit` on the robot computer"
        )
    return f"engines: {_build(open_bundle(bundle))}"


def _build(bundle: Any, workspace_mb: int = 1024, clean: bool = False) -> Path:
    from mtdit_export.build import build as make
    from mtdit_runtime.engine import import_tensorrt, this_device
    from mtdit_runtime.loop import dying_in_order

    device = this_device()
    console.print(f"{device.gpu}, TensorRT {device.tensorrt}: the GPU is busy until this ends")
    with dying_in_order(), _bars() as on_progress:
        return make(
            bundle,
            import_tensorrt()[0],
            device,
            workspace_mb,
            clean,
            on_line=console.print,
            on_progress=on_progress,
        )


@contextmanager
def _bars() -> Iterator[Callable[[str, float, float], None]]:
    """A progress bar with elapsed time per graph; nothing outside a terminal."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TaskProgressColumn(),
        TimeElapsedColumn(),
    )
    with Progress(
        *columns, console=console, transient=True, disable=not console.is_terminal
    ) as bars:
        tasks: dict[str, Any] = {}

        def show(graph: str, share: float, elapsed_s: float) -> None:
            if graph not in tasks:
                tasks[graph] = bars.add_task(graph, total=1.0)
            bars.update(tasks[graph], completed=share)

        yield show


def verify(
    bundle: BundleArgument = BUNDLE,
    backend: Annotated[str, typer.Option(help=BACKENDS)] = "auto",
    checkpoint: Annotated[
        Path | None,
        typer.Option(
            help="Also compare with the torch policy of this checkpoint, from which the bundle "
            "was made."
        ),
    ] = None,
    dataset: Annotated[
        Path | None,
        typer.Option(
            help="With --checkpoint: compare on this dataset's frames; default: random frames."
        ),
    ] = None,
    json_out: Json = None,
) -> None:
    """Check a bundle's checksums and schema, and compare what it computes on this computer with the
    golden fixtures (inputs and outputs of the trained policy, stored in the bundle).
    """
    from mtdit_runtime.bundle import open_bundle
    from mtdit_runtime.engine import choose_engines
    from mtdit_runtime.golden import check_bundle

    if dataset is not None and checkpoint is None:
        raise UserError(
            "--dataset needs --checkpoint: the golden fixtures already contain their frames"
        )
    opened = open_bundle(bundle)
    engines = choose_engines(opened, backend)
    results = {"golden": check_bundle(opened, engines)}
    if checkpoint is not None:
        from mtdit_export.recheck import recheck

        results["checkpoint"] = recheck(opened, checkpoint, dataset, backend)
    passed = not any(result.failures for result in results.values())
    # what --json and `mtdit doctor` tell is longer: why no faster backend was chosen
    backend_used = str(engines.reason).partition(";")[0]  # "onnx, as asked", "auto: CPU"
    console.print(
        f"{bundle}: {len(opened.manifest.files)} files match their checksums; "
        f"backend {backend_used}"
    )
    for against, result in results.items():
        console.print(
            _stages(f"against the {AGAINST[against]}, {opened.manifest.precision}", result.stages)
        )
        for line in result.failures:
            console.print(f"fail: {line}")
    console.print(
        "OK: outputs match the trained policy on this backend"
        if passed
        else "FAILED: outputs differ from the trained policy on this backend"
    )
    write_json(
        json_out,
        {
            "bundle": str(bundle),
            "backend": engines.reason,
            "ok": passed,
            **{name: {"stages": r.stages, "failures": r.failures} for name, r in results.items()},
        },
    )
    if not passed:
        raise typer.Exit(1)


def _number(value: float) -> str:
    return f"{value:.1f}" if abs(value) < 1e5 else f"{value:.3g}"


def _stages(title: str, stages: Mapping[str, Mapping[str, float]]) -> Any:
    from mtdit_runtime.golden import labelled

    def row(name: str, f: Mapping[str, float]) -> list[str]:
        forms = {"max_error": ".1e", "mean_error": ".1e", "largest": ".3g", "latency_ms": ".1f"}
        return [
            labelled(name),
            *(format(f[key], form) if key in f else "" for key, form in forms.items()),
        ]

    columns = ["stage", "max error", "mean error", "largest value", "latency here, ms"]
    return table(title, columns, [row(name, f) for name, f in stages.items()])


def inspect(bundle: BundleArgument = BUNDLE, json_out: Json = None) -> None:
    """Show what a bundle contains: policy, cameras, joints, graphs, checks, origin and engines."""
    from mtdit_runtime.about import about
    from mtdit_runtime.bundle import open_bundle

    facts = about(open_bundle(bundle))
    write_json(json_out, facts)
    for part in shown(facts):
        console.print(part)


def shown(facts: Mapping[str, Any]) -> Iterator[Any]:
    """The facts of `mtdit_runtime.about` as tables and lines, ready to print."""
    sampler = facts["sampler"]
    yield table(facts["bundle"], ["", ""], _overview(facts, sampler))
    rows = [
        (
            plain(j["name"], 40),
            f"{_number(j['low'])} to {_number(j['high'])}",
            j["unit"],
            f"{j['max_speed']:.4g}/s",
        )
        for j in facts["joints"]
    ]
    yield table("joints, as trained", ["joint", "range", "unit", "max speed"], rows)
    sizes = [
        (
            plain(c["name"], 40),
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
        yield _stages(
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
            plain(given, 60),
            plain(got, 60),
        )


def _engines(engine: Mapping[str, Any]) -> list[tuple[str, str]]:
    megabytes = sum(engine["bytes"].values()) / 1e6
    return [
        ("built for", f"{plain(engine['gpu'], 60)}, TensorRT {plain(engine['tensorrt'], 20)}"),
        ("size", f"{megabytes:.0f} MB"),
        ("on", plain(engine["built"], 60)),
        ("on this computer", "usable" if engine["fits"] else engine["why"]),
    ]


def _size(size: Any) -> str:
    return f"{size[1]}x{size[0]}" if size else "unchanged"
