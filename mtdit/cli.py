"""The `mtdit` command: options in, one call to a stage, results printed.

Knows every command's words and nothing of how it works. Each stage is imported inside its command,
so `mtdit run` on the robot computer never meets torch. A mistake of the user's is one line and exit
code 2.
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
from typer.core import TyperCommand

from mtdit import cli_bundle, cli_record, cli_robot
from mtdit.config import read_json
from mtdit.lerobot_flags import translate
from mtdit.options import BusKind, BusOption, Clock, Json, RobotKind
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
MOST_WORDS = 4000  # characters of a message that ends a command
INTERRUPTED = 130  # what a shell calls a Ctrl-C

app = typer.Typer(
    add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None,
    help="From a LeRobot dataset to a moving SO-101: simulate, train, export, run, eval.",
)  # fmt: skip

UsageError = cast(
    "type[typer.BadParameter]", typer.BadParameter.__mro__[1]
)  # click's; typer hides its name

# What a stage leaves in its --out, and what of it is worth asking before it is replaced.
DATASET_PARTS, DATASET_PROOF = {"meta", "data", "videos", "images"}, "meta/info.json"
RUN_PROOF = "checkpoints"
RUN_CACHES = {".lock", "clip-tiny", "frames", ".frames.partial", "train_log.jsonl", "tensorboard", "curves.png",
              ".curves.png.partial", "wandb", "wandb_run.json"}  # fmt: skip

# Which extra brings a module that turned out to be missing.
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


Seed = Annotated[int, typer.Option(min=0, max=MAX_SEED, help="Makes the run repeatable.")]
Overwrite = Annotated[
    bool, typer.Option("--overwrite", help="Replace what an earlier run left at --out.")
]
BundleOption = Annotated[Path, typer.Option("--bundle", help="The policy: a NAME.mtdit folder.")]
BackendOption = Annotated[
    Backend, typer.Option(help="auto takes the fastest that really runs and says which.")
]
Calibration = Annotated[
    str | None, typer.Option(help="The arm's calibration: a file, or LeRobot's id of the arm.")
]
CameraList = Annotated[
    list[str] | None,
    typer.Option(
        "--camera", help="name=source: a device, file:clip.mp4 or dataset:FOLDER:camera; repeat."
    ),
]


class GroupedHelp(TyperCommand):
    """Options under the headings they were declared with."""

    def format_options(self, ctx: Any, formatter: Any) -> None:
        groups: dict[str, list[tuple[str, str]]] = {}
        for option in self.get_params(ctx):
            record = option.get_help_record(ctx)
            if record is not None:
                groups.setdefault(getattr(option, "rich_help_panel", None) or "Help", []).append(
                    record
                )
        for name, records in groups.items():
            with formatter.section(name):
                formatter.write_dl(records)


def _ask(group: str, says: str, like: str = "", names: str = "", **limits: Any) -> Any:
    """An option of `train` that may be left out; `like` is the TrainConfig field whose default the
    help shows.
    """
    shown = str(getattr(TrainConfig, like)) if like else False
    return typer.Option(
        *names.split(), help=says, rich_help_panel=group, show_default=shown, **limits
    )


def main() -> None:
    """Entry point. User errors and missing extras end in one line on stderr and exit code 2,
    failures in 1.
    """
    # torch's threads wait asleep: spinning at barriers makes training 4 times slower as soon as a
    # core is shared
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
        _fail(
            f"{error.format_message().rstrip('.')}: see {error.ctx.command_path if error.ctx else 'mtdit'} --help"
        )
    except typer.Abort:
        _fail("interrupted", INTERRUPTED)
    except ExportError as error:
        _fail(str(error), code=1)
    except OSError as error:
        if error.filename is not None or error.errno in DISK_FULL:
            _fail(
                f"{error.filename or 'the disk'}: {error.strerror}: choose another place, or make room there"
            )
        _fail(str(error), code=1)  # a twin or an arm that died
    except ModuleNotFoundError as error:
        extra = EXTRA_OF.get((error.name or "").partition(".")[0])
        if extra is None:
            raise
        _fail(
            f'this command needs {error.name}, which is not installed: pip install "mtdit[{extra}]"'
        )


def _words(words: list[str]) -> list[str]:
    """The command line in our words; one of LeRobot's trainer is translated."""
    if words[:1] != ["train"]:
        return words or ["--help"]
    said = translate(words[1:])
    if _rank() == 0:
        for note in said.notes:
            console.print(note)
    return ["train", *said.words]


