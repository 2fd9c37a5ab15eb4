"""The layer of mtdit in an image, made for real: `python.sh` with its checksums, what runs in it,
and how large it is. It needs a package index.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from docker_files import DOCKER, tool
from repository import ROOT

pytestmark = pytest.mark.slow(minutes=3)


@pytest.fixture(scope="module")
def layer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("layer")
    build = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", folder, ROOT]
    subprocess.run(build, check=True, capture_output=True)
    (wheel,) = folder.glob("*.whl")
    python = {
        "PYTHON": sys.executable,
        "PATH": "/usr/bin:/bin",
        "IMAGE": "yes",
        "ROOT": str(folder),
    }
    command = [DOCKER / "python.sh", "rtx", "/opt/mtdit", wheel]
    made = subprocess.run(command, env=python, capture_output=True, text=True)
    if "No matching distribution" in made.stderr or "Connection" in made.stderr:
        pytest.skip("no package index can be reached: " + made.stderr.splitlines()[-1])
    assert made.returncode == 0, made.stderr
    return folder / "opt/mtdit"


@pytest.mark.parametrize(
    ("lock", "python", "platform"),
    [
        ("cuda12", "3.10", "aarch64-manylinux_2_35"),  # JetPack 6: Ubuntu 22.04
        ("cuda13", "3.12", "aarch64-manylinux_2_39"),  # JetPack 7: Ubuntu 24.04
        ("cuda13", "3.13", "aarch64-manylinux_2_39"),
        ("cuda13", "3.12", "x86_64-manylinux_2_39"),
    ],
)
@pytest.mark.usefixtures("layer")  # which is skipped where no package index is
def test_nothing_has_to_be_compiled(lock: str, python: str, platform: str, tmp_path: Path) -> None:
    where = ["--target", tmp_path / "none", "--python-version", python]
    built = ["--only-binary", ":all:", "--no-binary", "feetech-servo-sdk"]  # Python source
    words = ["pip", "install", "--dry-run", "--no-deps", "--python-platform", platform]
    lock_file = ["-r", DOCKER / f"locks/{lock}.txt"]
    command = [tool("uv"), *words, *where, *built, *lock_file]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "Would install" in done.stderr


def test_mtdit_runs_in_it_without_anything_else(layer: Path, tmp_path: Path) -> None:
    command = [layer / "bin/mtdit", "doctor", "--fast", "--json", "-"]
    done = subprocess.run(command, cwd=tmp_path, env={}, capture_output=True, text=True)
    found = {check["id"]: check for check in json.loads(done.stdout)["checks"]}
    assert found["extra runtime"]["finding"] == "installed"
    assert "missing torch" in found["extra train"]["finding"]


def test_its_bill_of_materials_lists_every_package(layer: Path) -> None:
    ours = {"PATH": "/usr/bin:/bin", "ROOT": str(layer.parents[1])}
    subprocess.run([DOCKER / "sbom.sh", "/opt/mtdit"], env=ours, check=True)
    bill = json.loads((layer / "sbom.cdx.json").read_text())
    assert (bill["bomFormat"], bill["specVersion"]) == ("CycloneDX", "1.5")
    names = {part["purl"].partition("@")[0] for part in bill["components"]}
    assert {"pkg:pypi/mtdit", "pkg:pypi/onnxruntime", "pkg:deb/bash"} <= names


def test_it_is_no_larger_than_it_should_be(layer: Path) -> None:
    files = (path for path in layer.rglob("*") if path.is_file() and not path.is_symlink())
    megabytes = sum(path.stat().st_size for path in files) / 1e6
    assert megabytes <= 250
