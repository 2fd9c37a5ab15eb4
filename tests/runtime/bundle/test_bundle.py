"""Bundles: what is written opens again, and nothing that was tampered with does; only a UserError
ever comes out.
"""

from __future__ import annotations

import hashlib
import io
import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from rich.console import Console

from mtdit.cli.terminal.bundle_tables import inspect_parts
from mtdit_robots.errors import UserError
from mtdit_runtime.bundle.bundle import Bundle, open_bundle, save_task_features
from mtdit_runtime.bundle.manifest import (
    GOLDEN,
    MANIFEST,
    TASKS,
    digest_of,
    write_manifest,
)
from mtdit_runtime.files import sha256
from mtdit_runtime.normalize import Stats, load_stats, save_stats
from mtdit_runtime.verify.fixtures import Probe, ReferenceOutputs, read_golden, write_golden
from mtdit_runtime.verify.inspect import describe


@pytest.fixture
def copy(bundle_folder: Path, tmp_path: Path) -> Path:
    """A bundle that may be spoilt."""
    return Path(shutil.copytree(bundle_folder, tmp_path / "copy.mtdit"))


@pytest.fixture
def edited(copy: Path) -> Callable[[Callable[[Any], Any]], Path]:
    """The copy with its manifest changed."""

    def edit(change: Callable[[Any], Any]) -> Path:
        data = json.loads((copy / MANIFEST).read_text())
        change(data)
        (copy / MANIFEST).write_text(json.dumps(data))
        return copy

    return edit


@pytest.mark.parametrize(
    "change",
    [
        lambda m: m.update(fps=60),
        lambda m: m["joints"][0].update(max_speed=9000.0),
        lambda m: m["joints"].reverse(),
        lambda m: m["cameras"].reverse(),
        lambda m: m.update(n_action_steps=5),
        lambda m: m["sampler"].update(clip_range=float("nan")),
        lambda m: m.update(precision="fp16"),
        lambda m: m.update(tasks=[]),
    ],
)
def test_no_hand_changes_a_manifest_unnoticed(edited: Any, change: Callable[[Any], Any]) -> None:
    with pytest.raises(
        UserError,
        match=r"manifest\.json was changed after the export: copy the bundle again or re-run",
    ):
        open_bundle(edited(change))


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


def signed_as_before(m: dict[str, Any], spacing: Any) -> None:
    """obs_spacing_ticks where it was in earlier versions, under the digest that they wrote."""
    m["obs_spacing_ticks"] = spacing
    text = json.dumps({**m, "digest": ""}, sort_keys=True)
    m["digest"] = hashlib.sha256(text.encode()).hexdigest()


def test_a_bundle_of_an_earlier_version_opens(edited: Any, bundle: Bundle, copy: Path) -> None:
    assert "obs_spacing_ticks" not in json.loads((copy / MANIFEST).read_text())
    opened = open_bundle(edited(lambda m: signed_as_before(m, 1)))
    assert replace(opened.manifest, digest="") == replace(bundle.manifest, digest="")


@pytest.mark.parametrize("spacing", [2, 0, True, "1", None, 1.0])
def test_another_spacing_of_observations_is_refused(edited: Any, spacing: Any) -> None:
    with pytest.raises(
        UserError, match=f"obs_spacing_ticks is {spacing!r}, this mtdit reads only 1"
    ):
        open_bundle(edited(lambda m: signed_as_before(m, spacing)))


