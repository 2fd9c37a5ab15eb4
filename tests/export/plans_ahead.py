"""TensorRT plans built ahead of time, without a GPU, by one process that lives long."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
import threading
from contextlib import suppress
from pathlib import Path

import onnx
from onnx import TensorProto

SCRIPT = Path(__file__).with_name("engines_ahead.py")
PATIENCE_S = 500.0
FLOATS = {TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.DOUBLE, TensorProto.BFLOAT16}


def likeness(file: Path) -> str:
    """The same for graphs that differ in nothing but their weights, bytes of floating-point
    tensors: TensorRT takes or refuses those alike.
    """
    try:
        model = onnx.load(file)
    except Exception:  # not a model: nothing is like it
        return hashlib.sha256(file.read_bytes()).hexdigest()
    for tensor in model.graph.initializer:
        if tensor.data_type in FLOATS:
            tensor.ClearField("raw_data")
    return hashlib.sha256(model.SerializeToString(deterministic=True)).hexdigest()


class PlansAhead:
    """Builds graph after graph in a process of its own, since TensorRT for RTX can crash the
    interpreter it lives in; another one is started for the graph after that.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self.n_built, self.n_started = folder, 0, 0
        self._process: subprocess.Popen[str] | None = None
        self._ends: dict[str, int | str] = {}

    def build(self, *files: Path) -> list[str]:
        """ "built: NAME SIZE", "refused: WHY" or "crashed: NAME: WHY" for every file. A graph that
        is like one before, but for its weights, ends as that did.
        """
        lines = []
        for file in files:
            like = likeness(file)
            if like not in self._ends:
                self._ends[like] = self._build(file)
            end = self._ends[like]
            lines.append(f"built: {file.name} {end}" if isinstance(end, int) else end)
        return lines

    def close(self) -> None:
        if self._process is not None:
            self._process.communicate(timeout=PATIENCE_S)
            self._process = None

    def _build(self, file: Path) -> int | str:
        self.n_built += 1
        process = self._process = self._process or self._start()
        assert process.stdin is not None
        assert process.stdout is not None
        stalled = threading.Timer(PATIENCE_S, process.kill)
        stalled.start()
        try:
            with suppress(BrokenPipeError):  # it crashed already: the loop below ends at once
                print(file, file=process.stdin, flush=True)
            for line in process.stdout:
                if line.startswith('{"end": '):
                    end: int | str = json.loads(line)["end"]
                    return end
        finally:
            stalled.cancel()
        self.close()
        said = (self.folder / "stderr").read_text(errors="replace")[-2000:]
        return f"crashed: {file}: exit code {process.returncode}: {said}"

    def _start(self) -> subprocess.Popen[str]:
        self.n_started += 1
        command = [sys.executable, str(SCRIPT), "plans", str(self.folder)]
        with (self.folder / "stderr").open("w") as stderr:
            return subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=stderr, text=True
            )
