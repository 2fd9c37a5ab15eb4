"""Runs a TensorRT engine; finds TensorRT and the GPU of this computer."""

from __future__ import annotations

import ctypes
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mtdit_robots.errors import UserError
from mtdit_robots.extras import missing
from mtdit_runtime.bundle.manifest import Graph, Tensor
from mtdit_runtime.engines.cache import Device
from mtdit_runtime.engines.engine import Arrays


def this_device() -> Device:
    """The GPU and the TensorRT version of this computer. UserError when either is missing."""
    trt, _ = import_tensorrt()
    return Device(*this_gpu(), trt.__version__)


def this_gpu() -> tuple[str, tuple[int, int]]:
    """Name and compute capability of the GPU, without TensorRT. UserError when there is none."""
    cudart = _import_cuda()
    props = _cuda(cudart, cudart.cudaGetDeviceProperties(0))
    gpu = props.name.decode() if isinstance(props.name, bytes) else str(props.name)
    return gpu, (props.major, props.minor)


def import_tensorrt() -> tuple[Any, Any]:
    """The modules tensorrt and cuda.bindings.runtime. UserError with the command that installs a
    missing one.
    """
    try:
        import tensorrt
    except ImportError as error:
        problem = missing(error.name or "tensorrt")
        raise UserError(f"{problem}, on a Jetson apt install python3-libnvinfer") from error
    return tensorrt, _import_cuda()


def _import_cuda() -> Any:
    try:
        from cuda.bindings import runtime
    except ImportError as error:
        raise missing(error.name or "cuda") from error
    return runtime


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
