"""The `mtdit` command: parse the options, call one stage, print its result.

Each stage is imported inside its command, so `mtdit run` on the robot computer never imports torch.
A user's mistake ends in one line on standard error and exit code 2.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Set
from contextlib import contextmanager
from dataclasses import dataclass, fields
from enum import Enum
from functools import partial
from pathlib import Path
from shlex import quote
from typing import Annotated, Any, cast

import typer
from rich.progress import Progress, TaskID
from typer.core import TyperCommand, TyperGroup

from mtdit import cli_bundle, cli_record, cli_robot
from mtdit.config import read_json
from mtdit.demo import DemoConfig
from mtdit.lerobot_flags import translate
from mtdit.options import BusKind, BusOption, BusTimeout, Clock, Json, RobotKind
from mtdit.terminal import console, progress, table, write_json
from mtdit.train_config import TrainConfig, training_defaults
from mtdit_export.errors import ExportError
from mtdit_robots.errors import UserError
from mtdit_robots.robot import Frame, Robot
from mtdit_runtime.publish import DISK_FULL
from mtdit_runtime.words import plain

OUTPUTS = Path("outputs")
RUN, BUNDLE = OUTPUTS / "train", cli_bundle.BUNDLE
MAX_SEED = 2**31 - 1
MOST_WORDS = 4000  # characters of the message that ends a command
INTERRUPTED = 130  # the exit code that shells use for Ctrl-C


class CommandList(TyperGroup):
    """Help that shows the whole sentence about each command, where click would cut it at 60
    characters.
    """

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        names = self.list_commands(ctx)
        with formatter.section("Commands"):
            formatter.write_dl([(n, self.commands[n].get_short_help_str(200)) for n in names])


app = typer.Typer(
    cls=CommandList,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    help="Train a Multitask DiT policy on a LeRobot dataset and run it on an SO-101 arm.",
)

UsageError = cast(
    "type[typer.BadParameter]", typer.BadParameter.__mro__[1]
)  # click's; typer does not export it

# What a stage writes to --out, and the part that proves that an existing folder is such a result.
DATASET_PARTS, DATASET_PROOF = {"meta", "data", "videos", "images"}, "meta/info.json"
RUN_PROOF = "checkpoints"
RUN_CACHES = {
    ".lock", "clip-tiny", "frames", ".frames.partial", "train_log.jsonl", "tensorboard",
    "curves.png", ".curves.png.partial", "wandb", "wandb_run.json",
}  # fmt: skip

# module that cannot be imported -> the extra that installs it
EXTRA_OF = {
    **dict.fromkeys(("onnxruntime", "cv2", "tokenizers"), "runtime"),
    "mujoco": "twin",
    **dict.fromkeys(
        ("torch", "torchvision", "lerobot", "transformers", "accelerate", "open_clip"), "train"
    ),
    **dict.fromkeys(("pyarrow", "av", "tensorboard", "matplotlib"), "train"),
    **dict.fromkeys(("onnx", "onnxscript"), "export"),
}


class Backend(str, Enum):
    auto = "auto"
    onnx = "onnx"
    cuda = "cuda"
    tensorrt = "tensorrt"


Seed = Annotated[
    int,
    typer.Option(min=0, max=MAX_SEED, help="Random seed; the same seed gives the same result."),
]
Overwrite = Annotated[
    bool,
    typer.Option(
        "--overwrite",
        help="Replace the result of an earlier run in --out; default: stop if there is one.",
    ),
]
BundleOption = Annotated[
    Path,
    typer.Option("--bundle", help="Bundle to run: a folder NAME.mtdit that `mtdit export` wrote."),
]
BackendOption = Annotated[
    Backend,
    typer.Option(help="Backend that computes the policy; auto: the fastest one that works here."),
]
Calibration = Annotated[
    str | None,
    typer.Option(help="Calibration of the real arm: a JSON file, or the arm's id in LeRobot."),
]
CameraList = Annotated[
    list[str] | None,
    typer.Option(
        "--camera",
        help="Camera as NAME=SOURCE, repeat for each camera; SOURCE is a device (/dev/video0), "
        "file:CLIP.mp4 or dataset:FOLDER:CAMERA.",
    ),
]


class GroupedHelp(TyperCommand):
    """Help that lists the options under the headings they were declared with."""

    def format_options(self, ctx: Any, formatter: Any) -> None:
        groups: dict[str, list[tuple[str, str]]] = {}
        for option in self.get_params(ctx):
            record = option.get_help_record(ctx)
            if record is not None:
                heading = getattr(option, "rich_help_panel", None) or "Help"
                groups.setdefault(heading, []).append(record)
        for name, records in groups.items():
            with formatter.section(name):
                formatter.write_dl(records)


def _ask(group: str, says: str, like: str = "", names: str = "", **limits: Any) -> Any:
    """An option of `train` without a value of its own: leaving it out is not the same as its
    default, which the preset may change. like: the TrainConfig field whose default the help shows.
    """
    # typer prints a `show_default` string in parentheses, so the default is part of the text
    default = f" [default: {getattr(TrainConfig, like)}]" if like else ""
    return typer.Option(
        *names.split(), help=says + default, rich_help_panel=group, show_default=False, **limits
    )


def main() -> None:
    """Entry point. A user's mistake and a missing extra end in one line on standard error and exit
    code 2, a failure in exit code 1, Ctrl-C in 130.
    """
    # torch's threads sleep while they wait: spinning at barriers makes training 4 times slower as
    # soon as a core is shared
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    os.environ.setdefault("GOMP_SPINCOUNT", "0")
    try:
        code = app(_words(sys.argv[1:]), prog_name="mtdit", standalone_mode=False)
        if code == INTERRUPTED:
            _fail("interrupted", code)
        sys.exit(code)
    except UserError as error:
        _fail(str(error))
    except UsageError as error:
        command = error.ctx.command_path if error.ctx else "mtdit"
        _fail(f"{error.format_message().rstrip('.')}: see {command} --help")
    except typer.Abort:
        _fail("interrupted", INTERRUPTED)
    except ExportError as error:
        _fail(str(error), code=1)
    except OSError as error:
        if error.filename is not None or error.errno in DISK_FULL:
            place = error.filename or "the disk"
            _fail(f"{place}: {error.strerror}: choose another place, or make room there")
        _fail(str(error), code=1)  # the twin or the arm stopped answering
    except ModuleNotFoundError as error:
        extra = EXTRA_OF.get((error.name or "").partition(".")[0])
        if extra is None:
            raise
        install = f'pip install "mtdit[{extra}]"'
        _fail(f"this command needs {error.name}, which is not installed: {install}")


def _words(words: list[str]) -> list[str]:
    """The command line with `mtdit` options only: lerobot-train's flags are translated."""
    if words[:1] != ["train"]:
        return words or ["--help"]
    said = translate(words[1:])
    if _rank() == 0:
        for note in said.notes:
            console.print(note)
    return ["train", *said.words]


