"""Options made from dataclasses, and NAME=VALUE words."""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from typing import Annotated

import pytest

from mtdit.cli.flags import grouped, option, pairs, read_rename_map
from mtdit.cli.options import camera_sources
from mtdit_robots.errors import UserError


def test_pairs_keep_their_order_and_split_at_the_first_sign() -> None:
    assert pairs("--policy", ["b=1", "a=x=y"], "a=1") == {"b": "1", "a": "x=y"}
    assert camera_sources(["top=/dev/video0", "wrist=file:a.mp4"]) == {
        "top": "/dev/video0",
        "wrist": "file:a.mp4",
    }
    assert camera_sources(None) == {}


@pytest.mark.parametrize("word", ["top", "top=", "=/dev/video0", ""])
def test_a_word_that_is_no_pair_is_refused_with_an_example(word: str) -> None:
    with pytest.raises(UserError, match="write --camera top=/dev/video0"):
        camera_sources([word])


def test_a_name_given_twice_is_refused() -> None:
    with pytest.raises(UserError, match="--camera top is given twice"):
        camera_sources(["top=/dev/video0", "wrist=/dev/video1", "top=/dev/video2"])


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
