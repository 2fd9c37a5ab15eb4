"""Reads the weights of a checkpoint and checks that they fit the policy."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from mtdit_robots.errors import UserError


def load_weights(policy: torch.nn.Module, path: Path) -> None:
    """Loads a policy's weights from a file. UserError when they do not fit."""
    fill(policy, read_tensors(path), path)


def fill(policy: torch.nn.Module, weights: Mapping[str, Tensor], path: Path) -> None:
    """Loads weights into a policy. UserError, which names `path`, when they do not fit."""
    check_fit(policy.state_dict(), weights, path)
    policy.load_state_dict(weights)


def check_fit(own: Mapping[str, Tensor], weights: Mapping[str, Tensor], path: Path) -> None:
    """UserError unless `weights` has exactly the names and shapes of `own`."""
    missing, extra = sorted(set(own) - set(weights)), sorted(set(weights) - set(own))
    shapes = [k for k in own if k in weights and own[k].shape != weights[k].shape]
    if missing:
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
