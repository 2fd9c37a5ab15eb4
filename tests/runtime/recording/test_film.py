"""Pictures of runs: sizes, captions, and that the file plays."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import av
import cv2
import numpy as np
import pytest

from mtdit_robots.errors import UserError
from mtdit_robots.extras import install
from mtdit_runtime.recording.film import CAPTION_HEIGHT, Film, caption, tile

RED = np.full((64, 96, 3), (220, 30, 30), np.uint8)
BLUE = np.full((120, 120, 3), (30, 30, 220), np.uint8)


def frames_of(path: Path) -> list[np.ndarray]:
    capture, frames = cv2.VideoCapture(str(path)), []
    while True:
        ok, frame = capture.read()
        if not ok:
            return frames
        frames.append(frame[..., ::-1])


def test_tile_makes_equal_heights() -> None:
    picture = tile([RED, BLUE], 128)
    assert picture.shape == (128, 192 + 128, 3)
    assert picture[64, 10].tolist() == [220, 30, 30]
    assert picture[64, -10].tolist() == [30, 30, 220]


def test_caption_writes_below() -> None:
    picture = caption(RED, "open the drawer")
    assert picture.shape == (64 + CAPTION_HEIGHT, 96, 3)
    assert (picture[:64] == RED).all()
    assert picture[64:].max() > 150


def test_film_plays(tmp_path: Path) -> None:
    film = Film(tmp_path / "clips/run.mp4", fps=30, height=64, wait=True)
    for i in range(40):
        film.add({"top": RED, "wrist": BLUE}, f"tick {i}")
    film.close()
    frames = frames_of(tmp_path / "clips/run.mp4")
    assert (len(frames), film.dropped) == (40, 0)
    assert frames[0].shape == (64 + CAPTION_HEIGHT, 96 + 64, 3)
    assert np.abs(frames[20][32, 20].astype(int) - [220, 30, 30]).max() < 25


def test_a_film_without_frames_is_no_file(tmp_path: Path) -> None:
    Film(tmp_path / "run.mp4", fps=30).close()
    assert list(tmp_path.iterdir()) == []


def test_what_went_wrong_comes_out_at_the_end(tmp_path: Path) -> None:
    film = Film(tmp_path / "run.mp4", fps=30, wait=True)
    film.add({"top": RED}, "one size")
    for _ in range(200):
        film.add({"top": BLUE}, "another size")
    with pytest.raises(ValueError, match="the video is"):
        film.close()


def test_unwritable_place(tmp_path: Path) -> None:
    """Said before the run starts, not when its first frame comes."""
    (tmp_path / "file").write_text("x")
    for name in ("run.nonsense", "file/run.mp4", "file/clips/run.mp4"):
        with pytest.raises(UserError, match="cannot write a video"):
            Film(tmp_path / name, fps=30)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_place_that_goes_away_during_the_run(tmp_path: Path) -> None:
    film = Film(tmp_path / "clips/run.mp4", fps=30, wait=True)
    (tmp_path / "clips").write_text("x")
    film.add({"top": RED}, "no folder any more")
    with pytest.raises(UserError, match="cannot write a video"):
        film.close()


def test_browsers_play_it(tmp_path: Path) -> None:
    film = Film(tmp_path / "run.mp4", fps=30, wait=True)
    for _ in range(3):
        film.add({"top": RED}, "three frames")
    film.close()
    with av.open(str(tmp_path / "run.mp4")) as video:
        stream = video.streams.video[0]
        assert (stream.codec.canonical_name, stream.pix_fmt) == ("h264", "yuv420p")
        assert (stream.frames, float(stream.average_rate or 0)) == (3, 30)


@pytest.mark.parametrize(("module", "extra"), [("av", "record"), ("PIL", "runtime")])
def test_a_missing_package_is_one_line_before_the_run(
    module: str, extra: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(UserError, match=re.escape(install(extra))):
        Film(tmp_path / "run.mp4", fps=30)
