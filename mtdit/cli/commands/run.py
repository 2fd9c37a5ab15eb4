"""`mtdit run`, `mtdit eval` and `mtdit bench`: what the robot computer does with a bundle."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mtdit.cli.flags import option, read_rename_map
from mtdit.cli.options import (
    BUNDLE,
    ArmOptions,
    Backend,
    BackendOption,
    BundleArgument,
    BundleOption,
    Bus,
    BusKind,
    BusTimeout,
    CalibrationName,
    CameraList,
    ChunkTimeout,
    Clock,
    ClockKind,
    Duration,
    EvalBundle,
    Json,
    Port,
    RenameMap,
    RobotKind,
    RunHome,
    RunMaxSpeed,
    RunRobot,
    Seed,
    Units,
)
from mtdit.cli.terminal.console import console, progress, write_json
from mtdit_robots.errors import UserError


def run(
    task: Annotated[str, option("Policy", 'Instruction for the policy, e.g. "open the drawer".')],
    bundle: BundleOption = BUNDLE,
    backend: BackendOption = Backend.auto,
    new_task: Annotated[
        bool,
        option(
            "Policy",
            "Allow an instruction that is not in the training data; default: refuse it.",
            "--new-task",
        ),
    ] = False,
    prefetch: Annotated[
        int | None,
        option(
            "Policy",
            "Ticks before a chunk ends at which the next one is requested; "
            "default: from the measured latency.",
            min=0,
        ),
    ] = None,
    chunk_timeout: ChunkTimeout = None,
    robot: RunRobot = None,
    port: Port = None,
    calibration: CalibrationName = None,
    bus: Bus = BusKind.own,
    bus_timeout: BusTimeout = 0.05,
    clock: Clock = ClockKind.real,
    scene: Annotated[
        str | None,
        option(
            "Robot",
            "Task of the twin whose scene is set up and whose success ends the run; default: "
            "--task, or the nearest to it.",
        ),
    ] = None,
    units: Units = None,
    camera: CameraList = None,
    rename_map: RenameMap = None,
    max_speed: RunMaxSpeed = None,
    home_s: RunHome = None,
    duration: Duration = None,
    seed: Seed = 0,
    video: Annotated[
        Path | None,
        option(
            "Results",
            "Film the run to this .mp4 file (needs mtdit[record]); default: no film.",
        ),
    ] = None,
    log: Annotated[
        Path | None, option("Results", "Record every tick to this .npz file; default: no log.")
    ] = None,
    log_frames: Annotated[
        float,
        option(
            "Results",
            "Also record the camera frames in --log, from the first tick up to this many MB; "
            "0: none.",
            min=0.0,
            metavar="MB",
        ),
    ] = 0.0,
    json_out: Json = None,
) -> None:
    """Run a bundle's policy on a real arm or on the twin, without torch."""
    from mtdit.cli.rig import cameras_renamed, open_rig, scene_for
    from mtdit.cli.terminal.tables import report_table
    from mtdit_runtime.bundle.bundle import open_bundle
    from mtdit_runtime.control.safety import SafetyConfig
    from mtdit_runtime.policy.warm_up import start_engines
    from mtdit_runtime.run import RunOptions, check_task, run_units
    from mtdit_runtime.run import run as drive

    if log_frames and log is None:
        raise UserError("--log-frames needs a log to put the frames in: add --log run.npz")
    # a port means a real arm, and without one nothing real moves: docs/decisions.md, 27
    kind = robot or (RobotKind.twin if port is None else RobotKind.so101)
    is_twin = kind is RobotKind.twin
    opened = open_bundle(bundle)
    manifest = opened.manifest
    # a wrong task or unit is an error before cameras are opened
    task = check_task(manifest, task, new_task)
    said_units = None if units is None else units.value
    run_units(manifest, said_units, is_real=not is_twin)
    arm = ArmOptions(kind, port, calibration, bus, bus_timeout, clock, seed)
    sizes = {c.name: (c.height, c.width) for c in manifest.cameras}
    names = cameras_renamed(read_rename_map(rename_map or ""), list(sizes))
    if scene is not None and not is_twin:
        raise UserError("--scene is for the twin: leave it out, or use --robot twin")
    set_up = scene_for(task, scene) if is_twin else None
    warm = start_engines(opened, backend.value)  # meanwhile the cameras open
    with open_rig(arm, camera, sizes, manifest.fps, set_up, names) as rig:
        options = RunOptions(
            backend=backend.value,
            duration_s=duration,
            seed=seed,
            prefetch_ticks=prefetch,
            chunk_timeout=chunk_timeout,
            lockstep=arm.lockstep,
            units=said_units,
            new_task=True,  # it has been checked
            home_s=(0.0 if is_twin else RunOptions.home_s) if home_s is None else home_s,
            safety=SafetyConfig() if max_speed is None else SafetyConfig(max_speed=max_speed),
            log=log,
            log_frames_mb=log_frames,
            video=video,
        )
        report = drive(
            opened,
            rig.robot,
            task,
            options,
            success=rig.twin.success if rig.twin else None,
            overview=rig.overview,
            say=console.print,
            warm=warm,
        )
    console.print(report_table(report))
    write_json(json_out, report.to_dict())
    if not report.ok:
        raise typer.Exit(1)


