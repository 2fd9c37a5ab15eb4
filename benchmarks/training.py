"""Training speed: `mtdit train` against the installed `lerobot-train`, with the same data and
weights on one machine.

    python benchmarks/training.py [--steps 120] [--rounds 3] [--batch 32] [--curves] [--quick]
        [--out training.md]

The dataset is recorded in the twin at the start, as video. Both tools start from one checkpoint
with new weights and use its policy config: random crops, one noise draw per sample, gradient norm
10, no EMA. `mtdit` also runs with its own default, EMA on. Every run is a process of its own
through the tool's command line, and the tools take turns. The rate counts from step SKIP on, when
LeRobot has used up the batches its workers prepared before the first step; the time before
(imports, workers, decoding) is reported separately. A CPU trains a policy of CI size; a GPU trains
CLIP ViT-B/16 (random weights, no download) in bf16 with batch 64 and 256. `--curves` trains longer
and draws both loss curves into one picture. The last line of the output is JSON.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.metadata
import json
import os
import platform
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from mtdit.policies.multi_task_dit.clip import ClipShape, TextShape, VisionShape
from mtdit.policies.multi_task_dit.tiny_clip import TINY, make_tiny_clip
from mtdit_runtime.bench import cpu_name

TASKS = ("open the drawer", "close the drawer")
LOG_EVERY = 5  # steps
SKIP = 20  # steps: LeRobot's 4 workers have 16 batches ready when training starts
PACKAGES = ("torch", "lerobot", "accelerate", "transformers")
SMOOTH = 10  # log lines, which is 50 steps
RESULTS = Path(__file__).parent / "results"


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


B16 = ClipShape(VisionShape(patch_size=16), TextShape(eos_token_id=2))
SMALL = {
    "n_obs_steps": 2,
    "drop_n_last_frames": 7,
    "image_resize_shape": [72, 72],
}  # as LeRobot's defaults have it
CPU_CASES = (Case("CI size, CPU", "cpu", 32, "no", TINY, "tiny", 96, SMALL),)
GPU_CASES = tuple(
    Case(f"ViT-B/16, batch {b}", "cuda", b, "bf16", B16, "base", 480, {}) for b in (64, 256)
)


@dataclass(frozen=True)
class Run:
    """The log of one training process. The three lists have one entry per log line."""

    steps: list[int]
    loss: list[float]  # mean since the line before
    at_s: list[float]  # seconds since the first log line
    wait: float  # 0..1, fraction of the time spent waiting for batches
    first_step_s: float  # from the start of the process to the first log line
    total_s: float

    def counted_from(self, skip: int) -> int:
        """The step of the first log line at or after `skip`, or of the last line but one if the run
        is shorter.
        """
        return next(step for step in self.steps if step >= min(skip, self.steps[-2]))

    def rate(self, batch: int, skip: int) -> float:
        """Samples per second from `counted_from` to the end."""
        first = self.steps.index(self.counted_from(skip))
        return batch * (self.steps[-1] - self.steps[first]) / (self.at_s[-1] - self.at_s[first])


# -- the two tools --


@dataclass(frozen=True)
class Side:
    """One tool: its command line, and the function that reads its progress while it runs."""

    name: str
    command: Callable[[Bench, Path, int, int], list[str]]  # bench, output folder, steps, seed
    read: Callable[[Iterator[str], Path, float], Run]  # printed lines, output folder, start time
    environment: Mapping[str, str]


@dataclass(frozen=True)
class Bench:
    """The inputs that all runs of a case share."""

    case: Case
    dataset: Path
    checkpoint: Path
    lerobot_workers: int


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


def read_lerobot(lines: Iterator[str], _out: Path, began: float) -> Run:
    """Read lerobot-train's progress. Its log lines have full seconds only, so each line is timed
    when it arrives. RuntimeError if there are none.
    """
    stamped = [
        (time.perf_counter(), figures) for line in lines if (figures := lerobot_figures(line))
    ]
    ended = time.perf_counter()
    if not stamped:
        raise RuntimeError("lerobot-train printed no figures")
    waited = [f["data_s"] / max(f["data_s"] + f["updt_s"], 1e-9) for _, f in stamped]
    return Run(
        steps=[LOG_EVERY * (i + 1) for i in range(len(stamped))],  # the line itself says "step:1K"
        loss=[f["loss"] for _, f in stamped],
        at_s=[at - stamped[0][0] for at, _ in stamped],
        wait=settled(waited),
        first_step_s=stamped[0][0] - began,
        total_s=ended - began,
    )


_FIGURE = re.compile(r"\b(loss|updt_s|data_s):([0-9.]+|nan|inf)(?=\s|$)")


def lerobot_figures(line: str) -> dict[str, float] | None:
    """loss, updt_s and data_s of one of lerobot-train's progress lines; None for any other line."""
    found = {name: float(value) for name, value in _FIGURE.findall(line)}
    return found if {"loss", "updt_s", "data_s"} <= found.keys() else None


def read_mtdit(lines: Iterator[str], out: Path, began: float) -> Run:
    """Read mtdit's log when the process has ended. The file's modification time is that of the last
    line.
    """
    began_at = time.time() - (time.perf_counter() - began)
    for _ in lines:  # until it ends
        pass
    log = out / "train_log.jsonl"
    return mtdit_run(
        log.read_text().splitlines(), log.stat().st_mtime - began_at, time.perf_counter() - began
    )