def _rank() -> int:
    """Rank of this training process, as `accelerate launch` and `torchrun` set it; only rank 0
    prints.
    """
    return int(os.environ.get("RANK", 0))


def _fail(message: str, code: int = 2) -> None:
    who = f"mtdit: rank {_rank()}" if _rank() else "mtdit"
    print(f"{who}: {plain(' '.join(message.split()), MOST_WORDS)}", file=sys.stderr)
    sys.exit(code)


# -- on the workstation


@app.command()
def simulate(
    task: Annotated[
        list[str],
        typer.Option(help='Task to demonstrate, e.g. "open the drawer"; repeat for more tasks.'),
    ],
    out: Annotated[Path, typer.Option(help="Folder to write the new LeRobotDataset to.")],
    episodes: Annotated[int, typer.Option(min=1, help="Number of demonstrations per task.")] = 50,
    seed: Seed = 0,
    image_size: Annotated[
        int, typer.Option(min=16, max=640, help="Width and height of the camera frames, in pixels.")
    ] = 64,
    overwrite: Overwrite = False,
) -> None:
    """Record scripted demonstrations of the simulated arm as a LeRobotDataset v3."""
    from mtdit_robots.twin.tasks import find_task

    names = [find_task(name).name for name in task]
    _make_room(out, overwrite, DATASET_PROOF, DATASET_PARTS)
    from mtdit.simulate import simulate as record

    with progress("recording") as bars:
        bar = bars.add_task("", total=episodes * len(names))
        report = record(
            names,
            episodes,
            out,
            seed=seed,
            image_size=(image_size, image_size),
            on_progress=lambda done, total: bars.update(bar, completed=done, total=total),
        )
    console.print(report.summary())
    console.print(f"next: mtdit train --dataset {quote(str(out))}")


