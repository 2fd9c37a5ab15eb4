"""The names of cameras between a robot and a bundle."""

from __future__ import annotations

import pytest

from mtdit.cli.flags import read_rename_map
from mtdit.cli.options import ArmOptions, RobotKind
from mtdit.cli.rig import cameras_renamed, open_rig
from mtdit_robots.errors import UserError


def test_a_map_names_the_robots_cameras_for_the_policy() -> None:
    names = read_rename_map("top=camera1,observation.qpos=observation.state")
    assert cameras_renamed(names, ["camera1"]) == {"top": "camera1"}
    assert cameras_renamed(names, ["top", "wrist"]) == {}, "the export has done it"
    with pytest.raises(UserError, match="no camera 'camera1', it has side"):
        cameras_renamed(names, ["side"])


def test_the_twins_cameras_under_the_policys_names() -> None:
    with open_rig(ArmOptions(RobotKind.twin), rename_map={"top": "camera1"}) as rig:
        assert rig.robot.cameras == ("camera1", "wrist")
        rig.robot.connect()
        try:
            assert set(rig.robot.observe().frames) == {"camera1", "wrist"}
        finally:
            rig.robot.close()
