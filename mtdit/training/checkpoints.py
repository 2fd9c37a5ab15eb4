"""The checkpoints of a training run: saving, pruning, resuming.

It decides which checkpoints stay (last, best, newest) and which state besides the weights a resumed
run needs. The format on disk is in mtdit.checkpoint.write and mtdit.checkpoint.training_state;
mtdit.training.loop decides when to save.
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from mtdit.checkpoint.names import CHECKPOINTS, FACTS, LIVE, OPTIMIZER, PRETRAINED, TRAIN_CONFIG
from mtdit.checkpoint.training_state import read_training_state
from mtdit.checkpoint.write import PretrainedFiles, point_at, save_checkpoint
from mtdit.policies.multi_task_dit.policy import MultiTaskDiT
from mtdit.training.config import TrainConfig
from mtdit.training.distributed import ProcessGroup
from mtdit.training.optim import EMA, adam_tensors, load_adam, make_optimizer, weights_in_use
from mtdit_robots.errors import UserError
from mtdit_runtime.files import locked, read_json

BEST, LOCK = "best", ".lock"


@dataclass(frozen=True)
class Best:
    """The lowest validation loss so far, and the step after which it was measured."""

    step: int
    loss: float


@dataclass(frozen=True)
class TrainedOn:
    """The size of the dataset that a run trains on, to notice that it has changed."""

    episodes: int
    frames: int


@dataclass
class TrainState:
    """The state that training changes and that a resumed run restores."""

    policy: MultiTaskDiT
    optimizer: torch.optim.Optimizer
    ema: EMA | None
    step: int = 0
    elapsed_s: float = 0.0  # training time before this process started
    best: Best | None = None

    def is_best(self, loss: float) -> bool:
        """Whether the validation loss of this step is the lowest so far; if so, stores it."""
        if not loss < (self.best.loss if self.best else math.inf):
            return False
        self.best = Best(self.step, loss)
        return True


@contextmanager
def output_dir_lock(folder: Path) -> Iterator[None]:
    """Locks the output folder inside the block. UserError when another training has locked it."""
    folder.mkdir(parents=True, exist_ok=True)
    busy = f"another training is writing to {folder}: stop it, or choose another folder"
    with locked(folder / LOCK, busy):
        yield


def new_train_state(config: TrainConfig, policy: MultiTaskDiT) -> TrainState:
    """A TrainState at step 0, with the policy's current weights."""
    optimizer = make_optimizer(policy, next(policy.parameters()).device)
    return TrainState(policy, optimizer, EMA(policy, config.ema_max_decay) if config.ema else None)


# --- saving


@dataclass
class CheckpointManager:
    """Saves the checkpoints of a run. Every process has one; only the main one writes."""

    config: TrainConfig
    group: ProcessGroup
    files: PretrainedFiles
    data: TrainedOn | None = None
    saved: tuple[Path, int, Best | None] | None = None  # newest checkpoint: folder, step, best

    def save(self, state: TrainState, elapsed_s: float) -> Path:
        """Saves a checkpoint of this step, unless it exists already. Returns its folder."""
        if self.saved is None or self.saved[1:] != (state.step, state.best):
            self.saved = (self._folder(state.step), state.step, state.best)
            if self.group.main:
                self._write(state, elapsed_s)
        return self.saved[0]

    def remove_incomplete(self) -> None:
        """Removes incomplete checkpoints of a run that was killed while saving."""
        for unfinished in self._folder(0).parent.glob(".*.part"):
            shutil.rmtree(unfinished, ignore_errors=True)

    def _folder(self, step: int) -> Path:
        return self.config.output_dir / CHECKPOINTS / f"{step:06d}"

    def _write(self, state: TrainState, elapsed_s: float) -> None:
        """Writes the weights to act with (averaged, if there is an average) to pretrained_model,
        and the live weights to training_state.
        """
        live = {k: v.detach().cpu().contiguous() for k, v in state.policy.state_dict().items()}
        _check_finite(live)
        files = replace(self.files, weights=weights_in_use(state.policy, state.ema))
        tensors = {LIVE: live, OPTIMIZER: adam_tensors(state.optimizer)}
        save_checkpoint(
            self.config.output_dir, state.step, files, tensors, self._numbers(state, elapsed_s)
        )
        best = state.best
        if best is not None and self._folder(best.step).is_dir():
            point_at(self._folder(best.step), BEST)
        self._prune({state.step, best.step if best else state.step})

    def _numbers(self, state: TrainState, elapsed_s: float) -> dict[str, Any]:
        """The content of training_step.json; the first three names are LeRobot's."""
        scaler = self.group.accelerator.scaler
        return {
            "num_processes": self.group.world,
            "batch_size": self.config.batch_size,
            "grad_accum_steps": self.config.grad_accumulation,
            "elapsed_s": elapsed_s,
            "best": asdict(state.best) if state.best else None,
            "scaler": scaler.state_dict() if scaler is not None else None,
            "data": asdict(self.data) if self.data else None,
        }

    def _prune(self, needed: set[int]) -> None:
        """Deletes all checkpoints except the newest `keep_checkpoints` and those of `needed`."""
        if self.config.keep_checkpoints is None:
            return
        folders = [c for c in self._folder(0).parent.glob("[0-9]*") if c.name.isdecimal()]
        for old in sorted(folders, key=lambda c: int(c.name))[: -self.config.keep_checkpoints]:
            if int(old.name) not in needed:
                shutil.rmtree(old, ignore_errors=True)


