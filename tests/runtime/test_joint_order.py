"""In whatever order a file names its joints, each value reaches the servo of its joint."""

from __future__ import annotations

import itertools
import json
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from reordered import reordered_bundle
from repository import EXAMPLE, ROOT
from servo_chain import calibration, chain
from small_recording import TASKS, lerobot, state, write

from mtdit_robots.errors import UserError
from mtdit_robots.so101.arm import So101Arm
from mtdit_robots.so101.calibration import Calibration, load, ranges
from mtdit_robots.so101.joints import IDS, JOINTS
from mtdit_robots.twin.client import Twin
from mtdit_robots.units import DEGREES
from mtdit_runtime.bundle.bundle import open_bundle
from mtdit_runtime.joint_order import Named, difference, permutation, places
from mtdit_runtime.recording.dataset_layout import DatasetLayout
from mtdit_runtime.recording.dataset_reader import RecordedEpisode, read_dataset, read_episode
from mtdit_runtime.recording.dataset_writer import DatasetWriter
from mtdit_runtime.recording.run_log import load_log
from mtdit_runtime.replay import replay
from mtdit_runtime.run import RunOptions, run
from mtdit_runtime.teleoperate import DriveOptions, arm_limits, teleoperate
from mtdit_runtime.units import Judged

if TYPE_CHECKING:
    from servo_chain import Chain

__all__ = ["calibration", "chain"]  # fixtures

DEMO = ROOT / "tests/data/demo.mtdit"
PATIENT_S = 2.0
QUICK = DriveOptions(lockstep=True, home_s=0.0)
GRIPPER_FIRST = (5, 0, 1, 2, 3, 4)


def orders(count: int) -> list[tuple[int, ...]]:
    """Some of the 720 orders of six joints, always the same: the seed is 14."""
    rng = np.random.default_rng(14)
    return [GRIPPER_FIRST, *(tuple(rng.permutation(6).tolist()) for _ in range(count - 1))]


def named(order: tuple[int, ...]) -> tuple[str, ...]:
    return tuple(JOINTS[i] for i in order)


# -- the helper


def test_every_permutation_finds_its_values() -> None:
    values = {"a": 1.0, "b": 2.0, "c": 3.0}
    for wanted, given in itertools.product(itertools.permutations("abc"), repeat=2):
        order = permutation(Named("x", wanted), Named("y", given), "stop")
        found = np.array([values[name] for name in given])[order]
        assert found.tolist() == [values[name] for name in wanted]
    assert places(Named("x", ("c",)), Named("y", ("a", "b", "c")), "stop").tolist() == [2]