def _rank() -> int:
    """Which process of a training this is, as `accelerate launch` and `torchrun` number them; only
    0 speaks.
    """
    return int(os.environ.get("RANK", 0))


def _fail(message: str, code: int = 2) -> None:
    who = f"mtdit: rank {_rank()}" if _rank() else "mtdit"
    print(f"{who}: {plain(' '.join(message.split()), MOST_WORDS)}", file=sys.stderr)
    sys.exit(code)


# -- the workstation


@app.command()
def simulate(
    task: Annotated[
        list[str], typer.Option(help='Instruction, e.g. "open the drawer"; repeat for more.')
    ],
    out: Annotated[Path, typer.Option(help="Folder of the new LeRobotDataset.")],
    episodes: Annotated[int, typer.Option(min=1, help="Demonstrations per task.")] = 50,
    seed: Seed = 0,
    image_size: Annotated[
        int, typer.Option(min=16, max=640, help="Square camera frames of this many pixels.")
    ] = 64,
    overwrite: Overwrite = False,
) -> None:
    """Record scripted demonstrations in the twin as a LeRobotDataset v3."""
    from mtdit_robots.twin.tasks import find_task

    names = [find_task(name).name for name in task]
    _make_room(out, overwrite, DATASET_PROOF, DATASET_PARTS)
    from mtdit.simulate import simulate as record

    with progress("recording") as bars:
        bar = bars.add_task("", total=episodes * len(names))
        report = record(
            names, episodes, out, seed=seed, image_size=(image_size, image_size),
            on_progress=lambda done, total: bars.update(bar, completed=done, total=total),
        )  # fmt: skip
    console.print(report.summary())
    console.print(f"next: mtdit train --dataset {quote(str(out))}")


