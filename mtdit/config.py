"""What the configurations of all policy families share: features, and checks of their values."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Protocol

from mtdit_robots.errors import UserError
from mtdit_robots.features import ACTION, IMAGES, STATE
from mtdit_runtime.files import MAX_DIM

FEATURE_TYPES = ("STATE", "VISUAL", "ACTION", "ENV", "REWARD", "LANGUAGE")
NORMALIZATIONS = ("MIN_MAX", "MEAN_STD", "IDENTITY")
# A file that gives larger numbers is damaged.
MAX_LAYERS = 1000  # of one network
MAX_PIXELS = 1 << 14  # per side of a frame
MAX_NAME_BYTES = 100  # bytes of a camera name, which becomes part of a file name


@dataclass(frozen=True)
class Feature:
    """One input or output of the policy; type STATE, VISUAL (shape C, H, W), ACTION or ENV."""

    type: str
    shape: tuple[int, ...]


class PolicyFeatures(Protocol):
    """The fields of a policy's configuration that say what goes in and out, in every family."""

    @property
    def input_features(self) -> Mapping[str, Feature]: ...

    @property
    def output_features(self) -> Mapping[str, Feature]: ...

    @property
    def normalization_mapping(self) -> Mapping[str, str]: ...

    @property
    def image_keys(self) -> Mapping[str, str]: ...


def feature_shape(shape: Any) -> tuple[int, ...]:
    if not isinstance(shape, list | tuple) or any(type(n) is not int for n in shape):
        raise TypeError
    return tuple(shape)


_KINDS: dict[str, tuple[type, ...]] = {
    "int": (int,), "float": (int, float), "str": (str,), "bool": (bool,),
    "int | None": (int, type(None)), "str | None": (str, type(None)),
}  # fmt: skip


def check_types(config: Any) -> None:
    """UserError when a scalar field does not have its declared type."""
    for f in fields(config):
        value, kinds = getattr(config, f.name), _KINDS.get(str(f.type))
        wrong_bool = isinstance(value, bool) and str(f.type) != "bool"
        if kinds is not None and (wrong_bool or not isinstance(value, kinds)):
            raise UserError(f"{f.name} must be {f.type}, got {value!r}")
        # torch does not accept a larger integer in place of a float
        most = 1 << 53 if type(value) is int else sys.float_info.max
        if kinds == (int, float) and not abs(value) <= most:
            raise UserError(f"{f.name} must be a finite number, got {repr(value)[:20]}")


def check_normalization(mapping: Mapping[str, str]) -> None:
    """UserError unless it maps feature types to modes."""
    if not isinstance(mapping, Mapping):
        raise UserError(f"normalization_mapping must map feature types to modes, got {mapping!r}")
    for kind, mode in mapping.items():
        if kind not in FEATURE_TYPES:
            raise UserError(
                f"normalization_mapping has the unknown feature type {kind!r}; "
                f"use {', '.join(FEATURE_TYPES[:3])}"
            )
        if mode not in NORMALIZATIONS:
            raise UserError(
                f"normalization_mapping[{kind!r}] must be one of {', '.join(NORMALIZATIONS)}, "
                f"got {mode!r}"
            )


def check_image_shapes(
    cameras: Mapping[str, tuple[int, int, int]],
    resize: tuple[int, int] | None,
    crop: tuple[int, int] | None,
) -> None:
    """Checks image_resize_shape and image_crop_shape, (H, W) each, for cameras of these sizes
    (H, W, 3).
    """
    for name, shape in (("image_resize_shape", resize), ("image_crop_shape", crop)):
        pair = (
            isinstance(shape, tuple)
            and len(shape) == 2
            and all(type(n) is int and n >= 1 for n in shape)
        )
        if shape is not None and not pair:
            raise UserError(
                f"{name} must be two positive integers, e.g. [240, 320], or null, "
                f"got {repr(shape)[:80]}"
            )
        if shape is not None and max(shape) > MAX_PIXELS:
            raise UserError(
                f"{name} must be at most {MAX_PIXELS} pixels per side, got {repr(shape)[:80]}"
            )
    for camera, (height, width, _) in cameras.items():
        size = resize or (height, width)
        if crop is not None and (crop[0] > size[0] or crop[1] > size[1]):
            raise UserError(
                f"image_crop_shape {crop} is larger than the frames of camera {camera!r}, {size}; "
                "set image_resize_shape to at least the crop's size"
            )


Rule = tuple[bool, str]  # whether it holds, the message if not


def check_features(c: PolicyFeatures) -> None:
    for name in ("input_features", "output_features"):
        for key, feature in getattr(c, name).items():
            if feature.type not in FEATURE_TYPES or not all(
                1 <= n <= MAX_DIM for n in feature.shape
            ):
                raise UserError(
                    f"{name}[{key!r}] must have a known type and sizes from 1 to {MAX_DIM}, "
                    f"got {repr(feature)[:80]}"
                )
    if not c.input_features and not c.output_features:
        return  # no dataset yet: `with_features` completes the config
    if STATE not in c.input_features or len(c.input_features[STATE].shape) != 1:
        raise UserError(
            f"input_features must contain {STATE!r} with a one-dimensional shape; "
            "record joint positions"
        )
    if ACTION not in c.output_features or len(c.output_features[ACTION].shape) != 1:
        raise UserError(
            f"output_features must contain {ACTION!r} with a one-dimensional shape; record actions"
        )
    _check_cameras(
        {key: feature for key, feature in c.input_features.items() if feature.type == "VISUAL"}
    )


def _check_cameras(features: Mapping[str, Feature]) -> None:
    """Checks shapes and names. A camera's name becomes part of file and tensor names."""
    names = [key.removeprefix(IMAGES) for key in features]
    for name, (key, feature) in zip(names, features.items(), strict=True):
        if len(feature.shape) != 3 or feature.shape[0] != 3 or max(feature.shape) > MAX_PIXELS:
            raise UserError(
                f"input_features[{key!r}] must be RGB with shape (3, H, W), got {feature.shape}"
            )
        if not name.isprintable() or "/" in name or not 1 <= len(name.encode()) <= MAX_NAME_BYTES:
            raise UserError(
                f"input_features[{key[:80]!r}] is not a valid camera: its name must have 1 to "
                f"{MAX_NAME_BYTES} bytes, no slash and no control character; rename it in the "
                "dataset and train again"
            )
        if names.count(name) > 1:
            raise UserError(
                f"input_features has camera {name!r} twice, once as {IMAGES + name!r}; "
                "remove one of them"
            )
