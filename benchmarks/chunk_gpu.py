"""Latency of one action chunk on a GPU: LeRobot in half precision, eager and compiled, against the
folded policy in a CUDA graph.

The torch modules of our graphs are captured, which is what TensorRT starts from, before it fuses
anything; `mtdit bench` measures a built TensorRT engine. The bound beside each time is the least
time this GPU needs to read the weights or to compute the matrix products, at the rates measured
here.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from chunk_contestants import STEPS, Size, compiled, lerobot_batch, lerobot_policy
from torch import Tensor, nn

from mtdit.checkpoint.read import open_checkpoint
from mtdit_export.export import example_inputs
from mtdit_export.flops import Cost, cost
from mtdit_export.fold.fold import fold
from mtdit_export.precision import to_fp16
from mtdit_export.preflight import choose_sampler

WARM_UP = 3
SIDE, COPIED = 8192, 1 << 28  # rows of the multiplied matrices; bytes copied
EAGER, COMPILED = f"LeRobot fp16, DDIM {STEPS}", f"LeRobot fp16, DDIM {STEPS}, torch.compile"
VISION, DENOISER, CHUNK = (
    "ours fp16, vision",
    "ours fp16, denoiser",
    "ours fp16, one new frame per camera",
)
HISTORY = "ours fp16, what is done a tick ahead"

Call = Callable[[], Any]


@torch.no_grad()
def compare(checkpoint: Path, size: Size, repeats: int, device: str = "cuda") -> dict[str, Any]:
    """Median times, bounds and their ratios, for the JSON line of the benchmark. A `device` other
    than cuda only tests the code.
    """
    graphs = folded_calls(checkpoint, device)
    (vision, vision_cost), (denoiser, denoiser_cost) = graphs["vision"], graphs["denoiser"]
    ours = {VISION: vision, DENOISER: denoiser, HISTORY: graphs["history"][0]}
    calls = {**lerobot_calls(checkpoint, size, device), **ours}
    calls[CHUNK] = lambda: (vision(), denoiser())
    taken: dict[str, list[float]] = {name: [] for name in calls}
    for call in calls.values():
        for _ in range(WARM_UP):
            call()
    for _ in range(repeats):
        for name, call in calls.items():
            taken[name].append(1e3 * _seconds(call, device))
    ms = {name: statistics.median(values) for name, values in taken.items()}
    able = speed(device)
    bounds = {VISION: bound_ms(vision_cost, able), DENOISER: bound_ms(denoiser_cost, able)}
    bounds[CHUNK] = sum(bounds.values())
    return {
        "gpu": torch.cuda.get_device_name() if device == "cuda" else device,
        "gpu_ms": {name: round(value, 3) for name, value in ms.items()},
        "gpu_bound_ms": {name: round(value, 3) for name, value in bounds.items()},
        "gpu_over_bound": {name: round(ms[name] / value, 2) for name, value in bounds.items()},
        "gpu_ratio_vs_eager": round(ms[EAGER] / ms[CHUNK], 2),
        "gpu_ratio_vs_compile": round(ms[COMPILED] / ms[CHUNK], 2),
        "gpu_rates": {name: round(rate / 1e9, 1) for name, rate in able.items()},
    }


def lerobot_calls(checkpoint: Path, size: Size, device: str) -> dict[str, Call]:
    """LeRobot's chunk, eager and compiled, under autocast to float16 as with its use_amp."""
    policies = {EAGER: lerobot_policy(checkpoint, "DDIM", STEPS).to(device)}
    policies[COMPILED] = compiled(lerobot_policy(checkpoint, "DDIM", STEPS).to(device))
    batch = {name: value.to(device) for name, value in lerobot_batch(policies[EAGER], size).items()}

    def chunk(name: str) -> Call:
        def call() -> Tensor:
            with torch.autocast(device, dtype=torch.float16):
                actions: Tensor = policies[name]._generate_actions(batch)
            return actions

        return call

    return {name: chunk(name) for name in policies}


def folded_calls(checkpoint: Path, device: str) -> dict[str, tuple[Call, Cost]]:
    """Our graphs with half precision weights, each replayed as one CUDA graph, and their cost."""
    opened = open_checkpoint(checkpoint)
    config = choose_sampler(opened.config, "ddim", STEPS)
    folded = fold(
        opened.policy(), {camera: opened.image_scaling(camera) for camera in config.cameras}
    )
    calls = {}
    for name in ("vision", "history", "denoiser"):
        module = folded.modules()[name]
        to_fp16(module)
        module.to(device)
        inputs = {
            key: value.to(device) for key, value in example_inputs(name, folded, config).items()
        }
        calls[name] = (captured(module, list(inputs.values()), device), cost(module, inputs))
    return calls


def captured(module: nn.Module, inputs: list[Tensor], device: str) -> Call:
    """A CUDA graph of the module on these inputs; on another device, the module itself."""
    if device != "cuda":
        return lambda: module(*inputs)
    side = torch.cuda.Stream()
    with torch.cuda.stream(side):  # a capture needs everything to have run once, on another stream
        for _ in range(WARM_UP):
            module(*inputs)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        module(*inputs)
    return graph.replay


# -- the GPU's own rates --


def speed(device: str) -> dict[str, float]:
    """Per second: {"flops": operations of a large float16 product, "bytes": read and written by a
    copy}.
    """
    side, copied = (SIDE, COPIED) if device == "cuda" else (256, 1 << 20)
    a = torch.randn(side, side, device=device, dtype=torch.float16)
    source = torch.zeros(copied, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    product_s = min(_seconds(lambda: a @ a, device) for _ in range(10))
    copy_s = min(_seconds(lambda: target.copy_(source), device) for _ in range(10))
    return {"flops": 2 * side**3 / product_s, "bytes": 2 * copied / copy_s}


def bound_ms(graph: Cost, able: Mapping[str, float]) -> float:
    return 1e3 * max(graph.flops / able["flops"], graph.weight_bytes / able["bytes"])


def _seconds(call: Call, device: str) -> float:
    began = time.perf_counter()
    call()
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - began


def markdown(result: Mapping[str, Any]) -> str:
    bounds, over = result["gpu_bound_ms"], result["gpu_over_bound"]
    rows = [
        f"| {name} | {ms:.2f} | "
        + (f"{bounds[name]:.2f} | {over[name]:.1f} |" if name in bounds else "| |")
        for name, ms in result["gpu_ms"].items()
    ]
    rates = result["gpu_rates"]
    return "\n".join(
        [
            "",
            f"## {result['gpu']}",
            "",
            "| | median ms | bound ms | times the bound |",
            "|---|---:|---:|---:|",
            *rows,
            "",
            f"Measured rates: {rates['flops'] / 1e3:.0f} TFLOP/s in a float16 product, "
            f"{rates['bytes']:.0f} GB/s in a copy.",
            "",
        ]
    )
