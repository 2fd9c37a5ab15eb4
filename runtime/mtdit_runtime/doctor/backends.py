"""Checks what can compute a policy here: ONNX Runtime, the GPU, TensorRT.

`check_backends` runs a graph on each, which takes seconds; `check_gpu` only asks what is there.
"""

from __future__ import annotations

import base64
import importlib.util
from collections.abc import Iterator
from importlib import metadata
from typing import Any

import numpy as np

from mtdit_robots.errors import UserError
from mtdit_robots.extras import install, onnxruntime_wheels, reinstall_onnxruntime
from mtdit_runtime.check import FAIL, OK, WARN, Check
from mtdit_runtime.engines.trt import this_device, this_gpu
from mtdit_runtime.text import first_line

# y = x + x as ONNX, opset 17: the smallest graph that shows whether a backend runs
DOUBLE = base64.b64decode(
    b"CAg6NQoOCgF4CgF4EgF5IgNBZGQSAWdaDwoBeBIKCggIARIECgIIAWIPCgF5EgoKCAgBEgQKAggBQgQKABAR"
)


def check_backends() -> Iterator[Check]:
    """Which backends of ONNX Runtime and TensorRT are available, and which run a graph here."""
    if importlib.util.find_spec("onnxruntime") is not None:
        yield _check_onnxruntime()
    yield _check_tensorrt()


def _check_onnxruntime() -> Check:
    wheels = onnxruntime_wheels()
    try:
        import onnxruntime

        version, offered = onnxruntime.__version__, onnxruntime.get_available_providers()
    except (ImportError, AttributeError) as error:  # files of it are gone
        return Check("onnxruntime", FAIL, f"is damaged ({first_line(error, 120)})", _reinstall())
    tried = [name for name in ("CPU", "CUDA") if f"{name}ExecutionProvider" in offered]
    broken = {name: problem for name in tried if (problem := _cannot_run(onnxruntime, name))}
    working = ", ".join(name for name in tried if name not in broken) or "nothing"
    finding = f"{version}, runs on {working}"
    if broken:
        finding += "; not on " + "; ".join(f"{name} ({why})" for name, why in broken.items())
    if len(wheels) > 1:
        finding += f"; {' and '.join(wheels)} are installed and overwrite each other"
    if not broken and len(wheels) < 2:
        return Check("onnxruntime", OK, finding)
    status = FAIL if "CPU" in broken else WARN
    return Check("onnxruntime", status, finding, _reinstall(gpu="CUDA" in broken or None))


def _reinstall(gpu: bool | None = None) -> str:
    """How to get one whole ONNX Runtime. gpu: the one for GPUs; None: whichever fits."""
    if gpu:
        return f"check `nvidia-smi`, then {reinstall_onnxruntime(gpu=True)}"
    cpu, cuda = reinstall_onnxruntime(gpu=False), reinstall_onnxruntime(gpu=True)
    return f"{cpu}; with an NVIDIA GPU instead {cuda}"


def _cannot_run(ort: Any, name: str) -> str:
    """Why a provider cannot run a graph; empty if it can.

    An available provider may still fall back to the CPU.
    """
    options = ort.SessionOptions()
    options.log_severity_level = 4  # errors are in the result, not on the console
    try:
        session = ort.InferenceSession(DOUBLE, options, providers=[f"{name}ExecutionProvider"])
        (doubled,) = session.run(None, {"x": np.array([21], np.float32)})
    except Exception as error:  # whatever its C++ side raises
        return first_line(error, 120)
    if session.get_providers()[0] != f"{name}ExecutionProvider":
        return "its libraries cannot be loaded, it falls back to the CPU"
    return "" if doubled[0] == 42 else f"it computes 21 + 21 = {doubled[0]}"


def _check_tensorrt() -> Check:
    if importlib.util.find_spec("tensorrt") is None:
        remedy = "for NVIDIA GPUs; on a Jetson: apt install python3-libnvinfer"
        return Check("tensorrt", OK, "not installed", remedy)
    try:
        import tensorrt  # type: ignore[import-not-found,unused-ignore]

        device = this_device()
        tensorrt.Builder(tensorrt.Logger(tensorrt.Logger.ERROR))
    except (UserError, ImportError, RuntimeError, TypeError) as error:
        finding = f"installed, but does not run: {first_line(error)}"
        return Check("tensorrt", WARN, finding, _repair(error))
    return _carries_code(device.tensorrt, device.gpu, device.compute_capability)


def _repair(error: Exception) -> str:
    if "libnvdla" in str(error):
        return "it is for JetPack 6, this is another: build docker/Dockerfile.jetson-jp7 instead"
    return "check `nvidia-smi` and the driver"


# (compute capability, first TensorRT without code for it, first one that has it again, the GPU).
# Source: NVIDIA-ISAAC-ROS/isaac-ros-cli, issue 22. TensorRT 10.3 of JetPack 6 has code for an Orin.
WITHOUT_CODE = (((8, 7), (10, 13), (10, 16, 1), "Orin"),)


def _carries_code(version: str, gpu: str, capability: tuple[int, int]) -> Check:
    """Whether this TensorRT can build engines for the GPU: an image made for another one starts,
    and fails at the first build.
    """
    number = tuple(int(part) for part in version.split(".") if part.isdigit())
    sm = f"sm_{capability[0]}{capability[1]}"
    for without, first, fixed, name in WITHOUT_CODE:
        if capability == without and first <= number < fixed:
            finding = f"{version} has no code for {gpu} ({sm})"
            remedy = (
                f"{name} needs TensorRT {'.'.join(map(str, fixed))} or later: see docker/README.md"
            )
            return Check("tensorrt", FAIL, finding, remedy)
    return Check("tensorrt", OK, f"{version} on {gpu} ({sm})")


def check_gpu() -> Iterator[Check]:
    """The GPU, and whether the TensorRT that is installed has code for it; neither is started."""
    if importlib.util.find_spec("cuda") is None:
        yield Check(
            "gpu", OK, "not looked for: CUDA's Python bindings are not installed", install("cuda")
        )
        return
    try:
        gpu, capability = this_gpu()
    except UserError as error:
        yield Check("gpu", WARN, "no GPU answers", str(error))
        return
    yield Check("gpu", OK, gpu)
    try:
        yield _carries_code(metadata.version("tensorrt"), gpu, capability)
    except metadata.PackageNotFoundError:
        yield Check("tensorrt", OK, "not installed")
