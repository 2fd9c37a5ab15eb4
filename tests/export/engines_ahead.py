"""Run in a process of its own, because TensorRT for RTX can crash the interpreter it lives in.

`python engines_ahead.py plans OUT` builds single graphs: for every file named on a line of its
standard input it prints a line of JSON. `python engines_ahead.py STORY BUNDLE` runs
`mtdit_runtime.verify.build` as on a robot computer, but ahead of time for a GPU that is not here,
and with ONNX Runtime in the engines' place, whole or wrecked. Prints one JSON object: what was
said, how it ended, which files are there.
"""

from __future__ import annotations

import fcntl
import json
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import tensorrt_rtx

from mtdit_robots.errors import ExportError, UserError
from mtdit_runtime.bundle.bundle import Bundle, open_bundle
from mtdit_runtime.bundle.manifest import ENGINES
from mtdit_runtime.engines.cache import Device, engine_folder, write_record
from mtdit_runtime.engines.cache import read_record as record_of
from mtdit_runtime.engines.choose import choose_engines
from mtdit_runtime.engines.engine import Engines
from mtdit_runtime.engines.trt_builder import OnProgress, PlanBuilder
from mtdit_runtime.verify.build import BuildOptions, build_for

AHEAD = "SM86"
DEVICE = Device("Test GPU", (8, 6), tensorrt_rtx.__version__)


class Wrecked:
    """An engine that gives the wrong answer."""

    def __init__(self, engine: Any, wreck: Callable[[np.ndarray], np.ndarray]) -> None:
        self.engine, self.wreck, self.name = engine, wreck, engine.name

    def __call__(self, inputs: Mapping[str, Any]) -> dict[str, np.ndarray]:
        return {name: self.wreck(array) for name, array in self.engine(inputs).items()}

    def describe(self) -> str:
        return f"{self.name}: wrecked"


def whole(bundle: Bundle, folder: Path) -> Engines:
    assert (folder / "denoiser.plan").is_file()
    return choose_engines(bundle, "onnx")


def wrecked(wreck: Callable[[np.ndarray], np.ndarray]) -> Callable[[Bundle, Path], Engines]:
    def open_engines(bundle: Bundle, folder: Path) -> Engines:
        engines = whole(bundle, folder)
        return replace(engines, denoiser=Wrecked(engines.denoiser, wreck))

    return open_engines


def run(
    bundle: Bundle,
    open_engines: Callable[[Bundle, Path], Engines] = whole,
    clean: bool = False,
    on_progress: OnProgress | None = None,
) -> dict[str, Any]:
    said: list[str] = []
    try:
        build_for(
            DEVICE,
            bundle,
            tensorrt_rtx,
            BuildOptions(256, clean),
            open_engines=open_engines,
            compute_capability=AHEAD,
            say=said.append,
            on_progress=on_progress,
        )
        ended = "well"
    except (ExportError, UserError, KeyboardInterrupt) as error:
        ended = f"{type(error).__name__}: {error}"
    files = sorted(
        p.relative_to(bundle.folder).as_posix()
        for p in bundle.path(ENGINES).rglob("*")
        if p.is_file()
    )
    return {"said": said, "ended": ended, "files": files}


def again(bundle: Bundle) -> dict[str, Any]:
    """Built, built again, one plan cut short, and engines that do not pass any more."""
    progress: list[tuple[str, float, float]] = []
    first = run(bundle, on_progress=lambda *seen: progress.append(seen))
    second = run(bundle)
    plan = engine_folder(bundle, DEVICE) / "denoiser.plan"
    plan.write_bytes(plan.read_bytes()[:100])
    third = run(bundle)
    good, size = iter([False, True]), plan.stat().st_size
    fourth = run(
        bundle, lambda b, f: (whole if next(good) else wrecked(lambda x: x * np.nan))(b, f)
    )
    return {
        "first": first,
        "second": second,
        "third": third,
        "fourth": fourth,
        "progress": progress,
        "size": size,
    }


def refused(bundle: Bundle) -> dict[str, Any]:
    """Engines that are not the policy, a build that is interrupted, one that comes while another is
    at work.
    """

    def interrupt(graph: str, share: float, elapsed_s: float) -> None:
        raise KeyboardInterrupt

    ends = {
        "nan": run(bundle, wrecked(lambda x: np.full_like(x, np.nan))),
        "off": run(bundle, wrecked(lambda x: x + np.float32(1 / 40))),  # a degree
        "shape": run(bundle, wrecked(lambda x: x[:, :-1])),
        "interrupted": run(bundle, on_progress=interrupt),
    }
    (bundle.path(ENGINES) / ".killed.part").mkdir()
    held = os.open(bundle.path(ENGINES), os.O_RDONLY)
    fcntl.flock(held, fcntl.LOCK_EX)
    ends["beside"] = run(bundle)
    os.close(held)
    return ends


def others(bundle: Bundle) -> dict[str, Any]:
    """Engines of another GPU lie there too."""
    first = run(bundle)
    record = record_of(engine_folder(bundle, DEVICE))
    assert record is not None
    elsewhere = bundle.path(ENGINES) / "sm87-trt10.3.0-fp32-0123456789ab"
    elsewhere.mkdir()
    write_record(
        elsewhere, replace(record, gpu="Orin", compute_capability=(8, 7), tensorrt="10.3.0")
    )
    return {"first": first, "kept": run(bundle), "cleaned": run(bundle, clean=True)}


def plans(out: Path, files: Iterable[Path]) -> Iterator[int | str]:
    """The size of each file's plan, or why it was refused."""
    builder = PlanBuilder(tensorrt_rtx, 512, out / "timing.cache", compute_capability=AHEAD)
    for file in files:
        try:
            yield builder.plan(file, out / f"{file.stem}.plan")
        except ExportError as error:
            yield f"refused: {error}"


if __name__ == "__main__":
    what, where = sys.argv[1:]
    if what == "plans":
        for end in plans(Path(where), (Path(line.rstrip("\n")) for line in sys.stdin)):
            print(json.dumps({"end": end}), flush=True)
    else:
        story = {"again": again, "refused": refused, "others": others}[what]
        print(json.dumps(story(open_bundle(Path(where)))))
