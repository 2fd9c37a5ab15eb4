"""Builds TensorRT engines for the GPU of this computer from a bundle's graphs, into its `engines/`.

Uses only builder calls that TensorRT 10.3 to 11 and TensorRT for RTX share. The TensorRT module is
an argument, so the same code runs on a Jetson and, ahead of time, on a computer without GPU. The
precision is in the ONNX file: networks are strongly typed. Engines are kept only after they have
reproduced the bundle's golden chunks here. Runs on the robot computer, without torch and ONNX.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from mtdit_export.errors import ExportError
from mtdit_robots.errors import UserError
from mtdit_runtime.bundle import ENGINES, Bundle, sha256
from mtdit_runtime.doctor import FAIL, check_jetson
from mtdit_runtime.engine import Engines, engines_in
from mtdit_runtime.engine_cache import (
    Device,
    EngineRecord,
    engine_folder,
    engine_records,
    graph_hashes,
    misfit,
    read_record,
    trouble,
    write_record,
)
from mtdit_runtime.golden import check_bundle
from mtdit_runtime.words import plain

WORKSPACE_MB = 1024  # by default the builder takes all GPU memory, on a Jetson the computer's own
FREE_MEMORY = "close other programs and the desktop, lower --workspace-mb, or use --backend onnx"
TICK_S = 0.1  # how often the progress of a build is reported

OnLine = Callable[[str], None]
OnProgress = Callable[[str, float, float], None]  # graph, share done in 0..1, elapsed seconds
OpenEngines = Callable[[Bundle, Path], Engines]  # opens the plans of a folder


def build(
    bundle: Bundle,
    trt: Any,
    device: Device,
    workspace_mb: int = WORKSPACE_MB,
    clean: bool = False,
    open_engines: OpenEngines = engines_in,
    on_line: OnLine = lambda line: None,
    on_progress: OnProgress = lambda graph, share, elapsed_s: None,
    compute_capability: str | None = None,
) -> Path:
    """Build the engines for `device` and return their folder, which appears only after the engines
    have reproduced the golden chunks.

    Existing engines are checked, and built again if they fail. A build takes minutes on a small
    board and occupies its GPU. `clean` removes the bundle's engines for other devices, versions and
    graphs; without it they are kept, since a bundle may serve several computers.
    `compute_capability` (e.g. "SM86") builds ahead of time for another GPU, which only TensorRT for
    RTX supports.

    ExportError when TensorRT refuses a graph or an engine does not compute the policy, UserError
    when another build is running. Either leaves nothing behind except TensorRT's timing cache.
    """
    cache, folder = bundle.path(ENGINES), engine_folder(bundle, device)
    with _alone_in(cache):
        for part in cache.glob(".*.part"):  # left by a build that was killed
            shutil.rmtree(part)
        if _still_good(bundle, device, open_engines, on_line):
            on_line(f"engines are up to date: {folder}")
        else:
            builder = PlanBuilder(
                trt, workspace_mb, cache / f"timing-{device.label}.cache", compute_capability
            )
            _make(bundle, device, builder, open_engines, on_line, on_progress)
        _mind_others(bundle, folder, clean, on_line)
    return folder


@contextmanager
def _alone_in(folder: Path) -> Iterator[None]:
    try:
        folder.mkdir(exist_ok=True)
    except FileExistsError:
        raise UserError(f"{folder} is a file and should be a folder: remove it") from None
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    except BlockingIOError:
        raise UserError(f"another build is running in {folder}: wait until it ends") from None
    finally:
        os.close(descriptor)
        with suppress(OSError):
            folder.rmdir()  # only if it is empty


def _still_good(bundle: Bundle, device: Device, open_engines: OpenEngines, on_line: OnLine) -> bool:
    """Whether engines for this device exist and pass their check now."""
    folder = engine_folder(bundle, device)
    record = read_record(folder)
    if record is None:
        return False
    found = [
        why
        for why in (misfit(folder, record, bundle, device), trouble(folder, record, bundle))
        if why
    ]
    try:
        found = found or check_bundle(bundle, open_engines(bundle, folder), text=False).failures
    except UserError as error:
        found = [str(error)]
    if found:
        on_line(f"rebuilding the engines in {folder}, they failed their check: {found[0]}")
    return not found


def _make(
    bundle: Bundle,
    device: Device,
    builder: PlanBuilder,
    open_engines: OpenEngines,
    on_line: OnLine,
    on_progress: OnProgress,
) -> None:
    """Build, check and record the engines in a scratch folder, then rename it into place."""
    folder = engine_folder(bundle, device)
    scratch = folder.with_name(f".{folder.name}.part")
    scratch.mkdir()
    try:
        record = _plans(bundle, device, builder, scratch, on_line, on_progress)
        builder.close()  # a small board has no memory for builder and engines at once
        checked = _checked(bundle, _opened(bundle, scratch, open_engines))
        built = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        write_record(scratch, replace(record, checked=checked, built=built))
        shutil.rmtree(folder, ignore_errors=True)
        scratch.rename(folder)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    on_line(f"verified on {device.gpu}: largest error {checked['robot']['max_error']:.2g} degrees")


def _plans(
    bundle: Bundle,
    device: Device,
    builder: PlanBuilder,
    scratch: Path,
    on_line: OnLine,
    on_progress: OnProgress,
) -> EngineRecord:
    hashes, bytes_of, seconds, plans = graph_hashes(bundle), {}, {}, {}
    for name in hashes:
        onnx, began = bundle.path(bundle.manifest.graphs[name].file), time.perf_counter()
        on_line(f"building {name} from {onnx.stat().st_size / 1e6:.1f} MB of ONNX")
        bytes_of[name] = builder.plan(onnx, scratch / f"{name}.plan", partial(on_progress, name))
        seconds[name] = round(time.perf_counter() - began, 1)
        plans[name] = sha256(scratch / f"{name}.plan")
        on_line(f"built {name}.plan: {bytes_of[name] / 1e6:.1f} MB in {seconds[name]:.0f} s")
    m = bundle.manifest
    return EngineRecord(
        device.gpu,
        device.compute_capability,
        device.tensorrt,
        m.precision,
        hashes,
        bytes_of,
        seconds,
        plans=plans,
    )


def _opened(bundle: Bundle, scratch: Path, open_engines: OpenEngines) -> Engines:
    """The engines of a scratch folder. Its path means nothing to the user and is left out of an
    error.
    """
    try:
        return open_engines(bundle, scratch)
    except UserError as error:
        raise UserError(str(error).replace(f"{scratch}/", "")) from error


def _checked(bundle: Bundle, engines: Engines) -> dict[str, dict[str, float]]:
    """Stage -> figures. ExportError names the stages that fail."""
    result = check_bundle(bundle, engines, text=False)
    if result.failures:
        raise ExportError(
            f"the outputs of the {bundle.manifest.precision} engines differ from the trained "
            f"policy, so the engines were deleted: {'; '.join(result.failures)}: "
            "run with --backend onnx, or export in another precision"
        )
    return result.stages


def _mind_others(bundle: Bundle, folder: Path, clean: bool, on_line: OnLine) -> None:
    """Report engines for other devices, versions or graphs, and remove them if asked to."""
    for other, record in engine_records(bundle).items():
        if other == folder:
            continue
        megabytes = sum(record.bytes.values()) / 1e6
        made_for = f"{plain(record.gpu, 40)}, TensorRT {plain(record.tensorrt, 40)}"
        what = f"{megabytes:.0f} MB of engines for {made_for}: {plain(other.name)}"
        if clean:
            shutil.rmtree(other)
        on_line(f"removed {what}" if clean else f"kept {what} (--clean removes them)")


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
        part = self.timing_cache.with_suffix(".part")
        part.write_bytes(config.get_timing_cache().serialize())
        part.replace(self.timing_cache)

    def _refusal(self, what: str, hint: str = FREE_MEMORY) -> ExportError:
        """An error with TensorRT's last message and the known problems of this computer."""
        reason = f" ({self.log.errors[-1]})" if self.log.errors else ""
        return ExportError(
            f"TensorRT {self.trt.__version__} {what}{reason}: {'; '.join([*known_trouble(), hint])}"
        )


def known_trouble(root: Path = Path("/")) -> list[str]:
    """Known problems of a Jetson's system software: L4T 36.4.7 fails to allocate memory that is
    free.
    """
    return [
        f"{check.finding}: {check.remedy}" for check in check_jetson(root) if check.status == FAIL
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
