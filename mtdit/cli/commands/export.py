"""`mtdit export`, `mtdit build` and `mtdit verify`."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from shlex import quote
from typing import Annotated, Any

import typer
from rich.progress import (
    BarColumn,
    Progress,
    TaskProgressColumn,
    TextColumn,
    TimeElapsedColumn,
)

from mtdit.cli.options import (
    BUNDLE,
    OUTPUTS,
    Json,
)
from mtdit.cli.terminal.console import console, write_json
from mtdit.cli.terminal.tables import export_table, table
from mtdit_robots.errors import UserError


def export(
    checkpoint: Annotated[
        Path | None,
        typer.Argument(
            help="Run, checkpoint folder or Hub repo id; default: the newest run in outputs/."
        ),
    ] = None,
    out: Annotated[Path, typer.Option(help="Bundle folder to write, NAME.mtdit.")] = BUNDLE,
    fp16: Annotated[
        bool,
        typer.Option("--fp16", help="Store weights and multiply matrices in fp16; default: fp32."),
    ] = False,
    int8: Annotated[
        bool,
        typer.Option(
            "--int8",
            help="Run the vision and text encoders in int8; needs --dataset for calibration; "
            "default: fp32.",
        ),
    ] = False,
    steps: Annotated[int, typer.Option(help="Number of denoising steps in the graph.")] = 10,
    sampler: Annotated[
        str | None,
        typer.Option(
            help="Sampler: ddim or ddpm for diffusion, euler or rk4 for flow matching; "
            "default: ddim, or the integration method of the policy."
        ),
    ] = None,
    dataset: Annotated[
        Path | None,
        typer.Option(help="Check the bundle on this dataset's frames; default: random frames."),
    ] = None,
    rtc: Annotated[
        bool,
        typer.Option(
            "--rtc",
            help="Also export a denoiser for real-time chunking, which continues the chunk being "
            "executed and takes twice the time; default: no.",
        ),
    ] = False,
    build: Annotated[
        bool,
        typer.Option(
            "--build/--no-build",
            help="Also build TensorRT engines if this computer has TensorRT and a GPU.",
        ),
    ] = True,
    json_out: Json = None,
) -> None:
    """Export a checkpoint to a bundle of ONNX graphs, and verify it against the torch policy."""
    from mtdit.checkpoint.find import last_run
    from mtdit_export.export import export as write
    from mtdit_export.options import ExportOptions
    from mtdit_robots.signals import graceful_exit

    if fp16 and int8:
        raise UserError("--fp16 and --int8 exclude each other: use one of them")
    options = ExportOptions(
        precision="int8" if int8 else "fp16" if fp16 else "fp32",
        steps=steps,
        sampler=sampler,
        dataset=dataset,
        rtc=rtc,
    )
    with graceful_exit():
        with console.status("export") as status:
            report = write(
                checkpoint or last_run(OUTPUTS),
                out,
                options,
                say=console.print,
                on_stage=status.update,
            )
        console.print(export_table(report))
        if build:
            console.print(build_if_possible(out))
    console.print(
        f"next: mtdit run --robot twin --bundle {quote(str(out))} --task={quote(report.task)}"
    )
    write_json(json_out, report.to_dict())


AGAINST = {"golden": "golden fixtures", "checkpoint": "checkpoint"}
BACKENDS = "Backend: onnx, cuda, tensorrt, or auto (the fastest one that works here)."

BundleArgument = Annotated[
    Path, typer.Argument(metavar="BUNDLE", help="Bundle folder, NAME.mtdit.")
]


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
    from mtdit_runtime.bundle.bundle import open_bundle

    _build(open_bundle(bundle), workspace_mb, clean)
    console.print(f"next: mtdit bench {quote(str(bundle))} --backend tensorrt")


def build_if_possible(bundle: Path) -> str:
    """Build engines if this computer has TensorRT and a GPU. Returns one line that says what was
    done; ExportError as from `build`.
    """
    from mtdit_runtime.bundle.bundle import open_bundle
    from mtdit_runtime.engines.trt import this_device

    try:
        this_device()
    except UserError as error:
        return (
            f"no TensorRT engines built ({str(error).partition(':')[0]}): "
            "run `mtdit build NAME.mtdit` on the robot computer"
        )
    return f"engines: {_build(open_bundle(bundle))}"


def _build(bundle: Any, workspace_mb: int = 1024, clean: bool = False) -> Path:
    from mtdit_robots.signals import graceful_exit
    from mtdit_runtime.engines.trt import import_tensorrt, this_device
    from mtdit_runtime.verify.build import build as make

    device = this_device()
    console.print(f"{device.gpu}, TensorRT {device.tensorrt}: the GPU is busy until this ends")
    with graceful_exit(), _bars() as on_progress:
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
    from mtdit_runtime.bundle.bundle import open_bundle
    from mtdit_runtime.engines.choose import choose_engines
    from mtdit_runtime.verify.gates import check_bundle

    if dataset is not None and checkpoint is None:
        raise UserError(
            "--dataset needs --checkpoint: the golden fixtures already contain their frames"
        )
    opened = open_bundle(bundle)
    engines = choose_engines(opened, backend)
    results = {"golden": check_bundle(opened, engines)}
    if checkpoint is not None:
        from mtdit_export.verify_checkpoint import verify_checkpoint

        results["checkpoint"] = verify_checkpoint(opened, checkpoint, dataset, backend)
    passed = not any(result.failures for result in results.values())
    # what --json and `mtdit doctor` tell is longer: why no faster backend was chosen
    backend_used = str(engines.reason).partition(";")[0]  # "onnx, as asked", "auto: CPU"
    console.print(
        f"{bundle}: {len(opened.manifest.files)} files match their checksums; "
        f"backend {backend_used}"
    )
    for against, result in results.items():
        console.print(
            stages(f"against the {AGAINST[against]}, {opened.manifest.precision}", result.stages)
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


def stages(title: str, stages: Mapping[str, Mapping[str, float]]) -> Any:
    from mtdit_runtime.verify.gates import labelled

    def row(name: str, f: Mapping[str, float]) -> list[str]:
        forms = {"max_error": ".1e", "mean_error": ".1e", "largest": ".3g", "latency_ms": ".1f"}
        return [
            labelled(name),
            *(format(f[key], form) if key in f else "" for key, form in forms.items()),
        ]

    columns = ["stage", "max error", "mean error", "largest value", "latency here, ms"]
    return table(title, columns, [row(name, f) for name, f in stages.items()])
