"""Small helpers that write elements of a MuJoCo XML model (MJCF)."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from collections.abc import Sequence

from mtdit_robots.twin.arm_figures import (
    Rgb,
)


def add_element(parent: ET.Element, tag: str, of: str = "", **attributes: str) -> ET.Element:
    """A child element; `of` is its MJCF default class."""
    return ET.SubElement(parent, tag, {"class": of, **attributes} if of else attributes)


def numbers(values: Sequence[float]) -> str:
    return " ".join(f"{v:.8g}" for v in values)


def metres(values_mm: Sequence[float]) -> str:
    return numbers([v / 1000 for v in values_mm])


def rgba(rgb: Rgb) -> str:
    return numbers((*rgb, 1))