@app.command(cls=GroupedHelp)
def train(
    dataset: Annotated[
        str | None,
        _ask(
            "Data",
            "LeRobotDataset v3 to train on: a folder or a Hub repo id; default with --resume: the "
            "run's dataset.",
        ),
    ] = None,
    frames: Annotated[
        str | None,
        _ask(
            "Data",
            "Where frames are read from: disk (decode once, cache), memory (decode at start-up), "
            "video (decode on demand).",
            "frames",
        ),
    ] = None,
    cache_dir: Annotated[
        Path | None, _ask("Data", "Folder for the decoded frames; default: OUT/frames.")
    ] = None,
    workers: Annotated[
        int | None,
        _ask("Data", "Number of threads that prepare batches ahead.", "workers", min=1),
    ] = None,
    imagenet_stats: Annotated[
        bool | None,
        _ask(
            "Data",
            "Normalise images with ImageNet's or the dataset's statistics; default: ImageNet's.",
            names="--imagenet-stats/--dataset-stats",
        ),
    ] = None,
    image_transforms: Annotated[
        str | None,
        _ask(
            "Data",
            "Augment images: 'default' (LeRobot's set), LeRobot's image_transforms as JSON, or a "
            "file with that JSON; off if omitted.",
        ),
    ] = None,
    random_shift_px: Annotated[
        int | None,
        _ask(
            "Data",
            "Shift each camera's frames at random by up to this many pixels.",
            "random_shift_px",
            "--random-shift",
            min=0,
        ),
    ] = None,
    random_brightness: Annotated[
        float | None,
        _ask("Data", "Multiply each camera's pixels by 1 + N(0, this value).", "random_brightness"),
    ] = None,
    balance_tasks: Annotated[
        bool | None,
        _ask(
            "Data",
            "Draw every task equally often, however many frames it has; default: no.",
            names="--balance-tasks/--no-balance-tasks",
        ),
    ] = None,
    task_weights: Annotated[
        list[str] | None,
        _ask(
            "Data",
            'Draw a task more often, e.g. "open the drawer=2" for twice; repeat for more tasks; '
            "default: 1 for every task.",
            names="--task-weight",
        ),
    ] = None,
    val_split: Annotated[
        float | None,
        _ask("Data", "Fraction of each task's episodes held out for validation.", "val_split"),
    ] = None,
    preset: Annotated[
        str | None,
        _ask(
            "Policy",
            "Size of the policy: base (CLIP ViT-B/16 encoders) or tiny (small encoders trained "
            "from scratch on a CPU, for the twin; it also changes training defaults).",
            "preset",
        ),
    ] = None,
    vision_encoder: Annotated[
        str | None,
        _ask(
            "Policy",
            "CLIP model that encodes images and text: a Hub name, a folder, or tiny; "
            "default: the preset's.",
        ),
    ] = None,
    objective: Annotated[
        str | None,
        _ask("Policy", "Training objective: diffusion or flow_matching; default: diffusion."),
    ] = None,
    horizon: Annotated[
        int | None, _ask("Policy", "Number of actions in a chunk; default: the preset's.", min=1)
    ] = None,
    policy: Annotated[
        list[str] | None,
        _ask("Policy", "Set another policy field: NAME=VALUE, with LeRobot's names; repeat."),
    ] = None,
    steps: Annotated[
        int | None, _ask("Length", "Number of optimiser steps.", "steps", min=1)
    ] = None,
    max_minutes: Annotated[
        float | None,
        _ask(
            "Length",
            "Stop after this many minutes; the LR schedule ends then. Default: no time limit.",
        ),
    ] = None,
    batch_size: Annotated[
        int | None,
        _ask("Length", "Number of samples in a batch, per process.", "batch_size", min=1),
    ] = None,
    grad_accumulation: Annotated[
        int | None,
        _ask(
            "Length",
            "Number of batches whose gradients make one optimiser step.",
            "grad_accumulation",
            min=1,
        ),
    ] = None,
    noise_samples: Annotated[
        int | None,
        _ask(
            "Length",
            "Number of (noise, timestep) draws per encoded observation.",
            "noise_samples",
            min=1,
        ),
    ] = None,
    seed: Annotated[
        int | None,
        _ask(
            "Length",
            "Random seed; the same seed gives the same run.",
            "seed",
            min=0,
            max=MAX_SEED,
        ),
    ] = None,
    device: Annotated[
        str | None, _ask("Machine", "Device to train on: auto, cpu, cuda, cuda:1 or mps.", "device")
    ] = None,
    amp: Annotated[str | None, _ask("Machine", "Mixed precision: no, bf16 or fp16.", "amp")] = None,
    compile: Annotated[
        bool | None,
        _ask(
            "Machine",
            "Run the network through torch.compile; default: no.",
            names="--compile/--no-compile",
        ),
    ] = None,
    ema: Annotated[
        bool | None,
        _ask(
            "Machine",
            "Average the weights over the steps (EMA) and save the average; default: yes.",
            names="--ema/--no-ema",
        ),
    ] = None,
    ema_max_decay: Annotated[
        float | None, _ask("Machine", "Maximum EMA decay.", "ema_max_decay")
    ] = None,
    grad_clip_norm: Annotated[
        float | None,
        _ask("Machine", "Clip the gradient to this norm.", "grad_clip_norm", "--grad-clip"),
    ] = None,
    out: Annotated[
        Path,
        typer.Option(
            help="Folder for the run's checkpoints, logs and curves.", rich_help_panel="Results"
        ),
    ] = RUN,
    log_every: Annotated[
        int | None, _ask("Results", "Log every N steps.", "log_every", min=1)
    ] = None,
    val_every: Annotated[
        int | None,
        _ask(
            "Results",
            "Compute the validation loss every N steps; needs --val-split.",
            "val_every",
            min=1,
        ),
    ] = None,
    save_every: Annotated[
        int | None, _ask("Results", "Save a checkpoint every N steps.", "save_every", min=1)
    ] = None,
    keep_checkpoints: Annotated[
        int | None,
        _ask("Results", "Keep the newest N checkpoints and the best one; default: all.", min=1),
    ] = None,
    tensorboard: Annotated[
        bool | None,
        _ask(
            "Results",
            "Write TensorBoard curves to OUT/tensorboard; default: yes.",
            names="--tensorboard/--no-tensorboard",
        ),
    ] = None,
    wandb: Annotated[
        str | None, _ask("Results", "Also log to this Weights & Biases project; default: none.")
    ] = None,
    resume: Annotated[
        bool,
        _ask(
            "Start",
            "Continue from the last checkpoint in --out, with that run's options.",
            names="--resume",
        ),
    ] = False,
    init_from: Annotated[
        Path | None,
        _ask(
            "Start",
            "Start from this policy's weights: a run, a checkpoint folder or a Hub repo id; "
            "default: new weights.",
        ),
    ] = None,
    overwrite: Annotated[
        bool,
        _ask(
            "Start",
            "Replace an earlier run in --out; default: stop if there is one.",
            names="--overwrite",
        ),
    ] = False,
) -> None:
    """Train a Multitask DiT policy; lerobot-train flags are accepted as well.

    The checkpoint loads in LeRobot.
    """
    given = {name: value for name, value in locals().items() if value is not None and value != []}
    config, chosen = _train_config(given)
    if not resume and _rank() == 0:
        _make_room(
            out, overwrite, RUN_PROOF, {RUN_PROOF}, RUN_CACHES, partial(_check_sources, config)
        )
    from mtdit.train import resumed_config
    from mtdit.train import train as fit

    checkpoint = fit(resumed_config(config, chosen) if resume else config)
    if _rank() == 0:
        console.print(f"checkpoint: {checkpoint}")
        console.print(f"next: mtdit export {quote(str(out))} --fp16")


