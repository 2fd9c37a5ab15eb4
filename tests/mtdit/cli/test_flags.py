"""Options made from dataclasses, and NAME=VALUE words."""

from __future__ import annotations

import inspect
import re
from dataclasses import dataclass
from typing import Annotated

import pytest

from mtdit.cli.camera_words import named_cameras
from mtdit.cli.flags import grouped, option, pairs, read_rename_map
from mtdit_robots.cameras.options import CameraOptions
from mtdit_robots.errors import UserError


def test_pairs_keep_their_order_and_split_at_the_first_sign() -> None:
    assert pairs("--policy", ["b=1", "a=x=y"], "a=1") == {"b": "1", "a": "x=y"}
    assert named_cameras(["top=/dev/video0", "wrist=file:a.mp4"]) == {
        "top": CameraOptions("/dev/video0"),
        "wrist": CameraOptions("file:a.mp4"),
    }
    assert named_cameras(None) == {}


def test_a_camera_and_its_settings() -> None:
    words = "top=0 top.width=48 top.fps=15 wrist.warmup_s=0.5 wrist.rotation=-90 wrist.source=1"
    assert named_cameras(words.split()) == {
        "top": CameraOptions("0", width=48, fps=15),
        "wrist": CameraOptions("1", rotation=-90, warmup_s=0.5),
    }


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ("top=0 top.rotaton=90", "a camera has no 'rotaton': did you mean top.rotation?"),
        ("top.rotation=90", "camera 'top' has no source: add --camera top=/dev/video0"),
        ("top=0 top.rotation=45", "camera 'top': rotation 45 must be one of 0, 90, 180, -90"),
        ("top=0 top.width=wide", "camera 'top': width 'wide' must be a whole number from 16"),
        ("top=0 top.width=1.5", "camera 'top': width '1.5' must be a whole number"),
        ("top=0 top.fps=nan", "camera 'top': fps nan must be a number from 1 to 1000"),
        ("top=0 top.fourcc=JPEGS", "camera 'top': fourcc 'JPEGS' must be four characters"),
        ("top=0 top.source=1", "--camera top is given twice"),
    ],
)
def test_a_setting_that_is_none(words: str, says: str) -> None:
    with pytest.raises(UserError, match=re.escape(says)):
        named_cameras(words.split())


@pytest.mark.parametrize("word", ["top", "top=", "=/dev/video0", ""])
def test_a_word_that_is_no_pair_is_refused_with_an_example(word: str) -> None:
    with pytest.raises(UserError, match="write --camera top=/dev/video0"):
        named_cameras([word])


def test_a_name_given_twice_is_refused() -> None:
    with pytest.raises(UserError, match="--camera top is given twice"):
        named_cameras(["top=/dev/video0", "wrist=/dev/video1", "top=/dev/video2"])


@dataclass(frozen=True)
class Size:
    height: Annotated[int, option("Cameras", "Height of a frame.")] = 48
    width: Annotated[int, option("Cameras", "Width of a frame.")] = 64


def test_grouped_options_reach_the_command_as_one_dataclass() -> None:
    seen = []

    @grouped
    def command(name: str, size: Size, count: int = 3) -> None:
        seen.append((name, size, count))

    parameters = inspect.signature(command).parameters
    assert list(parameters) == ["name", "height", "width", "count"]
    assert [one.default for one in parameters.values()][1:] == [48, 64, 3]
    command(name="a", height=1, width=2, count=4)
    assert seen == [("a", Size(1, 2), 4)]


@pytest.mark.parametrize(
    "word",
    [
        '{"observation.images.top": "observation.images.camera1"}',
        "{'observation.images.top': 'observation.images.camera1',}",
        "{observation.images.top: observation.images.camera1}",
        "observation.images.top=observation.images.camera1",
        "top=camera1",
    ],
)
def test_a_rename_map_in_any_quotes(word: str) -> None:
    assert read_rename_map(word) == {"observation.images.top": "observation.images.camera1"}


@pytest.mark.parametrize("word", ["top", "{top: }", "top=a,top=b", '{"top" "a"}'])
def test_a_rename_map_that_maps_nothing(word: str) -> None:
    with pytest.raises(UserError, match="write --rename-map top=camera1"):
        read_rename_map(word)
