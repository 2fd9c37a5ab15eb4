"""The manifest of a bundle: file names, tensor names, and what manifest.json holds."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from mtdit_robots.errors import UserError
from mtdit_robots.files import new_file
from mtdit_robots.units import DEGREES, NORMALIZED, PERCENT, RADIANS, UNKNOWN
from mtdit_runtime.files import build, read_json, sha256

SCHEMA_VERSION = 4
READABLE = (3, SCHEMA_VERSION)
SUFFIX = ".mtdit"

MANIFEST = "manifest.json"
VISION, TEXT, DENOISER = "vision.onnx", "text.onnx", "denoiser.onnx"
HISTORY = "history.onnx"  # text and earlier observations -> their part of the modulation
RTC = "guided.onnx"  # optional: the denoiser with the guidance of real-time chunking (RTC)
TOKENIZER = "tokenizer.json"
TASKS = "tasks.npz"
STATS = "stats.safetensors"  # its keys are the feature names of `mtdit_robots.features`
GOLDEN = "golden"
REFERENCE = "reference"
ENGINES = "engines"  # a cache, which the manifest's checksums do not cover

# Tensor names of the graphs. Batch is 1 and every shape is static.
TOKEN_IDS = "token_ids"  # (1, 77) int64
TEXT_FEATURE = "text"  # (1, P) float32
FEATURES = "features"  # (1, n_cam * D) float32, from the newest frames
STATE = "state"  # (1, S) float32, normalised, the newest
EARLIER_FEATURES = "earlier_features"  # (1, n_obs - 1, n_cam * D) float32, oldest first
EARLIER_STATE = "earlier_state"  # (1, n_obs - 1, S) float32, normalised, oldest first
# (1, layers * 6 D) float32: what text and earlier observations add to the modulation of all blocks
HISTORY_MODULATION = "known"
NOISE = "noise"  # (1, horizon, A) float32, standard normal
# (1, steps - 1, horizon, A) float32, standard normal; DDPM only, and only with steps > 1
STEP_NOISE = "step_noise"
PREFIX = "prefix"  # (1, horizon, A) float32, normalised actions that the robot is committed to
PREFIX_MASK = "prefix_mask"  # (1, horizon, 1) float32, 1 = the row is committed, 0 = free
# (1, horizon, 1) float32 in 0..1; the guided graph takes it instead of the mask
PREFIX_WEIGHTS = "prefix_weights"
ACTIONS = "actions"  # (1, horizon, A) float32, normalised
MAX_COST = 1 << 60  # the same for the operations and bytes of one chunk
SAMPLERS = ("ddim", "ddpm", "euler", "rk4")
PRECISIONS = ("fp32", "fp16", "int8")  # int8: vision and text towers; the denoiser stays fp32
UNITS = (DEGREES, NORMALIZED, PERCENT, RADIANS, UNKNOWN)
# Ticks between two observations, in bundles of earlier versions; it was always 1.
OBS_SPACING = "obs_spacing_ticks"


def frame_input(camera: str) -> str:
    """Name of the vision graph's input for a camera: (H, W, 3) uint8 RGB."""
    return f"frame.{camera}"


@dataclass(frozen=True)
class Tensor:
    name: str
    shape: tuple[int, ...]
    dtype: str


@dataclass(frozen=True)
class Graph:
    """One ONNX file with its inputs and outputs."""

    file: str
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    flops: int = 0  # multiplications and additions in the products of one call; 0: not counted
    weight_bytes: int = 0  # weights read by one call; a weight that is read twice counts twice


@dataclass(frozen=True)
class Sampler:
    """The sampler that is unrolled inside denoiser.onnx. `timesteps` are in sampling order."""

    kind: str  # one of SAMPLERS
    steps: int
    timesteps: tuple[float, ...]
    clip_range: float | None  # normalised actions are clamped to +-clip_range; None: no clamping

    @property
    def draws(self) -> int:
        """Noise tensors needed per chunk: DDPM adds fresh noise after every step but the last."""
        return self.steps if self.kind == "ddpm" else 1


@dataclass(frozen=True)
class Joint:
    """One action dimension. Its limits are those of the demonstrations, not those of the arm."""

    name: str
    unit: str  # one of UNITS
    low: float  # lowest action in training
    high: float  # highest action in training
    # units per second: 99.9th percentile of |action[t+1] - action[t]| * fps in training
    max_speed: float


@dataclass(frozen=True)
class Camera:
    """A camera as the policy saw it in training. Resize and crop happen inside the vision graph."""

    name: str  # without the prefix "observation.images."
    height: int
    width: int
    resize: tuple[int, int] | None  # (height, width)
    crop: tuple[int, int] | None  # (height, width), centred