def _check_finite(weights: Mapping[str, torch.Tensor]) -> None:
    bad = [name for name, values in weights.items() if not values.isfinite().all()]
    if bad:
        raise UserError(
            f"the weights {bad[0]} are no longer finite; the last checkpoint, if there is one, "
            "is not affected: resume from it with a lower optimizer_lr"
        )


# --- resuming


def resume(
    state: TrainState,
    checkpoints: CheckpointManager,
    checkpoint: Path,
    say: Callable[[str], None],
) -> None:
    """Restores the state from RUN/checkpoints/<step>, written by `mtdit train` or by LeRobot.

    The state's policy already has the weights. `say` prints what differs from the earlier run.
    """
    if checkpoints.group.main:
        checkpoints.remove_incomplete()
    stored = read_training_state(checkpoint)
    load_adam(state.optimizer, stored.adam)
    if state.ema is not None:
        state.ema.load(stored.average)
    state.step, state.elapsed_s = stored.step, stored.elapsed_s
    if stored.numbers.get("best"):
        state.best = Best(**stored.numbers["best"])
    scaler = checkpoints.group.accelerator.scaler
    if scaler is not None and stored.numbers.get("scaler"):
        scaler.load_state_dict(stored.numbers["scaler"])
    checkpoints.saved = (checkpoint, state.step, state.best)
    for line in _differences(checkpoints, checkpoint, stored.numbers):
        say(line)
    for line in _other_data(checkpoints, checkpoint, stored.numbers):
        say(line)
    if state.step >= checkpoints.config.steps:
        say(
            f"already trained {state.step} of {checkpoints.config.steps} steps: "
            "raise --steps to continue"
        )


def _differences(
    checkpoints: CheckpointManager, checkpoint: Path, numbers: Mapping[str, Any]
) -> list[str]:
    """What makes the resumed run different from the interrupted one, one line each."""
    if not written_by_mtdit(checkpoint):
        return [
            f"{checkpoint} is a checkpoint of LeRobot: weights, Adam and step are restored, but "
            "LeRobot's random state is not; from here on mtdit draws the samples and the noise"
        ]
    before = int(
        numbers["batch_size"] * numbers["num_processes"] * numbers.get("grad_accum_steps", 1)
    )
    now = checkpoints.config.samples_per_step(checkpoints.group.world)
    changed = (
        f"a step now sees {now} samples, before it was {before}: the order of the samples differs "
        "from an uninterrupted run"
    )
    leaked = (
        "the validation split now contains episodes this run has trained on: its loss will be "
        "optimistic"
    )
    held_out = read_json(checkpoint / PRETRAINED / TRAIN_CONFIG).get("val_split", 0.0)
    return [changed] * (now != before) + [leaked] * (checkpoints.config.val_split > held_out)


def _other_data(
    checkpoints: CheckpointManager, checkpoint: Path, numbers: Mapping[str, Any]
) -> list[str]:
    """What holds for a run whose dataset has changed since the checkpoint, one line each."""
    before, now = numbers.get("data"), checkpoints.data
    facts = checkpoint / PRETRAINED / FACTS
    earlier = read_json(facts).get("tasks", []) if facts.is_file() else None
    tasks = checkpoints.files.facts.tasks
    new = [] if earlier is None else [task for task in tasks if task not in earlier]
    lines = []
    if now is not None and isinstance(before, dict) and before != asdict(now):
        lines.append(
            f"the dataset has changed since the checkpoint: {now.episodes} episodes with "
            f"{now.frames} frames, before {before.get('episodes')} with {before.get('frames')}; "
            "all of them are trained on from here on, normalised by the statistics of the first "
            "dataset"
        )
        if checkpoints.config.val_split:
            lines.append("other episodes are held out now: compare validation losses from here on")
    if new:
        lines.append(
            f"new tasks since the checkpoint: {', '.join(map(repr, new))}; the learning rate goes "
            "on falling, so raise --steps, or start another run with --init-from and another --out"
        )
    return lines


def written_by_mtdit(checkpoint: Path) -> bool:
    """Whether RUN/checkpoints/<step> was written by `mtdit train`, not by LeRobot's trainer."""
    raw = read_json(checkpoint / PRETRAINED / TRAIN_CONFIG)
    return isinstance(raw, dict) and "noise_samples" in raw