@app.command()
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
    from mtdit.checkpoint import last_run
    from mtdit_export.export import export as write
    from mtdit_runtime.loop import dying_in_order

    with dying_in_order():
        report = write(
            checkpoint or last_run(OUTPUTS),
            out,
            steps,
            sampler,
            fp16,
            dataset,
            console.print,
            rtc,
            int8,
        )
        console.print(report.table())
        if build:
            console.print(cli_bundle.build_if_possible(out))
    console.print(
        f"next: mtdit run --robot twin --bundle {quote(str(out))} --task={quote(report.task)}"
    )
    write_json(json_out, report.to_dict())


# -- on the robot computer


@app.command()
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
    from mtdit_runtime.bundle import open_bundle
    from mtdit_runtime.loop import report_table
    from mtdit_runtime.run import RunOptions, check_task, run_policy
    from mtdit_runtime.safety import SafetyConfig

    # a port means a real arm, and without one nothing real moves: docs/decisions.md, 27
    kind = robot or (RobotKind.twin if port is None else RobotKind.so101)
    is_twin = kind is RobotKind.twin
    manifest = open_bundle(bundle, check_files=False).manifest
    check_task(manifest, task, new_task)
    sizes = {c.name: (c.height, c.width) for c in manifest.cameras}
    with _rig(
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
            bundle=bundle,
            task=task,
            robot=rig.robot,
            backend=backend.value,
            duration_s=duration,
            seed=seed,
            prefetch_ticks=prefetch,
            lockstep=clock is Clock.lockstep and is_twin,
            new_task=new_task,
            home_s=(0.0 if is_twin else RunOptions.home_s) if home_s is None else home_s,
            safety=SafetyConfig() if max_speed is None else SafetyConfig(max_speed=max_speed),
            success=rig.success,
            log=log,
            video=video,
            overview=rig.overview if video else None,
            say=console.print,
        )
        report = run_policy(options)
    console.print(report_table(report))
    write_json(json_out, report.to_dict())
    if not report.ok:
        raise typer.Exit(1)