@app.command(cls=GroupedHelp)
def train(
    dataset: Annotated[
        str | None, _ask("Data", "LeRobotDataset v3: a folder or a repo id; --resume knows it.")
    ] = None,
    frames: Annotated[
        str | None,
        _ask(
            "Data",
            "disk: decoded once into files; memory: at every start; video: as needed.",
            "frames",
        ),
    ] = None,
    cache_dir: Annotated[
        Path | None, _ask("Data", "Where decoded frames are kept; default: in --out.")
    ] = None,
    workers: Annotated[
        int | None, _ask("Data", "Threads that make batches ahead.", "workers", min=1)
    ] = None,
    imagenet_stats: Annotated[
        bool | None,
        _ask(
            "Data",
            "What normalises images; default: ImageNet's.",
            names="--imagenet-stats/--dataset-stats",
        ),
    ] = None,
    image_transforms: Annotated[
        str | None, _ask("Data", "Augmentation: 'default', LeRobot's JSON, or a file of it.")
    ] = None,
    random_shift_px: Annotated[
        int | None,
        _ask(
            "Data",
            "Shift frames by up to so many pixels.",
            "random_shift_px",
            "--random-shift",
            min=0,
        ),
    ] = None,
    random_brightness: Annotated[
        float | None, _ask("Data", "Multiply pixels by 1 + N(0, this).", "random_brightness")
    ] = None,
    balance_tasks: Annotated[
        bool | None,
        _ask(
            "Data",
            "Draw every task equally often; default: no.",
            names="--balance-tasks/--no-balance-tasks",
        ),
    ] = None,
    task_weights: Annotated[
        list[str] | None,
        _ask("Data", 'How much more often, "open the drawer=2"; repeat.', names="--task-weight"),
    ] = None,
    val_split: Annotated[
        float | None, _ask("Data", "Share of each task's episodes held out.", "val_split")
    ] = None,
    preset: Annotated[
        str | None,
        _ask("Policy", "base: CLIP ViT-B/16 towers; tiny: small enough for a CPU.", "preset"),
    ] = None,
    vision_encoder: Annotated[
        str | None, _ask("Policy", "CLIP of both towers: a Hub name, a folder, or tiny.")
    ] = None,
    objective: Annotated[str | None, _ask("Policy", "diffusion or flow_matching.")] = None,
    horizon: Annotated[int | None, _ask("Policy", "Actions in a chunk.", min=1)] = None,
    policy: Annotated[
        list[str] | None, _ask("Policy", "name=value of any other field, LeRobot's names.")
    ] = None,
    steps: Annotated[int | None, _ask("Length", "Optimiser steps.", "steps", min=1)] = None,
    max_minutes: Annotated[
        float | None, _ask("Length", "Finish, schedule and all, after this long.")
    ] = None,
    batch_size: Annotated[
        int | None, _ask("Length", "Samples per process and part.", "batch_size", min=1)
    ] = None,
    grad_accumulation: Annotated[
        int | None,
        _ask("Length", "Parts whose gradients make one step.", "grad_accumulation", min=1),
    ] = None,
    noise_samples: Annotated[
        int | None, _ask("Length", "Noise draws per encoded observation.", "noise_samples", min=1)
    ] = None,
    seed: Annotated[
        int | None, _ask("Length", "Makes the run repeatable.", "seed", min=0, max=MAX_SEED)
    ] = None,
    device: Annotated[
        str | None, _ask("Machine", "auto, cpu, cuda, cuda:1, mps.", "device")
    ] = None,
    amp: Annotated[str | None, _ask("Machine", "Mixed precision: no, bf16 or fp16.", "amp")] = None,
    compile: Annotated[
        bool | None,
        _ask("Machine", "torch.compile the network; default: no.", names="--compile/--no-compile"),
    ] = None,
    ema: Annotated[
        bool | None, _ask("Machine", "Use averaged weights; default: yes.", names="--ema/--no-ema")
    ] = None,
    ema_max_decay: Annotated[
        float | None, _ask("Machine", "Of the averaged weights.", "ema_max_decay")
    ] = None,
    grad_clip_norm: Annotated[
        float | None,
        _ask("Machine", "Longest gradient of a step.", "grad_clip_norm", "--grad-clip"),
    ] = None,
    out: Annotated[Path, typer.Option(help="Folder of the run.", rich_help_panel="Results")] = RUN,
    log_every: Annotated[int | None, _ask("Results", "Steps.", "log_every", min=1)] = None,
    val_every: Annotated[
        int | None, _ask("Results", "Steps, with --val-split.", "val_every", min=1)
    ] = None,
    save_every: Annotated[int | None, _ask("Results", "Steps.", "save_every", min=1)] = None,
    keep_checkpoints: Annotated[
        int | None, _ask("Results", "The newest so many, and the best; default: all.", min=1)
    ] = None,
    tensorboard: Annotated[
        bool | None,
        _ask(
            "Results",
            "Curves in OUT/tensorboard; default: yes.",
            names="--tensorboard/--no-tensorboard",
        ),
    ] = None,
    wandb: Annotated[
        str | None, _ask("Results", "Also log to this project of Weights & Biases.")
    ] = None,
    resume: Annotated[
        bool,
        _ask(
            "Start",
            "Go on from the last checkpoint in --out, with that run's options.",
            names="--resume",
        ),
    ] = False,
    init_from: Annotated[
        Path | None, _ask("Start", "Start from these weights: a run, checkpoint or Hub repo id.")
    ] = None,
    overwrite: Annotated[
        bool, _ask("Start", "Replace an earlier run at --out.", names="--overwrite")
    ] = False,
) -> None:
    """Train a Multitask DiT policy; its checkpoint loads in LeRobot, whose command lines are
    understood too.
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
            help="A run, a checkpoint folder, or owner/name on the Hub; default: the last run."
        ),
    ] = None,
    out: Annotated[Path, typer.Option(help="The bundle to write, NAME.mtdit.")] = BUNDLE,
    fp16: Annotated[
        bool, typer.Option("--fp16", help="Weights and matrix products in fp16.")
    ] = False,
    int8: Annotated[
        bool, typer.Option("--int8", help="Vision and text in int8; calibrated on --dataset.")
    ] = False,
    steps: Annotated[int, typer.Option(help="Denoising steps inside the graph.")] = 10,
    sampler: Annotated[
        str | None, typer.Option(help="ddim (default) or ddpm; euler or rk4 for flow matching.")
    ] = None,
    dataset: Annotated[
        Path | None, typer.Option(help="Check on this dataset's frames instead of random ones.")
    ] = None,
    rtc: Annotated[
        bool,
        typer.Option(
            "--rtc",
            help="Also a denoiser that continues the chunk being executed (twice the time).",
        ),
    ] = False,
    build: Annotated[
        bool,
        typer.Option(
            "--build/--no-build", help="Where TensorRT and a GPU are: build its engines too."
        ),
    ] = True,
    json_out: Json = None,
) -> None:
    """Fold a checkpoint into ONNX graphs, verify them against the torch policy, write a bundle."""
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


# -- the robot computer


@app.command()
def run(
    task: Annotated[str, typer.Option(help='The instruction, e.g. "open the drawer".')],
    robot: Annotated[
        RobotKind, typer.Option(help="A real SO-101 or the simulated one.")
    ] = RobotKind.twin,
    bundle: BundleOption = BUNDLE,
    port: Annotated[str | None, typer.Option(help="Serial port of a real arm.")] = None,
    calibration: Calibration = None,
    camera: CameraList = None,
    bus: BusOption = BusKind.own,
    backend: BackendOption = Backend.auto,
    duration: Annotated[
        float | None, typer.Option(min=0.0, help="Seconds; default: until success or Ctrl-C.")
    ] = None,
    clock: Annotated[
        Clock, typer.Option(help="Of the twin: real time, or as fast as it goes.")
    ] = Clock.real,
    seed: Annotated[
        int,
        typer.Option(
            min=0, max=MAX_SEED, help="Of the denoising noise, and of the twin's placements."
        ),
    ] = 0,
    prefetch: Annotated[
        int | None, typer.Option(min=0, help="Ticks a chunk is asked ahead; default: measured.")
    ] = None,
    new_task: Annotated[
        bool, typer.Option("--new-task", help="Allow an instruction training has not seen.")
    ] = False,
    video: Annotated[Path | None, typer.Option(help="Film the run to this .mp4.")] = None,
    log: Annotated[Path | None, typer.Option(help="Record every tick to this file.")] = None,
    json_out: Json = None,
) -> None:
    """Drive an arm from a bundle, without torch."""
    from mtdit_runtime.bundle import open_bundle
    from mtdit_runtime.loop import report_table
    from mtdit_runtime.run import RunOptions, check_task, run_policy

    manifest = open_bundle(bundle, check_files=False).manifest
    check_task(manifest, task, new_task)
    sizes = {c.name: (c.height, c.width) for c in manifest.cameras}
    with _rig(
        robot, sizes, manifest.fps, task, seed, clock, port, calibration, camera, bus.value
    ) as rig:
        report = run_policy(
            RunOptions(
                bundle=bundle, task=task, robot=rig.robot, backend=backend.value, duration_s=duration, seed=seed,
                prefetch_ticks=prefetch, lockstep=clock is Clock.lockstep and robot is RobotKind.twin,
                new_task=new_task, success=rig.success, log=log, video=video, overview=rig.overview if video else None,
                home_s=0.0 if robot is RobotKind.twin else RunOptions.home_s, say=console.print,
            )
        )  # fmt: skip
    console.print(report_table(report))
    write_json(json_out, report.to_dict())
    if not report.ok:
        raise typer.Exit(1)


@app.command("eval")
def evaluate(
    task: Annotated[
        list[str], typer.Option(help="Task whose success is measured; repeat for more.")
    ],
    robot: Annotated[RobotKind, typer.Option(help="Only the twin knows success.")] = RobotKind.twin,
    bundle: Annotated[Path | None, typer.Option(help="A NAME.mtdit folder.")] = None,
    checkpoint: Annotated[
        Path | None, typer.Option(help="A run, checkpoint or Hub repo id instead: torch.")
    ] = None,
    episodes: Annotated[int, typer.Option(min=1, help="Scenes per task.")] = 50,
    seed: Annotated[
        int,
        typer.Option(min=0, max=100_000, help="Picks the scenes; none of them is ever recorded."),
    ] = 0,
    instruction: Annotated[
        str | None, typer.Option(help="Tell the policy this instead of the task.")
    ] = None,
    max_s: Annotated[
        float, typer.Option(min=0.1, help="Simulated seconds an episode may take.")
    ] = 12.0,
    backend: BackendOption = Backend.auto,
    json_out: Json = None,
) -> None:
    """Closed-loop success in the twin, in lock-step, with a 95 % Wilson interval."""
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
                    policy, twin, name, episodes, seed, max_s, instruction,
                    on_episode=partial(_advance, bars, bar),
                )
            )  # fmt: skip
    for report in reports:
        console.print(str(report))
    values = [report.to_dict() for report in reports]
    write_json(json_out, values[0] if len(values) == 1 else values)


@app.command()
def bench(
    bundle: Annotated[Path, typer.Argument(help="A NAME.mtdit folder.")] = BUNDLE,
    backend: BackendOption = Backend.auto,
    repeats: Annotated[int, typer.Option(min=2, help="Chunks to time.")] = 50,
    json_out: Json = None,
) -> None:
    """Latency of a bundle on this computer, per stage, and how near that is to what the processor
    is able to do.
    """
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
    robot: Annotated[str, typer.Option(help="none, twin or so101.")] = "none",
    port: Annotated[
        str | None, typer.Option(help="Serial port of a real arm; nothing is moved.")
    ] = None,
    calibration: Calibration = None,
    camera: CameraList = None,
    bundle: Annotated[
        Path | None, typer.Option("--bundle", help="A NAME.mtdit folder to compare with.")
    ] = None,
    servo_volts: Annotated[
        float | None, typer.Option(help="What the servos are made for: 7.4 or 12.")
    ] = None,
    cycles: Annotated[
        int, typer.Option(min=1, help="Bus exchanges whose errors are counted.")
    ] = 1000,
    patience: Annotated[
        float, typer.Option(min=0.01, max=10.0, help="Seconds a servo may take to answer.")
    ] = 0.05,
    bus: BusOption = BusKind.own,
    json_out: Json = None,
) -> None:
    """What works on this computer, what does not, and the line that mends it."""
    from mtdit.driving import calibration_file
    from mtdit_runtime.doctor import Questions, healthy, to_dict
    from mtdit_runtime.doctor import doctor as check

    if robot not in ("none", "twin", "so101"):
        raise UserError(f"--robot {robot} is unknown: use none, twin or so101")
    cameras = dict(_pairs("--camera", camera or []))
    checks = check(
        Questions(
            robot, port, calibration_file(calibration), cameras, bundle, servo_volts=servo_volts, cycles=cycles,
            patience_s=patience, bus=bus.value,
        )
    )  # fmt: skip
    rows = [(c.id, c.status, c.finding, c.remedy) for c in checks]
    console.print(table("", ["check", "", "finding", "what to do"], rows))
    write_json(json_out, to_dict(checks))
    if not healthy(checks):
        raise typer.Exit(1)


@app.command()
def twin(
    link: Annotated[
        Path | None, typer.Option(help="Make this name point to the port, e.g. /tmp/ttySIM0.")
    ] = None,
    task: Annotated[str, typer.Option(help="Whose table is laid.")] = "open the drawer",
    seed: Seed = 0,
    clock: Annotated[
        Clock, typer.Option(help="lockstep: one goal write is one tick.")
    ] = Clock.real,
    picture_to: Annotated[
        Path, typer.Option("--picture", help="Keep a picture here, refreshed.")
    ] = OUTPUTS / "twin.png",
    calibration_to: Annotated[
        Path, typer.Option("--calibration", help="Write the twin's calibration JSON here.")
    ] = (OUTPUTS / "twin.json"),
    seconds: Annotated[float | None, typer.Option(help="Stop by itself; default: Ctrl-C.")] = None,
) -> None:
    """Serve the simulated arm on a pseudo-terminal to any Feetech client, and show it."""
    from mtdit.serve import serve

    serve(task, seed, clock.value, link, picture_to, calibration_to, seconds)


@app.command()
def demo(
    out: Annotated[Path, typer.Option(help="Everything lands here.")] = OUTPUTS / "demo",
    episodes: Annotated[int | None, typer.Option(min=1, help="Demonstrations per task.")] = None,
    minutes: Annotated[float | None, typer.Option(help="Of training.")] = None,
    eval_episodes: Annotated[int | None, typer.Option(min=1, help="Scenes per task.")] = None,
) -> None:
    """The whole road on this computer: record, train, export, run, evaluate."""
    from mtdit.demo import DemoConfig
    from mtdit.demo import demo as walk

    given: dict[str, Any] = {
        "episodes": episodes,
        "train_minutes": minutes,
        "eval_episodes": eval_episodes,
    }
    walk(
        DemoConfig(out=out, **{k: v for k, v in given.items() if v is not None}), say=console.print
    )


# -- a training's options


def _train_config(given: Mapping[str, Any]) -> tuple[TrainConfig, set[str]]:
    """The run that the options of `train` ask for, and which TrainConfig fields were among them."""
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
            "--dataset is missing: give a LeRobotDataset's folder or repo id, or --resume with --out"
        )
    return TrainConfig(output_dir=given["out"], **options), chosen


def _check_sources(config: TrainConfig) -> None:
    """That what the run starts from is there, and will be once --out is emptied; that no run is
    writing there.
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
                f"{option} {place} is in {config.output_dir}, which --overwrite empties: give another --out"
            )


