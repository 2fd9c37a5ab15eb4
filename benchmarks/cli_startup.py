"""Time of `mtdit --help`, of each `mtdit X --help`, and of `import mtdit`.

    python benchmarks/cli_startup.py [--runs 15] [--out table.md]

Each run is a process of its own. The commands take turns, so that a busy moment of the machine
affects all of them, and `python -c pass` and `python -c "import typer"` take their turns too: the
first is the interpreter's own time, the second that of the library that reads the options. cpu is
the processor time of the process, which a busy machine changes less than its duration. The last
line of the output is JSON.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path

from mtdit_runtime.bench import cpu_name

TARGET_S = {"mtdit --help": 0.3}
TARGET_OF_COMMANDS_S = 0.5
BARE = "python -c pass"


def commands() -> dict[str, list[str]]:
    """What is timed: the words for the table and the command line."""
    from mtdit.cli.app import COMMANDS

    mtdit = [sys.executable, "-m", "mtdit.cli"]
    return {
        BARE: [sys.executable, "-c", "pass"],
        'python -c "import typer"': [sys.executable, "-c", "import typer"],
        'python -c "import mtdit"': [sys.executable, "-c", "import mtdit"],
        "mtdit --help": [*mtdit, "--help"],
        **{f"mtdit {name} --help": [*mtdit, name, "--help"] for name in COMMANDS},
    }


def timed(command: list[str]) -> tuple[float, float]:
    """Seconds that a process takes, and seconds of processor time."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    began = time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    took = time.perf_counter() - began
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return took, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def measure(runs: int) -> dict[str, dict[str, float]]:
    """Median seconds and processor seconds of each command; the first round is not counted."""
    every = commands()
    rounds = [{name: timed(command) for name, command in every.items()} for _ in range(runs + 1)]
    return {
        name: {
            "median_s": round(statistics.median(one[name][0] for one in rounds[1:]), 4),
            "cpu_s": round(statistics.median(one[name][1] for one in rounds[1:]), 4),
        }
        for name in every
    }


def markdown(result: dict[str, object], times: dict[str, dict[str, float]]) -> str:
    bare = times[BARE]
    lines = [
        "# How long the command line takes to start",
        "",
        "| command | median ms | ratio to `python -c pass` | cpu ms | ratio | target ms |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    for name, t in times.items():
        target = TARGET_S.get(name, TARGET_OF_COMMANDS_S if name.startswith("mtdit ") else None)
        lines.append(
            f"| `{name}` | {t['median_s'] * 1e3:.0f} | {t['median_s'] / bare['median_s']:.1f} "
            f"| {t['cpu_s'] * 1e3:.0f} | {t['cpu_s'] / bare['cpu_s']:.1f} "
            f"| {'' if target is None else f'{target * 1e3:.0f}'} |"
        )
    return "\n".join(
        [
            *lines,
            "",
            f"{result['cpu']}, {result['cores']} cores, load average {result['load']} when it "
            f"began; {result['runs']} runs, commands in turns.",
            "With a load average above the number of cores the durations are those of a shared "
            "machine: only the cpu columns and the ratios then say something.",
            f"python {result['python']}, typer {result['typer']}.",
            "Made by `python benchmarks/cli_startup.py`.",
            "",
        ]
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--runs", type=int, default=15, help="counted runs of each command")
    parser.add_argument("--out", type=Path, help="write the table to this Markdown file")
    arguments = parser.parse_args()
    if arguments.runs < 1:
        parser.error("--runs must be at least 1")
    result: dict[str, object] = {
        "cpu": cpu_name(),
        "cores": os.cpu_count(),
        "load": round(os.getloadavg()[0], 2),
        "runs": arguments.runs,
        "python": platform.python_version(),
        "typer": importlib.metadata.version("typer"),
    }
    times = measure(arguments.runs)
    print(markdown(result, times))
    if arguments.out:
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        arguments.out.write_text(markdown(result, times))
    print(json.dumps({**result, "times": times}))


if __name__ == "__main__":
    main()
