"""Writes the 25 slowest tests of a pytest log into benchmarks/results/tests.md, under "After".

    make test ARGS=--durations=25 2>&1 | tee outputs/tests.log
    .venv/bin/python benchmarks/slowest_tests.py outputs/tests.log

Reads the log of `--durations=25`; the rest of the page stays as it is.
"""

from __future__ import annotations

import os
import platform
import re
import sys
from pathlib import Path

from mtdit_runtime.bench import cpu_name

PAGE = Path(__file__).parent / "results" / "tests.md"
LINE = re.compile(r"^([\d.]+)s (setup|call|teardown)\s+(tests/.*)$", re.MULTILINE)
TOTAL = re.compile(r"^(?:\d+ failed, )?\d+ passed.* in .*$", re.MULTILINE)


def table(log: str, most: int = 25) -> str:
    """Seconds, phase and name, and the line with the total."""
    totals = TOTAL.findall(log)
    if not totals:
        sys.exit("the log has no line with the number of passed tests: run make test to its end")
    rows = [f"| {s} | {phase} | `{name.strip()}` |" for s, phase, name in LINE.findall(log)[:most]]
    return "\n".join([f"Total: {totals[-1]}", "", "| s | phase | test |", "|--:|---|---|", *rows])


if __name__ == "__main__":
    page = PAGE.read_text()
    before, _, rest = page.partition("## After\n")
    _, heading, rest = rest.partition("\n## ")
    where = f"{cpu_name()}, {os.cpu_count()} cores, Python {platform.python_version()}"
    new = f"{where}\n\n{table(Path(sys.argv[1]).read_text())}\n"
    PAGE.write_text(f"{before}## After\n\n{new}{heading}{rest}")
