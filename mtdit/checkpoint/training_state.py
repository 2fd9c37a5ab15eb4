"""The state that a training resumes from, written by `mtdit train` or by LeRobot's trainer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from mtdit.checkpoint.names import (
    LIVE,
    OPTIMIZER,
    PRETRAINED,
    PRETRAINED_EMA,
    STEP,
    TRAINING_STATE,
    WEIGHTS,
)
from mtdit.checkpoint.tensors import read_tensors, read_weights
from mtdit_robots.errors import UserError
from mtdit_runtime.files import read_json


@dataclass(frozen=True)
class TrainingState:
    """The state from which training resumes, written by `mtdit train` or by LeRobot's trainer."""

    step: int
    adam: Mapping[int, Mapping[str, Tensor]]  # parameter number -> step, exp_avg, exp_avg_sq
    weights: Mapping[str, Tensor]  # the optimiser's weights, named as in Policy.state_dict
    average: Mapping[str, Tensor]  # their moving average; the same weights if there is none
    elapsed_s: float  # training time so far; 0 if not known
    numbers: Mapping[str, Any]  # all of training_step.json: batch_size, num_processes ...


def read_training_state(checkpoint: Path) -> TrainingState:
    """Reads RUN/checkpoints/<step>. UserError when it has no training state, or one of FSDP.

    LeRobot stores the live weights in pretrained_model, and an average, if any, in
    pretrained_model_ema. mtdit stores the average in pretrained_model and the live weights in
    training_state. Both number the parameters in the order of `MultiTaskDiT.parameter_groups`.
    """
    folder, used = checkpoint / TRAINING_STATE, checkpoint / PRETRAINED / WEIGHTS
    numbers = _read_step(folder / STEP)
    adam = _by_parameter(read_tensors(folder / OPTIMIZER), folder / OPTIMIZER)
    ours, averaged = (folder / LIVE).is_file(), checkpoint / PRETRAINED_EMA / WEIGHTS
    weights = read_weights(folder / LIVE if ours else used)
    average = (
        read_weights(used) if ours else read_weights(averaged) if averaged.is_file() else weights
    )
    return TrainingState(
        numbers["step"], adam, weights, average, float(numbers.get("elapsed_s", 0.0)), numbers
    )


def _read_step(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise UserError(
            f"{path} does not exist, so this training cannot be resumed; "
            "start a new one with --init-from"
        )
    numbers = read_json(path)
    if not isinstance(numbers, dict) or type(numbers.get("step")) is not int:
        raise UserError(
            f"{path} has no valid 'step'; copy the checkpoint again or use an earlier one"
        )
    return numbers


def _by_parameter(flat: Mapping[str, Tensor], path: Path) -> dict[int, dict[str, Tensor]]:
    """state/<number>/<name> -> number -> name -> values. UserError: names instead of numbers."""
    states: dict[int, dict[str, Tensor]] = {}
    for key, value in flat.items():
        kind, _, rest = key.partition("/")
        number, _, name = rest.partition("/")
        if kind != "state" or not number.isdecimal():
            # FSDP writes names of parameters instead of numbers.
            raise UserError(
                f"{path} is not the state of a single Adam optimiser (it contains {key!r}); "
                "start a new training with --init-from"
            )
        states.setdefault(int(number), {})[name] = value
    return states
