"""Latency of one action chunk: LeRobot's policy, its plain ONNX export and our bundle, with the
same weights in one run.

    python benchmarks/chunk_latency.py [--size base|tiny] [--repeats 5] [--threads N]
        [--out table.md]

`base` is LeRobot's default with 249 M parameters: CLIP ViT-B/16 shapes, two 640x480 cameras, six
layers of width 512. The weights are random; latency does not depend on them. LeRobot gets a batch
that is already normalised and tokenised, so its processors are not measured; our bundle starts from
the cameras' bytes. The contestants take turns, so that a busy moment of the machine affects all of
them. With CUDA, `chunk_gpu.py` adds a second table. The last line of the output is JSON.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import math
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import chunk_gpu
import numpy as np
import torch
import transformers
from chunk_contestants import (
    SIZES,
    STEPS,
    Array,
    Ours,
    PlainOnnx,
    Size,
    compiled,
    denoise,
    engine,
    graph_call,
    int8_vision,
    lerobot_batch,
    lerobot_policy,
    make_checkpoint,
)
from lerobot.policies.multi_task_dit.modeling_multi_task_dit import MultiTaskDiTPolicy
from safetensors import safe_open

from mtdit.checkpoint.names import WEIGHTS
from mtdit_export.export import export
from mtdit_export.options import ExportOptions
from mtdit_runtime.bench import cpu_name
from mtdit_runtime.bundle.bundle import Bundle, open_bundle

PACKAGES = ("torch", "lerobot", "transformers", "onnxruntime", "onnx")
SIDE = 2048  # rows of the matrices whose product measures the machine's speed
TOLERANCE = 1e-3  # largest error of LeRobot's plain export, in normalised actions

DEFAULT, DDIM = "LeRobot, DDPM 100 (its default)", f"LeRobot, DDIM {STEPS}"
COMPILED, PLAIN = f"LeRobot, DDIM {STEPS}, torch.compile", f"plain ONNX export, DDIM {STEPS}"
TICK, TICK_INT8 = "ours, one new frame per camera", "ours, int8 towers, one new frame per camera"
COLD = "ours, cold: two frames per camera"
ALONE = ", denoiser alone"
AHEAD = "ours, what is done a tick ahead of the chunk"
PRODUCT = f"matrix product, {SIDE} cubed"


@dataclass(frozen=True)
class Turn:
    """The call that is timed, and the work before the clock starts."""

    call: Callable[[], Any]
    ahead: Callable[[], Any] = lambda: None


Timed = dict[str, Turn]


def contestants(
    checkpoint: Path, bundle: Bundle, size: Size, threads: int, done: Callable[[str], None]
) -> Timed:
    """Name -> the turn of each contestant. done: called with a line after each slow step."""
    scratch = bundle.folder.parent
    default, eager = (
        lerobot_policy(checkpoint, "DDPM", None),
        lerobot_policy(checkpoint, "DDIM", STEPS),
    )
    batch = lerobot_batch(eager, size)
    with torch.inference_mode():
        condition = eager.observation_encoder.encode(batch)
        plain = PlainOnnx(eager, batch, scratch, threads)
        noise = check_same(eager, plain, condition)
    done("exported LeRobot's modules as they are")
    fast = compiled(lerobot_policy(checkpoint, "DDIM", STEPS))
    vision, history, denoiser = (
        engine(bundle, name, threads) for name in ("vision", "history", "denoiser")
    )
    towers = vision, int8_vision(checkpoint, scratch, size, threads)
    ours, ours_int8 = (Ours(bundle, tower, history, denoiser, size) for tower in towers)
    done("calibrated and traced the int8 vision tower")
    seen, a = condition.numpy(), torch.rand(SIDE, SIDE)
    return {
        DEFAULT: Turn(lambda: default._generate_actions(batch)),
        DDIM: Turn(lambda: eager._generate_actions(batch)),
        COMPILED: Turn(lambda: fast._generate_actions(batch)),
        PLAIN: Turn(plain.chunk),
        TICK: Turn(ours.tick, ours.ahead),
        TICK_INT8: Turn(ours_int8.tick, ours_int8.ahead),
        COLD: Turn(ours.cold),
        DDIM + ALONE: Turn(lambda: denoise(eager, condition)),
        COMPILED + ALONE: Turn(lambda: denoise(fast, condition)),
        PLAIN + ALONE: Turn(lambda: plain.denoise(noise, seen)),
        "ours" + ALONE: Turn(graph_call(bundle, "denoiser", denoiser)),
        AHEAD: Turn(graph_call(bundle, "history", history)),
        PRODUCT: Turn(lambda: a @ a),
    }


def check_same(eager: MultiTaskDiTPolicy, plain: PlainOnnx, condition: torch.Tensor) -> Array:
    """Check that LeRobot and its plain export compute the same actions; returns the noise used."""
    torch.manual_seed(0)
    noise: Array = torch.randn(plain.shape).numpy()
    torch.manual_seed(0)
    apart = np.abs(
        plain.denoise(noise, condition.numpy()) - denoise(eager, condition).numpy()
    ).max()
    if not apart <= TOLERANCE:
        raise AssertionError(f"the plain export is {apart:.1e} off LeRobot's actions")
    return noise


# -- measuring --


@torch.inference_mode()
def warm_up(timed: Timed) -> dict[str, float]:
    """Seconds of every first call, in which torch.compile compiles."""
    return {name: _milliseconds(turn) / 1e3 for name, turn in timed.items()}


@torch.inference_mode()
def measure(timed: Timed, repeats: int) -> dict[str, list[float]]:
    """Milliseconds of every call; the contestants take turns."""
    taken: dict[str, list[float]] = {name: [] for name in timed}
    for _ in range(repeats):
        for name, turn in timed.items():
            taken[name].append(_milliseconds(turn))
    return taken


def _milliseconds(turn: Turn) -> float:
    turn.ahead()
    began = time.perf_counter()
    turn.call()
    return 1e3 * (time.perf_counter() - began)


def summary(
    taken: Mapping[str, list[float]], flops: Mapping[str, int], about: Mapping[str, Any]
) -> dict[str, Any]:
    ms = {name: statistics.median(values) for name, values in taken.items()}
    gflops = {
        "denoiser": flops["denoiser"] / ms["ours" + ALONE] / 1e6,
        "product": 2 * SIDE**3 / ms[PRODUCT] / 1e6,
    }

    def ratio(slow: str, fast: str) -> float:
        return round(ms[slow] / ms[fast], 2)

    return {
        "denoiser_ratio_vs_eager": ratio(DDIM + ALONE, "ours" + ALONE),
        "denoiser_ratio_vs_plain_onnx": ratio(PLAIN + ALONE, "ours" + ALONE),
        "ratio_vs_lerobot_ddim10": ratio(DDIM, TICK),
        "ratio_vs_lerobot_ddim10_int8": ratio(DDIM, TICK_INT8),
        "ratio_vs_lerobot_default": ratio(DEFAULT, TICK),
        "denoiser_fraction_of_matmul_rate": round(gflops["denoiser"] / gflops["product"], 2),
        "denoiser_ratio_vs_compile": ratio(COMPILED + ALONE, "ours" + ALONE),
        "ratio_vs_compile_ddim10": ratio(COMPILED, TICK),
        "ratio_vs_plain_onnx": ratio(PLAIN, TICK),
        "cold_ratio_vs_lerobot_ddim10": ratio(DDIM, COLD),
        "denoiser_ratio_vs_eager_all_of_it": round(
            ms[DDIM + ALONE] / (ms["ours" + ALONE] + ms[AHEAD]), 2
        ),
        "median_ms": {name: round(value, 2) for name, value in ms.items()},
        "fastest_ms": {name: round(min(values), 2) for name, values in taken.items()},
        "gflop": {name: round(count / 1e9, 3) for name, count in flops.items()},
        "gflops": {name: round(value, 1) for name, value in gflops.items()},
        **about,
    }


def machine(threads: int, repeats: int) -> dict[str, Any]:
    return {
        "hardware": {
            "cpu": cpu_name(),
            "cores": os.cpu_count(),
            "threads": threads,
            "load_before": round(os.getloadavg()[0], 2),
        },
        "versions": {
            "python": platform.python_version(),
            **{name: importlib.metadata.version(name) for name in PACKAGES},
        },
        "repeats": repeats,
    }


def markdown(result: Mapping[str, Any]) -> str:
    hardware, versions, gflop, rates = (
        result[key] for key in ("hardware", "versions", "gflop", "gflops")
    )
    rows = [
        f"| {name} | {ms:.1f} | {result['fastest_ms'][name]:.1f} |"
        for name, ms in result["median_ms"].items()
    ]
    r = result
    ratios = {
        "LeRobot's default, DDPM 100": f"**{r['ratio_vs_lerobot_default']:.1f}**",
        f"LeRobot, DDIM {STEPS}": f"**{r['ratio_vs_lerobot_ddim10']:.1f}**",
        "the same, ours with int8 towers": f"**{r['ratio_vs_lerobot_ddim10_int8']:.1f}**",
        f"LeRobot under torch.compile, DDIM {STEPS}": f"{r['ratio_vs_compile_ddim10']:.1f}",
        f"a plain ONNX export, DDIM {STEPS}": f"{r['ratio_vs_plain_onnx']:.1f}",
        "denoiser alone: LeRobot": f"**{r['denoiser_ratio_vs_eager']:.1f}**",
        "the same, with what is done ahead": f"{r['denoiser_ratio_vs_eager_all_of_it']:.1f}",
        "denoiser alone: torch.compile": f"{r['denoiser_ratio_vs_compile']:.1f}",
        "denoiser alone: the plain ONNX export": f"**{r['denoiser_ratio_vs_plain_onnx']:.1f}**",
    }
    return "\n".join(
        [
            f"# One action chunk, {result['parameters'] / 1e6:.0f} M parameters, batch 1, "
            "fp32 except for the int8 line",
            "",
            "| | median ms | fastest ms |",
            "|---|---:|---:|",
            *rows,
            "",
            "| ours, one new frame per camera, is faster than | times |",
            "|---|---:|",
            *(f"| {name} | {times} |" for name, times in ratios.items()),
            "",
            f"Operations, counted from shapes: vision {gflop['vision']:.2f} GFLOP (one frame per "
            f"camera), denoiser {gflop['denoiser']:.2f} GFLOP ({STEPS} steps). The denoiser's work "
            "that depends only on the text and the older observation is done a tick ahead. The "
            f"denoiser runs at {rates['denoiser']:.0f} GFLOP/s, torch's product of two "
            f"{SIDE}x{SIDE} matrices at {rates['product']:.0f}: "
            f"**{result['denoiser_fraction_of_matmul_rate']:.0%}** of this machine's rate.",
            "",
            f"torch.compile took {result['compile_s']:.0f} s to compile (its first chunk). Every "
            "chunk of ours is checked to encode each frame once and the task not again.",
            "",
            f"{hardware['cpu']}, {hardware['cores']} cores, {hardware['threads']} thread(s) for "
            f"each contestant, load average {hardware['load_before']} at the start; "
            f"{result['repeats']} repeats, taken in turns.",
            ", ".join(f"{name} {version}" for name, version in versions.items()) + ".",
            "Made by `python benchmarks/chunk_latency.py`.",
            "",
        ]
    )


def count_parameters(checkpoint: Path) -> int:
    with safe_open(str(checkpoint / WEIGHTS), framework="numpy") as file:
        names = list(file.keys())
        return sum(math.prod(file.get_slice(name).get_shape()) for name in names)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--size", choices=SIZES, default="base", help="size of the policy")
    parser.add_argument("--repeats", type=int, default=5, help="timed calls per contestant")
    parser.add_argument(
        "--threads", type=int, default=len(os.sched_getaffinity(0)), help="CPU threads to use"
    )
    parser.add_argument("--out", type=Path, help="write the table to this Markdown file")
    arguments = parser.parse_args()
    if arguments.repeats < 1 or arguments.threads < 1:
        parser.error("--repeats and --threads must be at least 1")
    torch.set_num_threads(arguments.threads)
    transformers.logging.set_verbosity_error()
    about, size = machine(arguments.threads, arguments.repeats), SIZES[arguments.size]
    with tempfile.TemporaryDirectory() as scratch:
        checkpoint = make_checkpoint(Path(scratch), size)
        report = export(
            checkpoint, Path(scratch) / "bench.mtdit", ExportOptions(steps=STEPS), say=print
        )
        bundle = open_bundle(Path(report.bundle), check_files=False)
        timed = contestants(checkpoint, bundle, size, arguments.threads, print)
        compile_s = warm_up(timed)[COMPILED]
        taken = measure(timed, arguments.repeats)
        flops = {name: graph.flops for name, graph in bundle.manifest.graphs.items()}
        about |= {"parameters": count_parameters(checkpoint), "compile_s": round(compile_s, 1)}
        gpu = (
            chunk_gpu.compare(checkpoint, size, arguments.repeats)
            if torch.cuda.is_available()
            else {}
        )
    result = summary(taken, flops, {**about, **gpu})
    text = markdown(result) + (chunk_gpu.markdown(gpu) if gpu else "")
    print(text)
    if arguments.out:
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        arguments.out.write_text(text)
    print(json.dumps(result))


if __name__ == "__main__":
    main()
