"""Reads the weights of a checkpoint and checks that they fit the policy."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from mtdit.checkpoint import adapters
from mtdit_robots.errors import UserError

PARTS = ("observation_encoder", "noise_predictor")  # of every policy: how its weights begin
WRAPPERS = ("_orig_mod", "module")  # torch.compile's, and that of a policy on several devices


def read_weights(path: Path) -> dict[str, Tensor]:
    """Reads a policy's weights, under the policy's own names.

    What a wrapper put before all names is taken off: `module.`, `_orig_mod.`, `base_model.model.`
    and the like. UserError when the file is not there, is damaged, or is an adapter; and when two
    of its names would become one.
    """
    if not path.is_file():
        _explain_missing(path)
    tensors = read_tensors(path)
    prefixes: set[str] = set()
    names: dict[str, str] = {}
    for name in tensors:
        before, own = _unwrapped(name)
        if own in names:
            raise UserError(
                f"{path} has {own} twice, as {names[own]!r} and as {name!r}, so it holds two "
                "policies; save only the one to use"
            )
        names[own] = name
        prefixes.add(before)
    if len(prefixes) != 1:
        return tensors  # check_fit names what does not belong there
    return {own: tensors[name] for own, name in names.items()}


def _unwrapped(name: str) -> tuple[str, str]:
    """What stands before a weight's own name, and that name."""
    parts = [part for part in name.split(".") if part not in WRAPPERS]
    first = next((i for i, part in enumerate(parts) if part in PARTS), 0)
    return ".".join(parts[:first]), ".".join(parts[first:])


def _explain_missing(path: Path) -> None:
    """UserError for a folder whose weights are stored in another way."""
    if adapters.is_adapter(path.parent):
        raise adapters.refusal(path.parent)
    names = ("model*-of-*.safetensors", "pytorch_model_fsdp*", "pytorch_model*.bin")
    others = [file.name for name in names for file in sorted(path.parent.glob(name))]
    if others:
        raise UserError(
            f"{path.parent} has its weights in {others[0]}, not in {path.name}: load the policy in "
            "the LeRobot that wrote it and call its `save_pretrained`"
        )


def load_weights(policy: torch.nn.Module, path: Path) -> None:
    """Loads a policy's weights from a file. UserError when they do not fit."""
    fill(policy, read_weights(path), path)


def fill(policy: torch.nn.Module, weights: Mapping[str, Tensor], path: Path) -> None:
    """Loads weights into a policy. UserError, which names `path`, when they do not fit."""
    check_fit(policy.state_dict(), weights, path)
    policy.load_state_dict(weights)


def check_fit(own: Mapping[str, Tensor], weights: Mapping[str, Tensor], path: Path) -> None:
    """UserError unless `weights` has exactly the names and shapes of `own`."""
    missing, extra = sorted(set(own) - set(weights)), sorted(set(weights) - set(own))
    shapes = [k for k in own if k in weights and own[k].shape != weights[k].shape]
    adapter = next((name for name in extra if ".lora_" in name), None)
    if adapter is not None:
        problem = f"has the adapter {adapter[:100]!r}, so it was saved before the merge"
    elif missing:
        problem = f"lacks {missing[0]}"
    elif extra:
        problem = f"has the unknown tensor {extra[0][:100]!r}"
    elif shapes:
        name = shapes[0]
        problem = f"has {name} as {tuple(weights[name].shape)}, not {tuple(own[name].shape)}"
    else:
        return
    raise UserError(
        f"{path} does not match its config.json: it {problem}; use the files of one training"
    )


def check_finite(weights: Mapping[str, Tensor], path: Path) -> None:
    broken = [name for name, value in weights.items() if not value.isfinite().all()]
    if broken:
        raise UserError(
            f"{path}: {broken[0]} contains NaN or infinite numbers; use an earlier checkpoint or "
            "train again"
        )


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Reads a .safetensors file. UserError when it is missing or damaged."""
    try:
        return load_file(path)
    except FileNotFoundError:
        raise UserError(f"{path} does not exist; copy the whole checkpoint folder") from None
    except (SafetensorError, OSError) as error:
        reason = " ".join(str(error).split())[:160]
        raise UserError(
            f"{path} cannot be read ({reason}); copy the checkpoint again or use an earlier one"
        ) from None
