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
import json
import statistics
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from training_logs import LOG_EVERY, SKIP, Run
from training_report import draw, machine, markdown, relative_difference, smoothed, summary
from training_runs import AS_LEROBOT, LEROBOT, Bench, Case, prepare, run, sides

from mtdit.policies.multi_task_dit.clip import ClipShape, TextShape, VisionShape
from mtdit.policies.multi_task_dit.tiny_clip import TINY

RESULTS = Path(__file__).parent / "results"
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
