"""Pictures in and out: the camera's formats as RGB, and PNG files.

A JPEG gives the same pixels as with OpenCV, which LeRobot records with: both decode with
libjpeg-turbo and its defaults.
"""

from __future__ import annotations

from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mtdit_robots.errors import UserError
from mtdit_robots.extras import missing

Frame = NDArray[np.uint8]  # (H, W, 3) RGB

# BT.601, limited range, as integers of 20 bits: OpenCV's color_yuv.simd.hpp
_BITS = 20
_Y, _BLUE_U, _GREEN_U, _GREEN_V, _RED_V = 1220542, 2116026, -409993, -852492, 1673527


def import_pillow(needed: str) -> Any:
    """The package PIL.Image. needed: what needs it, for the UserError when it is not installed."""
    try:
        from PIL import Image
    except ImportError as error:
        raise missing("PIL", f"{needed} Pillow") from error
    return Image


def from_jpeg(data: bytes) -> Frame:
    """A JPEG picture as (H, W, 3) uint8 RGB. OSError when it is damaged."""
    image = import_pillow("cameras need")
    try:
        with image.open(BytesIO(data), formats=("JPEG",)) as picture:
            return np.asarray(picture.convert("RGB"))
    except (SyntaxError, ValueError, image.DecompressionBombError) as error:
        raise OSError(f"a damaged JPEG ({error})") from error


def from_yuyv(data: bytes, height: int, width: int, line_bytes: int = 0) -> Frame:
    """A picture of the format YUYV (4:2:2, limited range) as (H, W, 3) uint8 RGB.

    line_bytes: the distance between two lines; 0: they lie next to each other. The same integers
    as OpenCV's COLOR_YUV2RGB_YUYV. OSError when bytes are missing.
    """
    line_bytes = line_bytes or 2 * width
    if len(data) < height * line_bytes:
        raise OSError(f"{len(data)} bytes for a picture of {width}x{height}")
    lines = np.frombuffer(data, np.uint8, height * line_bytes).reshape(height, line_bytes)
    values = lines[:, : 2 * width].reshape(height, width // 2, 4).astype(np.int32)
    y = np.maximum(values[..., [0, 2]] - 16, 0) * _Y + (1 << (_BITS - 1))  # (H, W/2, 2)
    u, v = values[..., 1:2] - 128, values[..., 3:4] - 128
    rgb = np.stack([y + _RED_V * v, y + _GREEN_V * v + _GREEN_U * u, y + _BLUE_U * u], axis=-1)
    return (rgb >> _BITS).clip(0, 255).astype(np.uint8).reshape(height, width, 3)


def png(frame: Frame) -> bytes:
    """(H, W, 3) RGB as the bytes of a PNG file."""
    file = BytesIO()
    import_pillow("pictures need").fromarray(frame).save(file, "PNG")
    return file.getvalue()


def save_png(path: Path, frame: Frame) -> None:
    """Write (H, W, 3) RGB as PNG. UserError when it cannot be written."""
    content = png(frame)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    except OSError as error:
        raise UserError(
            f"cannot write {path} ({error.strerror}): choose another folder for the images"
        ) from error


def load_png(path: Path) -> Frame:
    """Read an image as (H, W, 3) RGB. UserError when it cannot be read."""
    image = import_pillow("pictures need")
    try:
        with image.open(path) as picture:
            return np.asarray(picture.convert("RGB"))
    except (OSError, SyntaxError, ValueError, image.DecompressionBombError) as error:
        raise UserError(f"{path} is not a readable image: export the bundle again") from error
