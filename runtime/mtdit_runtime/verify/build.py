"""Builds TensorRT engines for the GPU of this computer from a bundle's graphs, into its `engines/`.

Uses only builder calls that TensorRT 10.3 to 11 and TensorRT for RTX share. The precision is in the
ONNX file: networks are strongly typed. Engines are kept only after they have reproduced the
bundle's golden chunks here. Runs on the robot computer, without torch and ONNX.
"""

from __future__ import annotations

import logging
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from mtdit_robots.errors import ExportError, UserError
from mtdit_robots.files import new_folder
from mtdit_runtime.bundle.bundle import Bundle, as_bundle
from mtdit_runtime.bundle.manifest import ENGINES
from mtdit_runtime.engines.cache import (
    Device,
    EngineRecord,
    engine_folder,
    engine_records,
    graph_hashes,
    incompatibility,
    plan_problem,
    read_record,
    write_record,
)
from mtdit_runtime.engines.choose import engines_in
from mtdit_runtime.engines.engine import Engines
from mtdit_runtime.engines.trt import import_tensorrt, this_device
from mtdit_runtime.engines.trt_builder import WORKSPACE_MB, OnProgress, PlanBuilder
from mtdit_runtime.files import locked, sha256
from mtdit_runtime.text import printable
from mtdit_runtime.verify.gates import check_bundle

log = logging.getLogger(__name__)

Say = Callable[[str], None]
OpenEngines = Callable[[Bundle, Path], Engines]  # opens the plans of a folder


@dataclass(frozen=True)
class BuildOptions:
    """How to build. clean: remove the bundle's engines for other devices, versions and graphs;
    without it they are kept, since a bundle may serve several computers.
    """

    workspace_mb: int = WORKSPACE_MB  # memory that TensorRT may use while it tries kernels
    clean: bool = False


def build(
    bundle: Bundle | Path | str,
    options: BuildOptions = BuildOptions(),
    *,
    say: Say | None = None,
    on_progress: OnProgress | None = None,
) -> Path:
    """Build the engines for this computer's GPU and return their folder, which appears only after
    the engines have reproduced the golden chunks.

    Existing engines are checked, and built again if they fail. A build takes minutes on a small
    board and occupies its GPU. say: called with each message for the user. on_progress: called
    several times a second with graph, share done and elapsed seconds.

    UserError when there is no TensorRT or no GPU, or another build is running; ExportError when
    TensorRT refuses a graph or an engine does not compute the policy. Either leaves nothing behind
    except TensorRT's timing cache.
    """
    opened, device = as_bundle(bundle), this_device()
    (say or log.info)(f"{device.gpu}, TensorRT {device.tensorrt}: the GPU is busy until this ends")
    return build_for(
        device, opened, import_tensorrt()[0], options, say=say, on_progress=on_progress
    )


def build_for(
    device: Device,
    bundle: Bundle,
    trt: Any,
    options: BuildOptions = BuildOptions(),
    *,
    open_engines: OpenEngines = engines_in,
    compute_capability: str | None = None,
    say: Say | None = None,
    on_progress: OnProgress | None = None,
) -> Path:
    """`build` for a device that may be another computer's, with the module `tensorrt` or
    `tensorrt_rtx`.

    `compute_capability` (e.g. "SM86") builds ahead of time for another GPU, which only TensorRT for
    RTX supports; `open_engines` then opens what can check the engines here.
    """
    tell, progress = say or log.info, on_progress or (lambda graph, share, elapsed_s: None)
    cache, folder = bundle.path(ENGINES), engine_folder(bundle, device)
    with _build_lock(cache):
        for part in cache.glob(".*.part"):  # left by a build that was killed
            shutil.rmtree(part)
        if _still_good(bundle, device, open_engines, tell):
            tell(f"engines are up to date: {folder}")
        else:
            timings = cache / f"timing-{device.label}.cache"
            builder = PlanBuilder(trt, options.workspace_mb, timings, compute_capability)
            _make(bundle, device, builder, open_engines, tell, progress)
        _report_others(bundle, folder, options.clean, tell)
    return folder


@contextmanager
def _build_lock(folder: Path) -> Iterator[None]:
    try:
        folder.mkdir(exist_ok=True)
    except FileExistsError:
        raise UserError(f"{folder} is a file and should be a folder: remove it") from None
    with locked(folder, f"another build is running in {folder}: wait until it ends"):
        try:
            yield
        finally:
            with suppress(OSError):
                folder.rmdir()  # only if it is empty


def _still_good(bundle: Bundle, device: Device, open_engines: OpenEngines, tell: Say) -> bool:
    """Whether engines for this device exist and pass their check now."""
    folder = engine_folder(bundle, device)
    record = read_record(folder)
    if record is None:
        return False
    found = [
        why
        for why in (
            incompatibility(folder, record, bundle, device),
            plan_problem(folder, record, bundle),
        )
        if why
    ]
    try:
        found = found or check_bundle(bundle, open_engines(bundle, folder), text=False).failures
    except UserError as error:
        found = [str(error)]
    if found:
        tell(f"rebuilding the engines in {folder}, they failed their check: {found[0]}")
    return not found


def _make(
    bundle: Bundle,
    device: Device,
    builder: PlanBuilder,
    open_engines: OpenEngines,
    tell: Say,
    on_progress: OnProgress,
) -> None:
    """Build, check and record the engines in a scratch folder, then rename it into place."""
    folder = engine_folder(bundle, device)
    with new_folder(folder) as scratch:
        record = _plans(bundle, device, builder, scratch, tell, on_progress)
        builder.close()  # a small board has no memory for builder and engines at once
        checked = _checked(bundle, _opened(bundle, scratch, open_engines))
        built = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        write_record(scratch, replace(record, checked=checked, built=built))
    tell(f"verified on {device.gpu}: largest error {checked['robot']['max_error']:.2g} degrees")


def _plans(
    bundle: Bundle,
    device: Device,
    builder: PlanBuilder,
    scratch: Path,
    tell: Say,
    on_progress: OnProgress,
) -> EngineRecord:
    hashes, bytes_of, seconds, plans = graph_hashes(bundle), {}, {}, {}
    for name in hashes:
        onnx, began = bundle.path(bundle.manifest.graphs[name].file), time.perf_counter()
        tell(f"building {name} from {onnx.stat().st_size / 1e6:.1f} MB of ONNX")
        bytes_of[name] = builder.plan(onnx, scratch / f"{name}.plan", partial(on_progress, name))
        seconds[name] = round(time.perf_counter() - began, 1)
        plans[name] = sha256(scratch / f"{name}.plan")
        tell(f"built {name}.plan: {bytes_of[name] / 1e6:.1f} MB in {seconds[name]:.0f} s")
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
            "run with --backend onnx, or export in another precision",
            result.stages,
        )
    return result.stages


def _report_others(bundle: Bundle, folder: Path, clean: bool, tell: Say) -> None:
    """Report engines for other devices, versions or graphs, and remove them if asked to."""
    for other, record in engine_records(bundle).items():
        if other == folder:
            continue
        megabytes = sum(record.bytes.values()) / 1e6
        made_for = f"{printable(record.gpu, 40)}, TensorRT {printable(record.tensorrt, 40)}"
        what = f"{megabytes:.0f} MB of engines for {made_for}: {printable(other.name)}"
        if clean:
            shutil.rmtree(other)
        tell(f"removed {what}" if clean else f"kept {what} (--clean removes them)")
