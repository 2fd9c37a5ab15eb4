"""`mtdit run`, `mtdit eval` and `mtdit bench`."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.progress import Progress, TaskID
from typer.core import TyperGroup

from mtdit.cli.options import (
    BUNDLE,
    MAX_SEED,
    Backend,
    BackendOption,
    BundleOption,
    BusKind,
    BusOption,
    BusTimeout,
    Calibration,
    CameraList,
    Clock,
    Json,
    RobotKind,
)
from mtdit.cli.rig import one_size, run_rig
from mtdit.cli.terminal.console import console, progress, write_json
from mtdit.cli.terminal.tables import table
from mtdit_robots.errors import UserError


class CommandList(TyperGroup):
    """Help that shows the whole sentence about each command, where click would cut it at 60
    characters.
    """

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        names = self.list_commands(ctx)
        with formatter.section("Commands"):
            formatter.write_dl([(n, self.commands[n].get_short_help_str(200)) for n in names])


# -- on the robot computer


def run(
    task: Annotated[str, typer.Option(help='Instruction for the policy, e.g. "open the drawer".')],
    robot: Annotated[
        RobotKind | None,
        typer.Option(
            help="Robot to drive: so101 (a real arm) or twin (the simulated one); "
            "default: so101 if --port is given, else twin."
        ),
    ] = None,
    bundle: BundleOption = BUNDLE,
    port: Annotated[
        str | None,
        typer.Option(help="Serial port of the real arm, e.g. /dev/ttyACM0; required for so101."),
    ] = None,
    calibration: Calibration = None,
    camera: CameraList = None,
    max_speed: Annotated[
        float | None,
        typer.Option(
            min=1.0,
            max=10_000.0,
            help="Maximum speed of every joint in degrees per second (gripper: percent); "
            "default: only the limits from the training data.",
        ),
    ] = None,
    home_s: Annotated[
        float | None,
        typer.Option(
            "--home-seconds",
            min=0.0,
            max=60.0,
            help="Seconds for the return to the start pose at the end, 0: stay there; "
            "default: 3 for a real arm, 0 for the twin.",
        ),
    ] = None,
    bus_timeout: BusTimeout = 0.05,
    bus: BusOption = BusKind.own,
    backend: BackendOption = Backend.auto,
    duration: Annotated[
        float | None,
        typer.Option(min=0.0, help="Stop after this many seconds; default: at success or Ctrl-C."),
    ] = None,
    clock: Annotated[
        Clock,
        typer.Option(help="Clock of the twin: real time, or lockstep (as fast as possible)."),
    ] = Clock.real,
    seed: Annotated[
        int,
        typer.Option(
            min=0, max=MAX_SEED, help="Random seed of the denoising noise and the twin's scene."
        ),
    ] = 0,
    prefetch: Annotated[
        int | None,
        typer.Option(
            min=0,
            help="Ticks before a chunk ends at which the next one is requested; "
            "default: from the measured latency.",
        ),
    ] = None,
    new_task: Annotated[
        bool,
        typer.Option(
            "--new-task",
            help="Allow an instruction that is not in the training data; default: refuse it.",
        ),
    ] = False,
    video: Annotated[
        Path | None, typer.Option(help="Film the run to this .mp4 file; default: no film.")
    ] = None,
    log: Annotated[
        Path | None, typer.Option(help="Record every tick to this .npz file; default: no log.")
    ] = None,
    json_out: Json = None,
) -> None:
    """Run a bundle's policy on a real arm or on the twin, without torch."""
    from mtdit.cli.terminal.tables import report_table
    from mtdit_runtime.bundle.bundle import open_bundle
    from mtdit_runtime.control.safety import SafetyConfig
    from mtdit_runtime.run import RunOptions, check_task
    from mtdit_runtime.run import run as drive

    # a port means a real arm, and without one nothing real moves: docs/decisions.md, 27
    kind = robot or (RobotKind.twin if port is None else RobotKind.so101)
    is_twin = kind is RobotKind.twin
    opened = open_bundle(bundle)
    manifest = opened.manifest
    check_task(manifest, task, new_task)  # a wrong task is an error before cameras are opened
    sizes = {c.name: (c.height, c.width) for c in manifest.cameras}
    with run_rig(
        kind,
        sizes,
        manifest.fps,
        task,
        seed,
        clock,
        port,
        calibration,
        camera,
        bus.value,
        bus_timeout,
    ) as rig:
        options = RunOptions(
            backend=backend.value,
            duration_s=duration,
            seed=seed,
            prefetch_ticks=prefetch,
            lockstep=clock is Clock.lockstep and is_twin,
            new_task=True,  # it has been checked
            home_s=(0.0 if is_twin else RunOptions.home_s) if home_s is None else home_s,
            safety=SafetyConfig() if max_speed is None else SafetyConfig(max_speed=max_speed),
            log=log,
            video=video,
        )
        report = drive(
            opened,
            rig.robot,
            task,
            options,
            success=rig.success,
            overview=rig.overview,
            say=console.print,
        )
    console.print(report_table(report))
    write_json(json_out, report.to_dict())
    if not report.ok:
        raise typer.Exit(1)