def mtdit_run(log: Sequence[str], written_s: float, total_s: float) -> Run:
    """A Run from the lines of train_log.jsonl. written_s: seconds from the start of the process to
    the last line; total_s: to its end.
    """
    reports = [r for r in map(json.loads, log) if "samples_per_s" in r]
    at_s = [r["elapsed_s"] - reports[0]["elapsed_s"] for r in reports]
    return Run(
        steps=[r["step"] for r in reports],
        loss=[r["loss"] for r in reports],
        at_s=at_s,
        wait=settled([r["data_wait"] for r in reports]),
        first_step_s=written_s - at_s[-1],
        total_s=total_s,
    )


def settled(waits: Sequence[float]) -> float:
    """Median over the log lines after step SKIP, or over all if there are none."""
    return statistics.median(waits[SKIP // LOG_EVERY :] or waits)


AS_LEROBOT, BY_DEFAULT, LEROBOT = "mtdit", "mtdit, average of weights on", "lerobot-train"


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


# -- running --


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


def take_turns(bench: Bench, steps: int, rounds: int) -> dict[str, list[Run]]:
    """Run every tool once per round; every other round in reverse order."""
    contestants = sides(bench.case)
    taken: dict[str, list[Run]] = {side.name: [] for side in contestants}
    for i in range(rounds):
        for side in contestants if i % 2 == 0 else reversed(contestants):
            taken[side.name].append(run(side, bench, steps))
            rate = taken[side.name][-1].rate(bench.case.batch, SKIP)
            print(f"round {i + 1}: {side.name} {rate:.1f} samples/s", flush=True)
    return taken


# -- the report --


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


# -- loss curves --


def loss_curves(bench: Bench, steps: int, picture: Path) -> dict[str, Any]:
    """One longer run per tool, and one of mtdit with another seed, to compare differences with."""
    lerobot, ours, _ = sides(bench.case)
    runs = {LEROBOT: run(lerobot, bench, steps), AS_LEROBOT: run(ours, bench, steps)}
    other = run(ours, bench, steps, seed=1001)
    draw({**runs, "mtdit, another seed": other}, picture)
    theirs, mine, second = (smoothed(r.loss) for r in (*runs.values(), other))
    return {
        "steps": steps,
        "difference": round(relative_difference(mine, theirs), 4),
        "bias": round(
            (statistics.mean(mine) - statistics.mean(theirs)) / statistics.mean(theirs), 4
        ),
        "between_seeds": round(relative_difference(mine, second), 4),
    }


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


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--steps", type=int, default=120, help="steps per run")
    parser.add_argument("--rounds", type=int, default=3, help="runs per tool")
    parser.add_argument("--batch", type=int, help="batch size instead of each case's own")
    parser.add_argument("--episodes", type=int, default=8, help="episodes to record per task")
    parser.add_argument(
        "--lerobot-workers", type=int, default=4, help="LeRobot's --num_workers; 4 is its default"
    )
    parser.add_argument(
        "--amp", choices=("no", "bf16"), help="mixed precision instead of each case's own"
    )
    parser.add_argument("--cpu", action="store_true", help="run the CPU case even with a GPU")
    parser.add_argument(
        "--curves", action="store_true", help="also train for --curve-steps and draw the losses"
    )
    parser.add_argument("--curve-steps", type=int, default=500, help="steps for --curves")
    parser.add_argument(
        "--quick", action="store_true", help="one short round, to test the benchmark itself"
    )
    parser.add_argument("--out", type=Path, help="write the tables to this Markdown file")
    parser.add_argument(
        "--picture", type=Path, default=RESULTS / "training.png", help="file for the loss curves"
    )
    a = parser.parse_args()
    if a.quick:
        a.steps, a.rounds, a.episodes, a.lerobot_workers, a.batch = 15, 1, 1, 1, a.batch or 8
    if a.steps < 3 * LOG_EVERY or a.rounds < 1 or a.curve_steps < 3 * LOG_EVERY:
        parser.error(
            f"--steps and --curve-steps must be at least {3 * LOG_EVERY}, --rounds at least 1"
        )
    about = {**machine(), "rounds": a.rounds, "steps": a.steps}
    cases, curves = [], None
    for case in GPU_CASES if torch.cuda.is_available() and not a.cpu else CPU_CASES:
        case = replace(case, batch=a.batch or case.batch, amp=a.amp or case.amp)
        with tempfile.TemporaryDirectory() as scratch:
            bench = prepare(case, Path(scratch), a.episodes, a.lerobot_workers)
            cases.append(summary(case, take_turns(bench, a.steps, a.rounds), a.lerobot_workers))
            if a.curves and curves is None:
                curves = loss_curves(bench, a.curve_steps, a.picture)
    lowest = min(case["ratio_samples_per_s"] for case in cases)
    result = {"ratio_samples_per_s": lowest, "cases": cases, "curves": curves, **about}
    print(markdown(result))
    if a.out:
        a.out.parent.mkdir(parents=True, exist_ok=True)
        a.out.write_text(markdown(result))
    print(json.dumps(result))


if __name__ == "__main__":
    main()