def _shortcuts(given: Mapping[str, Any]) -> dict[str, Any]:
    """Policy fields that have an option of their own."""
    fields = {name: given[name] for name in ("horizon", "objective") if name in given}
    if "vision_encoder" in given:
        fields.update(
            dict.fromkeys(("vision_encoder_name", "text_encoder_name"), given["vision_encoder"])
        )
    return fields


def _dataset_of(run: Path) -> str:
    """What the run was trained on; also a run of LeRobot's trainer."""
    from mtdit.checkpoint import PRETRAINED, TRAIN_CONFIG, find_last_checkpoint

    raw = read_json(find_last_checkpoint(run) / PRETRAINED / TRAIN_CONFIG)
    dataset = raw.get("dataset") if isinstance(raw, dict) else None
    name = (dataset.get("root") or dataset.get("repo_id")) if isinstance(dataset, dict) else dataset
    if not isinstance(name, str):
        raise UserError(f"{run} does not say what it was trained on: give --dataset")
    return name


def _weights(words: Iterable[str]) -> dict[str, float]:
    weights = {}
    for task, value in _pairs("--task-weight", words):
        try:
            weights[task] = float(value)
        except ValueError:
            raise UserError(
                f'--task-weight "{task}={value}" has no number: write --task-weight "{task}=2"'
            ) from None
    return weights


