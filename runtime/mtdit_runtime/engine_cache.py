"""A bundle's `engines/` folder: which plans lie there, what they were built for, and whether they
fit this computer.

Knows that a TensorRT plan holds for one file, one kind of GPU and one version of the library, and
says which of these differs. Refuses to know TensorRT and CUDA: whoever has them gives a `Device`. A
folder counts only with its record, which is written after its engines were checked.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, field
from pathlib import Path

from mtdit_robots.errors import UserError
from mtdit_runtime.bundle import ENGINES, Bundle, from_json, sha256
from mtdit_runtime.words import plain

RECORD = "engine.json"
MOST_BYTES, MOST_SECONDS = 1 << 40, 1e9  # no plan is larger, no build took longer
ON_GPU = (
    "vision",
    "history",
    "denoiser",
    "guided",
)  # the text encoder runs once per unknown task, on the CPU


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
    checked: dict[str, dict[str, float]] = field(
        default_factory=dict
    )  # stage -> figures against the golden fixtures
    built: str = ""  # date
    plans: dict[str, str] = field(
        default_factory=dict
    )  # graph -> sha256 of its plan; an older mtdit kept none

    @property
    def device(self) -> Device:
        return Device(self.gpu, self.compute_capability, self.tensorrt)

    @property
    def is_sane(self) -> bool:
        """Whether its numbers can be added up and shown."""
        sizes, seconds = self.bytes.values(), self.seconds.values()
        numbers = (*sizes, *self.compute_capability)
        return all(0 <= n <= MOST_BYTES for n in numbers) and all(
            0 <= s <= MOST_SECONDS for s in seconds
        )


def graph_hashes(bundle: Bundle) -> dict[str, str]:
    """Graph -> sha256, of those that become engines."""
    m = bundle.manifest
    return {name: m.files[m.graphs[name].file] for name in ON_GPU if name in m.graphs}


def engine_key(bundle: Bundle, device: Device) -> str:
    """Folder name of the engines for exactly these graphs on exactly this device:
    <sm>-<trt>-<precision>-<hash>.
    """
    digest = hashlib.sha256(
        "\n".join([device.gpu, *graph_hashes(bundle).values()]).encode()
    ).hexdigest()[:12]
    return f"{device.label}-{bundle.manifest.precision}-{digest}"


def engine_folder(bundle: Bundle, device: Device) -> Path:
    return bundle.path(ENGINES) / engine_key(bundle, device)


def write_record(folder: Path, record: EngineRecord) -> None:
    (folder / RECORD).write_text(json.dumps(asdict(record), indent=2) + "\n")


def read_record(folder: Path) -> EngineRecord | None:
    """None: no record, so the engines were never found good, or it cannot be read."""
    try:
        data = json.loads((folder / RECORD).read_text())
        record: EngineRecord = from_json(EngineRecord, {"plans": {}, **data}, RECORD)
    except (OSError, ValueError, TypeError, OverflowError, RecursionError):
        return None
    return record if record.is_sane else None


def engine_records(bundle: Bundle) -> dict[Path, EngineRecord]:
    """Every folder of checked engines in the bundle."""
    folders = sorted(
        p for p in bundle.path(ENGINES).glob("*/") if p.is_dir() and not p.name.startswith(".")
    )
    found = {folder: read_record(folder) for folder in folders}
    return {folder: record for folder, record in found.items() if record is not None}


def trouble(folder: Path, record: EngineRecord, bundle: Bundle, graph: str | None = None) -> str:
    """What is wrong with the plans of a folder, of one graph or of all; empty: they are as they
    were when checked.
    """
    for name in graph_hashes(bundle) if graph is None else (graph,):
        plan = folder / f"{name}.plan"
        if name not in record.plans:
            return f"an older mtdit kept no checksum of {plan.name}"
        if not plan.is_file():
            return f"{plan.name} is missing"
        if plan.stat().st_size != record.bytes.get(name) or sha256(plan) != record.plans[name]:
            return f"{plan.name} does not match its checksum"
    return ""


def differences(record: EngineRecord, bundle: Bundle, device: Device) -> list[str]:
    """What keeps engines from running here, a line each; none: they fit."""
    kept, here = record.device, device
    pairs = [
        ("GPU", kept.gpu, here.gpu),
        ("compute capability", _dotted(kept.compute_capability), _dotted(here.compute_capability)),
        ("TensorRT", kept.tensorrt, here.tensorrt),
        ("precision", record.precision, bundle.manifest.precision),
    ]
    found = [f"{what} {plain(was, 40)}, here {now}" for what, was, now in pairs if was != now]
    wanted = graph_hashes(bundle)
    return found + [
        f"another {name} graph" for name in wanted if record.onnx.get(name) != wanted[name]
    ]


def misfit(folder: Path, record: EngineRecord, bundle: Bundle, device: Device) -> str:
    """Why the engines of a folder do not run here; empty: they do. A folder's name and its record
    say the same.
    """
    if found := differences(record, bundle, device):
        return "; ".join(found)
    return "" if folder == engine_folder(bundle, device) else f"not where its {RECORD} belongs"


def _dotted(version: tuple[int, int]) -> str:
    return ".".join(map(str, version))


def find_plan(bundle: Bundle, graph: str, device: Device) -> Path:
    """The checked plan of `graph` for this device. UserError: there is none, and what those that
    lie there are for.
    """
    folder, fix = engine_folder(bundle, device), f"run `mtdit build {bundle.folder}` here"
    record = read_record(folder)
    if record is None:
        raise UserError(
            f"no TensorRT engines for this computer in {bundle.folder}{_others(bundle, device)}: {fix}"
        )
    if why := misfit(folder, record, bundle, device):
        raise UserError(
            f"{folder} is named after this computer, but its {RECORD} says {why}: {fix} again"
        )
    if why := trouble(folder, record, bundle, graph):
        raise UserError(f"the engines in {folder} cannot be used, {why}: {fix} again")
    return folder / f"{graph}.plan"


def _others(bundle: Bundle, device: Device) -> str:
    """What the nearest engines lack: " (those there are for TensorRT 10.3.0, here 10.16.2)"."""
    lacks: list[list[str]] = [
        differences(record, bundle, device) for record in engine_records(bundle).values()
    ]
    return f" (those there are for {'; '.join(sorted(lacks, key=len)[0])})" if lacks else ""