def test_a_bundle_of_an_earlier_version_is_not_edited_unnoticed(edited: Any) -> None:
    with pytest.raises(UserError, match="was changed after the export"):
        open_bundle(edited(lambda m: (signed_as_before(m, 1), m["joints"].reverse())))


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


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m: m.update(schema_version=1), "schema version 1, this mtdit reads 3"),
        (lambda m: m.pop("schema_version"), "schema version None"),
        (lambda m: m.update(surprise=1), "surprise is unknown"),
        (lambda m: m.pop("fps"), "fps is missing"),
        (lambda m: m.update(fps="30"), "fps must be int, not str"),
        (lambda m: m.update(fps=True), "fps must be int, not bool"),
        (lambda m: m.update(fps=0), "fps is 0, not 1 to "),
        (lambda m: m.update(joints=[]), "it has no joints"),
        (lambda m: m["joints"][1].pop("unit"), r"joints\[1\]\.unit is missing"),
        (lambda m: m["joints"][0].update(low="a"), r"joints\[0\]\.low must be float"),
        (
            lambda m: m["joints"][0].update(low=float("nan")),
            "joint 'pan' has an invalid unit, range or speed",
        ),
        (
            lambda m: m["joints"][1].update(low=1e3),
            "joint 'lift' has an invalid unit, range or speed",
        ),
        (
            lambda m: m["joints"][1].update(max_speed=-1),
            "joint 'lift' has an invalid unit, range or speed",
        ),
        (
            lambda m: m["joints"][2].update(unit="radians"),
            "joint 'grip' has an invalid unit, range or speed",
        ),
        (lambda m: m["cameras"][0].update(resize=[1, 2, 3]), r"resize must have 2 entries"),
        (lambda m: m["graphs"].pop("denoiser"), "graph 'denoiser' is missing"),
        (lambda m: m["graphs"].pop("vision"), "graph 'vision' is missing"),
        (
            lambda m: m["graphs"]["denoiser"]["inputs"].pop(),
            "graph 'denoiser' has no input 'prefix_mask'",
        ),
        (
            lambda m: m["graphs"].update(guided=m["graphs"]["denoiser"]),
            "'guided' has no input 'prefix_weights'",
        ),
        (lambda m: m["sampler"].update(kind="heun"), "sampler 'heun' is unknown"),
        (lambda m: m["sampler"].update(steps=0), "sampler takes 0 steps, not 1 to "),
        (lambda m: m.update(precision="fp8"), "precision 'fp8' is unknown"),
        (lambda m: m["files"].pop("denoiser.onnx"), "denoiser.onnx has no checksum"),
        (lambda m: m.update(n_action_steps=12), "exceeds horizon"),
        (lambda m: m.update(graphs=7), "graphs must be dict, not int"),
        (lambda m: m.update(horizon=10**30), "horizon is 1000"),
        (
            lambda m: m.update(horizon=13),
            r"'denoiser': noise is float32 \(1, 12, 3\), not float32 \(1, 13, 3\)",
        ),
        (lambda m: m["joints"][0].update(max_speed=10**400), "int too large to convert to float"),
        (lambda m: m["joints"].append(m["joints"][0]), "two joints are called 'pan'"),
        (lambda m: m["cameras"].append(m["cameras"][1]), "two cameras are called 'wrist'"),
        (
            lambda m: m["cameras"][0].update(height=5),
            r"frame\.top is uint8 \(4, 6, 3\), not uint8 \(5, 6, 3\)",
        ),
        (lambda m: m["graphs"].update(extra=m["graphs"]["text"]), "graph 'extra' is unknown"),
        (
            lambda m: m["graphs"]["vision"]["inputs"].append(m["graphs"]["vision"]["inputs"][0]),
            "lists an input twice",
        ),
        (
            lambda m: m["graphs"]["text"]["outputs"][0].update(shape=[]),
            "text is float32 .*, not float32 ",
        ),
        (
            lambda m: m["sampler"].update(kind="ddpm", steps=3),
            "graph 'denoiser' has no input 'step_noise'",
        ),
        (lambda m: m.update(tasks=["\ud800"]), "surrogates not allowed"),
        (lambda m: m["provenance"].update(versions=["torch"]), "versions must be dict, not list"),
        (
            lambda m: m["verification"].update(stages={"vision": 3}),
            r"stages\.vision must be dict, not int",
        ),
    ],
)
def test_a_manifest_that_makes_no_sense_is_named(edited: Any, change: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        open_bundle(edited(change))


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"null", b"\xff\xfe", b"[" * 5000])
def test_a_manifest_that_is_none(copy: Path, content: bytes) -> None:
    (copy / MANIFEST).write_bytes(content)
    with pytest.raises(UserError, match=MANIFEST):
        open_bundle(copy)


HOSTILE = st.sampled_from(("\x1b[2J", "a\nb", "x" * 3000, "1e400"))
TEXT = HOSTILE | st.text(
    st.characters(exclude_categories=()), max_size=20
)  # halves of surrogate pairs too
ABSURD = st.sampled_from((10**30, -(10**400), 2**63, 1e200, -1e308))
ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | TEXT | ABSURD,
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=10), inner, max_size=4)
    ),
    max_leaves=20,
)
SETTINGS = {
    "max_examples": 150,
    "deadline": None,
    "print_blob": True,
    "suppress_health_check": [HealthCheck.function_scoped_fixture],
}