def evaluate(
    task: Annotated[
        list[str],
        option("Evaluation", "Task whose success rate is measured; repeat for more tasks."),
    ],
    robot: Annotated[
        RobotKind,
        option("Robot", "Robot to use: only twin, a real arm cannot tell success."),
    ] = RobotKind.twin,
    bundle: EvalBundle = None,
    checkpoint: Annotated[
        Path | None,
        option(
            "Policy",
            "Evaluate the torch policy instead: a run, a checkpoint folder or a Hub repo id.",
        ),
    ] = None,
    dataset: Annotated[
        str | None,
        option(
            "Policy",
            "With --checkpoint of LeRobot, which names no joints: the dataset it was trained on.",
        ),
    ] = None,
    backend: BackendOption = Backend.auto,
    episodes: Annotated[
        int, option("Evaluation", "Number of episodes per task, each in another scene.", min=1)
    ] = 50,
    seed: Annotated[
        int,
        option(
            "Evaluation",
            "Random seed that picks the scenes; none of them is ever in a recorded dataset.",
            min=0,
            max=100_000,
        ),
    ] = 0,
    instruction: Annotated[
        str | None,
        option(
            "Evaluation", "Instruction to give instead, as a control; default: the task itself."
        ),
    ] = None,
    max_s: Annotated[
        float,
        option(
            "Evaluation",
            "Simulated seconds after which an episode has failed.",
            "--max-seconds",
            min=0.1,
        ),
    ] = 12.0,
    chunk_timeout: ChunkTimeout = None,
    json_out: Json = None,
) -> None:
    """Measure a policy's success rate in the twin, with a 95 % Wilson interval."""
    from mtdit.cli.rig import open_rig
    from mtdit.policy_loader import load
    from mtdit_robots.twin.tasks import find_task
    from mtdit_runtime.evaluate import EvalOptions
    from mtdit_runtime.evaluate import evaluate as measure

    if robot is not RobotKind.twin:
        raise UserError(
            "only the twin can tell success: use --robot twin, or watch `mtdit run` on the arm"
        )
    if bundle is not None and checkpoint is not None:
        raise UserError("--bundle and --checkpoint exclude each other: give only one of them")
    if dataset is not None and checkpoint is None:
        raise UserError("--dataset needs --checkpoint: a bundle names its joints itself")
    tasks = [find_task(name).name for name in task]
    policy = load(checkpoint or bundle or BUNDLE, backend.value, dataset)
    options = EvalOptions(episodes, seed, max_s, instruction, chunk_timeout=chunk_timeout)
    reports = []
    arm = ArmOptions(RobotKind.twin, clock=ClockKind.lockstep)
    with open_rig(arm, size=policy.frame_sizes, fps=policy.fps) as rig, progress() as bars:
        assert rig.twin is not None
        for name in tasks:
            bar = bars.add_task(name, total=episodes)
            reports.append(
                measure(
                    policy,
                    rig.twin,
                    name,
                    options,
                    on_episode=lambda *_, bar=bar: bars.advance(bar),
                )
            )
    for report in reports:
        console.print(str(report))
    values = [report.to_dict() for report in reports]
    write_json(json_out, values[0] if len(values) == 1 else values)


def bench(
    bundle: BundleArgument = BUNDLE,
    backend: BackendOption = Backend.auto,
    repeats: Annotated[int, option("Evaluation", "Number of chunks to time.", min=2)] = 50,
    json_out: Json = None,
) -> None:
    """Measure a bundle's latency on this computer, per stage, beside what the processor can do."""
    from mtdit.cli.terminal.tables import table
    from mtdit_runtime.bench import bench as measure
    from mtdit_runtime.bench import report

    result = measure(bundle, backend.value, repeats)
    columns, rows, lines = report(result)
    console.print("\n".join(result["backend"]))
    console.print(table("", columns, rows))
    console.print("\n".join(lines))
    write_json(json_out, result)