@app.command("eval")
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
    from mtdit_runtime.evaluate import evaluate as measure

    if robot is not RobotKind.twin:
        raise UserError(
            "only the twin can tell success: use --robot twin, or watch `mtdit run` on the arm"
        )
    tasks = [find_task(name).name for name in task]
    policy, sizes = _policy(bundle, checkpoint, backend)
    reports = []
    with (
        Twin(image_size=_one_size(sizes), clock="lockstep") as twin,
        progress("{task.description}") as bars,
    ):
        for name in tasks:
            bar = bars.add_task(name, total=episodes)
            reports.append(
                measure(
                    policy,
                    twin,
                    name,
                    episodes,
                    seed,
                    max_s,
                    instruction,
                    on_episode=partial(_advance, bars, bar),
                )
            )
    for report in reports:
        console.print(str(report))
    values = [report.to_dict() for report in reports]
    write_json(json_out, values[0] if len(values) == 1 else values)


@app.command()
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


@app.command()
def doctor(
    robot: Annotated[
        str, typer.Option(help="Robot to check: none, twin or so101 (a real arm).")
    ] = "none",
    port: Annotated[
        str | None, typer.Option(help="Serial port of the real arm; nothing moves.")
    ] = None,
    calibration: Calibration = None,
    camera: CameraList = None,
    bundle: Annotated[
        Path | None,
        typer.Option(
            "--bundle", help="Bundle to compare the computer, arm and cameras with, NAME.mtdit."
        ),
    ] = None,
    servo_volts: Annotated[
        float | None,
        typer.Option(help="Rated voltage of the servos, 7.4 or 12; default: not compared."),
    ] = None,
    cycles: Annotated[
        int, typer.Option(min=1, help="Number of bus exchanges in which errors are counted.")
    ] = 1000,
    bus_timeout: BusTimeout = 0.05,
    bus: BusOption = BusKind.own,
    json_out: Json = None,
) -> None:
    """Check this computer, the arm and the cameras, and print the fix for each problem."""
    from mtdit.driving import calibration_file
    from mtdit_runtime.doctor import Questions, healthy, to_dict
    from mtdit_runtime.doctor import doctor as check

    if robot not in ("none", "twin", "so101"):
        raise UserError(f"--robot {robot} is unknown: use none, twin or so101")
    cameras = dict(_pairs("--camera", camera or []))
    checks = check(
        Questions(
            robot,
            port,
            calibration_file(calibration),
            cameras,
            bundle,
            servo_volts=servo_volts,
            cycles=cycles,
            patience_s=bus_timeout,
            bus=bus.value,
        )
    )
    rows = [(c.id, c.status, c.finding, c.remedy) for c in checks]
    console.print(table("", ["check", "", "finding", "what to do"], rows))
    write_json(json_out, to_dict(checks))
    if not healthy(checks):
        raise typer.Exit(1)


