"""LeRobot's image transforms: reads them from LeRobot's JSON and applies them to frames.

The rules are LeRobot's (lerobot/transforms/transforms.py): `max_num_transforms` of `tfs`, chosen by
weight without replacement, applied in the listed order unless `random_order` is true. There is one
draw per sample and camera, shared by all its observation steps. A draw is a row of uniform numbers
that the caller passes in, so any thread can apply it.

One difference from LeRobot: frames are transformed after the resize of the frame cache, not before.
Colours are alike; sharpness works on the pixels that the policy sees, and an affine transform moves
by whole pixels of that size.
"""

from __future__ import annotations

import difflib
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torchvision.transforms import v2  # type: ignore[import-untyped]

from mtdit_robots.errors import UserError
from mtdit_runtime.text import first_line

DEFAULT_TFS: dict[str, dict[str, Any]] = {
    "brightness": {"weight": 1.0, "type": "ColorJitter", "kwargs": {"brightness": (0.8, 1.2)}},
    "contrast": {"weight": 1.0, "type": "ColorJitter", "kwargs": {"contrast": (0.8, 1.2)}},
    "saturation": {"weight": 1.0, "type": "ColorJitter", "kwargs": {"saturation": (0.5, 1.5)}},
    "hue": {"weight": 1.0, "type": "ColorJitter", "kwargs": {"hue": (-0.05, 0.05)}},
    "sharpness": {"weight": 1.0, "type": "SharpnessJitter", "kwargs": {"sharpness": (0.5, 1.5)}},
    "affine": {
        "weight": 1.0,
        "type": "RandomAffine",
        "kwargs": {"degrees": (-5.0, 5.0), "translate": (0.05, 0.05)},
    },
}
# uint8 (S, 3, H, W), uniform numbers -> (S, 3, H, W)
Apply = Callable[[Tensor, list[float]], Tensor]


@dataclass(frozen=True)
class Transform:
    """One entry of `tfs`."""

    weight: float  # how likely it is
    numbers: int  # uniform numbers that decide its strength
    apply: Apply


@dataclass(frozen=True)
class ImageTransforms:
    transforms: tuple[Transform, ...]
    most: int  # transforms applied to a sample
    random_order: bool

    @property
    def numbers(self) -> int:
        """Uniform numbers that one sample of one camera needs."""
        return len(self.transforms) + sum(t.numbers for t in self.transforms)

    def chosen(self, numbers: Sequence[float]) -> list[int]:
        """Indices of the chosen transforms, in the order in which they are applied.

        Exponential clocks choose by weight without replacement, as in torch.multinomial.
        """
        clocks = [
            -math.log1p(-u) / t.weight for u, t in zip(numbers, self.transforms, strict=False)
        ]
        first = sorted(range(len(clocks)), key=clocks.__getitem__)[: self.most]
        return first if self.random_order else sorted(first)

    def apply(self, frames: NDArray[np.uint8], numbers: Tensor) -> None:
        """Transforms frames (B, S, H, W, 3) in place, from uniform numbers (B, self.numbers)."""
        for sample, drawn in zip(frames, numbers.tolist(), strict=True):
            image = self._sample(
                torch.from_numpy(sample).permute(0, 3, 1, 2), drawn
            )  # (S, 3, H, W)
            sample[...] = image.permute(0, 2, 3, 1).numpy()

    def _sample(self, image: Tensor, numbers: list[float]) -> Tensor:
        starts = np.cumsum([len(self.transforms), *(t.numbers for t in self.transforms)])
        for i in self.chosen(numbers):
            image = self.transforms[i].apply(image, numbers[starts[i] : starts[i + 1]])
        return image


# --- reading


def image_transforms(raw: Mapping[str, Any] | None) -> ImageTransforms | None:
    """Reads LeRobot's `image_transforms` (enable, max_num_transforms, random_order, tfs).

    raw: the whole object, or its `tfs` alone. None when nothing is to be done. UserError names the
    invalid entry.
    """
    if raw is None or not isinstance(raw, Mapping):
        if raw is not None:
            raise UserError(f"image_transforms must be a JSON object like LeRobot's, got {raw!r}")
        return None
    settings = raw if not raw or set(raw) & _SETTINGS else {"tfs": raw}
    unknown = sorted(set(settings) - _SETTINGS)
    if unknown:
        raise UserError(
            f"image_transforms has no field {unknown[0]!r}; use {', '.join(sorted(_SETTINGS))}"
        )
    for name in ("enable", "random_order"):
        if not isinstance(settings.get(name, True), bool):
            raise UserError(
                f"image_transforms: {name} must be true or false, got {settings[name]!r}"
            )
    if not settings.get("enable", True):
        return None
    most, listed = settings.get("max_num_transforms", 3), settings.get("tfs", DEFAULT_TFS)
    if type(most) is not int or most < 0 or not isinstance(listed, Mapping):
        raise UserError(
            "image_transforms: max_num_transforms must be an integer of at least 0, and tfs an "
            "object of transforms"
        )
    read = [_transform(name, entry) for name, entry in listed.items()]
    used = tuple(t for t in read if t.weight > 0)
    if not used or most == 0:
        return None
    return ImageTransforms(used, min(most, len(used)), bool(settings.get("random_order", False)))


