"""A policy in a robot's order of joints: every value is found by its joint's name.

The bundle of conftest is written again with its vectors in other orders: statistics, names and the
rows of the graphs move together, so the same positions must give the same actions for each joint.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from reordered import reordered_bundle

from mtdit_robots.errors import UserError
from mtdit_runtime.bundle.bundle import Bundle, open_bundle
from mtdit_runtime.engines.choose import choose_engines
from mtdit_runtime.policy.bundle_policy import BundlePolicy
from mtdit_runtime.policy.by_name import check_cameras, on_robot
from mtdit_runtime.policy.policy import Policy, draw_noise

JOINTS = ("pan", "lift", "grip")
ORDERS = list(itertools.permutations(JOINTS))
TASK = "open the drawer"
POSE = {"pan": 10.0, "lift": -20.0, "grip": 30.0}

Commands = list[dict[str, float]]


def opened(folder: Path) -> BundlePolicy:
    bundle: Bundle = open_bundle(folder)
    return BundlePolicy(bundle, choose_engines(bundle, "onnx"))


def commands(
    policy: Policy, robot: tuple[str, ...], actions: tuple[str, ...] | None = None
) -> Commands:
    """Six ticks of a robot, by joint name. The noise of each joint is the same in every order."""
    on_this = on_robot(policy, robot)
    rng, found = np.random.default_rng(0), []
    on_this.reset(TASK, seed=0)
    for tick in range(6):
        frames = {c: rng.integers(0, 256, (4, 6, 3), np.uint8) for c in ("top", "wrist")}
        on_this.observe(np.array([POSE[joint] + tick for joint in robot]), frames)
        noise = draw_noise(rng, on_this.horizon, 3)
        noise = noise[:, [JOINTS.index(joint) for joint in actions or JOINTS]]
        held = np.array([[POSE[joint] - 1 for joint in robot]])
        for committed in (None, held):
            chunk = on_this.chunk(noise, committed)
            found += [dict(zip(robot, row.tolist(), strict=True)) for row in chunk]
    return found


def assert_same(got: Commands, wanted: Commands) -> None:
    for one, other in zip(got, wanted, strict=True):
        assert one == pytest.approx(other, abs=1e-3)


@pytest.mark.parametrize("state", ORDERS, ids="-".join)
def test_any_order_of_the_vectors_gives_the_same_commands(
    bundle_folder: Path, tmp_path: Path, state: tuple[str, ...]
) -> None:
    wanted = commands(opened(bundle_folder), JOINTS)
    assert len({round(value, 3) for value in wanted[-1].values()}) == 3  # the joints differ
    for n, action in enumerate(ORDERS):
        policy = opened(reordered_bundle(bundle_folder, tmp_path / f"{n}.mtdit", state, action))
        assert (policy.state_joints, policy.joints) == (state, action)
        assert_same(commands(policy, ORDERS[-n], action), wanted)


@pytest.mark.parametrize("robot", ORDERS, ids="-".join)
def test_any_order_of_the_robot_gives_the_same_commands(
    policy: BundlePolicy, robot: tuple[str, ...]
) -> None:
    assert_same(commands(policy, robot), commands(policy, JOINTS))


def test_the_same_order_is_left_alone(policy: BundlePolicy) -> None:
    assert on_robot(policy, JOINTS) is policy


def test_a_state_without_one_joint_reads_the_others_by_name(
    bundle_folder: Path, tmp_path: Path
) -> None:
    """A state of two joints: the robot's third joint is commanded, and not looked at."""
    folder = reordered_bundle(bundle_folder, tmp_path / "two.mtdit", ("lift", "pan"), JOINTS)
    policy = on_robot(opened(folder), ("grip", "pan", "lift"))
    frames = {c: np.zeros((4, 6, 3), np.uint8) for c in ("top", "wrist")}
    noise = np.zeros((policy.horizon, 3), np.float32)

    def chunk(pose: list[float]) -> Any:
        policy.reset(TASK, seed=0)
        policy.observe(np.array(pose), frames)
        return policy.chunk(noise)

    np.testing.assert_array_equal(chunk([0.0, 10.0, 20.0]), chunk([99.0, 10.0, 20.0]))
    assert np.abs(chunk([0.0, 10.0, 20.0]) - chunk([0.0, 20.0, 10.0])).max() > 0.1


@pytest.mark.parametrize(
    ("robot", "message"),
    [
        (
            ("pan", "elbow", "grip"),
            "the robot has joints pan, elbow, grip; the policy's action has joints pan, lift, "
            "grip: the policy's action has no 'elbow'",
        ),
        (("pan", "lift"), "the policy's action has joints pan, lift, grip; the robot has joints"),
        (("pan", "lift", "grip", "rail"), "the policy's action has no 'rail'"),
        (("pan", "pan", "grip"), "the robot has 'pan' twice"),
    ],
)
def test_other_joints_are_refused_with_both_lists(
    policy: BundlePolicy, robot: tuple[str, ...], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        on_robot(policy, robot)


def test_a_state_that_the_robot_lacks_is_refused(bundle_folder: Path, tmp_path: Path) -> None:
    other: Callable[[str], str] = lambda name: "rail" if name == "lift" else name  # noqa: E731
    folder = reordered_bundle(
        bundle_folder, tmp_path / "rail.mtdit", JOINTS, JOINTS, rename_state=other
    )
    message = "the policy's state has joints pan, rail, grip; the robot has joints pan, lift, grip"
    with pytest.raises(UserError, match=message):
        on_robot(opened(folder), JOINTS)


def test_cameras_are_found_by_name(policy: BundlePolicy) -> None:
    check_cameras(policy, ("overview", "wrist", "top"))
    with pytest.raises(UserError, match="needs camera 'wrist', the robot has top"):
        check_cameras(policy, ("top",))
