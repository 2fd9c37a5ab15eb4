"""Builds one TensorRT engine from one ONNX graph, with progress and plain errors."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mtdit_robots.errors import ExportError
from mtdit_robots.files import new_file
from mtdit_runtime.check import FAIL
from mtdit_runtime.jetson import check_platform

WORKSPACE_MB = 1024  # by default the builder takes all GPU memory, on a Jetson the computer's own
FREE_MEMORY = "close other programs and the desktop, lower --workspace-mb, or use --backend onnx"
TICK_S = 0.1  # how often the progress of a build is reported
OnProgress = Callable[[str, float, float], None]  # graph, share done in 0..1, elapsed seconds


class PlanBuilder:
    """A TensorRT builder: ONNX file in, plan file out.

    `compute_capability` builds ahead of time for another GPU, which only TensorRT for RTX supports;
    None means this GPU.
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
        self.log = make_log(trt)  # TensorRT wants one per process
        try:
            self.builder = trt.Builder(self.log)
        except (TypeError, RuntimeError) as error:
            raise self._refusal(f"cannot start here ({error})") from error

    def plan(
        self,
        onnx: Path,
        plan: Path,
        on_share: Callable[[float, float], None] = lambda share, s: None,
    ) -> int:
        """Build and write a plan; returns its size in bytes. ExportError with TensorRT's reason
        when it refuses.

        on_share is called with the share done and the elapsed seconds, several times a second, in
        the caller's thread.
        """
        flag = self.trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED
        network = self.builder.create_network(1 << int(flag))
        parser = self.trt.OnnxParser(network, self.log)
        if not parser.parse_from_file(str(onnx)):
            reasons = [parser.get_error(i).desc() for i in range(parser.num_errors)]
            raise self._refusal(
                f"does not accept {onnx}: {'; '.join(reasons)}", "run with --backend onnx"
            )
        config = self._config()
        serialized = self._watched(network, config, on_share)
        if serialized is None:
            raise self._refusal(f"cannot build {onnx}")
        self._keep_timing_cache(config)
        plan.write_bytes(serialized)
        return plan.stat().st_size

    def close(self) -> None:
        del self.builder

    def _watched(self, network: Any, config: Any, on_share: Callable[[float, float], None]) -> Any:
        """Build in another thread, so that this one can report progress and be interrupted."""
        monitor, result = make_monitor(self.trt), []
        config.progress_monitor = monitor
        thread = threading.Thread(
            target=lambda: result.append(self.builder.build_serialized_network(network, config))
        )
        began = time.perf_counter()
        thread.start()
        try:
            while thread.is_alive():
                thread.join(TICK_S)
                on_share(monitor.share(), time.perf_counter() - began)
        finally:
            monitor.wanted = False
            thread.join()
        return result[0] if result else None

    def _config(self) -> Any:
        config = self.builder.create_builder_config()
        config.set_memory_pool_limit(self.trt.MemoryPoolType.WORKSPACE, self.workspace_mb << 20)
        config.clear_flag(self.trt.BuilderFlag.TF32)  # float32 in the graph stays float32
        if self.compute_capability is not None:
            config.num_compute_capabilities = 1
            config.set_compute_capability(
                getattr(self.trt.ComputeCapability, self.compute_capability), 0
            )
        if self.timing_cache is not None:
            saved = self.timing_cache.read_bytes() if self.timing_cache.is_file() else b""
            cache = config.create_timing_cache(saved)
            if not config.set_timing_cache(cache, ignore_mismatch=False):  # from another driver
                config.set_timing_cache(config.create_timing_cache(b""), ignore_mismatch=False)
        return config

    def _keep_timing_cache(self, config: Any) -> None:
        if self.timing_cache is None:
            return
        with new_file(self.timing_cache) as part:
            part.write_bytes(config.get_timing_cache().serialize())

    def _refusal(self, what: str, hint: str = FREE_MEMORY) -> ExportError:
        """An error with TensorRT's last message and the known problems of this computer."""
        reason = f" ({self.log.errors[-1]})" if self.log.errors else ""
        return ExportError(
            f"TensorRT {self.trt.__version__} {what}{reason}: {'; '.join([*known_problem(), hint])}"
        )


def known_problem(root: Path = Path("/")) -> list[str]:
    """Known problems of a Jetson's system software: L4T 36.4.7 fails to allocate memory that is
    free.
    """
    return [
        f"{check.finding}: {check.remedy}" for check in check_platform(root) if check.status == FAIL
    ]


def make_log(trt: Any) -> Any:
    """A logger that keeps TensorRT's errors for our own messages and prints nothing."""
    kept = (trt.ILogger.Severity.ERROR, trt.ILogger.Severity.INTERNAL_ERROR)

    class Log(trt.ILogger):
        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.errors: list[str] = []

        def log(self, severity: Any, message: str) -> None:
            if severity in kept:
                self.errors.append(message)

    return Log()


def make_monitor(trt: Any) -> Any:
    """TensorRT's progress as one number: its threads report, ours calls `share()`. `wanted` = False
    ends the build early.
    """

    class Monitor(trt.IProgressMonitor):
        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)
            self.wanted, self._done = True, 0.0
            # running phases: name -> parent, steps, steps done
            self._phases: dict[str, tuple[str | None, int, int]] = {}

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            self._phases[phase_name] = (parent_phase, num_steps, 0)

        def step_complete(self, phase_name: str, step: int) -> bool:
            if phase_name in self._phases:
                parent, steps, _ = self._phases[phase_name]
                self._phases[phase_name] = (parent, steps, step + 1)
            return self.wanted

        def phase_finish(self, phase_name: str) -> None:
            self._phases.pop(phase_name, None)

        def share(self) -> float:
            """The share done in 0..1. It never decreases from one call to the next."""
            self._done = max(self._done, self._share_of(None))
            return self._done

        def _share_of(self, parent: str | None) -> float:
            """Share done of the running phases; a step counts partly, by its own sub-phases."""
            phases = list(self._phases.items())
            shares = [
                (done + self._share_of(p)) / max(steps, 1)
                for p, (above, steps, done) in phases
                if above == parent
            ]
            return min(1.0, max(shares, default=0.0))

    return Monitor()
