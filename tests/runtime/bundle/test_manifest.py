"""Manifests that were edited, come from an earlier version or make no sense."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from mtdit_robots.errors import UserError
from mtdit_runtime.bundle.bundle import Bundle, open_bundle
from mtdit_runtime.bundle.manifest import MANIFEST


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


def signed_as_before(m: dict[str, Any], spacing: Any) -> None:
    """obs_spacing_ticks where it was in earlier versions, under the digest that they wrote."""
    m["obs_spacing_ticks"] = spacing
    text = json.dumps({**m, "digest": ""}, sort_keys=True)
    m["digest"] = hashlib.sha256(text.encode()).hexdigest()


def test_a_bundle_of_an_earlier_version_opens(edited: Any, bundle: Bundle, copy: Path) -> None:
    assert "obs_spacing_ticks" not in json.loads((copy / MANIFEST).read_text())
    opened = open_bundle(edited(lambda m: signed_as_before(m, 1)))
    assert replace(opened.manifest, digest="") == replace(bundle.manifest, digest="")


def as_schema_3(m: dict[str, Any]) -> None:
    """As an export wrote it before units were known: body joints are degrees, whatever they are."""
    m["schema_version"] = 3
    signed_as_before(m, 1)


def test_a_bundle_of_schema_3_opens_without_a_unit(edited: Any) -> None:
    m = open_bundle(edited(as_schema_3)).manifest
    assert (m.schema_version, m.units) == (3, "unknown")
    assert [joint.unit for joint in m.joints] == ["unknown", "unknown", "percent"]


def test_a_bundle_of_schema_3_is_not_edited_unnoticed(edited: Any) -> None:
    with pytest.raises(UserError, match="was changed after the export"):
        open_bundle(edited(lambda m: (as_schema_3(m), m["joints"][0].update(high=1e3))))


def test_a_bundle_of_today_says_its_unit(bundle: Bundle) -> None:
    assert (bundle.manifest.schema_version, bundle.manifest.units) == (4, "degrees")


@pytest.mark.parametrize("spacing", [2, 0, True, "1", None, 1.0])
def test_another_spacing_of_observations_is_refused(edited: Any, spacing: Any) -> None:
    with pytest.raises(
        UserError, match=f"obs_spacing_ticks is {spacing!r}, this mtdit reads only 1"
    ):
        open_bundle(edited(lambda m: signed_as_before(m, spacing)))


def test_a_bundle_of_an_earlier_version_is_not_edited_unnoticed(edited: Any) -> None:
    with pytest.raises(UserError, match="was changed after the export"):
        open_bundle(edited(lambda m: (signed_as_before(m, 1), m["joints"].reverse())))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m: m.update(schema_version=1), "schema version 1, this mtdit reads 3 and 4"),
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
            lambda m: m["joints"][2].update(unit="furlongs"),
            "joint 'grip' has an invalid unit, range or speed",
        ),
        (
            lambda m: m["joints"][0].update(unit="normalized"),
            "its joints are in different units",
        ),
        (lambda m: m.update(schema_version=True), "schema version True"),
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
