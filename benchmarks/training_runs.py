"""One training run of `mtdit train` or `lerobot-train`: the data and the weights that both tools
start from, their command lines, and the process.
"""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
import tempfile
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from training_logs import LOG_EVERY, Run, read_lerobot, read_mtdit

from mtdit.policies.multi_task_dit.clip import ClipShape
from mtdit.policies.multi_task_dit.tiny_clip import make_tiny_clip

TASKS = ("open the drawer", "close the drawer")
AS_LEROBOT, BY_DEFAULT, LEROBOT = "mtdit", "mtdit, average of weights on", "lerobot-train"


@dataclass(frozen=True)
class Case:
    """One policy to train, and the device and batch size to train it with."""

    name: str
    device: str
    batch: int
    amp: str  # no or bf16
    clip: ClipShape
    preset: str
    frame: int  # pixels, square
    policy: Mapping[str, Any]  # fields that differ from the preset


@dataclass(frozen=True)
class Bench:
    """The inputs that all runs of a case share."""

    case: Case
    dataset: Path
    checkpoint: Path
    lerobot_workers: int


@dataclass(frozen=True)
class Side:
    """One tool: its command line, and the function that reads its progress while it runs."""

    name: str
    command: Callable[[Bench, Path, int, int], list[str]]  # bench, output folder, steps, seed
    read: Callable[[Iterator[str], Path, float], Run]  # printed lines, output folder, start time
    environment: Mapping[str, str]


def mtdit_command(bench: Bench, out: Path, steps: int, seed: int, ema: bool = False) -> list[str]:
    c = bench.case
    return [
        sys.executable, "-m", "mtdit.cli", "train",
        f"--dataset={bench.dataset}", f"--out={out}", f"--preset={c.preset}",
        f"--init-from={bench.checkpoint}", f"--steps={steps}", f"--batch-size={c.batch}",
        f"--seed={seed}", f"--device={c.device}", f"--amp={c.amp}", "--noise-samples=1",
        "--random-shift-px=0", "--random-brightness=0", "--grad-clip-norm=10",
        f"--log-every={LOG_EVERY}", f"--save-every={steps}", "--ema" if ema else "--no-ema",
    ]  # fmt: skip


def lerobot_command(bench: Bench, out: Path, steps: int, seed: int) -> list[str]:
    c = bench.case
    return [
        str(Path(sys.executable).parent / "lerobot-train"), f"--policy.path={bench.checkpoint}",
        "--policy.push_to_hub=false", f"--policy.device={c.device}",
        "--dataset.repo_id=local/bench", f"--dataset.root={bench.dataset}",
        f"--dataset.video_backend={video_backend()}", "--wandb.enable=false",
        f"--output_dir={out}", f"--steps={steps}", f"--batch_size={c.batch}", f"--seed={seed}",
        f"--log_freq={LOG_EVERY}", "--save_freq=0", f"--num_workers={bench.lerobot_workers}",
    ]  # fmt: skip


def video_backend() -> str:
    """LeRobot's default: torchcodec if it can be imported, else pyav."""
    try:
        importlib.import_module("torchcodec")
    except (ImportError, RuntimeError):
        return "pyav"
    return "torchcodec"


def sides(case: Case) -> list[Side]:
    def averaged(bench: Bench, out: Path, steps: int, seed: int) -> list[str]:
        return mtdit_command(bench, out, steps, seed, ema=True)

    # LeRobot has no bf16 option for this policy, only --policy.use_amp, which is fp16; it does obey
    # accelerate's variable
    amp = {"ACCELERATE_MIXED_PRECISION": case.amp}
    return [
        Side(LEROBOT, lerobot_command, read_lerobot, amp),
        Side(AS_LEROBOT, mtdit_command, read_mtdit, {}),
        Side(BY_DEFAULT, averaged, read_mtdit, {}),
    ]


def prepare(case: Case, folder: Path, episodes: int, lerobot_workers: int) -> Bench:
    """Record the dataset and make the checkpoint that both tools start from: one training step with
    a learning rate of almost zero.
    """
    dataset, clip, fresh = folder / "dataset", folder / "clip-bench", folder / "fresh"
    make_tiny_clip(clip, case.clip)
    tasks = [f"--task={task}" for task in TASKS]
    call(
        "simulate",
        *tasks,
        f"--out={dataset}",
        f"--episodes={episodes}",
        f"--image-size={case.frame}",
    )
    policy = {**case.policy, "vision_encoder_name": str(clip), "text_encoder_name": str(clip)}
    options = [
        f"--policy={name}={value}"
        for name, value in {**policy, "scheduler_warmup_steps": 10}.items()
    ]
    call(
        "train",
        f"--dataset={dataset}",
        f"--out={fresh}",
        f"--preset={case.preset}",
        "--steps=1",
        "--batch-size=1",
        "--no-ema",
        "--device=cpu",
        *options,
    )
    return Bench(case, dataset, fresh / "checkpoints/000001/pretrained_model", lerobot_workers)


def call(*arguments: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "mtdit.cli", *arguments], capture_output=True, text=True
    )
    if done.returncode:
        raise RuntimeError(f"mtdit {arguments[0]} failed: {done.stderr[-2000:]}")


def run(side: Side, bench: Bench, steps: int, seed: int = 1000) -> Run:
    """Run one training process. RuntimeError with its last lines if it fails."""
    with tempfile.TemporaryDirectory() as scratch:
        out = Path(scratch) / "run"
        began, seen = time.perf_counter(), deque[str](maxlen=30)
        environment = {**os.environ, **shared_environment(), **side.environment}
        command = side.command(bench, out, steps, seed)
        with subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment
        ) as process:
            assert process.stdout is not None
            try:
                made = side.read(remembered(process.stdout, seen), out, began)
            except (OSError, RuntimeError, LookupError) as error:
                raise RuntimeError(
                    f"{side.name} gave no figures ({error}):\n{''.join(seen)}"
                ) from None
        if process.returncode:
            raise RuntimeError(
                f"{side.name} ended with code {process.returncode}:\n{''.join(seen)}"
            )
    return made


def remembered(lines: Iterable[str], last: deque[str]) -> Iterator[str]:
    """Pass the lines on, and keep them in `last` for the error message."""
    for line in lines:
        last.append(line)
        yield line


def shared_environment() -> dict[str, str]:
    """The same for both tools: no network, threads that sleep instead of spinning, and the shell's
    OMP_NUM_THREADS.
    """
    return {
        "HF_HUB_OFFLINE": "1",
        "OMP_WAIT_POLICY": "PASSIVE",
        "GOMP_SPINCOUNT": "0",
        "OMP_NUM_THREADS": threads(),
    }


def threads() -> str:
    return os.environ.get("OMP_NUM_THREADS", str(len(os.sched_getaffinity(0))))