def _image_transforms(word: str) -> Mapping[str, Any]:
    """`default` is LeRobot's own set."""
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
            f"--image-transforms {word} is no JSON object: give LeRobot's image_transforms, or default"
        )
    return read


# -- what several commands share


def _advance(bars: Progress, bar: TaskID, *_: Any) -> None:
    bars.advance(bar)


@dataclass(frozen=True)
class Rig:
    """A robot that is not connected yet, and what only the twin can add."""

    robot: Robot
    success: Callable[[], bool] | None = None
    overview: Callable[[], Mapping[str, Frame]] | None = None


@contextmanager
def _rig(
    kind: RobotKind, sizes: Mapping[str, tuple[int, int]], fps: int, task: str, seed: int, clock: Clock,
    port: str | None, calibration: str | None, cameras: list[str] | None, bus: str,
) -> Iterator[Rig]:  # fmt: skip
    if kind is RobotKind.so101:
        yield Rig(_so101(sizes, fps, port, calibration, cameras or [], bus))
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
    sizes: Mapping[str, tuple[int, int]], fps: int, port: str | None, calibration: str | None, cameras: list[str],
    bus: str,
) -> Robot:  # fmt: skip
    from mtdit.driving import load_calibration
    from mtdit_robots.arm import So101Arm
    from mtdit_robots.camera import open_camera
    from mtdit_robots.feetech import open_bus

    if port is None or calibration is None:
        missing = "--port /dev/ttyACM0" if port is None else "--calibration my_arm.json"
        raise UserError(
            f"a real arm needs {missing}: `mtdit doctor --robot so101` helps to find it"
        )
    devices = dict(_pairs("--camera", cameras))
    for name in sizes:
        if name not in devices:
            raise UserError(f"the policy needs camera {name!r}: add --camera {name}=/dev/video0")
    loaded = load_calibration("--calibration", calibration)
    open_bus(
        bus, port
    ).close()  # a wrong port is told at once, before the cameras have taken their seconds
    opened = [
        open_camera(name, devices[name], height, width, fps)
        for name, (height, width) in sizes.items()
    ]
    return So101Arm(port, loaded, opened, bus=bus)


