"""A bundle's graphs -> TensorRT engines for this very GPU, in the bundle's `engines/` cache.

Knows the builder calls that TensorRT 10.3 to 11 and TensorRT for RTX share; the module comes in as an argument, so the
same code runs on a Jetson, and ahead of time where there is no GPU. Precision is in the ONNX file: networks are
strongly typed. Refuses to know torch and ONNX; it runs on the robot computer.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mtdit_robots.errors import UserError
from mtdit_runtime.bundle import ENGINES, Bundle
from mtdit_runtime.engine import device_key

WORKSPACE_MB = 1024  # the builder would take all memory, which on a Jetson is the computer's own
TIMING_CACHE = "timing.cache"  # per TensorRT version and GPU, beside the engines: makes a rebuild quick
ON_GPU = ("vision", "denoiser")  # the text encoder runs once per unknown task, on the CPU

OnLine = Callable[[str], None]


def build(bundle: Bundle, trt: Any, workspace_mb: int = WORKSPACE_MB, on_line: OnLine = lambda line: None) -> Path:
    """Engines for the GPU of this computer; returns their folder, at once if they are there already.

    Takes minutes on a small board, and the GPU is not free meanwhile. Raises UserError when TensorRT refuses a graph.
    """
    folder = bundle.path(ENGINES) / device_key(bundle)
    if folder.is_dir():
        on_line(f"engines are up to date: {folder}")
        return folder
    graphs = [name for name in ON_GPU if name in bundle.manifest.graphs]
    scratch = folder.with_name(f".{folder.name}.{os.getpid()}.part")
    scratch.mkdir(parents=True)
    try:
        builder = PlanBuilder(trt, workspace_mb, bundle.path(ENGINES) / TIMING_CACHE)
        for name in graphs:
            began = time.perf_counter()
            size = builder.plan(bundle.path(bundle.manifest.graphs[name].file), scratch / f"{name}.plan")
            on_line(f"built {name}.plan: {size / 1e6:.1f} MB in {time.perf_counter() - began:.0f} s")
        scratch.rename(folder)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return folder


class PlanBuilder:
    """One TensorRT builder: ONNX file in, plan file out.

    `compute_capability` builds ahead of time for another GPU, which only TensorRT for RTX can; None means this one.
    """

    def __init__(
        self,
        trt: Any,
        workspace_mb: int = WORKSPACE_MB,
        timing_cache: Path | None = None,
        compute_capability: str | None = None,
    ) -> None:
        self.trt, self.workspace_mb, self.timing_cache = trt, workspace_mb, timing_cache
        self.compute_capability = compute_capability
        self.logger = trt.Logger(trt.Logger.ERROR)  # TensorRT wants one per process
        self.builder = trt.Builder(self.logger)

    def plan(self, onnx: Path, plan: Path) -> int:
        """Builds and writes; returns the plan's size in bytes. UserError with TensorRT's reason when it refuses."""
        flag = self.trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED
        network = self.builder.create_network(1 << int(flag))
        parser = self.trt.OnnxParser(network, self.logger)
        if not parser.parse_from_file(str(onnx)):
            reasons = [parser.get_error(i).desc() for i in range(parser.num_errors)]
            raise UserError(f"TensorRT {self.trt.__version__} does not take {onnx}: {'; '.join(reasons)}")
        config = self._config()
        serialized = self.builder.build_serialized_network(network, config)
        if serialized is None:
            raise UserError(
                f"TensorRT {self.trt.__version__} cannot build {onnx}: its log above says why; free memory, "
                "close the desktop, or run with --backend onnx"
            )
        self._keep_timing_cache(config)
        plan.write_bytes(serialized)
        return plan.stat().st_size

    def _config(self) -> Any:
        config = self.builder.create_builder_config()
        config.set_memory_pool_limit(self.trt.MemoryPoolType.WORKSPACE, self.workspace_mb << 20)
        config.clear_flag(self.trt.BuilderFlag.TF32)  # what is float32 in the graph is meant to be
        if self.compute_capability is not None:
            config.num_compute_capabilities = 1
            config.set_compute_capability(getattr(self.trt.ComputeCapability, self.compute_capability), 0)
        if self.timing_cache is not None and hasattr(config, "create_timing_cache"):
            known = self.timing_cache.read_bytes() if self.timing_cache.is_file() else b""
            config.set_timing_cache(config.create_timing_cache(known), ignore_mismatch=False)
        return config

    def _keep_timing_cache(self, config: Any) -> None:
        if self.timing_cache is None or not hasattr(config, "get_timing_cache"):
            return
        part = self.timing_cache.with_suffix(".part")
        part.write_bytes(config.get_timing_cache().serialize())
        part.replace(self.timing_cache)
