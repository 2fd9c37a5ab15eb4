"""Whatever converters, merges, edits, recorders and faults leave: every row is read as what it is,
as LeRobot reads it, or the dataset is refused in a line. The cases are drawn by `dataset_cases.py`,
`dataset_junk.py` and `lerobot_edits.py`, which also run by themselves, for as long as one likes.
"""

from __future__ import annotations

import random
from itertools import count
from pathlib import Path
from typing import Any

import pytest
from dataset_cases import Case, check, quiet, run_long
from dataset_damages import DAMAGES
from dataset_junk import run_junk
from dataset_liberties import LIBERTIES
from lerobot_edits import run_chains


@pytest.fixture(scope="module", autouse=True)
def _offline(tmp_path_factory: pytest.TempPathFactory) -> Any:
    with pytest.MonkeyPatch.context() as patch:
        quiet(tmp_path_factory.mktemp("huggingface"), patch.setattr)
        yield


def check_first(folder: Path, kind: str, liberty: str = "", damage: str | None = None) -> str:
    """The first case of a change whose dataset has a camera of this kind, and a place for it."""
    for seed in count(1):
        case = Case(seed, (liberty,) if liberty else (), damage)
        made = case.made()
        if made is not None and {camera.kind for camera in made.cameras} >= {kind}:
            place = folder / f"{kind}-{liberty}{damage or ''}"
            place.mkdir()
            return check(case, place) or ""
    raise AssertionError


def test_every_liberty_alone(tmp_path: Path) -> None:
    for name, liberty in LIBERTIES.items():
        kinds = {"image"} if name.startswith("pictures_") else {"video"}
        for kind in kinds | {"image"} if liberty.pictures else kinds:
            done = check_first(tmp_path, kind, liberty=name)
            assert done == "read" or liberty.refused, name


def test_every_damage_alone(tmp_path: Path) -> None:
    for name in DAMAGES:
        kind = "image" if name == "a_picture_that_is_none" else "video"
        assert check_first(tmp_path, kind, damage=name) == "refused", name


def test_lerobot_opens_what_a_recording_goes_on_with(tmp_path: Path) -> None:
    """Datasets without our statistics, and with columns of others; LeRobot opens every third."""
    for number, liberties in enumerate(((), ("more_columns_of_episodes", "episodes_in_files"))):
        (tmp_path / str(number)).mkdir()
        assert check(Case(3, liberties), tmp_path / str(number)) == "read"


def drawn(name: str) -> int:
    """A seed; where it fails, the test shows how to run it again."""
    seed = random.randrange(10**6)
    print(f"seed {seed}: python tests/mtdit/{name}.py --seed {seed}")
    return seed


def test_drawn_cases(tmp_path: Path) -> None:
    seed = drawn("dataset_cases")
    assert run_long(range(seed, seed + 20), tmp_path) == []


def test_any_value_anywhere(tmp_path: Path) -> None:
    assert run_junk(drawn("dataset_junk"), 40, tmp_path) == 0


def test_what_lerobots_tools_make(tmp_path: Path) -> None:
    assert run_chains(drawn("lerobot_edits"), 2, tmp_path) == 0


@pytest.mark.slow(minutes=12)
def test_many_drawn_cases(tmp_path: Path) -> None:
    seed = drawn("dataset_cases")
    assert run_long(range(seed, seed + 2000), tmp_path / "cases") == []
    assert run_junk(drawn("dataset_junk"), 2000, tmp_path / "junk") == 0
    assert run_chains(drawn("lerobot_edits"), 200, tmp_path / "chains") == 0
