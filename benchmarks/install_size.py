"""Megabytes of a fresh installation on this computer, without pip and bytecode.

    python benchmarks/install_size.py [REQUIREMENT ...] [--out table.md]

Default: mtdit's wheel (built here) with the extras of a robot computer. Each requirement gets a
virtual environment of its own, filled by uv from wheels alone; `du --apparent-size` measures it.
Give other projects to compare, e.g. `lerobot`. The last line of the output is JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parent.parent
EXTRAS = ("", "[runtime]", "[runtime,record]", "[runtime,twin]")
LARGEST = 4  # packages that are named in the table


def installed_mb(requirement: str, folder: Path) -> tuple[float, list[tuple[str, float]]]:
    """MB of an environment with this requirement, and its largest parts."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder], check=True)
    command = [uv(), "pip", "install", "-q", "--python", folder / "bin/python"]
    subprocess.run([*command, "--no-compile-bytecode", requirement], check=True)
    site = next(folder.glob("lib/python3*/site-packages"))
    parts: dict[str, int] = {}
    for path in site.rglob("*"):
        if path.is_file() and not path.is_symlink() and path.suffix != ".pyc":
            part = path.relative_to(site).parts[0].removesuffix(".libs")
            parts[part] = parts.get(part, 0) + path.stat().st_size
    largest = sorted(parts.items(), key=lambda item: -item[1])[:LARGEST]
    return sum(parts.values()) / 1e6, [(name, size / 1e6) for name, size in largest]


def uv() -> str:
    beside = Path(sys.executable).with_name("uv")
    found = shutil.which("uv") or (str(beside) if beside.is_file() else None)
    if found is None:
        raise SystemExit("uv is not installed: pip install uv")
    return found


def wheel(folder: Path) -> Path:
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", folder, ROOT]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return next(folder.glob("*.whl"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("requirements", nargs="*", metavar="REQUIREMENT")
    parser.add_argument("--out", type=Path, help="Also write the table to this file.")
    options = parser.parse_args()
    sizes = {}
    with tempfile.TemporaryDirectory() as scratch:
        own = [] if options.requirements else [f"{wheel(Path(scratch))}{e}" for e in EXTRAS]
        lines = [
            f"Python {platform.python_version()}, {platform.machine()}",
            "",
            "| installed | MB | largest parts |",
            "|---|--:|---|",
        ]
        for number, requirement in enumerate(options.requirements or own):
            megabytes, largest = installed_mb(requirement, Path(scratch) / str(number))
            name = f"mtdit{EXTRAS[number]}" if own else requirement
            parts = ", ".join(f"{part} {size:.0f}" for part, size in largest)
            lines.append(f"| `{name}` | {megabytes:.0f} | {parts} |")
            sizes[name] = round(megabytes)
            shutil.rmtree(Path(scratch) / str(number))
    text = os.linesep.join(lines)
    print(text)
    if options.out is not None:
        options.out.write_text(text + "\n")
    print(json.dumps(sizes))


if __name__ == "__main__":
    main()
