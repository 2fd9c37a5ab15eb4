"""Checks the cameras: frame rate, age, exposure, and the view compared with the training data.

The shift of a frame against the bundle's reference image is measured by phase correlation.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np
from numpy.typing import NDArray

from mtdit_robots.cameras.camera import Frame
from mtdit_robots.cameras.check import Watched, load_png, watch
from mtdit_robots.cameras.options import CameraOptions
from mtdit_robots.errors import UserError
from mtdit_runtime.bundle.bundle import Bundle
from mtdit_runtime.bundle.manifest import REFERENCE
from mtdit_runtime.check import FAIL, OK, WARN, Check, judged

SLOW_SHARE = 0.9  # lowest part of the requested frame rate
STALE_S = 0.2  # `SafetyConfig.stale_hold_s`: the arm holds while frames are older
MAX_SHIFT_SHARE = 0.02  # part of the width, 13 pixels of 640: a policy tolerates that
MIN_LIKENESS = 0.05  # response of the correlation; below it the images show different things
_ASSUMED_FPS = 30.0


def check_cameras(
    given: Mapping[str, CameraOptions], bundle: Bundle | None, seconds: float = 3.0
) -> Iterator[Check]:
    """Check all cameras at the same time. bundle: gives sizes, frame rate and reference images."""
    cameras = {camera.name: camera for camera in bundle.manifest.cameras} if bundle else {}
    for name in cameras.keys() - given.keys():
        remedy = f"the policy needs it: add --camera {name}=/dev/video0"
        yield Check(f"camera {name}", FAIL, "not given", remedy)
    fps = float(bundle.manifest.fps) if bundle else _ASSUMED_FPS
    sizes = {name: (camera.height, camera.width) for name, camera in cameras.items()}
    for name in given.keys() & sizes.keys():
        try:
            given[name].check_size(name, *sizes[name])
        except UserError as error:
            yield Check(f"camera {name} size", FAIL, "not the policy's", str(error))
    for one in watch(given, sizes, fps, seconds):
        yield from _check_camera(one, bundle)


def _check_camera(one: Watched, bundle: Bundle | None) -> Iterator[Check]:
    name = f"camera {one.name}"
    if one.problem or one.frame is None:
        yield Check(name, FAIL, f"{one.source} gives no frames", one.problem)
        return
    rate = f"{one.rate_hz:.1f} Hz {one.pixel_format}, {one.asked_hz:g} Hz requested".replace(
        " ,", ","
    )
    remedy = "use more light, a smaller frame size, or another USB port"
    yield judged(f"{name} rate", one.rate_hz < SLOW_SHARE * one.asked_hz, rate, remedy)
    age = f"frames up to {one.oldest_s * 1e3:.0f} ms old"
    remedy = "check its cable; the arm holds its pose while a frame is that old"
    yield judged(f"{name} age", one.oldest_s > STALE_S, age, remedy)
    light = f"mean {one.brightness:.0f} of 255" + (f", too {one.exposure}" if one.exposure else "")
    remedy = "change the light, or the exposure of the camera"
    yield judged(f"{name} exposure", bool(one.exposure), light, remedy)
    if bundle is not None:
        yield _check_view(name, one.frame, bundle, one.name)


def _check_view(name: str, frame: Frame, bundle: Bundle, camera: str) -> Check:
    path = bundle.path(f"{REFERENCE}/{camera}.png")
    if not path.is_file():
        return Check(f"{name} view", OK, "not compared, the bundle has no reference image")
    try:
        reference = load_png(path)
    except UserError as error:
        return Check(f"{name} view", FAIL, "not compared", str(error))
    if reference.shape != frame.shape:
        return Check(f"{name} view", OK, "not compared, the reference image has another size")
    (right, down), likeness = shift(reference, frame)
    if likeness < MIN_LIKENESS:
        finding = f"does not look like the training data (similarity {likeness:.2f})"
        remedy = f"compare it with {path}: right camera, right place, right light?"
        return Check(f"{name} view", WARN, finding, remedy)
    far = max(abs(right), abs(down)) > MAX_SHIFT_SHARE * frame.shape[1]
    shifted = f"{round(right):+d} px right, {round(down):+d} px down"
    finding = f"{shifted} compared with the training data (similarity {likeness:.2f})"
    return judged(
        f"{name} view", far, finding, f"turn the camera until it shows the view of {path}"
    )


def shift(reference: Frame, frame: Frame) -> tuple[tuple[float, float], float]:
    """Shift of `frame` against `reference`, both (H, W, 3) uint8, and their similarity.

    The shift is (right, down) in pixels: positive when things appear further right or further down
    than in the reference. The similarity is 0..1.
    """
    import cv2

    ours, theirs = (_grey(picture) for picture in (frame, reference))
    window = cv2.createHanningWindow((frame.shape[1], frame.shape[0]), cv2.CV_64F)
    (right, down), likeness = cv2.phaseCorrelate(theirs, ours, window)
    return (float(right), float(down)), float(likeness)


def _grey(frame: Frame) -> NDArray[np.float64]:
    """Grey values minus their mean, (H, W): a change of brightness must not look like a shift."""
    grey = frame.astype(np.float64).mean(axis=2)
    return grey - grey.mean()
