"""A bundle's `engines/` folder: which plans lie there, what they were built for, and whether they fit this computer.

Knows that a TensorRT plan holds for one file, one kind of GPU and one version of the library, and says which of these
differs. Refuses to know TensorRT and CUDA: whoever has them gives a `Device`. A folder counts only with its record,
which is written after its engines were checked.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, field
from pathlib import Path

from mtdit_robots.errors import UserError
from mtdit_runtime.bundle import ENGINES, Bundle, from_json

RECORD = "engine.json"
ON_GPU = ("vision", "history", "denoiser", "guided")  # the text encoder runs once per unknown task, on the CPU


@dataclass(frozen=True)
class Device:
    """What a plan depends on."""

    gpu: str  # as CUDA names it
    compute_capability: tuple[int, int]
    tensorrt: str  # version

    @property
    def label(self) -> str:
        return f"sm{self.compute_capability[0]}{self.compute_capability[1]}-trt{self.tensorrt}"


@dataclass(frozen=True)
class EngineRecord:
    """engine.json: what the plans beside it were made from and how they did."""

    gpu: str
    compute_capability: tuple[int, int]
    tensorrt: str
    precision: str
    onnx: dict[str, str]  # graph -> sha256 of the file it was built from
    bytes: dict[str, int]  # graph -> size of its plan
    seconds: dict[str, float]  # graph -> how long it took
    checked: dict[str, dict[str, float]] = field(default_factory=dict)  # stage -> figures against the golden fixtures
    built: str = ""  # date

    @property
    def device(self) -> Device:
        return Device(self.gpu, self.compute_capability, self.tensorrt)


def graph_hashes(bundle: Bundle) -> dict[str, str]:
    """Graph -> sha256, of those that become engines."""
    m = bundle.manifest
    return {name: m.files[m.graphs[name].file] for name in ON_GPU if name in m.graphs}


def engine_key(bundle: Bundle, device: Device) -> str:
    """Folder name of the engines for exactly these graphs on exactly this device: <sm>-<trt>-<precision>-<hash>."""
    digest = hashlib.sha256("\n".join([device.gpu, *graph_hashes(bundle).values()]).encode()).hexdigest()[:12]
    return f"{device.label}-{bundle.manifest.precision}-{digest}"


def engine_folder(bundle: Bundle, device: Device) -> Path:
    return bundle.path(ENGINES) / engine_key(bundle, device)


def write_record(folder: Path, record: EngineRecord) -> None:
    (folder / RECORD).write_text(json.dumps(asdict(record), indent=2) + "\n")


def read_record(folder: Path) -> EngineRecord | None:
    """None: no record, so the engines were never found good, or it cannot be read."""
    try:
        record: EngineRecord = from_json(EngineRecord, json.loads((folder / RECORD).read_text()), RECORD)
    except (OSError, ValueError, TypeError, RecursionError):
        return None
    return record


def engine_records(bundle: Bundle) -> dict[Path, EngineRecord]:
    """Every folder of checked engines in the bundle."""
    folders = sorted(p for p in bundle.path(ENGINES).glob("*/") if p.is_dir() and not p.name.startswith("."))
    found = {folder: read_record(folder) for folder in folders}
    return {folder: record for folder, record in found.items() if record is not None}


def is_complete(folder: Path, record: EngineRecord, bundle: Bundle) -> bool:
    """Every graph has its plan, and none was cut short."""
    plans = {name: folder / f"{name}.plan" for name in graph_hashes(bundle)}
    return all(plan.is_file() and plan.stat().st_size == record.bytes.get(name) for name, plan in plans.items())


def differences(record: EngineRecord, bundle: Bundle, device: Device) -> list[str]:
    """What keeps engines from running here, a line each; none: they fit."""
    kept, here = record.device, device
    pairs = [
        ("GPU", kept.gpu, here.gpu),
        ("compute capability", _dotted(kept.compute_capability), _dotted(here.compute_capability)),
        ("TensorRT", kept.tensorrt, here.tensorrt),
        ("precision", record.precision, bundle.manifest.precision),
    ]
    found = [f"{what} {was}, here {now}" for what, was, now in pairs if was != now]
    wanted = graph_hashes(bundle)
    return found + [f"another {name} graph" for name in wanted if record.onnx.get(name) != wanted[name]]


def _dotted(version: tuple[int, int]) -> str:
    return ".".join(map(str, version))


def find_plan(bundle: Bundle, graph: str, device: Device) -> Path:
    """The checked plan of `graph` for this device. UserError: there is none, and what those that lie there are for."""
    folder, fix = engine_folder(bundle, device), f"run `mtdit build {bundle.folder}` here"
    record, plan = read_record(folder), folder / f"{graph}.plan"
    if record is None:
        raise UserError(f"no TensorRT engines for this computer in {bundle.folder}{_others(bundle, device)}: {fix}")
    if not is_complete(folder, record, bundle):
        raise UserError(f"the engines in {folder} are not complete: {fix} again")
    return plan


def _others(bundle: Bundle, device: Device) -> str:
    """What the nearest engines lack: " (those there are for TensorRT 10.3.0, here 10.16.2)"."""
    lacks: list[list[str]] = [differences(record, bundle, device) for record in engine_records(bundle).values()]
    return f" (those there are for {'; '.join(sorted(lacks, key=len)[0])})" if lacks else ""
