"""What the cameras deliver, against what a policy was trained on: rate, age, light, and the view.

Knows a picture's shift against a reference by phase correlation. Refuses to judge what is in it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np
from numpy.typing import NDArray

from mtdit_robots.camera import Frame
from mtdit_robots.camera_check import Watched, load_png, watch
from mtdit_robots.errors import UserError
from mtdit_runtime.bundle import REFERENCE, Bundle
from mtdit_runtime.checks import FAIL, OK, Check, judged

SLOW_SHARE = 0.9  # of the asked rate
STALE_S = 0.2  # as `safety.py` holds
MAX_SHIFT_SHARE = 0.02  # of the width: 13 pixels of 640, what a policy shrugs off
MIN_LIKENESS = 0.05  # of the correlation: below it there is no common picture, so no shift either
_ASSUMED_FPS = 30.0


def check_cameras(
    sources: Mapping[str, str], bundle: Bundle | None, seconds: float = 3.0
) -> Iterator[Check]:
    """All cameras at once. bundle: brings sizes, rate and reference pictures."""
    cameras = {camera.name: camera for camera in bundle.manifest.cameras} if bundle else {}
    for name in cameras.keys() - sources.keys():
        yield Check(
            f"camera {name}",
            FAIL,
            "not given",
            f"the policy needs it: add --camera {name}=/dev/video0",
        )
    fps = float(bundle.manifest.fps) if bundle else _ASSUMED_FPS
    sizes = {name: (camera.height, camera.width) for name, camera in cameras.items()}
    for one in watch(sources, sizes, fps, seconds):
        yield from _check_camera(one, fps, bundle)


def _check_camera(one: Watched, fps: float, bundle: Bundle | None) -> Iterator[Check]:
    name = f"camera {one.name}"
    if one.problem or one.frame is None:
        yield Check(name, FAIL, f"{one.source} gives no picture", one.problem)
        return
    rate = f"{one.rate_hz:.1f} Hz {one.pixel_format}, of {fps:g} asked".replace(" ,", ",")
    yield judged(
        f"{name} rate",
        one.rate_hz < SLOW_SHARE * fps,
        rate,
        "more light, a smaller size, or another USB port",
    )
    age = f"frames up to {one.oldest_s * 1e3:.0f} ms old"
    yield judged(
        f"{name} age",
        one.oldest_s > STALE_S,
        age,
        "check its cable; the arm holds while a frame is that old",
    )
    light = f"mean {one.brightness:.0f} of 255" + (f", too {one.exposure}" if one.exposure else "")
    yield judged(
        f"{name} exposure", bool(one.exposure), light, "change the light, or the camera's exposure"
    )
    if bundle is not None:
        yield _check_view(name, one.frame, bundle, one.name)


def _check_view(name: str, frame: Frame, bundle: Bundle, camera: str) -> Check:
    path = bundle.path(f"{REFERENCE}/{camera}.png")
    if not path.is_file():
        return Check(f"{name} view", OK, "not compared, the bundle has no reference picture")
    try:
        reference = load_png(path)
    except UserError as error:
        return Check(f"{name} view", FAIL, "not compared", str(error))
    if reference.shape != frame.shape:
        return Check(f"{name} view", OK, "not compared, the reference has another size")
    (right, down), likeness = shift(reference, frame)
    if likeness < MIN_LIKENESS:
        finding = f"unlike training (likeness {likeness:.2f})"
        return judged(
            f"{name} view",
            True,
            finding,
            f"compare it with {path}: right camera, right place, right light?",
        )
    far = max(abs(right), abs(down)) > MAX_SHIFT_SHARE * frame.shape[1]
    finding = f"{round(right):+d} px right, {round(down):+d} px down of training (likeness {likeness:.2f})"
    return judged(
        f"{name} view", far, finding, f"turn the camera back until it shows what {path} shows"
    )


def shift(reference: Frame, frame: Frame) -> tuple[tuple[float, float], float]:
    """How far `frame` shows things further (right, down) than `reference`, in pixels, and how alike
    they are, 0..1.
    """
    import cv2

    ours, theirs = (_edges(picture) for picture in (frame, reference))
    window = cv2.createHanningWindow((frame.shape[1], frame.shape[0]), cv2.CV_64F)
    (right, down), likeness = cv2.phaseCorrelate(theirs, ours, window)
    return (float(right), float(down)), float(likeness)


def _edges(frame: Frame) -> NDArray[np.float64]:
    """Grey, without its mean: light that changed is no shift."""
    grey = frame.astype(np.float64).mean(axis=2)
    return grey - grey.mean()
