"""A bundle of an untrained tiny policy, for checks that need any bundle: `python
tests/tiny_bundle.py OUT.mtdit`.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

from mtdit.training.config import TrainConfig
from mtdit.training.run import train
from mtdit_export.export import export
from mtdit_export.options import ExportOptions
from mtdit_runtime.simulate import simulate

TASK = "open the drawer"


def make_tiny_run(folder: Path) -> Path:
    """Record two episodes and train for two steps: the real road, as short as it gets. Returns the
    run's folder.
    """
    simulate([TASK], episodes=2, out=folder / "dataset")
    train(
        TrainConfig(
            dataset=str(folder / "dataset"),
            output_dir=folder / "run",
            preset="tiny",
            steps=2,
            batch_size=2,
        )
    )
    return folder / "run"


def make_tiny_bundle(out: Path) -> Path:
    with tempfile.TemporaryDirectory() as scratch:
        export(make_tiny_run(Path(scratch)), out, ExportOptions(precision="fp16"))
    return out


if __name__ == "__main__":
    print(make_tiny_bundle(Path(sys.argv[1])))
