"""Run all cameras at once for a few seconds and measure what they deliver: frame rate, frame age,
format, exposure, and one frame of each.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from mtdit_robots.cameras import v4l2
from mtdit_robots.cameras.images import Frame
from mtdit_robots.cameras.open import OpenedCamera, open_camera
from mtdit_robots.cameras.options import CameraOptions
from mtdit_robots.errors import UserError

DEFAULT_SIZE = 480, 640  # (height, width)
DARK, BRIGHT = 16, 239  # of 255: a pixel or a mean beyond these shows almost no detail
CLIPPED_SHARE = 0.5  # of all channel values
_LOOK_S = 0.005  # between two reads


@dataclass(frozen=True)
class Watched:
    """What one camera delivered. problem: empty when it delivered frames."""

    name: str
    source: str
    pixel_format: str = ""
    asked_hz: float = 0.0
    rate_hz: float = 0.0
    oldest_s: float = 0.0  # the largest age of a frame when read
    brightness: float = 0.0  # mean, 0..255
    clipped: float = 0.0  # fraction of channel values below DARK or above BRIGHT
    frame: Frame | None = None
    problem: str = ""

    @property
    def exposure(self) -> str:
        """ "dark", "bright", or empty when the exposure is fine."""
        if self.brightness < DARK or (self.clipped > CLIPPED_SHARE and self.brightness < 128):
            return "dark"
        return "bright" if self.brightness > BRIGHT or self.clipped > CLIPPED_SHARE else ""


def watch(
    cameras: Mapping[str, CameraOptions],
    sizes: Mapping[str, tuple[int, int]],
    fps: float = 30.0,
    seconds: float = 3.0,
) -> list[Watched]:
    """Open all cameras, read them together for `seconds`, close them.

    sizes: name -> (height, width) to request, 480x640 by default; sizes and fps are for cameras
    whose options name none. A camera that fails raises nothing; its `problem` says why.
    """
    opened: dict[str, OpenedCamera] = {}
    problems: dict[str, str] = {}
    for name, options in cameras.items():
        try:
            opened[name] = open_camera(name, options, *sizes.get(name, DEFAULT_SIZE), fps)
        except (UserError, OSError) as error:
            problems[name] = str(error)
    for name, camera in opened.items():
        try:
            camera.read()
        except OSError as error:
            problems[name] = str(error)
    began_s, first = time.monotonic(), {name: camera.arrived for name, camera in opened.items()}
    oldest_s = dict.fromkeys(opened, 0.0)
    while time.monotonic() - began_s < seconds:
        for name in opened.keys() - problems.keys():
            oldest_s[name] = max(oldest_s[name], opened[name].read()[1])
        time.sleep(_LOOK_S)
    elapsed_s = time.monotonic() - began_s
    result = []
    for name, options in cameras.items():
        if name in problems:
            result.append(_failed(name, options.source, opened.get(name), problems[name]))
            continue
        camera = opened[name]
        rate_hz = (camera.arrived - first[name]) / elapsed_s
        result.append(_watched(camera, options, options.fps or fps, rate_hz, oldest_s[name]))
    for camera in opened.values():
        camera.close()
    return result


def _failed(name: str, source: str, camera: OpenedCamera | None, problem: str) -> Watched:
    if camera is not None:
        camera.close()  # otherwise the kernel would report "busy" to the next call
    started = v4l2.why_no_stream(source) if source.startswith("/dev/") else ""
    return Watched(name, source, problem=started or problem)


def _watched(
    camera: OpenedCamera, options: CameraOptions, asked_hz: float, rate_hz: float, oldest_s: float
) -> Watched:
    frame = camera.read()[0]
    return Watched(
        camera.name,
        options.source,
        camera.pixel_format,
        asked_hz,
        rate_hz,
        oldest_s,
        float(frame.mean()),
        float(np.mean((frame < DARK) | (frame > BRIGHT))),
        frame,
    )