@pytest.mark.parametrize(
    ("wanted", "given", "message"),
    [
        ("abd", "abc", "^x has joints a, b, d; y has joints a, b, c: y has no 'd': stop$"),
        ("ab", "abc", "x has no 'c': stop"),
        ("aab", "abc", "x has 'a' twice: stop"),
        ("abc", "abb", "y has 'b' twice: stop"),
        ("abc", "", "y has joints none: y has no 'a'"),
    ],
)
def test_what_cannot_be_matched_is_refused(wanted: str, given: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        permutation(Named("x", tuple(wanted)), Named("y", tuple(given)), "stop")


def test_a_difference_is_said_once_in_words() -> None:
    assert difference(("a", "b"), ["a", "b"]) is None
    assert "in different orders (state: b, a; action: a, b)" in str(difference("ba", "ab"))
    assert "that are not the same (state: a; action: a, b)" in str(difference("a", "ab"))


# -- to the servos


class Still:
    """A leader that holds one pose, given by joint."""

    def __init__(self, pose: dict[str, float]) -> None:
        self.pose, self.joints, self.is_connected = pose, tuple(pose), False

    def connect(self) -> None:
        self.is_connected = True

    def read(self) -> Any:
        return np.array(list(self.pose.values()))

    def close(self) -> None:
        pass


POSE = dict(zip(JOINTS, (8.0, -6.0, 12.0, -14.0, 20.0, 35.0), strict=True))


def goals(chain: Chain, calibration: Calibration) -> dict[str, float]:
    """Joint -> the position that its servo was last told, read from the servo itself."""
    found = ranges(calibration).positions(
        [chain.servos[IDS[j]].get("Goal_Position") for j in JOINTS]
    )
    return dict(zip(JOINTS, found.tolist(), strict=True))


def test_a_leader_with_another_order_leads_each_joint(
    chain: Chain, calibration: Calibration
) -> None:
    for order in orders(4):
        arm = So101Arm(chain.port, calibration, timeout_s=PATIENT_S)
        pose = {joint: POSE[joint] for joint in named(order)}
        options = replace(QUICK, duration_s=3.0)
        report = teleoperate(arm, Still(pose), options)
        assert report.reason == "duration"
        assert goals(chain, calibration) == pytest.approx(POSE, abs=0.15)


def test_a_leader_with_other_joints_is_refused_before_anything_is_connected(
    chain: Chain, calibration: Calibration
) -> None:
    leader = Still({**{j: POSE[j] for j in JOINTS[:5]}, "jaw": 0.0})
    arm = So101Arm(chain.port, calibration, timeout_s=PATIENT_S)
    with pytest.raises(UserError, match=r"the leader has joints shoulder_pan, .*, jaw: the leader"):
        teleoperate(arm, leader, QUICK)
    assert not leader.is_connected
    assert chain.n_reads == 0


def moving(order: tuple[int, ...], state_order: tuple[int, ...]) -> RecordedEpisode:
    """An episode that ends in POSE, its vectors in these orders."""
    actions = np.linspace(0.8, 1.0, 12)[:, None] * np.array(list(POSE.values()))
    states = np.concatenate([actions[:1], actions[:-1]])
    return RecordedEpisode(
        30,
        named(order),
        TASKS[0],
        states[:, state_order],
        actions[:, order],
        Judged(DEGREES, "the test says so"),
        named(state_order),
    )


def test_replay_finds_actions_and_states_by_name(chain: Chain, calibration: Calibration) -> None:
    for action, seen in itertools.pairwise([*orders(3), (0, 1, 2, 3, 4, 5)]):
        arm = So101Arm(chain.port, calibration, timeout_s=PATIENT_S)
        report = replay(arm, moving(action, seen), QUICK)
        assert goals(chain, calibration) == pytest.approx(POSE, abs=0.15)
        assert tuple(report.recorded) == JOINTS
        # the servos jump to their goals, so the arm is where the recording was
        assert max(error["max"] for error in report.recorded.values()) < 0.3
        assert max(error["max"] for error in report.limited.values()) < 0.1


def test_replay_of_a_state_without_the_gripper(chain: Chain, calibration: Calibration) -> None:
    arm = So101Arm(chain.port, calibration, timeout_s=PATIENT_S)
    report = replay(arm, moving(GRIPPER_FIRST, (4, 3, 2, 1, 0)), QUICK)
    assert goals(chain, calibration) == pytest.approx(POSE, abs=0.15)
    assert tuple(report.recorded) == JOINTS[:5]


def test_replay_of_other_joints_is_refused_before_the_bus_is_opened(
    chain: Chain, calibration: Calibration
) -> None:
    episode = replace(moving(GRIPPER_FIRST, GRIPPER_FIRST), joints=("jaw", *JOINTS[:5]))
    arm = So101Arm(chain.port, calibration, timeout_s=PATIENT_S)
    with pytest.raises(
        UserError, match=r"this arm has joints shoulder_pan, .*; the recording's ac"
    ):
        replay(arm, episode, QUICK)
    assert chain.n_reads == 0


def test_a_calibration_file_in_any_order_calibrates_each_joint(
    chain: Chain, calibration: Calibration, tmp_path: Path
) -> None:
    content = json.loads(EXAMPLE.read_text())
    for n, order in enumerate(orders(4)):
        path = tmp_path / f"{n}.json"
        path.write_text(json.dumps({joint: content[joint] for joint in named(order)}))
        assert list(load(path).items()) == list(calibration.items())
        given = {joint: calibration[joint] for joint in named(order)}  # as a program may make it
        arm = So101Arm(chain.port, given, timeout_s=PATIENT_S)
        teleoperate(arm, Still(POSE), replace(QUICK, duration_s=3.0))
        assert goals(chain, calibration) == pytest.approx(POSE, abs=0.15)
        tracked = arm_limits(given, 30).tracked
        assert tracked.tolist() == [True] * 5 + [False]  # a gripper may be blocked by what it holds


def test_a_policy_with_another_order_of_the_state_moves_the_twin_alike(tmp_path: Path) -> None:
    """The demo's policy and the same with the gripper first in its state: equal goals per servo."""
    turned = reordered_bundle(DEMO, tmp_path / "turned.mtdit", named(GRIPPER_FIRST), JOINTS)
    logs = []
    for n, bundle in enumerate((DEMO, turned)):
        with Twin(clock="lockstep", image_size=(64, 64)) as twin:
            task = open_bundle(bundle).manifest.tasks[0]
            twin.reset(task, 5)
            options = RunOptions(
                backend="onnx", duration_s=1.5, lockstep=True, prefetch_ticks=0, home_s=0.0,
                log=tmp_path / f"{n}.npz",
            )  # fmt: skip
            assert run(bundle, twin.robot(), task, options).reason == "duration"
        logs.append(load_log(tmp_path / f"{n}.npz"))
    one, other = logs
    assert np.ptp(one.columns["sent"], axis=0).max() > 3  # it moved
    np.testing.assert_allclose(other.columns["sent"], one.columns["sent"], atol=0.05)
    np.testing.assert_allclose(other.columns["positions"], one.columns["positions"], atol=0.2)


# -- datasets


def renamed(root: Path, state_names: Any, action_names: Any) -> Path:
    """A small dataset whose info.json says these names: its numbers stay as they are."""
    info = json.loads((write(root, video=False, lengths=(5,)) / "meta/info.json").read_text())
    info["features"]["observation.state"]["names"] = state_names
    info["features"]["action"]["names"] = action_names
    (root / "meta/info.json").write_text(json.dumps(info))
    return root


LISTED = [f"{joint}.pos" for joint in JOINTS]
TURNED = [f"{joint}.pos" for joint in named(GRIPPER_FIRST)]


@pytest.mark.parametrize(
    "names",
    [
        TURNED,
        list(named(GRIPPER_FIRST)),
        {"motors": TURNED},
        {"gripper": TURNED[:1], "body": TURNED[1:]},
        {joint: TURNED.index(f"{joint}.pos") for joint in JOINTS},
    ],
    ids=["list", "plain", "motors", "two lists", "places"],
)
def test_names_in_every_form_are_read_in_their_order(names: Any, tmp_path: Path) -> None:
    root = renamed(tmp_path / "set", names, {"motors": LISTED})
    dataset = read_dataset(root)
    assert (dataset.state_joints, dataset.joints) == (named(GRIPPER_FIRST), JOINTS)
    episode = read_episode(root, 0)
    assert (episode.state_joints, episode.joints) == (named(GRIPPER_FIRST), JOINTS)
    np.testing.assert_array_equal(episode.states[2], state(0, 2))


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (None, "observation.state has 6 dimensions but 0 names"),
        ([], "but 0 names"),
        ({}, "but 0 names"),
        ({"motors": None}, "but 0 names"),
        (LISTED[:5], "6 dimensions but 5 names"),
        ([*LISTED[:5], None], "but 0 names"),
        (["gripper", *LISTED[:4], "gripper.pos"], "two dimensions called 'gripper'"),
        ({"left": LISTED[:3], "right": LISTED[:3]}, "two dimensions called 'shoulder_pan'"),
    ],
)
def test_missing_and_repeated_names_are_refused_with_both_lists(
    names: Any, message: str, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=message) as refused:
        read_dataset(renamed(tmp_path / "set", names, LISTED))
    assert "observation.state: " in str(refused.value)
    assert "action: ['shoulder_pan.pos'," in str(refused.value)
    with pytest.raises(UserError, match="action has"):
        read_dataset(renamed(tmp_path / "other", LISTED, names))


