"""`mtdit inspect` as a person types it."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from command_line import assert_one_line, mtdit
from full_disk import LIMIT

from mtdit_runtime.bundle.bundle import open_bundle
from mtdit_runtime.bundle.manifest import SCHEMA_VERSION, write_manifest
from mtdit_runtime.engines.cache import (
    Device,
    EngineRecord,
    engine_folder,
    graph_hashes,
    write_record,
)
from mtdit_runtime.files import sha256

NO_ONNXRUNTIME = "import sys; sys.modules['onnxruntime'] = None; from mtdit.cli import main; main()"


def python(code: str, *words: str | Path) -> subprocess.CompletedProcess[str]:
    """In a process of its own, which can be limited as this one must not be."""
    command = [sys.executable, "-c", code, *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, timeout=300)


def test_full_disk_is_one_line(bundle: Path, tmp_path: Path) -> None:
    limit = LIMIT.format(bytes=100) + "from mtdit.cli import main; main()"
    done = python(limit, "inspect", bundle, "--json", tmp_path / "about.json")
    assert_one_line(done, "the disk: File too large: choose another place, or make room there")


def test_inspect_shows_everything_without_onnxruntime(bundle: Path) -> None:
    done = python(NO_ONNXRUNTIME, "inspect", bundle)
    assert done.returncode == 0, done.stderr
    for words in (
        "ddim, 4 steps",
        "8 of 16 actions at 30 Hz",
        "open the drawer",
        "shoulder_pan",
        "-40.0 to 20.0",
        "80x60",
        "32x32",
        "prefix_mask",
        "checked at export",
        "no TensorRT engines",
        f"schema {SCHEMA_VERSION}",
    ):
        assert words in done.stdout


def put_engines(copy: Path, device: Device) -> None:
    opened = open_bundle(copy)
    folder, hashes = engine_folder(opened, device), graph_hashes(opened)
    folder.mkdir(parents=True)
    for name in hashes:
        (folder / f"{name}.plan").write_bytes(b"plan")
    plans = {name: sha256(folder / f"{name}.plan") for name in hashes}
    sizes = dict.fromkeys(hashes, 4)
    record = EngineRecord(
        device.gpu,
        device.compute_capability,
        device.tensorrt,
        "fp32",
        hashes,
        sizes,
        {},
        plans=plans,
    )
    write_record(folder, record)


def test_inspect_tells_engines_and_what_they_are_for(copy: Path) -> None:
    put_engines(copy, Device("Orin", (8, 7), "10.3.0"))
    done = mtdit("inspect", copy, "--json", "-")
    told = json.loads(done.stdout)
    assert told["graphs"]["vision"]["inputs"] == [
        "frame.top uint8 60x80x3",
        "frame.wrist uint8 60x80x3",
    ]
    assert told["graphs"]["denoiser"]["bytes"] == (copy / "denoiser.onnx").stat().st_size
    (engines,) = told["engines"]
    assert (engines["gpu"], engines["tensorrt"], engines["fits"]) == ("Orin", "10.3.0", None)
    assert "unknown here: tensorrt is not installed" in engines["why"]


def test_inspect_is_readable_in_a_terminal_of_80_columns(
    copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put_engines(copy, Device("NVIDIA RTX 6000 Ada Generation", (8, 9), "10.13.3.9"))
    monkeypatch.setenv("COLUMNS", "80")
    lines = mtdit("inspect", copy).stdout.splitlines()
    assert max(map(len, lines[1:])) <= 80, "the first one is the bundle's path"
    shown = {" ".join(line.split()) for line in lines}
    for whole in (
        "vision 0.4 MB frame.top uint8 60x80x3 features float32 1x128",
        "prefix_mask float32 1x16x1",
        "shoulder_pan -40.0 to 20.0 degrees 90/s",
        "size 0 MB",
        "built for NVIDIA RTX 6000 Ada Generation, TensorRT 10.13.3.9",
    ):
        assert whole in shown


def test_nothing_in_a_bundle_steers_the_terminal(copy: Path) -> None:
    hostile = "\x1b[2J\x1b]0;owned\x07\n\u202e" + "x" * 500
    opened = open_bundle(copy)
    joints = (replace(opened.manifest.joints[0], name=hostile), *opened.manifest.joints[1:])
    odd = replace(
        opened.manifest,
        name=hostile,
        tasks=(hostile,),
        joints=joints,
        requirements={hostile: hostile},
        provenance={"checkpoint": hostile, "versions": {hostile: hostile}},
    )
    write_manifest(copy, odd)
    put_engines(copy, Device(hostile, (8, 7), "10.3.0"))
    for words in (("inspect", copy), ("run", "--bundle", copy, "--task", "open the drawr")):
        done = mtdit(*words)
        said = (done.stdout + done.stderr).replace("\n", "")
        assert r"\x1b[2J" in said
        assert said.isprintable()


def test_inspect_survives_records_it_does_not_know(copy: Path) -> None:
    opened = open_bundle(copy)
    odd = replace(
        opened.manifest, verification={"stages": {"vision": {"max_error": 1.0}}}, provenance={}
    )
    write_manifest(copy, odd)
    done = mtdit("inspect", copy)
    assert done.returncode == 0, done.stderr
