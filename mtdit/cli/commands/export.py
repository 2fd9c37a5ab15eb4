"""`mtdit export`, `mtdit build` and `mtdit verify`."""

from __future__ import annotations

from pathlib import Path
from shlex import quote
from typing import Annotated

import typer

from mtdit.cli.flags import option, read_rename_map
from mtdit.cli.options import (
    BUNDLE,
    OUTPUTS,
    Backend,
    BackendOption,
    BundleArgument,
    Json,
    RenameMap,
    Units,
)
from mtdit.cli.terminal.console import console, graph_progress, write_json
from mtdit_robots.errors import UserError


def export(
    checkpoint: Annotated[
        Path | None,
        typer.Argument(
            help="Run, checkpoint folder or Hub repo id; default: the newest run in outputs/."
        ),
    ] = None,
    out: Annotated[Path, option("Results", "Bundle folder to write, NAME.mtdit.")] = BUNDLE,
    fp16: Annotated[
        bool,
        option("Policy", "Store weights and multiply matrices in fp16; default: fp32.", "--fp16"),
    ] = False,
    int8: Annotated[
        bool,
        option(
            "Policy",
            "Run the vision and text encoders in int8; needs --dataset for calibration; "
            "default: fp32.",
            "--int8",
        ),
    ] = False,
    steps: Annotated[int, option("Policy", "Number of denoising steps in the graph.")] = 10,
    sampler: Annotated[
        str | None,
        option(
            "Policy",
            "Sampler: ddim or ddpm for diffusion, euler or rk4 for flow matching; "
            "default: ddim, or the integration method of the policy.",
        ),
    ] = None,
    dataset: Annotated[
        Path | None,
        option("Checks", "Check the bundle on this dataset's frames; default: random frames."),
    ] = None,
    rename_map: RenameMap = None,
    rtc: Annotated[
        bool,
        option(
            "Policy",
            "Also export a denoiser for real-time chunking, which continues the chunk being "
            "executed and takes twice the time; default: no.",
            "--rtc",
        ),
    ] = False,
    units: Units = None,
    build: Annotated[
        bool,
        option(
            "Results",
            "Also build TensorRT engines if this computer has TensorRT and a GPU.",
            "--build/--no-build",
        ),
    ] = True,
    json_out: Json = None,
) -> None:
    """Export a checkpoint to a bundle of ONNX graphs, and verify it against the torch policy."""
    from mtdit.checkpoint.find import last_run
    from mtdit.cli.terminal.bundle_tables import export_table
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
        rename_map=None if rename_map is None else read_rename_map(rename_map),
        rtc=rtc,
        units=None if units is None else units.value,
    )
    with graceful_exit():
        with console.rich.status("export") as status:
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


def build(
    bundle: BundleArgument = BUNDLE,
    workspace_mb: Annotated[
        int,
        option(
            "Machine",
            "Memory in MB that TensorRT may use while it tries kernels; "
            "the default suits boards with 8 GB.",
            min=64,
        ),
    ] = 1024,
    clean: Annotated[
        bool,
        option(
            "Results",
            "Delete engines built for other GPUs, TensorRT versions and graphs; "
            "default: keep them.",
            "--clean",
        ),
    ] = False,
) -> None:
    """Build TensorRT engines for this computer's GPU, and check them against the bundle's golden
    fixtures.
    """
    _build(bundle, workspace_mb, clean)
    console.print(f"next: mtdit bench {quote(str(bundle))} --backend tensorrt")


def build_if_possible(bundle: Path) -> str:
    """Build engines if this computer has TensorRT and a GPU. Returns one line that says what was
    done; ExportError as from `build`.
    """
    from mtdit_runtime.engines.trt import this_device

    try:
        this_device()
    except UserError as error:
        return (
            f"no TensorRT engines built ({str(error).partition(':')[0]}): "
            "run `mtdit build NAME.mtdit` on the robot computer"
        )
    return f"engines: {_build(bundle)}"


def _build(bundle: Path, workspace_mb: int = 1024, clean: bool = False) -> Path:
    from mtdit_robots.signals import graceful_exit
    from mtdit_runtime.verify.build import BuildOptions
    from mtdit_runtime.verify.build import build as make

    options = BuildOptions(workspace_mb, clean)
    with graceful_exit(), graph_progress() as on_progress:
        return make(bundle, options, say=console.print, on_progress=on_progress)


AGAINST = {"golden": "golden fixtures", "checkpoint": "checkpoint"}


def verify(
    bundle: BundleArgument = BUNDLE,
    backend: BackendOption = Backend.auto,
    checkpoint: Annotated[
        Path | None,
        option(
            "Checks",
            "Also compare with the torch policy of this checkpoint, from which the bundle was "
            "made.",
        ),
    ] = None,
    dataset: Annotated[
        Path | None,
        option(
            "Checks",
            "With --checkpoint: compare on this dataset's frames; default: random frames.",
        ),
    ] = None,
    json_out: Json = None,
) -> None:
    """Check a bundle's checksums and schema, and compare what it computes on this computer with the
    golden fixtures (inputs and outputs of the trained policy, stored in the bundle).
    """
    from mtdit.cli.terminal.bundle_tables import check_table
    from mtdit_runtime.bundle.bundle import open_bundle
    from mtdit_runtime.verify.verify import verify as compare

    if dataset is not None and checkpoint is None:
        raise UserError(
            "--dataset needs --checkpoint: the golden fixtures already contain their frames"
        )
    opened = open_bundle(bundle)
    golden = compare(opened, backend.value)
    results = {"golden": golden}
    if checkpoint is not None:
        from mtdit_export.verify_checkpoint import verify_checkpoint

        results["checkpoint"] = verify_checkpoint(opened, checkpoint, dataset, backend.value)
    passed = all(result.ok for result in results.values())
    # --json and `mtdit doctor` also say why no faster backend was chosen
    backend_used = golden.backend.partition(";")[0]  # "onnx, as requested", "auto: CPU"
    console.print(
        f"{bundle}: {len(opened.manifest.files)} files match their checksums; "
        f"backend {backend_used}"
    )
    for against, result in results.items():
        console.print(
            check_table(
                f"against the {AGAINST[against]}, {opened.manifest.precision}", result.stages
            )
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
            "backend": golden.backend,
            "ok": passed,
            **{name: {"stages": r.stages, "failures": r.failures} for name, r in results.items()},
        },
    )
    if not passed:
        raise typer.Exit(1)
