"""What was built for another computer never runs here, and the message says what differs."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mtdit_robots.errors import UserError
from mtdit_runtime.bundle.bundle import Bundle, open_bundle
from mtdit_runtime.bundle.manifest import ENGINES
from mtdit_runtime.engines.cache import (
    RECORD,
    Device,
    EngineRecord,
    differences,
    engine_folder,
    engine_key,
    engine_records,
    find_plan,
    graph_hashes,
    incompatibility,
    read_record,
    write_record,
)
from mtdit_runtime.files import sha256
from mtdit_runtime.verify.build import build_for
from mtdit_runtime.verify.inspect import describe

ORIN = Device("Orin", (8, 7), "10.3.0")


@pytest.fixture
def copy(bundle_folder: Path, tmp_path: Path) -> Bundle:
    return open_bundle(Path(shutil.copytree(bundle_folder, tmp_path / "copy.mtdit")))


def put_engines(bundle: Bundle, device: Device, plan: bytes = b"plan") -> Path:
    """As a finished build leaves them."""
    folder, hashes = engine_folder(bundle, device), graph_hashes(bundle)
    folder.mkdir(parents=True)
    for name in hashes:
        (folder / f"{name}.plan").write_bytes(plan)
    sizes = dict.fromkeys(hashes, len(plan))
    seconds = dict.fromkeys(hashes, 1.5)
    precision = bundle.manifest.precision
    version = device.compute_capability
    plans = {name: sha256(folder / f"{name}.plan") for name in hashes}
    record = EngineRecord(
        device.gpu, version, device.tensorrt, precision, hashes, sizes, seconds, plans=plans
    )
    write_record(folder, record)
    return folder


def edit_record(folder: Path, **changes: Any) -> None:
    data = json.loads((folder / RECORD).read_text())
    (folder / RECORD).write_text(json.dumps({**data, **changes}))


def test_keys_change_with_whatever_makes_a_plan_invalid(copy: Bundle) -> None:
    key = engine_key(copy, ORIN)
    assert key.startswith("sm87-trt10.3.0-fp32-")
    devices = [
        replace(ORIN, gpu="Thor"),
        replace(ORIN, compute_capability=(11, 0)),
        replace(ORIN, tensorrt="10.16.2"),
    ]
    others = {engine_key(copy, device) for device in devices}
    others.add(engine_key(Bundle(copy.folder, replace(copy.manifest, precision="fp16")), ORIN))
    copy.manifest.files["denoiser.onnx"] = "0" * 64
    others.add(engine_key(copy, ORIN))
    assert len(others - {key}) == 5


def test_the_text_graph_is_no_engine_and_does_not_count(copy: Bundle) -> None:
    key = engine_key(copy, ORIN)
    copy.manifest.files["text.onnx"] = "0" * 64
    assert engine_key(copy, ORIN) == key


def test_engines_of_this_computer_are_found(copy: Bundle) -> None:
    folder = put_engines(copy, ORIN)
    assert find_plan(copy, "vision", ORIN) == folder / "vision.plan"
    ((found, record),) = engine_records(copy).items()
    assert (found, record.device) == (folder, ORIN)
    assert differences(record, copy, ORIN) == []


@pytest.mark.parametrize(
    ("here", "said"),
    [
        (Device("Orin", (8, 7), "10.16.2"), "TensorRT 10.3.0, here 10.16.2"),
        (Device("Orin Nano", (8, 7), "10.3.0"), "GPU Orin, here Orin Nano"),
        (
            Device("Thor", (11, 0), "10.16.2"),
            "GPU Orin, here Thor; compute capability 8.7, here 11.0; TensorRT 10.3.0",
        ),
    ],
)
def test_engines_of_another_computer_are_refused_with_the_difference(
    copy: Bundle, here: Device, said: str
) -> None:
    put_engines(copy, ORIN)
    with pytest.raises(UserError) as refusal:
        find_plan(copy, "denoiser", here)
    assert said in str(refusal.value)
    assert f"run `mtdit build {copy.folder}` on this computer" in str(refusal.value)
    assert "\n" not in str(refusal.value)


def test_the_nearest_engines_are_told(copy: Bundle) -> None:
    put_engines(copy, Device("Thor", (11, 0), "10.16.2"))
    put_engines(copy, ORIN)
    with pytest.raises(
        UserError, match=r"\(those present are for TensorRT 10\.3\.0, here 10\.4\.0\)"
    ):
        find_plan(copy, "denoiser", replace(ORIN, tensorrt="10.4.0"))


def test_engines_of_other_graphs_are_refused(copy: Bundle) -> None:
    put_engines(copy, ORIN)
    copy.manifest.files["denoiser.onnx"] = "0" * 64
    with pytest.raises(UserError, match=r"\(those present are for another denoiser graph\)"):
        find_plan(copy, "denoiser", ORIN)


def test_without_engines_the_command_is_told(copy: Bundle) -> None:
    with pytest.raises(
        UserError, match=r"no TensorRT engines for this computer in .*: run `mtdit build"
    ):
        find_plan(copy, "denoiser", ORIN)


def test_engines_that_were_never_checked_do_not_count(copy: Bundle) -> None:
    (put_engines(copy, ORIN) / RECORD).unlink()
    with pytest.raises(UserError, match="no TensorRT engines"):
        find_plan(copy, "denoiser", ORIN)


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda plan: plan.unlink(), "vision.plan is missing"),
        (lambda plan: plan.write_bytes(b"pl"), "vision.plan does not match its checksum"),
        (lambda plan: plan.write_bytes(b"PLAN"), "vision.plan does not match its checksum"),
        (
            lambda plan: edit_record(plan.parent, plans={}),
            "vision.plan has no checksum, it was built by an older mtdit",
        ),
    ],
)
def test_a_plan_that_is_not_as_it_was_checked_is_refused(
    copy: Bundle, spoil: Any, said: str
) -> None:
    spoil(put_engines(copy, ORIN) / "vision.plan")
    with pytest.raises(
        UserError,
        match=rf"cannot use the engines in .*, {said}: run `mtdit build .*` again on this computer",
    ):
        find_plan(copy, "vision", ORIN)
    (told,) = describe(copy)["engines"]
    assert (told["fits"], told["why"]) == (False, said)


def test_a_record_of_an_older_mtdit_can_be_read(copy: Bundle) -> None:
    folder = put_engines(copy, ORIN)
    data = json.loads((folder / RECORD).read_text())
    del data["plans"]
    (folder / RECORD).write_text(json.dumps(data))
    record = read_record(folder)
    assert record is not None
    assert (record.device, record.plans) == (ORIN, {})


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"tensorrt": "10.16.2"}, "TensorRT 10.16.2, here 10.3.0"),
        ({"compute_capability": [11, 0]}, "compute capability 11.0, here 8.7"),
        ({"gpu": "Thor", "precision": "fp16"}, "GPU Thor, here Orin; precision fp16, here fp32"),
        ({"onnx": {}}, "another vision graph; another history graph; another denoiser graph"),
    ],
)
def test_a_record_that_contradicts_its_folder_is_refused(
    copy: Bundle, changes: dict[str, Any], said: str
) -> None:
    edit_record(put_engines(copy, ORIN), **changes)
    with pytest.raises(
        UserError, match=rf"but its engine\.json says {said}: run `mtdit build"
    ) as refusal:
        find_plan(copy, "denoiser", ORIN)
    assert str(refusal.value).isprintable()


def test_engines_that_were_renamed_do_not_fit(copy: Bundle) -> None:
    folder = put_engines(copy, ORIN)
    ((moved, record),) = engine_records(copy).items()
    assert incompatibility(moved, record, copy, ORIN) == ""
    elsewhere = folder.rename(folder.with_name("sm87"))
    assert (
        incompatibility(elsewhere, record, copy, ORIN)
        == "the folder's name does not match its engine.json"
    )


@pytest.mark.parametrize(
    "changes",
    [
        {"bytes": {"vision": 10**400}},
        {"bytes": {"vision": -1}},
        {"seconds": {"vision": 10**400}},
        {"seconds": {"vision": float("nan")}},
        {"compute_capability": [10**30, 0]},
        {"gpu": "\ud800"},
        {"plans": None},
    ],
)
def test_a_record_of_absurd_values_is_none(copy: Bundle, changes: dict[str, Any]) -> None:
    folder = put_engines(copy, ORIN)
    edit_record(folder, **changes)
    assert read_record(folder) is None
    assert describe(copy)["engines"] == []


def test_a_file_in_the_place_of_the_engines(copy: Bundle) -> None:
    copy.path(ENGINES).write_text("")
    assert describe(copy)["engines"] == []
    with pytest.raises(UserError, match="no TensorRT engines for this computer"):
        find_plan(copy, "denoiser", ORIN)
    with pytest.raises(UserError, match="engines is a file and should be a folder: remove it"):
        build_for(ORIN, copy, None)


@given(content=st.binary(max_size=60) | st.from_regex(r'\{"gpu": .*\}').map(str.encode))
@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_any_bytes_as_record(copy: Bundle, content: bytes) -> None:
    folder = copy.path(ENGINES) / "sm87"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / RECORD).write_bytes(content)
    assert read_record(folder) is None
    assert engine_records(copy) == {}
