"""`mtdit find-cameras` as typed, with films as cameras."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

from command_line import mtdit
from driven_arms import (
    HEIGHT,
    WIDTH,
    Refused,
)

if TYPE_CHECKING:
    pass


def test_find_cameras(film: Path, tmp_path: Path, refused: Refused) -> None:
    import cv2

    cameras = ("--camera", f"top=file:{film}", "--camera", f"wrist=file:{film}")
    size = ("--height", str(HEIGHT), "--width", str(WIDTH), "--seconds", "2")
    shots, report = tmp_path / "shots", tmp_path / "cameras.json"
    done = mtdit("find-cameras", *cameras, *size, "--snapshots", str(shots), "--json", str(report))
    assert done.returncode == 0, done.stdout + done.stderr
    watched = json.loads(report.read_text())["watched"]
    assert [one["name"] for one in watched] == ["top", "wrist"]
    assert all(5 < one["rate_hz"] < 40 for one in watched)
    assert cv2.imread(str(shots / "wrist.png")).shape == (HEIGHT, WIDTH, 3)
    assert f"no camera in {tmp_path}" in refused("find-cameras", "--dev", str(tmp_path))
    (tmp_path / "video0").write_text("")
    done = mtdit("find-cameras", "--dev", str(tmp_path))
    assert done.returncode == 1
    assert "is not a camera" in done.stdout