def test_a_resumed_dataset_keeps_its_own_order(tmp_path: Path) -> None:
    """The arm's positions are written where the dataset names their joints, statistics too."""
    root = renamed(tmp_path / "set", {"motors": TURNED}, LISTED)
    layout = DatasetLayout(10, JOINTS, {"top": (48, 64), "wrist": (64, 64)}, video=False)
    recording = DatasetWriter(root, layout, resume=True, wait=True)
    taking = recording.begin(TASKS[0])
    frames = {camera: np.zeros((*size, 3), np.uint8) for camera, size in layout.cameras.items()}
    for i in range(4):
        taking.add(1000 + np.arange(6) + 10 * i, 2000 + np.arange(6), frames)
    recording.save_episode(taking)
    recording.close()
    added = read_episode(root, 1)
    assert (added.joints, added.state_joints) == (JOINTS, named(GRIPPER_FIRST))
    for i, joint in enumerate(JOINTS):
        assert added.states[0, added.state_joints.index(joint)] == 1000 + i
        assert added.actions[0, added.joints.index(joint)] == 2000 + i
    theirs = lerobot(root)
    assert theirs[5]["observation.state"].tolist() == [1005, 1000, 1001, 1002, 1003, 1004]
    assert theirs.meta.stats["observation.state"]["max"].tolist() == [
        1035, 1030, 1031, 1032, 1033, 1034,
    ]  # fmt: skip


def test_a_resumed_dataset_of_other_joints_is_refused_with_both_lists(tmp_path: Path) -> None:
    root = renamed(tmp_path / "set", [*LISTED[:5], "jaw.pos"], LISTED)
    layout = DatasetLayout(10, JOINTS, {"top": (48, 64), "wrist": (64, 64)}, video=False)
    with pytest.raises(UserError, match=r"observation.state has joints .*jaw; this arm has joints"):
        DatasetWriter(root, layout, resume=True)
