"""Time of one control cycle on the servo bus (read six positions, write six goals), compared
between drivers.

    python benchmarks/servo_bus.py [--cycles 1000] [--silent-cycles 5] [--out table.md]

The servos are virtual and run in a process of their own behind pseudo-terminals. They answer
immediately in one measurement, and after the delay of a 1 Mbit/s wire in the other. Every driver
has its own port. The drivers take turns in short blocks, so that a busy moment of the machine
affects all of them. The servos jump to their goals, so a driver must read what it wrote in the
cycle before; anything else is counted as wrong, is not timed, and is flushed before the driver's
next turn. "bare" writes and reads the same bytes without looking at them: its time is that of the
pseudo-terminal, the scheduler and the virtual servos, and the rest of a row is the driver's. The
last line of the output is JSON.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import platform
import statistics
import termios
import time
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bus_drivers import BAUD, REPLY_BYTES, Driver, drivers
from virtual_servos import SIX, served

from mtdit_runtime.bench import cpu_name

BLOCK = 50  # cycles of one turn
WIRE_BYTES = 14 + REPLY_BYTES + 26  # request, replies, goals
FLOOR_US = WIRE_BYTES * 10 * 1e6 / BAUD
TARGET_US = 150
PACKAGES = ("feetech-servo-sdk", "lerobot", "pyserial", "rustypot")


@dataclass
class Taken:
    """The measurements of one driver so far."""

    cycle_us: list[float] = field(default_factory=list)  # only cycles with a correct read
    cycles: int = 0
    cpu_s: float = 0.0
    failed: int = 0  # reads without all six positions
    wrong: int = 0  # reads of other positions than written: late replies of an earlier cycle

    def summary(self) -> dict[str, float]:
        """Microseconds per cycle, and counts. RuntimeError for a driver without a correct read."""
        ordered = sorted(self.cycle_us)
        if not ordered:
            raise RuntimeError(f"a driver had no correct read in {self.cycles} cycles")
        return {
            "cycle_us": round(statistics.median(ordered), 1),
            "fastest_us": round(ordered[0], 1),
            "p99_us": round(ordered[len(ordered) * 99 // 100], 1),
            "cpu_us": round(self.cpu_s / self.cycles * 1e6, 1),
            "failed": self.failed,
            "wrong": self.wrong,
        }


def turn(driver: Driver, taken: Taken, cycles: int) -> None:
    """Run one driver for `cycles`: every read must return the goals that were written before."""
    goals = dict.fromkeys(SIX, 2048)
    driver.write(goals)
    cpu_began = time.process_time()
    for n in range(cycles):
        began = time.perf_counter()
        seen = driver.read()
        expected, goals = goals, {servo: 1000 + (servo * 300 + n * 7) % 2000 for servo in SIX}
        driver.write(goals)
        if seen == expected:
            taken.cycle_us.append((time.perf_counter() - began) * 1e6)
        taken.failed += len(seen) < len(SIX)
        taken.wrong += len(seen) == len(SIX) and seen != expected
    taken.cycles += cycles
    taken.cpu_s += time.process_time() - cpu_began


def measure(kind: str, cycles: int) -> dict[str, dict[str, float]]:
    """Driver -> microseconds per cycle, CPU microseconds per cycle, failed and wrong reads."""
    opens = drivers()
    with served(kind, len(opens)) as ports, ExitStack() as files:
        doors = {
            name: files.enter_context(open(port, "rb", 0))
            for name, port in zip(opens, ports, strict=True)
        }
        opened = {name: opens[name](port) for name, port in zip(opens, ports, strict=True)}
        for driver in opened.values():
            turn(driver, Taken(), BLOCK)  # warm
        taken = {name: Taken() for name in opened}
        for _ in range(cycles // BLOCK):
            for name, driver in opened.items():
                termios.tcflush(doors[name], termios.TCIFLUSH)
                turn(driver, taken[name], BLOCK)
        for driver in opened.values():
            driver.close()
    return {name: of.summary() for name, of in taken.items()}


def measure_silent(cycles: int) -> dict[str, dict[str, float]]:
    """Driver -> milliseconds of the first and of a later read while one servo is silent, and how
    many positions it still returns.
    """
    opens = {name: opener for name, opener in drivers().items() if name != "bare"}
    results = {}
    with served("silent", len(opens)) as ports:
        for (name, opener), port in zip(opens.items(), ports, strict=True):
            driver, taken_ms, kept = opener(port), [], 0
            for _ in range(cycles + 1):
                began = time.perf_counter()
                kept = len(driver.read())
                taken_ms.append((time.perf_counter() - began) * 1e3)
            driver.close()
            later_ms = statistics.median(taken_ms[1:])
            results[name] = {
                "first_ms": round(taken_ms[0], 1),
                "later_ms": round(later_ms, 1),
                "positions": kept,
            }
    return results


# -- the report --


def machine(cycles: int) -> dict[str, Any]:
    installed = {name: importlib.metadata.version(name) for name in PACKAGES if _has(name)}
    return {
        "hardware": {
            "cpu": cpu_name(),
            "cores": os.cpu_count(),
            "load_before": round(os.getloadavg()[0], 2),
        },
        "versions": {"python": platform.python_version(), **installed},
        "cycles": cycles,
        "floor_us": FLOOR_US,
    }


def _has(package: str) -> bool:
    try:
        importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


def markdown(result: Mapping[str, Any]) -> str:
    hardware, versions = result["hardware"], result["versions"]
    at_once, wire, silent = result["at_once"], result["wire"], result["silent"]
    rows = []
    for name, row in at_once.items():
        late = wire[name]
        costs = [f"{row['cycle_us']:.0f} ({row['fastest_us']:.0f})"]
        costs += [f"{cost:.0f}" for cost in (row["cpu_us"], late["cycle_us"], late["cpu_us"])]
        bad = f"{row['failed'] + wire[name]['failed']} / {row['wrong'] + wire[name]['wrong']}"
        alone = silent.get(name)
        silent = (
            f"{alone['first_ms']:.0f} | {alone['later_ms']:.0f} | {alone['positions']} of 5"
            if alone
            else "| | "
        )
        rows.append(f"| {name} | {' | '.join(costs)} | {bad} | {silent} |")
    return "\n".join(
        [
            "# A cycle on the servo bus: six positions read, six goals written",
            "",
            "| driver | no delay: cycle us | cpu us | 1 Mbit/s: cycle us | cpu us "
            "| reads failed / wrong | one servo silent: first read ms | later ms "
            "| positions returned |",
            "|---|---:|---:|---:|---:|---:|---:|---:|---:|",
            *rows,
            "",
            f"Wire-time floor: {WIRE_BYTES} bytes at 1 Mbit/s = **{FLOOR_US:.0f} us**. mtdit's "
            f"overhead over the bare exchange: **{result['overhead_us']:.0f} us** per cycle "
            f"(target {TARGET_US}).",
            "",
            "| word | meaning |",
            "|---|---|",
            "| cycle | median over the cycles with a correct read, the fastest in brackets |",
            "| cpu | the client's processor time per cycle |",
            "| bare | sends and receives the bytes, but does not decode what it reads |",
            "| wrong | positions of an earlier cycle returned as new, from a late reply left in "
            "the port |",
            "",
            "A busy machine slows drivers that busy-wait (SDK, LeRobot) most.",
            "",
            f"{hardware['cpu']}, {hardware['cores']} cores, load average "
            f"{hardware['load_before']} at the start; {result['cycles']} cycles, drivers in turns.",
            ", ".join(f"{name} {version}" for name, version in versions.items()) + ".",
            "Made by `python benchmarks/servo_bus.py`.",
            "",
        ]
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--cycles", type=int, default=1000, help="timed cycles per driver")
    parser.add_argument(
        "--silent-cycles", type=int, default=5, help="timed reads while one servo is silent"
    )
    parser.add_argument("--out", type=Path, help="write the table to this Markdown file")
    arguments = parser.parse_args()
    if arguments.cycles < BLOCK or arguments.silent_cycles < 1:
        parser.error(f"--cycles must be at least {BLOCK}, --silent-cycles at least 1")
    result = machine(arguments.cycles)
    result |= {
        "at_once": measure("at-once", arguments.cycles),
        "wire": measure("wire", arguments.cycles),
    }
    result["silent"] = measure_silent(arguments.silent_cycles)
    result["overhead_us"] = round(
        result["at_once"]["mtdit"]["cycle_us"] - result["at_once"]["bare"]["cycle_us"], 1
    )
    print(markdown(result))
    if arguments.out:
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        arguments.out.write_text(markdown(result))
    print(json.dumps(result))


if __name__ == "__main__":
    main()
