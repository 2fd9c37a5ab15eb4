"""What test_train_parallel.py starts as two processes: one training after another, and how each one
ended here.

Usage: torchrun --nproc-per-node 2 train_in_parallel.py RUNS.json   (a list of TrainConfig fields)
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path

import torch

from mtdit.training.config import TrainConfig
from mtdit.training.distributed import init_distributed
from mtdit.training.reporters import Silent
from mtdit.training.run import train
from mtdit_robots.errors import UserError


def ended(fields: dict) -> str:
    try:
        return train(
            TrainConfig(**{**fields, "output_dir": Path(fields["output_dir"])}), Silent()
        ).name
    except UserError as error:
        return str(error)
    except SystemExit as end:
        return f"exit {end.code}"


def take_turns(note: Path) -> None:
    """The main process takes its time; the other one finds what it left."""
    group = init_distributed(torch.device("cpu"), "no")

    def work() -> bool:
        found = note.exists()
        if group.main:
            time.sleep(1.0)
            note.touch()
        return found

    note.with_suffix(f".{group.rank}").write_text(str(group.rank0_first(work)))


if __name__ == "__main__":
    take_turns(Path(sys.argv[1]).with_name("turn"))
    for run in json.loads(Path(sys.argv[1]).read_text()):
        end = ended(run)
        Path(f"{run['output_dir']}.{os.environ['RANK']}").write_text(end)