@dataclass(frozen=True)
class Manifest:
    """Everything the runtime must know about a policy, in the order of manifest.json."""

    name: str
    # vision (absent for a policy without cameras), text, history, denoiser, guided (optional)
    graphs: dict[str, Graph]
    sampler: Sampler
    joints: tuple[Joint, ...]  # in the order of the action
    state_joints: tuple[str, ...]  # names of the state, in its own order
    cameras: tuple[Camera, ...]  # in the order of the feature vector
    n_obs_steps: int
    horizon: int
    n_action_steps: int
    fps: int
    tasks: tuple[str, ...]  # seen in training; their text features are in tasks.npz
    precision: str  # one of PRECISIONS
    opset: int
    requirements: dict[str, str]  # e.g. {"onnxruntime": ">=1.18"}
    verification: dict[str, Any]  # stage -> {max_error, mean_error, ...}
    provenance: dict[str, Any]  # checkpoint, step, dataset, versions, date
    files: dict[str, str] = field(default_factory=dict)  # path -> sha256
    schema_version: int = SCHEMA_VERSION
    digest: str = ""  # sha256 of all of the above: an edit of a limit by hand does not go unnoticed

    @property
    def units(self) -> str:
        """The unit of the arm's body joints; `unknown` in bundles before schema 4."""
        found = {joint.unit for joint in self.joints} - {PERCENT} or {DEGREES}
        return found.pop() if len(found) == 1 else UNKNOWN

    @property
    def usual_positions(self) -> list[float]:
        """(S,) a state to measure latency with: each joint in the middle of its range in training,
        one that the policy does not move at 0.
        """
        middles = {joint.name: (joint.low + joint.high) / 2 for joint in self.joints}
        return [middles.get(name, 0.0) for name in self.state_joints]


def write_manifest(folder: Path, manifest: Manifest) -> Manifest:
    """Hash every file of `folder` except engines, write manifest.json, and return the manifest with
    the hashes.
    """
    paths = sorted(p for p in folder.rglob("*") if p.is_file() and p.name != MANIFEST)
    names = [p.relative_to(folder).as_posix() for p in paths]
    files = {n: sha256(folder / n) for n in names if not n.startswith(f"{ENGINES}/")}
    manifest = replace(manifest, files=files)
    manifest = replace(manifest, digest=digest_of(asdict(manifest)))
    with new_file(folder / MANIFEST) as part:
        part.write_text(json.dumps(asdict(manifest), indent=2) + "\n")
    return manifest


def _add_state_joints(data: dict[str, Any]) -> None:
    """A bundle of an earlier version names only the joints of the action: they are the state's."""
    joints = data.get("joints")
    if isinstance(joints, list) and all(isinstance(joint, dict) for joint in joints):
        data.setdefault("state_joints", [joint.get("name") for joint in joints])


def digest_of(data: dict[str, Any]) -> str:
    """sha256 of the values of a manifest.json, without its own digest."""
    text = json.dumps({**data, "digest": ""}, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def read_manifest(folder: Path) -> tuple[Manifest, str]:
    """The manifest of a bundle, and the digest of what the file holds. UserError when it is
    malformed or has another schema version.
    """
    path, fix = folder / MANIFEST, "re-run `mtdit export`"
    data = read_json(path, "copy the bundle again")
    version = data.get("schema_version") if isinstance(data, dict) else None
    if type(version) is not int or version not in READABLE:
        raise UserError(
            f"{path} has schema version {repr(version)[:40]}, this mtdit reads "
            f"{' and '.join(map(str, READABLE))}: export again or install the matching mtdit"
        )
    digest = digest_of(data)
    if version < SCHEMA_VERSION:
        _forget_units(data)
        _add_state_joints(data)
    spacing = data.pop(OBS_SPACING, 1)
    if type(spacing) is not int or spacing != 1:
        raise UserError(f"{path}: {OBS_SPACING} is {spacing!r}, this mtdit reads only 1: {fix}")
    manifest: Manifest = build(path, Manifest, data, "manifest", fix)
    stages = manifest.verification.get("stages", {})
    build(path, dict[str, dict[str, float]], stages, "manifest.verification.stages", fix)
    versions = manifest.provenance.get("versions", {})
    build(path, dict[str, str], versions, "manifest.provenance.versions", fix)
    return manifest, digest


def _forget_units(data: dict[str, Any]) -> None:
    """A bundle before schema 4 called all body joints degrees without knowing it."""
    joints = data.get("joints")
    for joint in joints if isinstance(joints, list) else []:
        if isinstance(joint, dict) and joint.get("unit") == DEGREES:
            joint["unit"] = UNKNOWN
