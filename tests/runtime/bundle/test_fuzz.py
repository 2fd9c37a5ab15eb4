"""Whatever is in a manifest, the bundle opens or a UserError says why not: never anything else."""

from __future__ import annotations

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
from mtdit_runtime.bundle.bundle import Bundle, open_bundle
from mtdit_runtime.bundle.manifest import GOLDEN, MANIFEST, digest_of, write_manifest
from mtdit_runtime.text import is_visible
from mtdit_runtime.verify.fixtures import Probe, ReferenceOutputs, read_golden, write_golden
from mtdit_runtime.verify.inspect import describe

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
    assert not [c for c in screen.getvalue() if c != "\n" and not is_visible(c)]


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
