"""LeRobot's image transforms: its JSON, its rules and its pixels."""

from __future__ import annotations

import math
from collections import Counter
from typing import Any

import numpy as np
import pytest
import torch
from lerobot.transforms import (
    ImageTransformConfig,
    ImageTransforms,
    ImageTransformsConfig,
    make_transform_from_config,
)
from torchvision.transforms.v2 import functional as F

from mtdit.data.image_transforms import DEFAULT_TFS, image_transforms
from mtdit_robots.errors import UserError

KINDS: list[tuple[str, dict[str, Any]]] = [
    ("Identity", {}),
    (
        "ColorJitter",
        {"brightness": 0.3, "contrast": [0.6, 1.4], "saturation": [0.8, 1.2], "hue": 0.1},
    ),
    ("ColorJitter", {"hue": [-0.05, 0.05]}),
    ("SharpnessJitter", {"sharpness": 0.5}),
    ("SharpnessJitter", {"sharpness": [0.6, 1.4]}),
    (
        "RandomAffine",
        {"degrees": 5, "translate": [0.1, 0.2], "scale": [0.8, 1.1], "shear": [-3, 3, -2, 2]},
    ),
    ("RandomRotation", {"degrees": [-5, 5]}),
]


def frames(count: int = 1) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (count, 2, 24, 32, 3), dtype=np.uint8)


def applied(raw: dict[str, Any], pictures: np.ndarray, numbers: torch.Tensor) -> np.ndarray:
    transforms = image_transforms(raw)
    assert transforms is not None
    out = pictures.copy()
    transforms.apply(out, numbers)
    return out


@pytest.mark.parametrize(("kind", "kwargs"), KINDS)
def test_pixels_are_lerobots(kind: str, kwargs: dict[str, Any]) -> None:
    """The uniform numbers that LeRobot's own draw stands for give LeRobot's own picture."""
    theirs = make_transform_from_config(ImageTransformConfig(type=kind, kwargs=kwargs))
    torch.manual_seed(3)
    image = torch.from_numpy(frames()[0]).permute(0, 3, 1, 2)
    changed = 0
    for _ in range(5):
        params = theirs.make_params([image]) if kind != "Identity" else {}
        numbers = torch.tensor(
            [[0.5, *uniform_numbers(theirs, kind, params, image)]], dtype=torch.float64
        )
        ours = applied({"it": {"type": kind, "kwargs": kwargs}}, frames(), numbers)[0]
        difference = np.abs(
            ours.astype(int) - theirs.transform(image, params).permute(0, 2, 3, 1).numpy()
        )
        assert difference.max() <= 1, f"{kind} {params}: {difference.max()} of 255"
        changed += int((ours != frames()[0]).any())
    assert changed >= 3 or kind == "Identity"


def uniform_numbers(
    theirs: Any, kind: str, params: dict[str, Any], image: torch.Tensor
) -> list[float]:
    def back(ends: Any, value: float | None) -> float:
        return 0.0 if ends is None or value is None else (value - ends[0]) / (ends[1] - ends[0])

    if kind == "ColorJitter":
        names = ("brightness", "contrast", "saturation", "hue")
        order = params["fn_idx"].tolist()
        return [
            *(back(getattr(theirs, n), params[f"{n}_factor"]) for n in names),
            *(order.index(i) / 4 for i in range(4)),
        ]
    if kind == "SharpnessJitter":
        return [back(theirs.sharpness, params["sharpness_factor"])]
    if kind == "RandomRotation":
        return [back(theirs.degrees, params["angle"])]
    if kind == "RandomAffine":
        sizes = zip(
            params["translate"], theirs.translate, (image.shape[-1], image.shape[-2]), strict=True
        )
        places = [(pixels / (most * size) + 1) / 2 for pixels, most, size in sizes]
        shear = [
            back(theirs.shear[:2], params["shear"][0]),
            back(theirs.shear[2:], params["shear"][1]),
        ]
        return [
            back(theirs.degrees, params["angle"]),
            *places,
            back(theirs.scale, params["scale"]),
            *shear,
        ]
    return []


def test_strength_covers_the_whole_range() -> None:
    transforms = image_transforms(
        {"bright": {"type": "ColorJitter", "kwargs": {"brightness": [0.5, 1.5]}}}
    )
    assert transforms is not None
    gray = np.full((200, 1, 4, 4, 3), 100, np.uint8)
    transforms.apply(
        gray, torch.rand(200, transforms.numbers, generator=torch.Generator().manual_seed(0))
    )
    levels = gray[:, 0, 0, 0, 0] / 100
    assert 0.5 <= levels.min() < 0.53
    assert 1.47 < levels.max() <= 1.5
    assert (gray == gray[:, :1, :1, :1, :1]).all()


