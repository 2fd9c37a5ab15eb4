"""Measures how fast a bundle runs on this computer: per stage, per tick and from a cold start.

No robot is needed: the observations are made up (an encoder takes as long for noise frames as for
real ones). On a CPU, two probes measure what the processor can multiply and copy, as the bound to
compare with.
"""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from mtdit_robots.errors import UserError
from mtdit_runtime.bundle.bundle import Bundle, as_bundle
from mtdit_runtime.engines.choose import choose_engines
from mtdit_runtime.jetson import power_mode
from mtdit_runtime.memory import peak_memory_mb
from mtdit_runtime.policy.bundle_policy import BundlePolicy

PERCENTILES = (50, 95, 99)
WARM_UP = 3
PROBE_SIDE = 1024  # the multiplied matrices are PROBE_SIDE x PROBE_SIDE
PROBE_FLOATS = 1 << 24  # copied float32 values: 64 MB, more than a cache holds
PROBE_REPEATS = 7


def bench(
    bundle: Bundle | Path | str, backend: str = "auto", repeats: int = 50, seed: int = 0
) -> dict[str, Any]:
    """Measure one bundle on one backend. A cold start includes opening it, if it is a folder.

    "tick" is the critical path of a chunk: one new frame per camera is encoded, the features of
    older frames and the text are cached, "history" was computed in the tick before. The runs are
    split in two halves, A and B; the ratio of their medians shows how noisy the figures are.
    "of_bound" is the least time that this processor needs for a stage's multiplications and weights
    over the stage's median; it is missing on a GPU, which the probe does not measure.
    """
    if repeats < 2:
        raise UserError(f"repeats must be at least 2, got {repeats}")
    began = time.perf_counter()
    bundle = as_bundle(bundle)
    opened = time.perf_counter()
    engines = choose_engines(bundle, backend)
    ready = time.perf_counter()
    policy = BundlePolicy(bundle, engines)
    scene = _Scene(bundle, seed)
    policy.reset(_task(bundle), seed)
    policy.observe(*scene.observe())
    policy.chunk()
    first = time.perf_counter()
    stages, peak_mb = _stages(policy, scene, repeats), peak_memory_mb()
    able = machine_speed() if "CPU" in engines.denoiser.describe() else {}
    for name, figures in stages.items():
        figures.update(_achieved(bundle, name, figures["p50_ms"], able))
    moments = {"open": (began, opened), "engines": (opened, ready), "first_chunk": (ready, first)}
    return {
        "bundle": str(bundle.folder),
        "backend": [engine.describe() for engine in engines.per_chunk],
        "precision": bundle.manifest.precision,
        "cold_start_ms": _milliseconds(first - began),
        "cold_ms": {name: _milliseconds(end - start) for name, (start, end) in moments.items()},
        "stages": stages,
        "budget_ms": round(1e3 * bundle.manifest.n_action_steps / bundle.manifest.fps, 1),
        "peak_memory_mb": round(peak_mb),
        "machine": {
            "cpu": cpu_name(),
            "python": platform.python_version(),
            "system": platform.platform(),
            "power": power_mode(),
            **able,
        },
    }


def machine_speed() -> dict[str, float]:
    """The peak speed of this processor, {gflops, gb_per_s}, from a matrix product and a copy."""
    a = np.random.default_rng(0).standard_normal((PROBE_SIDE, PROBE_SIDE), np.float32)
    source, target = np.ones(PROBE_FLOATS, np.float32), np.empty(PROBE_FLOATS, np.float32)
    has_affinity = hasattr(os, "sched_getaffinity")
    cores = len(os.sched_getaffinity(0)) if has_affinity else os.cpu_count() or 1
    parts = list(zip(np.array_split(target, cores), np.array_split(source, cores), strict=True))
    with ThreadPoolExecutor(cores) as pool:
        product_s = min(_seconds(lambda: a @ a) for _ in range(PROBE_REPEATS))
        copy_s = min(
            _seconds(lambda: list(pool.map(lambda p: np.copyto(*p), parts)))
            for _ in range(PROBE_REPEATS)
        )
    moved = source.nbytes + target.nbytes  # read and written
    return {
        "gflops": round(2 * PROBE_SIDE**3 / product_s / 1e9, 1),
        "gb_per_s": round(moved / copy_s / 1e9, 1),
    }


