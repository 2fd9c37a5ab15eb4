"""The `engines/` folder of a bundle: which plans it holds, what they were built for, and whether
they run on this computer.

A TensorRT plan is valid for one ONNX file, one GPU model and one TensorRT version; the messages say
which of these differs. This module needs neither TensorRT nor CUDA: the caller passes a `Device`. A
folder of plans counts only with its record, which is written after the engines were checked.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, field
from pathlib import Path

from mtdit_robots.errors import UserError
from mtdit_runtime.bundle.bundle import Bundle
from mtdit_runtime.bundle.manifest import ENGINES
from mtdit_runtime.files import from_json, read_json, sha256

RECORD = "engine.json"
MOST_BYTES, MOST_SECONDS = 1 << 40, 1e9  # plausible limits of a plan's size and build time
# without text: its encoder runs once per new task, on the CPU
ON_GPU = ("vision", "history", "denoiser", "guided")


@dataclass(frozen=True)
class Device:
    """What a plan depends on besides the ONNX file."""

    gpu: str  # as CUDA names it
    compute_capability: tuple[int, int]
    tensorrt: str  # version

    @property
    def label(self) -> str:
        return f"sm{self.compute_capability[0]}{self.compute_capability[1]}-trt{self.tensorrt}"


@dataclass(frozen=True)
class EngineRecord:
    """engine.json: what the plans next to it were built from, and the figures of their check."""

    gpu: str
    compute_capability: tuple[int, int]
    tensorrt: str
    precision: str
    onnx: dict[str, str]  # graph -> sha256 of the file it was built from
    bytes: dict[str, int]  # graph -> size of its plan
    seconds: dict[str, float]  # graph -> build time
    # stage -> figures against the golden fixtures
    checked: dict[str, dict[str, float]] = field(default_factory=dict)
    built: str = ""  # date
    # graph -> sha256 of its plan; older versions of mtdit did not record it
    plans: dict[str, str] = field(default_factory=dict)

    @property
    def device(self) -> Device:
        return Device(self.gpu, self.compute_capability, self.tensorrt)

    @property
    def is_valid(self) -> bool:
        """Whether all numbers are in a plausible range."""
        sizes, seconds = self.bytes.values(), self.seconds.values()
        numbers = (*sizes, *self.compute_capability)
        return all(0 <= n <= MOST_BYTES for n in numbers) and all(
            0 <= s <= MOST_SECONDS for s in seconds
        )


def graph_hashes(bundle: Bundle) -> dict[str, str]:
    """Graph -> sha256 of its file, for the graphs that become engines."""
    m = bundle.manifest
    return {name: m.files[m.graphs[name].file] for name in ON_GPU if name in m.graphs}


def engine_key(bundle: Bundle, device: Device) -> str:
    """Name of the folder with the engines for these graphs on this device:
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
    """The record of a folder; None when there is none (the engines never passed their check) or it
    cannot be read.
    """
    try:
        data = read_json(folder / RECORD)
        record: EngineRecord = from_json(EngineRecord, {"plans": {}, **data}, RECORD)
    except (UserError, ValueError, TypeError, OverflowError):
        return None
    return record if record.is_valid else None


def engine_records(bundle: Bundle) -> dict[Path, EngineRecord]:
    """Folder -> record, for all checked engines in the bundle."""
    folders = sorted(
        p for p in bundle.path(ENGINES).glob("*/") if p.is_dir() and not p.name.startswith(".")
    )
    found = {folder: read_record(folder) for folder in folders}
    return {folder: record for folder, record in found.items() if record is not None}


def plan_problem(
    folder: Path, record: EngineRecord, bundle: Bundle, graph: str | None = None
) -> str:
    """What is wrong with the plan files of one graph, or of all; empty when they are unchanged
    since they were checked.
    """
    for name in graph_hashes(bundle) if graph is None else (graph,):
        plan = folder / f"{name}.plan"
        if name not in record.plans:
            return f"{plan.name} has no checksum, it was built by an older mtdit"
        if not plan.is_file():
            return f"{plan.name} is missing"
        if plan.stat().st_size != record.bytes.get(name) or sha256(plan) != record.plans[name]:
            return f"{plan.name} does not match its checksum"
    return ""


def differences(record: EngineRecord, bundle: Bundle, device: Device) -> list[str]:
    """What the engines were built for that differs here, one line each; empty when they fit."""
    built_for, here = record.device, device
    pairs = [
        ("GPU", built_for.gpu, here.gpu),
        (
            "compute capability",
            _dotted(built_for.compute_capability),
            _dotted(here.compute_capability),
        ),
        ("TensorRT", built_for.tensorrt, here.tensorrt),
        ("precision", record.precision, bundle.manifest.precision),
    ]
    found = [f"{what} {was}, here {now}" for what, was, now in pairs if was != now]
    wanted = graph_hashes(bundle)
    return found + [
        f"another {name} graph" for name in wanted if record.onnx.get(name) != wanted[name]
    ]


def incompatibility(folder: Path, record: EngineRecord, bundle: Bundle, device: Device) -> str:
    """Why the engines of a folder do not fit this computer; empty when they do. The folder's name
    must agree with its record.
    """
    if found := differences(record, bundle, device):
        return "; ".join(found)
    is_named_after = folder == engine_folder(bundle, device)
    return "" if is_named_after else f"the folder's name does not match its {RECORD}"


def _dotted(version: tuple[int, int]) -> str:
    return ".".join(map(str, version))


def find_plan(bundle: Bundle, graph: str, device: Device) -> Path:
    """The checked plan of `graph` for this device. UserError when there is none; the message says
    what the engines in the bundle were built for.
    """
    folder, build = engine_folder(bundle, device), f"run `mtdit build {bundle.folder}`"
    record = read_record(folder)
    if record is None:
        raise UserError(
            f"no TensorRT engines for this computer in {bundle.folder}{_others(bundle, device)}: "
            f"{build} on this computer"
        )
    if why := incompatibility(folder, record, bundle, device):
        raise UserError(
            f"{folder} is named after this computer, but its {RECORD} says {why}: "
            f"{build} again on this computer"
        )
    if why := plan_problem(folder, record, bundle, graph):
        raise UserError(
            f"cannot use the engines in {folder}, {why}: {build} again on this computer"
        )
    return folder / f"{graph}.plan"


def _others(bundle: Bundle, device: Device) -> str:
    """How the best match differs: " (those present are for TensorRT 10.3.0, here 10.16.2)"."""
    found: list[list[str]] = [
        differences(record, bundle, device) for record in engine_records(bundle).values()
    ]
    return f" (those present are for {'; '.join(sorted(found, key=len)[0])})" if found else ""
