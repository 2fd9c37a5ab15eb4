"""Where LeRobot keeps the calibration files of arms and of leaders, by id.

Follows the HF_* environment variables. Source: LeRobot `robot.py`, `teleoperator.py`,
`constants.py`.
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Iterable
from pathlib import Path

from mtdit_robots.errors import UserError

DIRECTORIES = ("so_follower", "so101_follower")  # since LeRobot 0.4.3, and before
LEADER_DIRECTORIES = ("so_leader", "so101_leader")


def lerobot_home() -> Path:
    """The folder in which LeRobot keeps datasets and calibrations. Follows the HF_* environment
    variables.
    """
    cache = Path(os.environ.get("XDG_CACHE_HOME", "~/.cache"))
    home = Path(os.environ.get("HF_HOME", cache / "huggingface"))
    return Path(os.environ.get("HF_LEROBOT_HOME", home / "lerobot")).expanduser()


def search_directories(leader: bool = False) -> tuple[Path, ...]:
    """Where LeRobot keeps follower or leader calibrations, under its present and its earlier
    directory name. Follows the HF_* environment variables.
    """
    places = os.environ.get("HF_LEROBOT_CALIBRATION", lerobot_home() / "calibration")
    root = Path(places).expanduser()
    if leader:
        return tuple(root / "teleoperators" / name for name in LEADER_DIRECTORIES)
    return tuple(root / "robots" / name for name in DIRECTORIES)


def place_of(robot_id: str, leader: bool = False) -> Path:
    """The path of the calibration of this id: an existing file in either directory, else where
    LeRobot would write it now.
    """
    _check_id(robot_id)
    places = [directory / f"{robot_id}.json" for directory in search_directories(leader)]
    return next((place for place in places if place.is_file()), places[0])


def find(robot_id: str, leader: bool = False) -> Path:
    """The calibration file LeRobot made for `--robot.id=robot_id` (leader: `--teleop.id`).

    UserError lists the ids that exist.
    """
    _check_id(robot_id)
    places = [directory / f"{robot_id}.json" for directory in search_directories(leader)]
    for place in places:
        if place.is_file():
            return place
    known = known_ids(leader)
    hint = near(robot_id, known) or (f" (found: {', '.join(known)})" if known else "")
    folders = " or ".join(str(place.parent) for place in places)
    raise UserError(
        f"no calibration of a {'leader' if leader else 'robot'} {robot_id!r} in {folders}{hint}: "
        "run `mtdit calibrate`, or pass the file's path"
    )


def known_ids(leader: bool = False) -> list[str]:
    """The ids of the arms, or of the leaders, that have a calibration in LeRobot's folder."""
    folders = search_directories(leader)
    return sorted({file.stem for folder in folders for file in folder.glob("*.json")})


def near(name: str, known: Iterable[str]) -> str:
    """ " (did you mean ...?)" with the known name that is most like `name`, or ""."""
    found = difflib.get_close_matches(name, list(known), n=1)
    return f" (did you mean {found[0]!r}?)" if found else ""


def _check_id(robot_id: str) -> None:
    if not robot_id or Path(robot_id).name != robot_id:
        raise UserError(
            f"{robot_id!r} is not a valid id: use a plain name such as my_arm, "
            "or pass a path with --file"
        )