def _achieved(
    bundle: Bundle, stage: str, median_ms: float, able: dict[str, float]
) -> dict[str, float]:
    """FLOP/s and bytes/s of a stage that is a graph, and how close they are to the bound."""
    graph = bundle.manifest.graphs.get(stage)
    if graph is None or not graph.flops:
        return {}
    gflop, gigabytes = graph.flops / 1e9, graph.weight_bytes / 1e9
    rates = {"gflops": gflop / median_ms * 1e3, "gb_per_s": gigabytes / median_ms * 1e3}
    if able:
        bound_s = max(gflop / able["gflops"], gigabytes / able["gb_per_s"])
        rates["of_bound"] = 1e3 * bound_s / median_ms
    return {name: round(value, 2) for name, value in rates.items()}


def _milliseconds(duration_s: float) -> float:
    return round(1e3 * duration_s, 1)


COLUMNS: dict[str, tuple[str, Callable[[float], str]]] = {
    "p50_ms": ("p50 ms", "{:.1f}".format),
    "p95_ms": ("p95 ms", "{:.1f}".format),
    "p99_ms": ("p99 ms", "{:.1f}".format),
    "b_over_a": ("B/A", "{:.2f}".format),
    "gflops": ("GFLOP/s", "{:.1f}".format),
    "gb_per_s": ("GB/s", "{:.1f}".format),
    "of_bound": ("of bound", "{:.0%}".format),
}


def report(result: dict[str, Any]) -> tuple[list[str], list[list[str]], list[str]]:
    """The result of `bench` for the terminal: column heads, rows, and the lines below them."""
    rows = [
        [
            name,
            *(form(figures[key]) if key in figures else "" for key, (_, form) in COLUMNS.items()),
        ]
        for name, figures in result["stages"].items()
    ]
    machine, cold = result["machine"], result["cold_ms"]
    parts = ", ".join(f"{part.replace('_', ' ')} {ms:.0f}" for part, ms in cold.items())
    lines = [
        "tick: one new frame per camera, then a chunk; history is computed a tick ahead",
        "B/A: median of the second half of the runs over that of the first half",
        f"cold start {result['cold_start_ms']:.0f} ms ({parts})",
        f"peak memory {result['peak_memory_mb']} MB",
        f"the actions of a chunk take {result['budget_ms']:.0f} ms on the robot",
    ]
    if "gflops" in machine:
        product, copy = f"{machine['gflops']:.0f} GFLOP/s", f"{machine['gb_per_s']:.0f} GB/s"
        lines.append(f"this processor: {product} in a matrix product, {copy} in a copy")
    if machine["power"]:
        lines.append(f"power {machine['power']}")
    return ["stage", *(head for head, _ in COLUMNS.values())], rows, lines


class _Scene:
    """Made-up observations: frames of uniform noise, joints in the middle of their range in
    training.
    """

    def __init__(self, bundle: Bundle, seed: int) -> None:
        self._rng = np.random.default_rng(seed)
        self._cameras = bundle.manifest.cameras
        self._positions = np.array(bundle.manifest.usual_positions)

    def observe(self) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        frames = {
            c.name: self._rng.integers(0, 256, (c.height, c.width, 3), np.uint8)
            for c in self._cameras
        }
        return self._positions, frames


def _task(bundle: Bundle) -> str:
    return bundle.manifest.tasks[0] if bundle.manifest.tasks else "move"


def _stages(policy: BundlePolicy, scene: _Scene, repeats: int) -> dict[str, dict[str, float]]:
    def one_tick() -> float:
        policy.prepare()()
        policy.observe(*scene.observe())
        return _seconds(policy.chunk)

    for _ in range(WARM_UP):
        one_tick()
    policy.timings.clear()
    ticks_s = [one_tick() for _ in range(repeats)]
    names = [name for name in ("vision", "history", "denoiser") if policy.timings.durations(name)]
    return {
        **{name: _summary(policy.timings.durations(name)) for name in names},
        "tick": _summary(ticks_s),
    }


def _seconds(call: Callable[[], object]) -> float:
    began = time.perf_counter()
    call()
    return time.perf_counter() - began


def _summary(durations_s: list[float]) -> dict[str, float]:
    half = len(durations_s) // 2
    a, b = np.median(durations_s[:half]), np.median(durations_s[half:])
    points = dict(
        zip(
            (f"p{p}_ms" for p in PERCENTILES),
            np.percentile(durations_s, PERCENTILES) * 1e3,
            strict=True,
        )
    )
    return {
        **{name: round(float(ms), 3) for name, ms in points.items()},
        "b_over_a": round(float(b / a), 3),
    }


def cpu_name() -> str:
    """The processor's name in Linux' /proc/cpuinfo, else its architecture."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    names = [
        line.partition(":")[2].strip() for line in lines if line.startswith(("model name", "Model"))
    ]
    return names[0] if names else platform.machine()