@app.command()
def twin(
    link: Annotated[
        Path | None,
        typer.Option(help="Path to link to the port, e.g. /tmp/ttySIM0; default: no link."),
    ] = None,
    task: Annotated[str, typer.Option(help="Task whose scene is set up.")] = "open the drawer",
    seed: Seed = 0,
    clock: Annotated[
        Clock,
        typer.Option(help="Clock: real time, or lockstep (each goal write is one tick)."),
    ] = Clock.real,
    picture_to: Annotated[
        Path,
        typer.Option("--picture", help="File for a picture of the scene, updated each second."),
    ] = OUTPUTS / "twin.png",
    calibration_to: Annotated[
        Path, typer.Option("--calibration", help="File for the twin's calibration JSON.")
    ] = (OUTPUTS / "twin.json"),
    seconds: Annotated[
        float | None, typer.Option(help="Stop after this many seconds; default: at Ctrl-C.")
    ] = None,
) -> None:
    """Serve the simulated arm on a pseudo-terminal to any Feetech client, and show a picture."""
    from mtdit.serve import serve

    serve(task, seed, clock.value, link, picture_to, calibration_to, seconds)


@app.command()
def demo(
    out: Annotated[Path, typer.Option(help="Folder for all results.")] = OUTPUTS / "demo",
    episodes: Annotated[
        int, typer.Option(min=1, help="Number of demonstrations per task.")
    ] = DemoConfig.episodes,
    minutes: Annotated[float, typer.Option(help="Minutes of training.")] = DemoConfig.train_minutes,
    eval_episodes: Annotated[
        int, typer.Option(min=1, help="Number of evaluated scenes per task.")
    ] = DemoConfig.eval_episodes,
) -> None:
    """Run the whole pipeline on this computer: simulate, train, export, run and evaluate."""
    from mtdit.demo import demo as walk

    walk(
        DemoConfig(out=out, episodes=episodes, train_minutes=minutes, eval_episodes=eval_episodes),
        say=console.print,
    )


# -- a training's options


def _train_config(given: Mapping[str, Any]) -> tuple[TrainConfig, set[str]]:
    """The TrainConfig that the options of `train` describe, and the names of the fields that were
    given. UserError for a value that cannot be read, or without a dataset.
    """
    options = {f.name: given[f.name] for f in fields(TrainConfig) if f.name in given}
    read = {"task_weights": _weights, "image_transforms": _image_transforms}
    options.update({name: parse(given[name]) for name, parse in read.items() if name in given})
    chosen = set(options)
    options["policy"] = {**_shortcuts(given), **dict(_fields(given.get("policy", [])))}
    if not given["resume"]:
        options = {**training_defaults(given.get("preset", TrainConfig.preset)), **options}
    elif "dataset" not in options:
        options["dataset"] = _dataset_of(given["out"])
    if "dataset" not in options:
        raise UserError(
            "--dataset is missing: give a LeRobotDataset's folder or repo id, "
            "or --resume and the run's --out"
        )
    return TrainConfig(output_dir=given["out"], **options), chosen


def _check_sources(config: TrainConfig) -> None:
    """UserError if the dataset or the initial weights do not exist, or if they are inside --out and
    --overwrite would delete them, or if another run is writing to --out.
    """
    from mtdit.checkpoint import open_to_train
    from mtdit.frames import check_dataset
    from mtdit.keeping import alone_in

    with alone_in(config.output_dir):
        pass
    check_dataset(config.dataset)
    if config.init_from is not None:
        open_to_train(config.init_from)
    for option, place in (
        ("--dataset", Path(config.dataset).expanduser()),
        ("--init-from", config.init_from),
    ):
        if (
            place is not None
            and place.exists()
            and place.resolve().is_relative_to(config.output_dir.resolve())
        ):
            raise UserError(
                f"{option} {place} is in {config.output_dir}, which --overwrite empties: "
                "choose another --out"
            )


