"""State and action that name their joints in other orders, from a checkpoint's names to the robot:
each value of the bundle is that of the torch policy, which is handed its own order by hand.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from command_line import mtdit
from safetensors.numpy import load_file, save_file
from workshop import CAMERA, STEPS, TASKS, Workshop

from mtdit.checkpoint.read import open_checkpoint
from mtdit.policy_loader import load
from mtdit.torch_policy import TorchPolicy
from mtdit_export.export import export
from mtdit_export.options import ExportOptions
from mtdit_export.preflight import choose_sampler
from mtdit_export.verify_checkpoint import verify_checkpoint
from mtdit_robots.errors import UserError
from mtdit_robots.so101.joints import JOINTS
from mtdit_runtime.bundle.bundle import open_bundle
from mtdit_runtime.bundle.manifest import MANIFEST, SCHEMA_VERSION, digest_of
from mtdit_runtime.policy.by_name import on_robot

STATE_ORDER, ACTION_ORDER = (5, 0, 1, 2, 3, 4), (3, 1, 5, 0, 2, 4)
STATE = tuple(JOINTS[i] for i in STATE_ORDER)
ACTION = tuple(JOINTS[i] for i in ACTION_ORDER)
POSES = np.array([[1.0, -2, 3, -4, 5, 6], [2.0, -3, 4, -5, 6, 7]])  # in the robot's order
PRECISION = 5e-3  # degrees, of fp32


def named(checkpoint: Path, folder: Path, **changes: Any) -> Path:
    """A copy of a checkpoint whose mtdit.json says something else."""
    shutil.copytree(checkpoint, folder)
    facts = json.loads((folder / "mtdit.json").read_text()) | changes
    (folder / "mtdit.json").write_text(json.dumps(facts))
    return folder


@pytest.fixture(scope="module")
def turned(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("turned") / "pretrained_model"
    return named(checkpoint, folder, state_joints=STATE, joints=ACTION)


@pytest.fixture(scope="module")
def turned_bundle(turned: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out, said = tmp_path_factory.mktemp("bundles") / "turned.mtdit", []
    export(turned, out, ExportOptions(steps=STEPS), say=said.append)
    assert any("state and action have joints in different orders" in line for line in said)
    return out


def frames() -> dict[str, np.ndarray]:
    return {c: np.full((*CAMERA, 3), 90, np.uint8) for c in ("top", "wrist")}


def raw_chunk(policy: Any, poses: np.ndarray, noise: np.ndarray) -> np.ndarray:
    policy.reset(TASKS[0], seed=0)
    for pose in poses:
        policy.observe(pose, frames())
    return np.asarray(policy.chunk(noise))


def test_the_bundle_states_both_orders(turned_bundle: Path) -> None:
    m = open_bundle(turned_bundle).manifest
    assert m.state_joints == STATE
    assert tuple(joint.name for joint in m.joints) == ACTION
    units = {joint.name: joint.unit for joint in m.joints}
    assert units == {**dict.fromkeys(JOINTS, "degrees"), "gripper": "percent"}


def test_inspect_shows_both_orders(turned_bundle: Path, bundle: Path) -> None:
    shown = " ".join(mtdit("inspect", str(turned_bundle)).stdout.split())
    assert "in different orders (state: gripper, shoulder_pan, " in shown
    assert "in different orders" not in mtdit("inspect", str(bundle)).stdout


def test_a_robot_is_driven_as_torch_would_by_name(turned: Path, turned_bundle: Path) -> None:
    noise = np.random.default_rng(3).standard_normal((16, 6), np.float32)
    checkpoint = open_checkpoint(turned)
    sampled = replace(checkpoint, config=choose_sampler(checkpoint.config, None, STEPS))
    torch_policy = TorchPolicy(sampled)
    assert (torch_policy.state_joints, torch_policy.joints) == (STATE, ACTION)
    own = raw_chunk(torch_policy, POSES[:, STATE_ORDER], noise)
    wanted = np.empty_like(own)
    wanted[:, ACTION_ORDER] = own
    for policy in (torch_policy, load(turned_bundle, "onnx")):
        got = raw_chunk(on_robot(policy, JOINTS), POSES, noise)
        np.testing.assert_allclose(got, wanted, atol=PRECISION, rtol=0)
    assert np.abs(raw_chunk(torch_policy, POSES, noise) - own).max() > 10 * PRECISION


def test_a_turned_bundle_is_verified(turned: Path, turned_bundle: Path) -> None:
    assert verify_checkpoint(turned_bundle, turned, backend="onnx").ok


def test_another_order_of_the_checkpoint_is_another_policy(
    checkpoint: Path, turned_bundle: Path, tmp_path: Path
) -> None:
    other = named(checkpoint, tmp_path / "other", joints=ACTION, state_joints=JOINTS)
    with pytest.raises(UserError, match=r"has state_joints .*'gripper', 'shoulder_pan'.*, .* has"):
        verify_checkpoint(turned_bundle, other, backend="onnx")


def test_names_of_an_earlier_mtdit_are_the_actions(checkpoint: Path, tmp_path: Path) -> None:
    folder = named(checkpoint, tmp_path / "old", joints=ACTION)
    facts = json.loads((folder / "mtdit.json").read_text())
    del facts["state_joints"]
    (folder / "mtdit.json").write_text(json.dumps(facts))
    opened = open_checkpoint(folder).facts
    assert opened is not None
    assert opened.state_joints == opened.joints == ACTION


def test_a_bundle_before_schema_4_names_the_state_as_the_action(
    bundle: Path, tmp_path: Path
) -> None:
    old = Path(shutil.copytree(bundle, tmp_path / "old.mtdit"))
    content = json.loads((old / MANIFEST).read_text())
    assert content.pop("state_joints") == list(JOINTS)
    (old / MANIFEST).write_text(json.dumps({**content, "digest": digest_of(content)}))
    with pytest.raises(UserError, match=r"manifest\.state_joints is missing"):
        open_bundle(old)
    content["schema_version"] = SCHEMA_VERSION - 1
    (old / MANIFEST).write_text(json.dumps({**content, "digest": digest_of(content)}))
    assert open_bundle(old).manifest.state_joints == JOINTS


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"state_joints": JOINTS[:5]}, "observation.state: 6 values, joints shoulder_pan, .*roll;"),
        ({"state_joints": [*JOINTS[:5], "shoulder_pan"]}, r"'shoulder_pan' \(state: .*; action:"),
        ({"state_joints": []}, None),
    ],
)
def test_names_that_do_not_fit_are_refused_with_both_lists(
    checkpoint: Path, changes: dict[str, Any], message: str | None, tmp_path: Path
) -> None:
    folder = named(checkpoint, tmp_path / "wrong", **changes)
    if message is None:  # none stated: the action's
        assert asdict(open_checkpoint(folder).facts)["state_joints"] == JOINTS  # type: ignore[arg-type]
        return
    with pytest.raises(UserError, match=message):
        export(folder, tmp_path / "out.mtdit", ExportOptions(steps=STEPS))
    assert not (tmp_path / "out.mtdit").exists()


def test_a_dataset_in_another_order_is_refused_with_both_lists(
    checkpoint: Path, turned: Path, recording: Path, tmp_path: Path
) -> None:
    options = ExportOptions(steps=STEPS, dataset=recording)
    with pytest.raises(UserError, match=r"the dataset has joints shoulder_pan, .*wrist_flex, .*30"):
        export(turned, tmp_path / "out.mtdit", options)
    other = Path(shutil.copytree(recording, tmp_path / "other"))
    info = json.loads((other / "meta/info.json").read_text())
    info["features"]["observation.state"]["names"] = list(STATE)
    (other / "meta/info.json").write_text(json.dumps(info))
    with pytest.raises(UserError, match=r"state gripper, shoulder_pan.* without state_joints mea"):
        export(checkpoint, tmp_path / "out.mtdit", ExportOptions(steps=STEPS, dataset=other))


def test_names_of_a_lerobot_checkpoint_come_from_its_dataset(
    checkpoint: Path, recording: Path, tmp_path: Path
) -> None:
    bare = Path(shutil.copytree(checkpoint, tmp_path / "bare"))
    (bare / "mtdit.json").unlink()
    dataset = Path(shutil.copytree(recording, tmp_path / "data"))
    info = json.loads((dataset / "meta/info.json").read_text())
    info["features"]["observation.state"]["names"] = {"motors": list(STATE)}
    (dataset / "meta/info.json").write_text(json.dumps(info))
    with pytest.raises(UserError, match=r"unnamed_1, .*names no joints, add --dataset"):
        on_robot(load(bare, "cpu"), JOINTS)
    policy = load(bare, "cpu", str(dataset))
    assert (policy.state_joints, policy.joints) == (STATE, JOINTS)
    options = ExportOptions(steps=STEPS, dataset=dataset, units="degrees")
    export(bare, tmp_path / "named.mtdit", options)
    assert open_bundle(tmp_path / "named.mtdit").manifest.state_joints == STATE


def test_a_state_without_the_gripper_drives_an_arm_with_one(
    workshop: Workshop, tmp_path: Path
) -> None:
    """Five states, six actions: trained, exported and driven by name."""
    config = workshop.config()
    state = replace(config.input_features["observation.state"], shape=(5,))
    config = replace(config, input_features={**config.input_features, "observation.state": state})
    made = workshop.checkpoint(tmp_path / "six", config)
    folder = named(made, tmp_path / "five", state_joints=[JOINTS[i] for i in (4, 3, 2, 1, 0)])
    for path in folder.glob("policy_*.safetensors"):  # statistics of before and after the network
        stats = load_file(path)
        save_file({k: v[:5] if "state" in k else v for k, v in stats.items()}, path)
    said: list[str] = []
    export(folder, tmp_path / "five.mtdit", ExportOptions(steps=STEPS), say=said.append)
    assert any("joints that are not the same (state: wrist_roll, wrist" in line for line in said)
    bundle = load(tmp_path / "five.mtdit", "onnx")
    noise = np.random.default_rng(4).standard_normal((16, 6), np.float32)
    wanted = raw_chunk(bundle, POSES[:, [4, 3, 2, 1, 0]], noise)
    driven = on_robot(bundle, JOINTS)
    np.testing.assert_array_equal(raw_chunk(driven, POSES, noise), wanted)
    turned_robot = on_robot(bundle, STATE)
    got = raw_chunk(turned_robot, POSES[:, STATE_ORDER], noise)
    np.testing.assert_array_equal(got, wanted[:, STATE_ORDER])


def test_eval_asks_for_the_dataset_that_names_the_joints(
    checkpoint: Path, recording: Path, tmp_path: Path
) -> None:
    bare = Path(shutil.copytree(checkpoint, tmp_path / "bare"))
    (bare / "mtdit.json").unlink()
    words = ["eval", "--task", TASKS[0], "--checkpoint", str(bare), "--episodes", "1"]
    words += ["--max-seconds", "0.2"]
    refused = mtdit(*words)
    assert refused.returncode == 2
    assert "names no joints, add --dataset" in " ".join(refused.stderr.split())
    done = mtdit(*words, "--dataset", str(recording))
    assert done.returncode == 0, done.stderr
    both = mtdit("eval", "--task", TASKS[0], "--bundle", "x.mtdit", "--dataset", str(recording))
    assert "--dataset needs --checkpoint" in both.stderr