_SETTINGS = frozenset(["enable", "max_num_transforms", "random_order", "tfs"])


def _transform(name: str, entry: Any) -> Transform:
    if not isinstance(entry, Mapping) or set(entry) - {"weight", "type", "kwargs"}:
        raise UserError(
            f"image_transforms: {name!r} must be an object with weight, type and kwargs, "
            f"got {entry!r}"
        )
    kind, weight = entry.get("type", "Identity"), entry.get("weight", 1.0)
    if not isinstance(kind, str) or kind not in _TYPES:
        near = difflib.get_close_matches(str(kind), _TYPES, n=1)
        hint = f"did you mean {near[0]}?" if near else f"use one of {', '.join(_TYPES)}"
        raise UserError(f"image_transforms: {name!r} has the unknown type {kind!r}; {hint}")
    if isinstance(weight, bool) or not isinstance(weight, (int, float)) or not abs(weight) < 1e9:
        raise UserError(
            f"image_transforms: the weight of {name!r} must be a number, got {weight!r}"
        )
    try:
        json.dumps(entry, allow_nan=False)
        transform = Transform(float(weight), *_TYPES[kind](**entry.get("kwargs", {})))
        transform.apply(torch.zeros(1, 3, 8, 8, dtype=torch.uint8), [0.5] * transform.numbers)
    except (TypeError, ValueError, RuntimeError, OverflowError) as error:
        raise UserError(f"image_transforms: {name!r} ({kind}): {first_line(error)}") from None
    return transform


def _identity() -> tuple[int, Apply]:
    return 0, lambda image, _: image


def _color_jitter(**kwargs: Any) -> tuple[int, Apply]:
    jitter = v2.ColorJitter(**kwargs)
    names = ("brightness", "contrast", "saturation", "hue")

    def apply(image: Tensor, u: list[float]) -> Tensor:
        ranges = {n: getattr(jitter, n) for n in names}
        factors = {
            f"{n}_factor": r and between(r, x) for (n, r), x in zip(ranges.items(), u, strict=False)
        }
        return jitter.transform(
            image, {"fn_idx": sorted(range(4), key=u[4:].__getitem__), **factors}
        )

    return 8, apply  # four strengths and four numbers for their order


def _sharpness_jitter(sharpness: Any) -> tuple[int, Apply]:
    pair = (
        [max(0.0, 1 - sharpness), 1 + sharpness]
        if isinstance(sharpness, (int, float))
        else sharpness
    )
    numbers = (
        isinstance(pair, (list, tuple))
        and len(pair) == 2
        and all(isinstance(n, (int, float)) for n in pair)
    )
    if not numbers or not 0.0 <= pair[0] <= pair[1]:
        raise ValueError(
            "sharpness must be a positive number, or two numbers in increasing order, "
            f"got {sharpness!r}"
        )
    return 1, lambda image, u: v2.functional.adjust_sharpness(image, between(pair, u[0]))


def _random_affine(**kwargs: Any) -> tuple[int, Apply]:
    affine = v2.RandomAffine(**kwargs)

    def apply(image: Tensor, u: list[float]) -> Tensor:
        height, width = image.shape[-2:]
        most = affine.translate or (0.0, 0.0)
        shear = [*(affine.shear or ()), 0.0, 0.0, 0.0, 0.0][:4]
        params = {
            "angle": between(affine.degrees, u[0]),
            "translate": (
                round((2 * u[1] - 1) * most[0] * width),
                round((2 * u[2] - 1) * most[1] * height),
            ),
            "scale": between(affine.scale or (1.0, 1.0), u[3]),
            "shear": (between(shear[:2], u[4]), between(shear[2:], u[5])),
        }
        return affine.transform(image, params)

    return 6, apply


def _random_rotation(**kwargs: Any) -> tuple[int, Apply]:
    rotation = v2.RandomRotation(**kwargs)
    if rotation.expand:
        raise ValueError("expand changes the size of a frame; remove it")
    return 1, lambda image, u: rotation.transform(image, {"angle": between(rotation.degrees, u[0])})


def between(ends: Sequence[float], u: float) -> float:
    """The point at share u (0 to 1) of the way from ends[0] to ends[1]."""
    return ends[0] + (ends[1] - ends[0]) * u


_TYPES: dict[str, Callable[..., tuple[int, Apply]]] = {
    "Identity": _identity,
    "ColorJitter": _color_jitter,
    "SharpnessJitter": _sharpness_jitter,
    "RandomAffine": _random_affine,
    "RandomRotation": _random_rotation,
}
