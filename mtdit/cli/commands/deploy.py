"""`mtdit deploy`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mtdit.cli.config_file import ConfigFile
from mtdit.cli.config_keys import CAMERAS
from mtdit.cli.config_text import changed_text
from mtdit.cli.flags import option
from mtdit.cli.options import (
    BUNDLE,
    Backend,
    BackendOption,
    BundleArgument,
    CalibrationName,
    Json,
    Port,
)
from mtdit.cli.terminal.console import console, write_json
from mtdit_robots.errors import UserError

if TYPE_CHECKING:
    from mtdit_runtime.deploy.deploy import Deployment


def deploy(
    host: Annotated[
        str, typer.Argument(metavar="HOST", help="user@NAME, or a Host of ~/.ssh/config.")
    ],
    bundle: BundleArgument = BUNDLE,
    also: Annotated[
        list[str] | None,
        option("Machine", "Another host, at the same time; repeat for more.", "--also"),
    ] = None,
    backend: BackendOption = Backend.auto,
    port: Port = None,
    calibration: CalibrationName = None,
    image: Annotated[
        bool,
        option(
            "Machine",
            "Build a Docker image there; default: a Python environment, without root.",
            "--image",
        ),
    ] = False,
    folder: Annotated[
        str, option("Machine", "Folder there, from the home folder.", "--folder")
    ] = "mtdit",
    repository: Annotated[
        Path | None,
        option(
            "Machine",
            "Folder with docker/, and with dist/ of `make dist`; default: the current one, or the "
            "clone that mtdit runs from.",
        ),
    ] = None,
    ssh: Annotated[
        str, option("Machine", 'Command that connects, e.g. "ssh -p 2222".', "--ssh")
    ] = "ssh",
    config: ConfigFile | None = None,
    json_out: Json = None,
) -> None:
    """Bring a bundle to a robot computer over ssh: check the computer, copy bundle, calibration and
    mtdit.toml, install mtdit, build the engines there, verify and measure them.

    Type it again to go on with what was interrupted, or to bring what has changed.
    """
    from mtdit.cli.rig import calibration_file as file_of
    from mtdit.cli.rig import load_calibration
    from mtdit_robots.signals import graceful_exit
    from mtdit_runtime.deploy.deploy import DeployOptions
    from mtdit_runtime.deploy.deploy import deploy as bring

    file = file_of(calibration)
    if file is not None:
        load_calibration("--calibration", calibration)  # a wrong one is an error now
    changed: dict[str, Any] = {"bundle": Path(bundle).absolute().name}
    changed |= {"port": port} if port is not None else {}
    changed |= {"calibration": file.name} if file is not None else {}
    options = DeployOptions(
        repository,
        folder,
        backend.value,
        image,
        file,
        changed_text(config, changed),
        _devices(port, config),
        ssh,
    )
    with graceful_exit(), _steps() as on_step:
        done = bring(
            [host, *(also or ())],
            bundle,
            options,
            say=lambda host, line: console.print(f"{host}: {line}"),
            on_step=on_step,
        )
    write_json(json_out, [each.to_dict() for each in done])
    _show(done, port)


def _devices(port: str | None, config: ConfigFile | None) -> list[str]:
    """The arm and the cameras that must be there."""
    cameras = config.tables.get(CAMERAS, {}) if config is not None else {}
    named = [port, *(camera["source"] for camera in cameras.values())]
    return [device for device in named if device and device.startswith("/dev/")]


@contextmanager
def _steps() -> Iterator[Callable[[str, str], None]]:
    """A line per host with its step and the seconds since it began; nothing outside a terminal."""
    from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    columns = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
    with Progress(
        *columns, console=console.rich, transient=True, disable=not console.is_terminal
    ) as bars:
        tasks: dict[str, Any] = {}

        def show(host: str, step: str) -> None:
            if host not in tasks:
                tasks[host] = bars.add_task("", total=None)
            bars.update(tasks[host], description=f"{host}: {step}")

        yield show


def _show(done: list[Deployment], port: str | None) -> None:
    from mtdit.cli.terminal.tables import table

    failed = [each for each in done if each.error]
    if failed and len(done) == 1:
        raise UserError(failed[0].error)
    if len(done) > 1:
        rows = [
            (
                each.host,
                "fail" if each.error else "ok",
                each.release,
                "" if each.chunk_ms is None else f"{each.chunk_ms:.1f} of {each.budget_ms:.0f}",
                each.error.removeprefix(f"{each.host}: "),
            )
            for each in done
        ]
        console.print(table("", ["host", "", "JetPack", "chunk, ms", "what to do"], rows))
    for each in done:
        if each.start:
            console.print(f"start it: {each.start}")
    if port is None:
        console.print("no port is set, so it would move the twin: add --port to that line")
    if failed:
        raise typer.Exit(1)