def _shortcuts(given: Mapping[str, Any]) -> dict[str, Any]:
    """Policy fields that have an option of their own."""
    shortcuts = {name: given[name] for name in ("horizon", "objective") if name in given}
    if "vision_encoder" in given:
        names = ("vision_encoder_name", "text_encoder_name")
        shortcuts.update(dict.fromkeys(names, given["vision_encoder"]))
    return shortcuts


def _dataset_of(run: Path) -> str:
    """The dataset that a run was trained on; the run may be LeRobot's."""
    from mtdit.checkpoint import PRETRAINED, TRAIN_CONFIG, find_last_checkpoint

    raw = read_json(find_last_checkpoint(run) / PRETRAINED / TRAIN_CONFIG)
    dataset = raw.get("dataset") if isinstance(raw, dict) else None
    name = (dataset.get("root") or dataset.get("repo_id")) if isinstance(dataset, dict) else dataset
    if not isinstance(name, str):
        raise UserError(f"{run} does not name the dataset it was trained on: add --dataset")
    return name


def _weights(words: Iterable[str]) -> dict[str, float]:
    weights = {}
    for task, value in _pairs("--task-weight", words):
        try:
            weights[task] = float(value)
        except ValueError:
            raise UserError(
                f'--task-weight "{task}={value}": {value!r} is not a number: '
                f'write --task-weight "{task}=2"'
            ) from None
    return weights


def _image_transforms(word: str) -> Mapping[str, Any]:
    """LeRobot's image_transforms, from JSON or from a file; `default` is LeRobot's own set."""
    if word == "default":
        return {}
    if not word.lstrip().startswith("{"):
        read = read_json(Path(word))
    else:
        try:
            read = json.loads(word)
        except json.JSONDecodeError as error:
            raise UserError(
                f"--image-transforms is not valid JSON ({error}): put it in single quotes"
            ) from None
    if not isinstance(read, dict):
        raise UserError(
            f"--image-transforms {word} is not a JSON object: "
            "give LeRobot's image_transforms, or default"
        )
    return read


# -- shared by several commands


def _advance(bars: Progress, bar: TaskID, *_: Any) -> None:
    bars.advance(bar)


@dataclass(frozen=True)
class Rig:
    """A robot that is not connected yet. Only the twin knows success and has an overview camera."""

    robot: Robot
    success: Callable[[], bool] | None = None
    overview: Callable[[], Mapping[str, Frame]] | None = None


@contextmanager
def _rig(
    kind: RobotKind,
    sizes: Mapping[str, tuple[int, int]],
    fps: int,
    task: str,
    seed: int,
    clock: Clock,
    port: str | None,
    calibration: str | None,
    cameras: list[str] | None,
    bus: str,
    bus_timeout: float,
) -> Iterator[Rig]:
    """The robot that the options describe; the twin runs as long as the block. sizes: camera ->
    (height, width). UserError names the option that is missing or wrong.
    """
    if kind is RobotKind.so101:
        yield Rig(_so101(sizes, fps, port, calibration, cameras or [], bus, bus_timeout))
        return
    from mtdit_robots.twin.client import Twin
    from mtdit_robots.twin.tasks import find_task

    find_task(task)
    with Twin(image_size=_one_size(sizes), clock=clock.value) as twin:
        twin.reset(task, seed)
        yield Rig(
            twin.robot(bus), twin.success, lambda: {"overview": twin.picture("overview", 240, 320)}
        )


