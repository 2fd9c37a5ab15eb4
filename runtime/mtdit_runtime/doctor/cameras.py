"""Checks the cameras: frame rate, age, exposure, and the view compared with the training data.

The shift of a frame against the bundle's reference image is measured by phase correlation.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np
from numpy.typing import NDArray

from mtdit_robots.cameras.check import Watched, watch
from mtdit_robots.cameras.images import Frame, load_png
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
    height, width = frame.shape[:2]
    window = np.outer(np.hanning(height), np.hanning(width))
    ours, theirs = (np.fft.rfft2(_grey(picture) * window) for picture in (frame, reference))
    cross = ours * theirs.conj()
    peaks = np.fft.irfft2(cross / np.maximum(np.abs(cross), 1e-12), (height, width))
    # the peak and its neighbours: a shift that is no whole number of pixels lies between them
    row, column = np.unravel_index(np.argmax(peaks), peaks.shape)
    near = np.arange(-2, 3)
    square = peaks[np.ix_((row + near) % height, (column + near) % width)]
    total = max(float(square.sum()), 1e-12)
    down = _signed(row + float(square.sum(1) @ near) / total, height)
    right = _signed(column + float(square.sum(0) @ near) / total, width)
    return (right, down), float(square.sum())


def _signed(shift: float, size: int) -> float:
    """A shift of 0..size, which goes around, as one of at most half the size to either side."""
    return float((shift + size / 2) % size - size / 2)


def _grey(frame: Frame) -> NDArray[np.float64]:
    """Grey values minus their mean, (H, W): a change of brightness must not look like a shift."""
    grey = frame.astype(np.float64).mean(axis=2)
    return grey - grey.mean()