@pytest.fixture(scope="module")
def whole(bundle_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bundle with a golden fixture. Its manifest may be written to."""
    folder = Path(shutil.copytree(bundle_folder, tmp_path_factory.mktemp("whole") / "whole.mtdit"))
    bundle = open_bundle(folder)
    m = bundle.manifest
    shapes = {t.name: t.shape for g in m.graphs.values() for t in (*g.inputs, *g.outputs)}
    zeros = {name: np.zeros(shape, np.float32) for name, shape in shapes.items()}
    frames = {c.name: np.zeros((m.n_obs_steps, c.height, c.width, 3), np.uint8) for c in m.cameras}
    ids, units = zeros["token_ids"].astype(np.int64), zeros["actions"][0]
    state, features = (
        zeros[name][:, None].repeat(m.n_obs_steps, axis=1) for name in ("state", "features")
    )
    probe = Probe(frames, state[0], m.tasks[0], zeros["noise"][0])
    made = zeros["text"], zeros["known"], zeros["actions"], units, zeros["actions"]
    e = ReferenceOutputs(features, state, ids, *made, spread=1.0)
    write_golden(folder / GOLDEN, [probe], [e])
    stages = {"robot": {"spread": 1.0, "max_error": 1e-3}}
    write_manifest(
        folder, replace(m, verification={"stages": stages}, provenance={"versions": {"torch": "2"}})
    )
    assert read_golden(open_bundle(folder))[0][0].task == m.tasks[0]
    return folder


@pytest.fixture(scope="module")
def original(whole: Path) -> str:
    return (whole / MANIFEST).read_text()


def explains(call: Callable[[], object]) -> bool:
    """Whether it went well; nothing but a UserError may come out otherwise."""
    try:
        call()
    except UserError:
        return False
    return True


def shows(bundle: Bundle) -> None:
    facts = describe(bundle)
    json.dumps(facts, ensure_ascii=False).encode()
    screen = io.StringIO()
    for part in inspect_parts(facts):
        Console(file=screen, width=80).print(part)
    assert screen.getvalue().replace("\n", "").isprintable()


def signed(data: Any) -> Any:
    """With the digest that a forger would give it, if it is a manifest at all."""
    try:
        return {**data, "digest": digest_of(data)}
    except (TypeError, ValueError, OverflowError, RecursionError):
        return data


def opens_or_explains(folder: Path, data: Any) -> None:
    """What opens can be shown, and whatever else is in the bundle can be read or is refused."""
    (folder / MANIFEST).write_text(json.dumps(signed(data)))
    if explains(lambda: open_bundle(folder)):
        bundle = open_bundle(folder)
        for read in (
            lambda: bundle.stats,
            lambda: bundle.task_features,
            lambda: read_golden(bundle),
        ):
            explains(read)
        shows(bundle)


def spread(place: Any, key: Any) -> None:
    """An entry a second time: the end of a list, or under another name."""
    if isinstance(place, list):
        place.append(place[key])
    else:
        place[f"{key}2"] = place[key]


@pytest.mark.usefixtures("original")  # read before the first manifest is written over it
@given(data=ANYTHING)
@settings(**SETTINGS)
def test_any_json_as_manifest(whole: Path, data: Any) -> None:
    opens_or_explains(whole, data)


@given(data=st.data(), value=ANYTHING)
@settings(**SETTINGS)
def test_any_value_anywhere_in_a_manifest(
    whole: Path, original: str, data: Any, value: Any
) -> None:
    manifest = json.loads(original)
    place: Any = manifest
    while True:
        key = data.draw(
            st.sampled_from(list(place) if isinstance(place, dict) else range(len(place)))
        )
        if data.draw(st.integers(0, 15)) == 0:
            spread(place, key)
        if not isinstance(place[key], dict | list) or not place[key] or data.draw(st.booleans()):
            break
        place = place[key]
    place[key] = value
    opens_or_explains(whole, manifest)


@given(content=st.binary(max_size=60))
@settings(**SETTINGS)
def test_any_bytes_as_manifest(copy: Path, content: bytes) -> None:
    (copy / MANIFEST).write_bytes(content)
    with pytest.raises(UserError):
        open_bundle(copy)


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


@pytest.mark.parametrize("mode", ["MIN_MAX", "MEAN_STD", "IDENTITY"])
def test_stats_come_back(tmp_path: Path, mode: str) -> None:
    stats = Stats(mode, np.array([1.0, 2.0], np.float32), np.array([3.0, 2.0], np.float32))
    save_stats(tmp_path / "stats.safetensors", {"action": stats})
    loaded = load_stats(tmp_path / "stats.safetensors")["action"]
    assert loaded.mode == mode
    x = np.array([[2.5, 2.0], [-7.0, 2.0]])
    np.testing.assert_array_equal(loaded.normalize(x), stats.normalize(x))
    np.testing.assert_allclose(loaded.unnormalize(loaded.normalize(x)), x, atol=1e-5)


def test_min_max_numerics_are_lerobots() -> None:
    """Source: LeRobot normalize_processor.py. A dimension that never moved: its value is -1,
    anything else explodes.
    """
    stats = Stats("MIN_MAX", np.array([0.0, 5.0], np.float32), np.array([10.0, 5.0], np.float32))
    np.testing.assert_allclose(
        stats.normalize([[2.5, 5.0], [20.0, 5.001]]), [[-0.5, -1.0], [3.0, 2.0e5]], rtol=2e-3
    )
    np.testing.assert_allclose(stats.unnormalize([[1.0, 1.0]]), [[10.0, 5.0]])
