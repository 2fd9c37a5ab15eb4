from __future__ import annotations

from pathlib import Path

import pytest

from mtdit_robots.errors import UserError
from mtdit_robots.so101.calibration_places import find, place_of


def test_find_looks_in_both_of_lerobots_folders(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_LEROBOT_CALIBRATION", str(tmp_path / "calibration"))
    old, new = (
        tmp_path / "calibration" / "robots" / name for name in ("so101_follower", "so_follower")
    )
    for folder in (old, new):
        folder.mkdir(parents=True)
    (old / "blue.json").touch()
    assert find("blue") == old / "blue.json"
    (new / "blue.json").touch()
    assert find("blue") == new / "blue.json"
    with pytest.raises(UserError, match=r"no calibration of a robot 'bleu' .*did you mean 'blue'"):
        find("bleu")
    with pytest.raises(UserError, match=r"no calibration of a robot 'xyz' .*\(found: blue\): run"):
        find("xyz")


@pytest.mark.parametrize(
    ("variable", "below"),
    [
        ("HF_HOME", "lerobot/calibration"),
        ("HF_LEROBOT_HOME", "calibration"),
        ("HF_LEROBOT_CALIBRATION", ""),
    ],
)
def test_find_follows_the_hf_variables(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, variable: str, below: str
) -> None:
    for name in ("HF_HOME", "HF_LEROBOT_HOME", "HF_LEROBOT_CALIBRATION"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv(variable, str(tmp_path))
    place = tmp_path / below / "robots" / "so_follower" / "arm.json"
    place.parent.mkdir(parents=True)
    place.touch()
    assert find("arm") == place


@pytest.mark.parametrize("robot_id", ["", "../blue", "a/b"])
def test_an_id_is_no_path(robot_id: str) -> None:
    for look in (find, place_of):
        with pytest.raises(UserError, match="is not a valid id: use a plain name"):
            look(robot_id)


def test_leaders_have_their_own_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_LEROBOT_CALIBRATION", str(tmp_path))
    assert place_of("blue") == tmp_path / "robots" / "so_follower" / "blue.json"
    assert place_of("blue", leader=True) == tmp_path / "teleoperators" / "so_leader" / "blue.json"
    with pytest.raises(UserError, match="no calibration of a leader 'blue'"):
        find("blue", leader=True)
    old = tmp_path / "teleoperators" / "so101_leader" / "blue.json"
    old.parent.mkdir(parents=True)
    old.touch()
    assert place_of("blue", leader=True) == find("blue", leader=True) == old
