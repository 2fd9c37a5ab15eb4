"""What the training benchmark reports: rates and ratios, the machine, the tables, and the picture
of the loss curves.
"""

from __future__ import annotations

import importlib.metadata
import os
import platform
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from training_logs import LOG_EVERY, SKIP, Run
from training_runs import AS_LEROBOT, BY_DEFAULT, LEROBOT, Case, threads, video_backend

from mtdit_runtime.bench import cpu_name

PACKAGES = ("torch", "lerobot", "accelerate", "transformers")
SMOOTH = 10  # log lines, which is 50 steps


def summary(case: Case, taken: Mapping[str, Sequence[Run]], workers: int) -> dict[str, Any]:
    """Medians over the rounds, lowest and highest, and the medians of each round's ratios."""
    rates = {name: [r.rate(case.batch, SKIP) for r in runs] for name, runs in taken.items()}
    busy = {
        name: [v / (1 - r.wait) for v, r in zip(rates[name], runs, strict=True)]
        for name, runs in taken.items()
    }

    def ratio(of: Mapping[str, list[float]], name: str) -> float:
        pairs = zip(of[name], of[LEROBOT], strict=True)
        return round(statistics.median(ours / theirs for ours, theirs in pairs), 2)

    def figures(name: str) -> dict[str, Any]:
        runs = taken[name]
        return {
            "samples_per_s": round(statistics.median(rates[name]), 1),
            "lowest": round(min(rates[name]), 1),
            "highest": round(max(rates[name]), 1),
            "data_wait": round(statistics.median(r.wait for r in runs), 3),
            "first_step_s": round(statistics.median(r.first_step_s for r in runs), 1),
            "total_s": round(statistics.median(r.total_s for r in runs), 1),
        }

    return {
        "case": case.name,
        "device": case.device,
        "batch": case.batch,
        "amp": case.amp,
        "lerobot_workers": workers,
        "counted_from_step": taken[LEROBOT][0].counted_from(SKIP),
        "ratio_samples_per_s": ratio(rates, AS_LEROBOT),
        "ratio_with_average": ratio(rates, BY_DEFAULT),
        "ratio_without_waiting_for_data": ratio(busy, AS_LEROBOT),
        "sides": {name: figures(name) for name in taken},
    }


def machine() -> dict[str, Any]:
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    cores = len(os.sched_getaffinity(0))
    return {
        "hardware": {
            "cpu": cpu_name(),
            "cores": cores,
            "gpu": gpu,
            "load_before": round(os.getloadavg()[0], 2),
        },
        "threads": int(threads()),
        "video_backend": video_backend(),
        "versions": {
            "python": platform.python_version(),
            **{n: importlib.metadata.version(n) for n in PACKAGES},
        },
    }


def markdown(result: Mapping[str, Any]) -> str:
    hardware, versions = (
        result["hardware"],
        ", ".join(f"{n} {v}" for n, v in result["versions"].items()),
    )
    lines = ["# Training: `mtdit train` against `lerobot-train`", ""]
    for case in result["cases"]:
        lines += _case_lines(case)
    if result.get("curves"):
        lines += _curve_lines(result["curves"])
    lines += [
        f"{hardware['cpu']}, {hardware['cores']} cores, {hardware['gpu'] or 'no GPU'}, load "
        f"average {hardware['load_before']} at the start; {result['rounds']} round(s) of "
        f"{result['steps']} steps, in turns. OMP_NUM_THREADS={result['threads']} and sleeping "
        f"threads for both; LeRobot decodes videos with {result['video_backend']}.",
        f"{versions}.",
        "Made by `python benchmarks/training.py`.",
        "",
    ]
    return "\n".join(lines)


def _case_lines(case: Mapping[str, Any]) -> list[str]:
    rows = [
        f"| {name} | {s['samples_per_s']:.1f} | {s['lowest']:.1f} .. {s['highest']:.1f} "
        f"| {100 * s['data_wait']:.0f} % | {s['first_step_s']:.0f} | {s['total_s']:.0f} |"
        for name, s in case["sides"].items()
    ]
    return [
        f"## {case['case']}: batch {case['batch']}, amp {case['amp']}",
        "",
        "| | samples/s | lowest .. highest | waiting for data "
        f"| s to step {LOG_EVERY} | s in total |",
        "|---|---:|---:|---:|---:|---:|",
        *rows,
        "",
        f"mtdit / LeRobot: **{case['ratio_samples_per_s']:.2f}x**, with EMA "
        f"{case['ratio_with_average']:.2f}x; without the time spent waiting for data "
        f"{case['ratio_without_waiting_for_data']:.2f}x. Rates from step "
        f"{case['counted_from_step']} on.",
        f"LeRobot has {case['lerobot_workers']} worker processes that decode video, and tokenises "
        "and normalises in the main process; mtdit decodes every frame once, before the first "
        "step, and has 2 threads.",
        "",
    ]


def _curve_lines(curves: Mapping[str, Any]) -> list[str]:
    return [
        "## The same training",
        "",
        f"![loss curves](training.png) Over {curves['steps']} steps from the same weights, the "
        f"smoothed losses of the two tools differ by {100 * curves['difference']:.1f} % on average "
        f"(mtdit minus LeRobot: {100 * curves['bias']:+.1f} %), and those of two seeds of mtdit by "
        f"{100 * curves['between_seeds']:.1f} %.",
        "",
    ]


def smoothed(loss: Sequence[float]) -> list[float]:
    """Running mean over SMOOTH log lines, or over all if there are fewer."""
    width = min(SMOOTH, len(loss))
    return [statistics.mean(loss[i : i + width]) for i in range(len(loss) - width + 1)]


def relative_difference(a: Sequence[float], b: Sequence[float]) -> float:
    """Mean of |a - b| divided by the mean of both."""
    return statistics.mean(abs(x - y) for x, y in zip(a, b, strict=True)) / statistics.mean(
        [*a, *b]
    )


def draw(runs: Mapping[str, Run], picture: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7, 4))
    for name, made in runs.items():
        (line,) = axes.plot(made.steps, made.loss, alpha=0.25)
        smooth = smoothed(made.loss)
        axes.plot(made.steps[-len(smooth) :], smooth, color=line.get_color(), label=name)
    axes.set(xlabel="step", ylabel="training loss", yscale="log")
    axes.legend()
    figure.tight_layout()
    picture.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(picture, dpi=110)
