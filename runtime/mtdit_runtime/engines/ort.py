"""Runs a graph with ONNX Runtime, on the CPU or with CUDA."""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mtdit_robots.errors import UserError
from mtdit_robots.extras import missing, onnxruntime_wheels, reinstall_onnxruntime
from mtdit_runtime.bundle.manifest import Graph
from mtdit_runtime.engines.engine import Arrays
from mtdit_runtime.text import first_line

MAX_THREADS = 4  # more do not speed up a batch of 1, and the control loop needs a core for itself


def _zeros(graph: Graph) -> Arrays:
    return {tensor.name: np.zeros(tensor.shape, tensor.dtype) for tensor in graph.inputs}


class OnnxEngine:
    """ONNX Runtime, on the CPU or, with `cuda`, on the GPU.

    Threads spin between the operations of a graph (a chunk has thousands of them) and sleep between
    calls. The chunk is ready earlier, and a control loop on the same two cores does not wake up
    later because of it (measured: 99 % within 4 ms either way).
    """

    def __init__(
        self, path: Path, graph: Graph, name: str, cuda: bool = False, threads: int | None = None
    ) -> None:
        ort = _import_onnxruntime()
        self.name, self._version = name, ort.__version__
        self._outputs = [tensor.name for tensor in graph.outputs]
        self._threads = threads or min(MAX_THREADS, len(os.sched_getaffinity(0)))
        if cuda:
            _check_cuda_build(ort)
        provider = "CUDAExecutionProvider" if cuda else "CPUExecutionProvider"
        try:
            self._session = ort.InferenceSession(
                str(path), self._options(ort), providers=[provider]
            )
            self._session.disable_fallback()
            self._provider = self._session.get_providers()[0]
            # a provider in the list may still fail, so run the graph once
            outputs = self(_zeros(graph)) if self._provider == provider else {}
        except Exception as error:  # onnxruntime's exceptions share no base but Exception
            raise UserError(
                f"ONNX Runtime cannot run {path} ({first_line(error, 200)}): {_remedy(cuda)}"
            ) from error
        if self._provider != provider:
            raise UserError(
                f"ONNX Runtime fell back to {self._provider} for {path.name}: {_remedy(cuda)}"
            )
        for tensor in graph.outputs:
            got = outputs[tensor.name]
            if (got.shape, got.dtype.name) != (tensor.shape, tensor.dtype):
                raise UserError(
                    f"{path}: {tensor.name} is {got.dtype} {got.shape}, "
                    f"the manifest says {tensor.dtype} {tensor.shape}: re-run `mtdit export`"
                )

    def __call__(self, inputs: Mapping[str, NDArray[Any]]) -> Arrays:
        return dict(zip(self._outputs, self._session.run(self._outputs, dict(inputs)), strict=True))

    def describe(self) -> str:
        device = "CUDA" if self._provider.startswith("CUDA") else f"CPU, {self._threads} threads"
        return f"{self.name}: ONNX Runtime {self._version}, {device}"

    def _options(self, ort: Any) -> Any:
        options = ort.SessionOptions()
        options.intra_op_num_threads = self._threads
        options.inter_op_num_threads = 1
        options.log_severity_level = 3  # errors only; we report a provider that does not load
        options.add_session_config_entry("session.force_spinning_stop", "1")  # when a call ends
        return options


def _import_onnxruntime() -> Any:
    try:
        import onnxruntime
    except ImportError as error:
        raise missing("onnxruntime") from error
    return onnxruntime


def _check_cuda_build(ort: Any) -> None:
    if "CUDAExecutionProvider" not in ort.get_available_providers():
        wheels = onnxruntime_wheels()
        both = f", because {' and '.join(wheels)} overwrite each other" if len(wheels) > 1 else ""
        raise UserError(f"this onnxruntime has no CUDA{both}: {_remedy(cuda=True)}")
    # onnxruntime >= 1.21 loads CUDA and cuDNN from pip's nvidia packages. Without those packages
    # the session finds the system's libraries, or reports what is missing.
    if hasattr(ort, "preload_dlls"):
        with suppress(OSError):
            ort.preload_dlls()


def _remedy(cuda: bool) -> str:
    if cuda:
        return f"{reinstall_onnxruntime(gpu=True)} (on a Jetson use --backend tensorrt)"
    return "re-run `mtdit export`, or update onnxruntime"
