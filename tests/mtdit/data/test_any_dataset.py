"""Whatever converters, merges, edits and recorders leave: every row is read as what it is, as
LeRobot reads it, or the dataset is refused in a line. `dataset_cases.py` draws the cases.
"""

from __future__ import annotations

import random
from itertools import count
from pathlib import Path
from typing import Any

import pytest
from dataset_cases import Case, check, quiet, run_long
from dataset_damages import DAMAGES
from dataset_liberties import LIBERTIES


@pytest.fixture(scope="module", autouse=True)
def _offline(tmp_path_factory: pytest.TempPathFactory) -> Any:
    with pytest.MonkeyPatch.context() as patch:
        quiet(tmp_path_factory.mktemp("huggingface"), patch.setattr)
        yield


def check_first(folder: Path, liberties: tuple[str, ...], damage: str | None = None) -> str:
    """The first case of these changes that a drawn dataset has a place for."""
    for seed in count():
        case = Case(seed, liberties, damage)
        place = folder / f"{'-'.join(liberties)}{damage or ''}-{seed}"
        place.mkdir()
        if (done := check(case, place)) is not None:
            return done
    raise AssertionError


def test_every_liberty_alone(tmp_path: Path) -> None:
    for name, liberty in LIBERTIES.items():
        done = check_first(tmp_path, (name,))
        assert done == "read" or liberty.refused, name


def test_every_damage_alone(tmp_path: Path) -> None:
    for name in DAMAGES:
        assert check_first(tmp_path, (), name) == "refused", name


def test_drawn_cases(tmp_path: Path) -> None:
    seed = random.randrange(10**6)
    print(f"seed {seed}: python tests/mtdit/dataset_cases.py --case {seed}")
    assert run_long(range(seed, seed + 25), tmp_path) == []


@pytest.mark.slow(minutes=5)
def test_many_drawn_cases(tmp_path: Path) -> None:
    seed = random.randrange(10**6)
    print(f"seed {seed}: python tests/mtdit/dataset_cases.py 2000 --seed {seed}")
    assert run_long(range(seed, seed + 2000), tmp_path) == []