def evaluate(
    task: Annotated[
        list[str], typer.Option(help="Task whose success rate is measured; repeat for more tasks.")
    ],
    robot: Annotated[
        RobotKind, typer.Option(help="Robot to use: only twin, a real arm cannot tell success.")
    ] = RobotKind.twin,
    bundle: Annotated[
        Path | None,
        typer.Option(help=f"Bundle to evaluate, NAME.mtdit; default: {BUNDLE}."),
    ] = None,
    checkpoint: Annotated[
        Path | None,
        typer.Option(
            help="Evaluate the torch policy instead: a run, a checkpoint folder or a Hub repo id."
        ),
    ] = None,
    episodes: Annotated[
        int, typer.Option(min=1, help="Number of episodes per task, each in another scene.")
    ] = 50,
    seed: Annotated[
        int,
        typer.Option(
            min=0,
            max=100_000,
            help="Random seed that picks the scenes; none of them is ever in a recorded dataset.",
        ),
    ] = 0,
    instruction: Annotated[
        str | None,
        typer.Option(help="Instruction to give instead, as a control; default: the task itself."),
    ] = None,
    max_s: Annotated[
        float, typer.Option(min=0.1, help="Simulated seconds after which an episode has failed.")
    ] = 12.0,
    backend: BackendOption = Backend.auto,
    json_out: Json = None,
) -> None:
    """Measure a policy's success rate in the twin, with a 95 % Wilson interval."""
    from mtdit_robots.twin.client import Twin
    from mtdit_robots.twin.tasks import find_task
    from mtdit_runtime.evaluate import EvalOptions
    from mtdit_runtime.evaluate import evaluate as measure

    if robot is not RobotKind.twin:
        raise UserError(
            "only the twin can tell success: use --robot twin, or watch `mtdit run` on the arm"
        )
    tasks = [find_task(name).name for name in task]
    options = EvalOptions(episodes, seed, max_s, instruction)
    policy, sizes = _policy(bundle, checkpoint, backend)
    reports = []
    with (
        Twin(image_size=one_size(sizes), clock="lockstep") as twin,
        progress("{task.description}") as bars,
    ):
        for name in tasks:
            bar = bars.add_task(name, total=episodes)
            on_episode = partial(_advance, bars, bar)
            reports.append(measure(policy, twin, name, options, on_episode=on_episode))
    for report in reports:
        console.print(str(report))
    values = [report.to_dict() for report in reports]
    write_json(json_out, values[0] if len(values) == 1 else values)


def bench(
    bundle: Annotated[Path, typer.Argument(help="Bundle folder, NAME.mtdit.")] = BUNDLE,
    backend: BackendOption = Backend.auto,
    repeats: Annotated[int, typer.Option(min=2, help="Number of chunks to time.")] = 50,
    json_out: Json = None,
) -> None:
    """Measure a bundle's latency on this computer, per stage, beside what the processor can do."""
    from mtdit_runtime.bench import bench as measure
    from mtdit_runtime.bench import report

    result = measure(bundle, backend.value, repeats)
    columns, rows, lines = report(result)
    console.print("\n".join(result["backend"]))
    console.print(table("", columns, rows))
    console.print("\n".join(lines))
    write_json(json_out, result)


# -- shared by several commands


def _advance(bars: Progress, bar: TaskID, *_: Any) -> None:
    bars.advance(bar)


def _policy(
    bundle: Path | None, checkpoint: Path | None, backend: Backend
) -> tuple[Any, dict[str, tuple[int, int]]]:
    """The policy of a bundle or of a checkpoint, and (height, width) of each of its cameras."""
    if bundle is not None and checkpoint is not None:
        raise UserError("--bundle and --checkpoint exclude each other: give only one of them")
    if checkpoint is not None:
        from mtdit.checkpoint.read import open_checkpoint
        from mtdit.torch_policy import TorchPolicy

        trained = open_checkpoint(checkpoint)
        return TorchPolicy(trained), {
            name: shape[:2] for name, shape in trained.config.cameras.items()
        }
    from mtdit_runtime.bundle.bundle import open_bundle
    from mtdit_runtime.engines.choose import choose_engines
    from mtdit_runtime.policy.bundle_policy import BundlePolicy

    opened = open_bundle(bundle or BUNDLE)
    sizes = {c.name: (c.height, c.width) for c in opened.manifest.cameras}
    return BundlePolicy(opened, choose_engines(opened, backend.value)), sizes