def test_choice_and_order_follow_lerobots_rule() -> None:
    weights = [1.0, 3.0, 0.5, 0.0]
    raw = {str(i): {"weight": w} for i, w in enumerate(weights)}
    for random_order in (False, True):
        ours = image_transforms({"max_num_transforms": 2, "random_order": random_order, "tfs": raw})
        assert ours is not None
        uniform = torch.rand(20000, 3, generator=torch.Generator().manual_seed(0)).tolist()
        mine = Counter(tuple(ours.chosen(u)) for u in uniform)
        source = torch.Generator().manual_seed(1)
        drawn = torch.multinomial(
            torch.tensor(weights[:3]).expand(20000, 3), 2, generator=source
        ).tolist()
        theirs = Counter(map(tuple, drawn))
        if not random_order:
            theirs = Counter(tuple(sorted(k)) for k in theirs.elements())
        assert set(mine) == set(theirs)
        for chosen, times in theirs.items():
            assert abs(mine[chosen] - times) < 5 * times**0.5 + 30, (
                f"{chosen}: {mine[chosen]} times, LeRobot {times}"
            )


def test_defaults_are_lerobots() -> None:
    theirs = ImageTransformsConfig(enable=True)
    assert {
        n: {"weight": t.weight, "type": t.type, "kwargs": t.kwargs} for n, t in theirs.tfs.items()
    } == DEFAULT_TFS
    ours = image_transforms({"enable": True})
    assert ours is not None
    assert (ours.most, ours.random_order) == (theirs.max_num_transforms, theirs.random_order)
    assert len(ours.transforms) == len(ImageTransforms(theirs).transforms)


def test_nothing_to_do() -> None:
    assert image_transforms(None) is None
    assert image_transforms({"enable": False}) is None
    assert image_transforms({"tfs": {"it": {"weight": 0.0}}}) is None
    same = applied({"it": {}}, frames(), torch.zeros(1, 1))
    np.testing.assert_array_equal(same, frames())


def test_steps_of_a_sample_are_transformed_alike() -> None:
    twice = np.repeat(frames(3)[:, :1], 2, axis=1)
    ours = image_transforms({"enable": True, "max_num_transforms": 6})
    assert ours is not None
    out = twice.copy()
    ours.apply(out, torch.rand(3, ours.numbers, generator=torch.Generator().manual_seed(0)))
    np.testing.assert_array_equal(out[:, 0], out[:, 1])
    assert len({o.tobytes() for o in out - twice}) == 3


def test_sharpness_is_torchvisions() -> None:
    image = torch.from_numpy(frames()[0]).permute(0, 3, 1, 2)
    expected = F.adjust_sharpness(image, 1.5).permute(0, 2, 3, 1).numpy()
    raw = {"it": {"type": "SharpnessJitter", "kwargs": {"sharpness": [1.5, 1.5]}}}
    np.testing.assert_array_equal(applied(raw, frames(), torch.tensor([[0.1, 0.7]]))[0], expected)


@pytest.mark.parametrize(
    ("raw", "says"),
    [
        ({"it": {"type": "ColourJitter"}}, "did you mean ColorJitter"),
        ({"it": {"type": "Cutout"}}, "use one of Identity, ColorJitter, SharpnessJitter"),
        ({"it": {"type": "ColorJitter", "kwargs": {"brightnes": 1}}}, "brightnes"),
        ({"it": {"type": "ColorJitter", "kwargs": {"hue": 2}}}, "hue"),
        ({"it": {"type": "SharpnessJitter", "kwargs": {"sharpness": [2, 1]}}}, "sharpness"),
        ({"it": {"type": "SharpnessJitter", "kwargs": {"sharpness": "much"}}}, "sharpness"),
        ({"it": {"type": "RandomRotation", "kwargs": {"degrees": 5, "expand": True}}}, "expand"),
        ({"it": {"type": "RandomAffine", "kwargs": {"degrees": 5, "fill": [1, 2]}}}, "fill"),
        ({"it": {"type": "RandomAffine", "kwargs": {"degrees": math.nan}}}, "float values"),
        ({"it": {"type": ["ColorJitter"]}}, "unknown type"),
        ({"it": {"weight": "much"}}, "weight of 'it'"),
        ({"it": {"weight": 10**400}}, "weight of 'it'"),
        ({"enable": "false"}, "enable must be true or false"),
        ({"it": 3}, "must be an object"),
        ({"enable": True, "tf": {}}, "no field 'tf'"),
        ({"enable": True, "max_num_transforms": "3"}, "max_num_transforms"),
        ([1], "JSON object"),
    ],
)
def test_mistakes_are_named(raw: Any, says: str) -> None:
    with pytest.raises(UserError, match=says) as caught:
        image_transforms(raw)
    assert "\n" not in str(caught.value)
