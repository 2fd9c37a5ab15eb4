"""Makes docs/curves.png and docs/joints.png: `python docs/pictures.py`, about ten minutes.

A tiny policy learns to open the drawer of the simulated arm. curves.png is its training;
joints.png is one run of its bundle, from the run log. `--keep DIR` keeps the files and reuses the
stages that are finished.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np

from mtdit.training.plots import plot_curves
from mtdit_runtime.recording.run_log import RunLog, load_log

DOCS = Path(__file__).parent
TASK = "open the drawer"
COMMANDED, MEASURED, SEAM, INK = "#d1603d", "#2a6fbb", "#bbbbbb", "#333333"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--keep", type=Path, help="Folder for the files of all stages.")
    parser.add_argument("--steps", type=int, default=1500, help="Steps of the training.")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        make(options.keep or Path(scratch), options.steps)


def make(folder: Path, steps: int) -> None:
    dataset, train = folder / "dataset", folder / "train"
    bundle, log = folder / "policy.mtdit", folder / "run.npz"
    mtdit(dataset, "simulate", "--task", TASK, "--episodes", 40, "--out", dataset)
    length = ["--steps", steps, "--val-split", 0.1, "--val-every", steps // 6, "--log-every", 10]
    mtdit(train, "train", "--dataset", dataset, "--preset", "tiny", *length, "--out", train)
    mtdit(bundle, "export", train, "--dataset", dataset, "--out", bundle)
    drive = ["run", "--robot", "twin", "--task", TASK, "--clock", "lockstep", "--seed", 100_000]
    mtdit(log, *drive, "--bundle", bundle, "--duration", 8, "--log", log)
    plot_curves(train / "train_log.jsonl", DOCS / "curves.png")
    plot_joints(load_log(log), DOCS / "joints.png")


def mtdit(result: Path, *words: object) -> None:
    """Run one `mtdit` command, unless its result is there already."""
    if not result.exists():
        subprocess.run([sys.executable, "-m", "mtdit", *map(str, words)], check=True)


def plot_joints(log: RunLog, png: Path) -> None:
    """Commanded and measured position of each joint over time; grey lines are the seams."""
    time_s, chunk = log.columns["time_s"], log.columns["chunk"]
    seams = time_s[1:][np.diff(chunk) != 0]
    figure, axes = plt.subplots(3, 2, figsize=(9.0, 6.0), sharex=True, layout="constrained")
    for joint, name in enumerate(log.joints):
        panel = axes.flat[joint]
        for seam in seams:
            panel.axvline(seam, color=SEAM, lw=0.6)
        panel.plot(time_s, log.columns["sent"][:, joint], color=COMMANDED, lw=1.4)
        panel.plot(time_s, log.columns["positions"][:, joint], color=MEASURED, lw=1.4)
        unit = "percent" if name == "gripper" else "degrees"
        panel.set_title(f"{name}, {unit}", loc="left", fontsize=10, color=INK)
        panel.spines[["top", "right"]].set_visible(False)
        panel.tick_params(labelsize=8)
    for panel in axes[-1]:
        panel.set_xlabel("seconds", color=INK, fontsize=9)
    axes[0, 0].legend(axes[0, 0].lines[-2:], ["commanded", "measured"], frameon=False, fontsize=8)
    figure.savefig(png, dpi=90)


if __name__ == "__main__":
    main()
