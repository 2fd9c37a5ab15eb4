"""Runs the graphs of a bundle: one class per backend (ONNX Runtime, TensorRT) and the choice
between them.

A backend that was requested by name and does not run here is an error, never a silent fall-back;
`auto` says what it chose and why. What the tensors mean is `policy`'s business.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from mtdit_robots.errors import UserError
from mtdit_runtime.bundle import Bundle, Graph, Tensor
from mtdit_runtime.engine_cache import Device, find_plan

BACKENDS = ("auto", "onnx", "cuda", "tensorrt")
MAX_THREADS = 4  # more do not speed up a batch of 1, and the control loop needs a core for itself

Arrays = dict[str, NDArray[Any]]


class Engine(Protocol):
    """A graph that can be called. Not re-entrant; the caller owns the returned arrays."""

    @property
    def name(self) -> str: ...

    def __call__(self, inputs: Mapping[str, NDArray[Any]]) -> Arrays:
        """Tensor name -> array, for the graph's inputs and outputs."""
        ...

    def describe(self) -> str:
        """One line for the user: backend, device, version."""
        ...


@dataclass(frozen=True)
class Engines:
    """The engines of a bundle. The text encoder is opened only for a task not seen in training."""

    vision: Engine | None  # None: the policy has no cameras
    history: Engine
    denoiser: Engine
    open_text: Callable[[], Engine]
    reason: str  # what was chosen and why, one line
    open_guided: Callable[[], Engine] | None = None  # None: exported without --rtc

    @property
    def per_chunk(self) -> list[Engine]:
        return [*([self.vision] if self.vision else []), self.history, self.denoiser]


def choose_engines(bundle: Bundle, backend: str = "auto") -> Engines:
    """Open vision, history and denoiser on `backend`, one of BACKENDS.

    `auto` takes TensorRT if the bundle holds engines for exactly this device, else CUDA if it
    really runs, else the CPU. UserError when a backend requested by name does not run here.
    """
    if backend not in BACKENDS:
        raise UserError(f"backend {backend!r} is unknown: use one of {', '.join(BACKENDS)}")
    if backend != "auto":
        return _open(bundle, backend, f"{backend}, as requested")
    passed_over: list[str] = []
    for candidate in ("tensorrt", "cuda"):
        engines = _try_open(bundle, candidate, passed_over)
        if engines is not None:
            return engines
    return _open(bundle, "onnx", "; ".join(["auto: CPU", *passed_over]))


def _try_open(bundle: Bundle, backend: str, passed_over: list[str]) -> Engines | None:
    try:
        return _open(bundle, backend, "; ".join([f"auto: {backend}", *passed_over]))
    except UserError as error:
        passed_over.append(f"{backend} unavailable ({error})")
        return None


def _open(bundle: Bundle, backend: str, reason: str) -> Engines:
    if backend == "tensorrt":
        device = this_device()
        return _engines(
            bundle, lambda name: _from_plan(bundle, find_plan(bundle, name, device), name), reason
        )
    return _engines(bundle, lambda name: _from_onnx(bundle, name, cuda=backend == "cuda"), reason)


def engines_in(bundle: Bundle, folder: Path) -> Engines:
    """TensorRT engines from the plans in a folder. Its record is not checked."""
    return _engines(
        bundle,
        lambda name: _from_plan(bundle, folder / f"{name}.plan", name),
        f"tensorrt, {folder.name}",
    )


def _engines(bundle: Bundle, open_graph: Callable[[str], Engine], reason: str) -> Engines:
    graphs = bundle.manifest.graphs
    vision = open_graph("vision") if "vision" in graphs else None
    open_guided = (lambda: open_graph("guided")) if "guided" in graphs else None
    history, denoiser = open_graph("history"), open_graph("denoiser")
    return Engines(
        vision, history, denoiser, lambda: _from_onnx(bundle, "text"), reason, open_guided
    )


def _from_onnx(bundle: Bundle, name: str, cuda: bool = False) -> Engine:
    graph = bundle.manifest.graphs[name]
    return OnnxEngine(bundle.path(graph.file), graph, name, cuda=cuda)


def _from_plan(bundle: Bundle, plan: Path, name: str) -> Engine:
    return TensorRTEngine(plan, bundle.manifest.graphs[name], name)


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
                f"ONNX Runtime cannot run {path} ({_first_line(error)}): {_remedy(cuda)}"
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
        raise UserError('onnxruntime is not installed: pip install "mtdit[runtime]"') from error
    return onnxruntime


def _check_cuda_build(ort: Any) -> None:
    if "CUDAExecutionProvider" not in ort.get_available_providers():
        raise UserError(f"this onnxruntime has no CUDA: {_remedy(cuda=True)}")
    # onnxruntime >= 1.21 loads CUDA and cuDNN from pip's nvidia packages. Without those packages
    # the session finds the system's libraries, or reports what is missing.
    if hasattr(ort, "preload_dlls"):
        with suppress(OSError):
            ort.preload_dlls()


def _remedy(cuda: bool) -> str:
    if cuda:
        return (
            'pip uninstall onnxruntime, then pip install "mtdit[gpu]" '
            "(on a Jetson use --backend tensorrt)"
        )
    return "re-run `mtdit export`, or update onnxruntime"


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:200]


def this_device() -> Device:
    """The GPU and the TensorRT version of this computer. UserError when either is missing."""
    trt, cudart = import_tensorrt()
    props = _cuda(cudart, cudart.cudaGetDeviceProperties(0))
    gpu = props.name.decode() if isinstance(props.name, bytes) else str(props.name)
    return Device(gpu, (props.major, props.minor), trt.__version__)


