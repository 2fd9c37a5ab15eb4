"""What can compute here is run, not believed; and which GPU a TensorRT has no code for."""

from __future__ import annotations

import sys
from importlib import metadata
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest

from mtdit_runtime.check import FAIL, OK, WARN, Check
from mtdit_runtime.doctor import backends
from mtdit_runtime.doctor.backends import check_backends, check_gpu


def by_id(checks: list[Check]) -> dict[str, Check]:
    return {check.id: check for check in checks}


@pytest.mark.filterwarnings("ignore:Specified provider 'CUDA:UserWarning")  # where none is
def test_backends_are_run_not_believed() -> None:
    import onnxruntime

    found = by_id(list(check_backends()))["onnxruntime"]
    assert (found.status, f"{onnxruntime.__version__}, runs on CPU" in found.finding) == (OK, True)
    assert backends._cannot_run(onnxruntime, "CPU") == ""
    if "CUDAExecutionProvider" not in onnxruntime.get_available_providers():
        assert backends._cannot_run(onnxruntime, "CUDA"), (
            "a provider that is not there cannot have run"
        )


@pytest.mark.filterwarnings("ignore:Specified provider 'CUDA:UserWarning")
def test_two_onnxruntimes_in_one_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The file of this computer's, and the record of another that was installed into it."""
    record = tmp_path / "onnxruntime_gpu-1.22.0.dist-info"
    record.mkdir()
    (record / "METADATA").write_text("Metadata-Version: 2.1\nName: onnxruntime-gpu\nVersion: 1\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    found = by_id(list(check_backends()))["onnxruntime"]
    assert found.status == WARN
    assert "onnxruntime and onnxruntime-gpu are installed and overwrite each other" in found.finding
    assert found.remedy.count("pip uninstall --yes onnxruntime onnxruntime-gpu && ") == 2
    assert "[runtime]" in found.remedy
    assert "[runtime-gpu]" in found.remedy


def test_what_is_left_of_an_onnxruntime(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """After one of two was uninstalled: a folder without its files."""
    (tmp_path / "onnxruntime").mkdir()
    elsewhere = [place for place in sys.path if "site-packages" not in place]
    monkeypatch.setattr(sys, "path", [*elsewhere, str(tmp_path)])
    monkeypatch.delitem(sys.modules, "onnxruntime", raising=False)
    found = by_id(list(check_backends()))["onnxruntime"]
    assert (found.status, "is damaged" in found.finding) == (FAIL, True)
    assert "pip uninstall --yes" in found.remedy


# -- the GPU


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """An Orin, as far as CUDA's Python bindings tell it."""
    success = SimpleNamespace(name="cudaSuccess")
    props = SimpleNamespace(name=b"Orin", major=8, minor=7)
    runtime = ModuleType("cuda.bindings.runtime")
    runtime.cudaError_t = SimpleNamespace(cudaSuccess=success)  # type: ignore[attr-defined]
    runtime.cudaGetDeviceProperties = lambda _: (success, props)  # type: ignore[attr-defined]
    parent = ModuleType("cuda.bindings")
    parent.runtime = runtime  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "cuda.bindings", parent)
    monkeypatch.setitem(sys.modules, "cuda.bindings.runtime", runtime)
    monkeypatch.syspath_prepend(str(tmp_path))


def tensorrt(folder: Path, version: str) -> None:
    record = folder / f"tensorrt-{version}.dist-info"
    record.mkdir()
    (record / "METADATA").write_text(f"Metadata-Version: 2.1\nName: tensorrt\nVersion: {version}\n")


@pytest.mark.usefixtures("gpu")
@pytest.mark.parametrize(
    ("version", "status"),
    [("10.3.0", OK), ("10.13.3.9", FAIL), ("10.16.1.11", OK), ("10.16.2.10", OK), ("11.4.1", OK)],
)
def test_a_tensorrt_without_code_for_the_gpu(tmp_path: Path, version: str, status: str) -> None:
    tensorrt(tmp_path, version)
    found = by_id(list(check_gpu()))
    assert found["gpu"] == Check("gpu", OK, "Orin")
    assert found["tensorrt"].status == status
    assert version in found["tensorrt"].finding
    assert "sm_87" in found["tensorrt"].finding
    assert ("10.16.1 or later" in found["tensorrt"].remedy) == (status == FAIL)


@pytest.mark.usefixtures("gpu")
def test_a_gpu_without_tensorrt() -> None:
    with pytest.raises(metadata.PackageNotFoundError):
        metadata.version("tensorrt")
    assert by_id(list(check_gpu()))["tensorrt"].finding == "not installed"


def test_a_tensorrt_of_another_jetpack(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """That of NVIDIA's -igpu images needs a library that hosts with JetPack 7 lack."""
    package = tmp_path / "tensorrt"
    package.mkdir()
    (package / "__init__.py").write_text(
        "raise ImportError('libnvdla_compiler.so: cannot open shared object file')\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    found = by_id(list(check_backends()))["tensorrt"]
    assert (found.status, "libnvdla_compiler.so" in found.finding) == (WARN, True)
    assert "Dockerfile.jetson-jp7" in found.remedy
