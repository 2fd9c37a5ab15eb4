"""What happens to the statistics and the weights of a saved policy."""

from __future__ import annotations

import numpy as np
import torch
from checkpoint_files import Rng
from drawn_checkpoints import ACTION, IMAGES, STATE, Raw, one_of


def cast(rng: Rng, tensors: Raw) -> Raw:
    kind = one_of(rng, torch.float64, torch.float16, torch.bfloat16)
    return {name: tensor.to(kind) for name, tensor in tensors.items()}


def more_statistics(rng: Rng, stats: Raw) -> Raw:
    more = {
        f"{ACTION}.count": torch.tensor([77]),
        f"{STATE}.q01": torch.zeros(2),
        "timestamp.min": torch.zeros(1),
        "observation.images.gone.mean": torch.zeros(3, 1, 1),
    }
    return {**stats, **{name: value for name, value in more.items() if rng.random() < 0.5}}


def flat_colours(rng: Rng, stats: Raw) -> Raw:
    shape = one_of(rng, (3,), (3, 1, 1), (1, 3, 1, 1))
    return {k: v.reshape(shape) if k.startswith(IMAGES) else v for k, v in stats.items()}


def no_camera_statistics(rng: Rng, stats: Raw) -> Raw:
    cameras = sorted({k.rpartition(".")[0] for k in stats if k.startswith(IMAGES)})
    gone = set(rng.permutation(cameras)[:1].tolist())
    return {k: v for k, v in stats.items() if k.rpartition(".")[0] not in gone}


def one_less(rng: Rng, stats: Raw) -> Raw:
    gone = one_of(rng, *stats, f"{STATE}.", f"{ACTION}.")
    return {k: v for k, v in stats.items() if not k.startswith(gone)}


def other_shape(rng: Rng, stats: Raw) -> Raw:
    name = one_of(rng, *stats)
    value = stats[name]
    choices = (value.reshape(-1)[:1], value.reshape(-1)[0], value[None], torch.cat([value, value]))
    return {**stats, name: one_of(rng, *choices)}


def no_number(rng: Rng, stats: Raw) -> Raw:
    name, number = one_of(rng, *stats), one_of(rng, np.nan, np.inf, -np.inf, 1e38)
    return {**stats, name: torch.full(stats[name].shape, number)}


def turned_round(rng: Rng, stats: Raw) -> Raw:
    """max below min, or a negative std."""
    names = [name for name in stats if name.endswith((".max", ".std"))]
    name = one_of(rng, *names)
    return {**stats, name: -1e4 - stats[name].abs()}


def other_actions(rng: Rng, stats: Raw) -> Raw:
    name = one_of(rng, "min", "max", "mean", "std")
    return {**stats, f"{ACTION}.{name}": stats[f"{ACTION}.{name}"] + 1}


def prefixed(rng: Rng, weights: Raw) -> Raw:
    before = one_of(rng, "module.", "_orig_mod.", "_orig_mod.module.", "policy.", "model.")
    return {before + name: value for name, value in weights.items()}


def wrapped_inside(rng: Rng, weights: Raw) -> Raw:
    part = one_of(rng, "noise_predictor.", "observation_encoder.vision_encoder.")
    return {name.replace(part, f"{part}_orig_mod."): value for name, value in weights.items()}


def damaged(rng: Rng, weights: Raw) -> Raw:
    name = one_of(rng, *weights)
    kind, value = rng.integers(5), weights[name]
    if kind == 0:
        return {k: v for k, v in weights.items() if k != name}
    if kind == 1:
        return {**weights, f"{name}_scale": torch.ones(1)}
    if kind == 2:
        return {**weights, name: torch.full_like(value, np.nan)}
    if kind == 3:
        return {**weights, name: torch.cat([value, value])}
    return {**weights, f"ema.{name}": value.clone()}


def unmerged(rng: Rng, weights: Raw) -> Raw:
    name = one_of(rng, *[name for name in weights if name.endswith(".weight")])
    stem = name.removesuffix(".weight")
    return {**{k: v for k, v in weights.items() if k != name}, f"{stem}.base_layer.weight":
            weights[name], f"{stem}.lora_A.default.weight": torch.zeros(2, 2)}  # fmt: skip