def _so101(
    sizes: Mapping[str, tuple[int, int]],
    fps: int,
    port: str | None,
    calibration: str | None,
    cameras: list[str],
    bus: str,
    bus_timeout: float,
) -> Robot:
    from mtdit.driving import load_calibration
    from mtdit_robots.arm import So101Arm
    from mtdit_robots.camera import open_camera
    from mtdit_robots.feetech import open_bus

    if port is None or calibration is None:
        missing = "--port /dev/ttyACM0" if port is None else "--calibration my_arm.json"
        raise UserError(f"a real arm needs {missing}: run `mtdit doctor --robot so101` for help")
    devices = dict(_pairs("--camera", cameras))
    for name in sizes:
        if name not in devices:
            raise UserError(f"the policy needs camera {name!r}: add --camera {name}=/dev/video0")
    loaded = load_calibration("--calibration", calibration)
    open_bus(bus, port).close()  # report a wrong port before the cameras take seconds to open
    opened = [
        open_camera(name, devices[name], height, width, fps)
        for name, (height, width) in sizes.items()
    ]
    return So101Arm(port, loaded, opened, timeout_s=bus_timeout, bus=bus)


def _policy(
    bundle: Path | None, checkpoint: Path | None, backend: Backend
) -> tuple[Any, dict[str, tuple[int, int]]]:
    """The policy of a bundle or of a checkpoint, and (height, width) of each of its cameras."""
    if bundle is not None and checkpoint is not None:
        raise UserError("--bundle and --checkpoint exclude each other: give only one of them")
    if checkpoint is not None:
        from mtdit.checkpoint import open_checkpoint
        from mtdit.rollout import TorchPolicy

        trained = open_checkpoint(checkpoint)
        return TorchPolicy(trained), {
            name: shape[:2] for name, shape in trained.config.cameras.items()
        }
    from mtdit_runtime.bundle import open_bundle
    from mtdit_runtime.engine import choose_engines
    from mtdit_runtime.policy import BundlePolicy

    opened = open_bundle(bundle or BUNDLE)
    sizes = {c.name: (c.height, c.width) for c in opened.manifest.cameras}
    return BundlePolicy(opened, choose_engines(opened, backend.value)), sizes


def _one_size(sizes: Mapping[str, tuple[int, int]]) -> tuple[int, int]:
    """(height, width) that all cameras have: the twin renders them in one size."""
    if len(set(sizes.values())) > 1:
        raise UserError(
            f"the twin renders all cameras in one size, but the policy needs {dict(sizes)}: "
            "train on frames of one size"
        )
    return next(iter(sizes.values()), (64, 64))


def _pairs(option: str, words: Iterable[str]) -> Iterator[tuple[str, str]]:
    for word in words:
        name, sign, value = word.partition("=")
        if not sign:
            raise UserError(f"{option} {word!r} has no value: write {option} name=value")
        yield name, value


def _fields(words: Iterable[str]) -> Iterator[tuple[str, Any]]:
    """Names and values of --policy; a value that is not JSON is taken as a string."""
    for name, value in _pairs("--policy", words):
        try:
            yield name, json.loads(value)
        except json.JSONDecodeError:
            yield name, value


def _make_room(
    out: Path,
    overwrite: bool,
    proof: str,
    parts: Set[str],
    caches: Set[str] = frozenset(),
    check: Callable[[], None] = lambda: None,
) -> None:
    """Delete an earlier result in `out` if `overwrite` is set. UserError if it is not set, or if
    `out` is not an earlier result: it lacks `proof`, or holds more than `parts` and `caches`.

    A folder with nothing but `caches` is a run that never started: it is used as it is. check: is
    called right before the deletion and may raise.
    """
    if out.exists() and not out.is_dir():
        raise UserError(f"{out} is not a folder: choose another --out")
    found = {path.name for path in out.iterdir()} if out.exists() else set()
    if not found or found <= caches:
        return
    if not overwrite:
        raise UserError(f"{out} exists: add --overwrite to replace it, or choose another --out")
    others = sorted(found - parts - caches)
    if others or not (out / proof).exists():
        why = f"contains {others[0]}" if others else f"has no {proof}"
        raise UserError(
            f"{out} {why}, so it is not a result of mtdit and stays: choose another --out"
        )
    if out.is_symlink():
        raise UserError(f"{out} is a link: give the folder it points to, or choose another --out")
    if Path.cwd().is_relative_to(out.resolve()):
        raise UserError(
            f"you are in {out}, so it cannot be replaced: leave it, or choose another --out"
        )
    check()
    shutil.rmtree(out)


cli_robot.register(app)
cli_record.register(app)
cli_bundle.register(app)

if __name__ == "__main__":
    main()
