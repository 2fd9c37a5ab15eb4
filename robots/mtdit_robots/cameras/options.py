"""What can be said about a camera: its source, size, rate, pixel format, rotation and warm-up."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from mtdit_robots.errors import UserError

ROTATIONS = (0, 90, 180, -90)
# Field -> the lowest and the highest value.
LIMITS: dict[str, tuple[float, float]] = {
    "width": (16, 16384),
    "height": (16, 16384),
    "fps": (1, 1000),
    "warmup_s": (0, 60),
}


@dataclass(frozen=True)
class CameraOptions:
    """One camera: where its frames come from and how they are taken. The fields are those of
    LeRobot's OpenCVCameraConfig, with the same meaning. UserError for a value that is none.

        top = mtdit.CameraOptions("/dev/video0", width=480, height=640, rotation=90)
        with mtdit.open_camera("top", top) as camera:
            frame, age_s = camera.read()
    """

    source: str  # device path, index, file:CLIP.mp4 or dataset:FOLDER:CAMERA
    width: int | None = None  # pixels of a frame after the rotation; None: as the call says
    height: int | None = None
    fps: float | None = None  # frames per second to ask the device for; None: as the call says
    fourcc: str | None = None  # pixel format of the device; None: MJPG, which fits on USB 2
    rotation: int = 0  # degrees clockwise: 0, 90, 180 or -90
    warmup_s: float = 0.0  # seconds after opening in which no frame is given: exposure settles

    def __post_init__(self) -> None:
        if not isinstance(self.source, str) or not self.source:
            raise UserError(f"source {self.source!r} is not a camera: write it like '/dev/video0'")
        for field, (low, high) in LIMITS.items():
            _check_number(field, getattr(self, field), low, high)
        if type(self.rotation) is not int or self.rotation not in ROTATIONS:
            raise UserError(f"rotation {self.rotation!r} must be one of 0, 90, 180, -90 (degrees)")
        if self.fourcc is not None and not _is_code(self.fourcc):
            raise UserError(f"fourcc {self.fourcc!r} must be four characters, e.g. MJPG or YUYV")

    def check_size(self, name: str, height: int, width: int) -> None:
        """UserError when another size is asked for than that of the policy's frames."""
        asked = self.height or height, self.width or width
        if asked != (height, width):
            raise UserError(
                f"camera {name!r} is set to {asked[1]}x{asked[0]}, but the policy was trained on "
                f"{width}x{height}: leave width and height out, the policy gives them"
            )


def _check_number(field: str, value: Any, low: float, high: float) -> None:
    """None passes: the call says the value."""
    kinds = (int,) if field in ("width", "height") else (int, float)
    is_number = isinstance(value, kinds) and not isinstance(value, bool)
    if value is not None and not (is_number and low <= value <= high):
        kind = "a whole number" if kinds == (int,) else "a number"
        raise UserError(f"{field} {value!r} must be {kind} from {low:g} to {high:g}")


def _is_code(word: Any) -> bool:
    return isinstance(word, str) and len(word) == 4 and word.isascii() and word.isprintable()