def _policy(
    bundle: Path | None, checkpoint: Path | None, backend: Backend
) -> tuple[Any, dict[str, tuple[int, int]]]:
    """A Policy and the size of its cameras' frames."""
    if bundle is not None and checkpoint is not None:
        raise UserError("--bundle and --checkpoint exclude each other: give one")
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
    """The twin draws all its cameras in one size."""
    if len(set(sizes.values())) > 1:
        raise UserError(
            f"the twin's cameras share one size, the policy wants {dict(sizes)}: train on one size"
        )
    return next(iter(sizes.values()), (64, 64))


def _pairs(option: str, words: Iterable[str]) -> Iterator[tuple[str, str]]:
    for word in words:
        name, sign, value = word.partition("=")
        if not sign:
            raise UserError(f"{option} {word!r} has no value: write {option} name=value")
        yield name, value


def _fields(words: Iterable[str]) -> Iterator[tuple[str, Any]]:
    """Values are JSON where they parse as such, else plain words."""
    for name, value in _pairs("--policy", words):
        try:
            yield name, json.loads(value)
        except json.JSONDecodeError:
            yield name, value


def _make_room(
    out: Path, overwrite: bool, proof: str, parts: Set[str], caches: Set[str] = frozenset(),
    check: Callable[[], None] = lambda: None,
) -> None:  # fmt: skip
    """Remove an earlier result, if asked, and only if `proof` shows that it is one and nothing else
    lies beside it.

    A folder of nothing but `caches` is a run that never began: it is used again as it is. check:
    may still object.
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
        why = f"holds {others[0]}" if others else f"has no {proof}"
        raise UserError(f"{out} {why}, so it is not ours to replace: choose another --out")
    if out.is_symlink():
        raise UserError(f"{out} is a link: give the folder it points to, or choose another --out")
    if Path.cwd().is_relative_to(out.resolve()):
        raise UserError(f"{out} is the folder you are in: leave it first, or choose another --out")
    check()
    shutil.rmtree(out)


cli_robot.register(app)
cli_record.register(app)
cli_bundle.register(app)

if __name__ == "__main__":
    main()
