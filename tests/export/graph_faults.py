"""Faults put into the graphs of a finished bundle, and the stages that its check then names."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
from onnx import numpy_helper

from mtdit_runtime.bundle.bundle import Bundle
from mtdit_runtime.bundle.manifest import write_manifest
from mtdit_runtime.verify.verify import verify

Change = Callable[[np.ndarray], np.ndarray]


def louder(weight: np.ndarray) -> np.ndarray:
    return weight.astype(np.float32) * 1.02


def in_int8(weight: np.ndarray) -> np.ndarray:
    """(in, out), one scale per output, as `Int8Dense` rounds it."""
    scale = np.abs(weight).max(0) / 127
    return np.round(weight / scale) * scale


def edit(bundle: Bundle, graph: str, weight: str, change: Change) -> None:
    model = onnx.load(bundle.path(f"{graph}.onnx"))
    (found,) = (w for w in model.graph.initializer if w.name == weight)
    old = numpy_helper.to_array(found)
    found.CopyFrom(numpy_helper.from_array(change(old).astype(old.dtype), weight))
    onnx.save(model, bundle.path(f"{graph}.onnx"))


def faults(bundle: Bundle) -> list[str]:
    """The stages that `mtdit verify` names."""
    write_manifest(bundle.folder, bundle.manifest)
    return [line.partition(":")[0] for line in verify(bundle.folder, "onnx").failures]
