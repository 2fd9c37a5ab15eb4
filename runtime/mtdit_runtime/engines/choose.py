"""Chooses the backend that runs the graphs of a bundle (ONNX Runtime or TensorRT), and opens them.

A backend that was requested by name and does not run here is an error, never a silent fall-back;
`auto` says what it chose and why. The tensors are filled and read in `policy`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from mtdit_robots.errors import UserError
from mtdit_runtime.bundle.bundle import Bundle
from mtdit_runtime.engines.cache import find_plan
from mtdit_runtime.engines.engine import Engine, Engines
from mtdit_runtime.engines.ort import OnnxEngine
from mtdit_runtime.engines.trt import TensorRTEngine, this_device

BACKENDS = ("auto", "onnx", "cuda", "tensorrt")


def choose_engines(bundle: Bundle, backend: str = "auto") -> Engines:
    """Open vision, history and denoiser on `backend`, one of BACKENDS.

    `auto` takes TensorRT if the bundle holds engines for exactly this device, else CUDA if it
    really runs, else the CPU. UserError when a backend requested by name does not run here.
    """
    if backend not in BACKENDS:
        raise UserError(f"backend {backend!r} is unknown: use one of {', '.join(BACKENDS)}")
    if backend != "auto":
        return _open(bundle, backend, f"{backend}, as requested")
    unavailable: list[str] = []
    for candidate in ("tensorrt", "cuda"):
        engines = _try_open(bundle, candidate, unavailable)
        if engines is not None:
            return engines
    return _open(bundle, "onnx", "; ".join(["auto: CPU", *unavailable]))


def _try_open(bundle: Bundle, backend: str, unavailable: list[str]) -> Engines | None:
    try:
        return _open(bundle, backend, "; ".join([f"auto: {backend}", *unavailable]))
    except UserError as error:
        unavailable.append(f"{backend} unavailable ({error})")
        return None


def _open(bundle: Bundle, backend: str, reason: str) -> Engines:
    if backend == "tensorrt":
        device = this_device()
        engines = _engines(
            bundle, lambda name: _from_plan(bundle, find_plan(bundle, name, device), name), reason
        )
    else:
        engines = _engines(
            bundle, lambda name: _from_onnx(bundle, name, cuda=backend == "cuda"), reason
        )
    return replace(engines, half_sums=backend != "onnx")


def engines_in(bundle: Bundle, folder: Path) -> Engines:
    """TensorRT engines from the plans in a folder. Its record is not checked."""
    engines = _engines(
        bundle,
        lambda name: _from_plan(bundle, folder / f"{name}.plan", name),
        f"tensorrt, {folder.name}",
    )
    return replace(engines, half_sums=True)


def _engines(bundle: Bundle, open_graph: Callable[[str], Engine], reason: str) -> Engines:
    graphs = bundle.manifest.graphs
    vision = open_graph("vision") if "vision" in graphs else None
    open_rtc = (lambda: open_graph("guided")) if "guided" in graphs else None
    history, denoiser = open_graph("history"), open_graph("denoiser")
    return Engines(vision, history, denoiser, lambda: _from_onnx(bundle, "text"), reason, open_rtc)


def _from_onnx(bundle: Bundle, name: str, cuda: bool = False) -> Engine:
    graph = bundle.manifest.graphs[name]
    return OnnxEngine(bundle.path(graph.file), graph, name, cuda=cuda)


def _from_plan(bundle: Bundle, plan: Path, name: str) -> Engine:
    return TensorRTEngine(plan, bundle.manifest.graphs[name], name)
