"""Backends: what runs here runs right, what does not says so and is never replaced in silence."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest

from mtdit_robots.errors import UserError
from mtdit_robots.extras import install
from mtdit_runtime.bundle.bundle import Bundle
from mtdit_runtime.engines.choose import choose_engines
from mtdit_runtime.engines.ort import OnnxEngine

NO_CUDA = "CUDAExecutionProvider" not in onnxruntime.get_available_providers()


def test_onnx_engine_computes(bundle: Bundle, toy: Any) -> None:
    graph = bundle.manifest.graphs["vision"]
    engine = OnnxEngine(bundle.path(graph.file), graph, "vision")
    frames = {
        c: np.random.default_rng(1).integers(0, 256, (4, 6, 3), np.uint8) for c in ("top", "wrist")
    }
    out = engine({f"frame.{c}": frame for c, frame in frames.items()})
    assert list(out) == ["features"]
    np.testing.assert_allclose(out["features"][0], toy.vision(frames), rtol=1e-5)
    assert "vision: ONNX Runtime" in engine.describe()
    assert "CPU" in engine.describe()


def test_auto_says_what_it_passed_over_and_why(bundle: Bundle) -> None:
    engines = choose_engines(bundle)
    assert engines.reason.startswith("auto: ")
    if NO_CUDA:
        assert "tensorrt unavailable (" in engines.reason
        assert "cuda unavailable (this onnxruntime has no CUDA" in engines.reason
    assert choose_engines(bundle, "onnx").reason == "onnx, as requested"


def test_a_backend_asked_for_that_cannot_run_is_an_error(bundle: Bundle) -> None:
    for backend in ("cuda", "tensorrt") if NO_CUDA else ():
        with pytest.raises(UserError, match="pip install"):
            choose_engines(bundle, backend)


def test_a_graph_that_gives_other_shapes_is_an_error(bundle: Bundle) -> None:
    graph = bundle.manifest.graphs["vision"]
    wider = replace(graph, outputs=(replace(graph.outputs[0], shape=(1, 7)),))
    with pytest.raises(
        UserError,
        match=r"vision\.onnx: features is float32 \(1, 6\), the manifest says float32 \(1, 7\)",
    ):
        OnnxEngine(bundle.path(graph.file), wider, "vision")


def test_a_broken_graph_is_an_error(bundle: Bundle, tmp_path: Path) -> None:
    (tmp_path / "bad.onnx").write_bytes(b"not a graph")
    with pytest.raises(UserError, match=r"cannot run .*bad\.onnx"):
        OnnxEngine(tmp_path / "bad.onnx", bundle.manifest.graphs["vision"], "vision")


def test_a_graph_that_is_not_what_the_manifest_says_is_an_error(bundle: Bundle) -> None:
    with pytest.raises(UserError, match="re-run `mtdit export`"):
        OnnxEngine(bundle.path("text.onnx"), bundle.manifest.graphs["vision"], "vision")


def test_the_text_encoder_is_opened_only_when_asked(bundle: Bundle) -> None:
    engines = choose_engines(bundle, "onnx")
    assert engines.open_text().name == "text"


def test_a_truncated_graph_is_an_error(bundle: Bundle, tmp_path: Path) -> None:
    (tmp_path / "denoiser.onnx").write_bytes(bundle.path("denoiser.onnx").read_bytes()[:-200])
    with pytest.raises(UserError, match=r"cannot run .*denoiser\.onnx .*: re-run `mtdit export`"):
        OnnxEngine(tmp_path / "denoiser.onnx", bundle.manifest.graphs["denoiser"], "denoiser")


def test_without_onnxruntime_the_message_installs_it(bundle_folder: Path) -> None:
    code = f"""
import sys
sys.modules["onnxruntime"] = None
from pathlib import Path
from mtdit_robots.errors import UserError
from mtdit_runtime.bundle.bundle import open_bundle
from mtdit_runtime.engines.choose import choose_engines
try:
    choose_engines(open_bundle(Path({str(bundle_folder)!r})), "onnx")
except UserError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    said = f"onnxruntime is not installed: {install('runtime')}"
    assert done.stdout.strip() == said, done.stderr
