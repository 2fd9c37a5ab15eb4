"""Seconds from `mtdit run` to torque on and to the first goal, on virtual servos.

    python benchmarks/startup.py [--bundle tests/data/demo.mtdit] [--runs 7] [--out table.md]

Each run is a process of its own that drives an SO-101 of virtual servos behind a pseudo-terminal;
films take the place of the cameras. The servos note when torque is switched on and when the first
goal arrives, the process says how much memory it used at most. `python -c pass` takes its turn, so
that a busy moment of the machine shows. The last line of the output is JSON.
"""

from __future__ import annotations

from pathlib import Path

ROOT = Path(__file__).parent.parent
EXAMPLE = ROOT / "calibration/example.json"