def import_tensorrt() -> tuple[Any, Any]:
    """The modules tensorrt and cuda.bindings.runtime. UserError with the command that installs a
    missing one.
    """
    try:
        import tensorrt
        from cuda.bindings import runtime
    except ImportError as error:
        raise UserError(
            f'{error.name} is not installed: pip install "mtdit[tensorrt]", '
            "on a Jetson apt install python3-libnvinfer"
        ) from error
    return tensorrt, runtime


def _cuda(cudart: Any, result: tuple[Any, ...]) -> Any:
    """Unpack what a cuda.bindings call returned: (error, value...)."""
    error, *values = result
    if error != cudart.cudaError_t.cudaSuccess:
        text = cudart.cudaGetErrorString(error)[1].decode()
        raise UserError(f"CUDA: {text} ({error.name}): check `nvidia-smi`, or use --backend onnx")
    return values[0] if values else None


class TensorRTEngine:
    """A TensorRT plan with static shapes, replayed as one CUDA graph: upload, inference, download.

    Uses only what TensorRT 10.3 to 11 share (named tensors, `execute_async_v3`). Host buffers are
    pinned and no address ever changes, so the captured graph stays valid. Buffers are freed when
    the process ends, since it opens its engines only once.
    """

    def __init__(self, plan: Path, graph: Graph, name: str) -> None:
        self._trt, self._cudart = import_tensorrt()
        self.name, self._plan, self._graph = name, plan, graph
        logger = self._trt.Logger(self._trt.Logger.ERROR)
        self._runtime = self._trt.Runtime(logger)  # must outlive the engine
        self._engine = self._runtime.deserialize_cuda_engine(plan.read_bytes())
        if self._engine is None:
            raise UserError(
                f"TensorRT {self._trt.__version__} cannot load {plan}: "
                "run `mtdit build` again on this computer"
            )
        self._context = self._engine.create_execution_context()
        if self._context is None:
            raise UserError(
                f"not enough memory to run {plan}: close other programs, or use --backend onnx"
            )
        self._stream = self._check(self._cudart.cudaStreamCreate())
        self._host: Arrays = {}
        self._device: dict[str, int] = {}
        for tensor in (*graph.inputs, *graph.outputs):
            self._allocate(tensor)
        self._launch = self._capture()

    def __call__(self, inputs: Mapping[str, NDArray[Any]]) -> Arrays:
        for tensor in self._graph.inputs:
            np.copyto(self._host[tensor.name], inputs[tensor.name], casting="same_kind")
        self._check(self._cudart.cudaGraphLaunch(self._launch, self._stream))
        self._check(self._cudart.cudaStreamSynchronize(self._stream))
        return {tensor.name: self._host[tensor.name].copy() for tensor in self._graph.outputs}

    def describe(self) -> str:
        return f"{self.name}: TensorRT {self._trt.__version__}, {self._plan.parent.name}"

    def _check(self, result: tuple[Any, ...]) -> Any:
        return _cuda(self._cudart, result)

    def _allocate(self, tensor: Tensor) -> None:
        """A pinned host array and a device buffer for one tensor, both at fixed addresses."""
        name, shape = tensor.name, tuple(self._engine.get_tensor_shape(tensor.name))
        dtype = np.dtype(self._trt.nptype(self._engine.get_tensor_dtype(name)))
        if (shape, dtype.name) != (tensor.shape, tensor.dtype):
            raise UserError(
                f"{self._plan}: {name} is {dtype.name} {shape}, the manifest says {tensor.dtype} "
                f"{tensor.shape}: run `mtdit build` again on this computer"
            )
        n_bytes = int(np.prod(shape)) * dtype.itemsize
        pinned = int(
            self._check(self._cudart.cudaHostAlloc(n_bytes, self._cudart.cudaHostAllocDefault))
        )
        raw = (ctypes.c_uint8 * n_bytes).from_address(pinned)
        self._host[name] = np.frombuffer(raw, dtype).reshape(shape)
        self._host[name][...] = 0
        self._device[name] = int(self._check(self._cudart.cudaMalloc(n_bytes)))
        self._context.set_tensor_address(name, self._device[name])

    def _enqueue(self) -> None:
        kind = self._cudart.cudaMemcpyKind
        for tensor in self._graph.inputs:
            self._copy(self._device[tensor.name], tensor.name, kind.cudaMemcpyHostToDevice)
        if not self._context.execute_async_v3(int(self._stream)):
            raise UserError(
                f"TensorRT cannot run {self._plan}: run `mtdit build` again on this computer"
            )
        for tensor in self._graph.outputs:
            self._copy(self._device[tensor.name], tensor.name, kind.cudaMemcpyDeviceToHost)

    def _copy(self, device: int, name: str, kind: Any) -> None:
        host = self._host[name]
        up = kind == self._cudart.cudaMemcpyKind.cudaMemcpyHostToDevice
        to, source = (device, host.ctypes.data) if up else (host.ctypes.data, device)
        self._check(self._cudart.cudaMemcpyAsync(to, source, host.nbytes, kind, self._stream))

    def _capture(self) -> Any:
        """Capture the CUDA graph after one ordinary run: TensorRT may allocate on its first run,
        which a capture does not allow.
        """
        self._enqueue()
        self._check(self._cudart.cudaStreamSynchronize(self._stream))
        mode = self._cudart.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
        self._check(self._cudart.cudaStreamBeginCapture(self._stream, mode))
        self._enqueue()
        graph = self._check(self._cudart.cudaStreamEndCapture(self._stream))
        return self._check(self._cudart.cudaGraphInstantiate(graph, 0))
