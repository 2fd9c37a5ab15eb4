"""Bundles: what is written opens again, and nothing that was tampered with does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mtdit_robots.errors import UserError
from mtdit_runtime.bundle.bundle import Bundle, open_bundle, save_task_features
from mtdit_runtime.bundle.manifest import MANIFEST, TASKS, write_manifest
from mtdit_runtime.files import sha256
from mtdit_runtime.normalize import Stats, save_stats


def test_tasks_and_their_features_belong_together(copy: Path) -> None:
    save_task_features(copy / TASKS, {"dance": np.zeros(5, np.float32)})
    write_manifest(copy, open_bundle(copy, check_files=False).manifest)
    with pytest.raises(UserError, match=r"tasks\.npz lists other tasks than manifest\.json"):
        open_bundle(copy).task_features  # noqa: B018, a property


def test_a_link_to_itself_is_refused(copy: Path) -> None:
    (copy / "text.onnx").unlink()
    (copy / "text.onnx").symlink_to("text.onnx")
    with pytest.raises(UserError, match=r"'text\.onnx', which lies outside the bundle"):
        open_bundle(copy)


def test_a_bundle_opens_as_it_was_written(bundle: Bundle) -> None:
    m = bundle.manifest
    assert [joint.name for joint in m.joints] == ["pan", "lift", "grip"]
    assert (m.horizon, m.n_obs_steps, m.n_action_steps, m.fps) == (12, 2, 6, 30)
    assert m.graphs["vision"].inputs[0].name == "frame.top"
    assert set(m.files) == {
        "vision.onnx",
        "text.onnx",
        "history.onnx",
        "denoiser.onnx",
        "tokenizer.json",
        "tasks.npz",
        "stats.safetensors",
    }
    assert set(bundle.task_features) == set(m.tasks)
    assert bundle.stats["action"].mode == "MIN_MAX"


def test_moving_a_bundle_changes_nothing(copy: Path, bundle: Bundle) -> None:
    assert open_bundle(copy).manifest == bundle.manifest


def test_engines_lie_outside_the_checksums(copy: Path) -> None:
    (copy / "engines/sm87").mkdir(parents=True)
    (copy / "engines/sm87/denoiser.plan").write_bytes(b"built here")
    before = open_bundle(copy).manifest.files
    assert write_manifest(copy, open_bundle(copy).manifest).files == before


@pytest.mark.parametrize(
    "name", ["denoiser.onnx", "tasks.npz", "stats.safetensors", "tokenizer.json"]
)
def test_a_changed_file_is_found(copy: Path, name: str) -> None:
    content = bytearray((copy / name).read_bytes())
    content[len(content) // 2] ^= 1
    (copy / name).write_bytes(content)
    with pytest.raises(UserError, match=f"{name} does not match its checksum"):
        open_bundle(copy)
    open_bundle(copy, check_files=False)


def test_a_missing_file_is_found(copy: Path) -> None:
    (copy / "text.onnx").unlink()
    for check_files in (True, False):
        with pytest.raises(UserError, match=r"text\.onnx is missing"):
            open_bundle(copy, check_files)


@pytest.mark.parametrize("path", ["../secret", "/etc/passwd", "golden/../../secret"])
def test_paths_do_not_leave_the_folder(edited: Any, copy: Path, path: str) -> None:
    (copy.parent / "secret").write_text("x")
    folder = edited(lambda m: m["files"].update({path: sha256(copy.parent / "secret")}))
    with pytest.raises(UserError, match="lies outside the bundle"):
        open_bundle(folder)


@pytest.mark.parametrize(
    "path", ["a\0b", "x" * 5000, "", ".", "two\nlines", "/" * 300, "~/x", "\udc80"]
)
def test_strange_paths_are_user_errors_too(edited: Any, path: str) -> None:
    with pytest.raises(UserError, match=MANIFEST if path == "\udc80" else "bundle"):
        open_bundle(edited(lambda m: m["files"].update({path: "0" * 64})))


def test_links_do_not_leave_the_folder(edited: Any, copy: Path) -> None:
    (copy.parent / "secret").write_text("x")
    (copy / "link").symlink_to(copy.parent / "secret")
    folder = edited(lambda m: m["files"].update({"link": sha256(copy.parent / "secret")}))
    with pytest.raises(UserError, match="lies outside the bundle"):
        open_bundle(folder)


def test_no_such_bundle_suggests_a_neighbour(copy: Path) -> None:
    with pytest.raises(UserError, match=r"did you mean .*copy\.mtdit"):
        open_bundle(copy.with_name("cpy.mtdit"))
    for unlike in ("nowhere/x.mtdit", "robot-arm-7.mtdit"):
        with pytest.raises(UserError, match="run `mtdit export` first"):
            open_bundle(copy.parent / unlike)


def test_a_folder_that_is_no_bundle(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"has no manifest\.json"):
        open_bundle(tmp_path)


def test_task_features_come_back(tmp_path: Path) -> None:
    features = {"öffne die Schublade": np.arange(4, dtype=np.float32), "b": np.ones(4, np.float32)}
    save_task_features(tmp_path / "tasks.npz", features)
    with np.load(tmp_path / "tasks.npz", allow_pickle=False) as file:
        assert file["tasks"].tolist() == list(features)
        np.testing.assert_array_equal(file["features"], np.stack(list(features.values())))


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 not a zip", b"\x93NUMPY", b"hello"])
def test_task_features_that_are_none(copy: Path, content: bytes) -> None:
    bundle = open_bundle(copy)
    (copy / "tasks.npz").write_bytes(content)
    with pytest.raises(UserError, match=r"tasks\.npz is malformed \(.+\): re-run `mtdit export`"):
        _ = bundle.task_features


@pytest.mark.parametrize(
    "arrays",
    [
        {"tasks": np.array(["a", "b"])},
        {"tasks": np.array(["a", "b"]), "features": np.zeros((1, 4), np.float32)},
        {"tasks": np.array(["a"]), "features": np.zeros((1, 400), np.float32)},
        {"tasks": np.array(["a"]), "features": np.array(["x"])},
    ],
)
def test_task_features_of_another_policy(copy: Path, arrays: dict[str, np.ndarray]) -> None:
    bundle = open_bundle(copy)
    np.savez(copy / "tasks.npz", **arrays)  # type: ignore[arg-type]
    with pytest.raises(
        UserError,
        match=r"tasks\.npz: features are .+, not float32 \(\d, \d+\): re-run `mtdit export`",
    ):
        _ = bundle.task_features


@pytest.mark.parametrize(
    "tasks",
    [
        np.array("a"),
        np.array([["a"]]),
        np.array([1.5]),
    ],
    ids=["a word", "a table", "numbers"],
)
def test_tasks_that_are_no_list_of_texts(copy: Path, tasks: np.ndarray) -> None:
    bundle = open_bundle(copy)
    np.savez(copy / "tasks.npz", tasks=tasks, features=np.zeros((1, 5), np.float32))
    with pytest.raises(
        UserError, match=r"tasks\.npz: tasks are .+, not a list of strings: re-run `mtdit export`"
    ):
        _ = bundle.task_features


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_stats_that_are_not_finite(copy: Path, value: float) -> None:
    bundle, three = open_bundle(copy), np.full(3, value, np.float32)
    save_stats(copy / "stats.safetensors", {"action": Stats("IDENTITY", three, three)})
    assert bundle.stats, "they are not used"
    save_stats(copy / "stats.safetensors", {"action": Stats("MIN_MAX", -three, three)})
    with pytest.raises(
        UserError, match=r"stats\.safetensors: action holds NaN or infinite numbers: train on"
    ):
        _ = open_bundle(copy, check_files=False).stats


def test_stats_that_lack_a_joint(copy: Path) -> None:
    bundle, two = open_bundle(copy), np.ones(2, np.float32)
    save_stats(copy / "stats.safetensors", {"action": Stats("MIN_MAX", -two, two)})
    with pytest.raises(
        UserError, match=r"stats\.safetensors: action has shape \(2,\), not \(3,\): re-run"
    ):
        _ = bundle.stats


@pytest.mark.parametrize("content", [b"", b"hello, world"])
def test_stats_that_are_none(copy: Path, content: bytes) -> None:
    bundle = open_bundle(copy)
    (copy / "stats.safetensors").write_bytes(content)
    with pytest.raises(
        UserError, match=r"stats\.safetensors is malformed \(.+\): re-run `mtdit export`"
    ):
        _ = bundle.stats
