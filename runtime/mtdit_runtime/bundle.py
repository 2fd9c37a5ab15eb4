"""The bundle: an exported policy as a folder of plain files.

Defines the names of all files and tensors, the manifest and its schema, and the checks that
`open_bundle` makes. Needs no torch, no engine and no robot. A path in a manifest never leaves the
folder, and nothing in a bundle is pickled.
"""

from __future__ import annotations

import difflib
import hashlib
import json
import math
import types
import typing
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, is_dataclass, replace
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mtdit_robots.errors import UserError
from mtdit_runtime.normalize import Stats, load_stats
from mtdit_runtime.words import plain

SCHEMA_VERSION = 3
SUFFIX = ".mtdit"

MANIFEST = "manifest.json"
VISION, TEXT, DENOISER = "vision.onnx", "text.onnx", "denoiser.onnx"
HISTORY = "history.onnx"  # text and earlier observations -> their part of the modulation
GUIDED = "guided.onnx"  # optional: the denoiser with the guidance of real-time chunking (RTC)
TOKENIZER = "tokenizer.json"
TASKS = "tasks.npz"
STATS = "stats.safetensors"
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
KNOWN = "known"
NOISE = "noise"  # (1, horizon, A) float32, standard normal
# (1, steps - 1, horizon, A) float32, standard normal; DDPM only, and only with steps > 1
STEP_NOISE = "step_noise"
PREFIX = "prefix"  # (1, horizon, A) float32, normalised actions that the robot is committed to
PREFIX_MASK = "prefix_mask"  # (1, horizon, 1) float32, 1 = the row is committed, 0 = free
# (1, horizon, 1) float32 in 0..1; the guided graph takes it instead of the mask
PREFIX_WEIGHTS = "prefix_weights"
ACTIONS = "actions"  # (1, horizon, A) float32, normalised

MOST = 1 << 20  # the largest plausible size of anything; a larger one means a broken manifest
MOST_COST = 1 << 60  # the same for the operations and bytes of one chunk
SAMPLERS = ("ddim", "ddpm", "euler", "rk4")
PRECISIONS = ("fp32", "fp16", "int8")  # int8: vision and text towers; the denoiser stays fp32
UNITS = ("degrees", "percent")
# LeRobot's feature names, which are the keys of the statistics file
STATE_KEY, ACTION_KEY = "observation.state", "action"


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
    joints: tuple[Joint, ...]  # in the order of state and action
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
    obs_spacing_ticks: int = 1
    schema_version: int = SCHEMA_VERSION
    digest: str = ""  # sha256 of all of the above: an edit of a limit by hand does not go unnoticed


@dataclass(frozen=True)
class Bundle:
    """An opened and checked bundle. Small arrays are read on first use."""

    folder: Path
    manifest: Manifest

    def path(self, name: str) -> Path:
        return self.folder / name

    @cached_property
    def stats(self) -> dict[str, Stats]:
        """Feature name -> statistics, (J,) each and finite. UserError when the file holds anything
        else.
        """
        path, count = self.path(STATS), len(self.manifest.joints)
        stats = load_stats(path)
        for name, found in stats.items():
            if found.low.shape != (count,):
                raise UserError(
                    f"{path}: {plain(name)} has shape {found.low.shape}, not {(count,)}: "
                    "re-run `mtdit export`"
                )
            if not found.is_finite:
                raise UserError(
                    f"{path}: {plain(name)} holds NaN or infinite numbers: "
                    "train on a dataset without them"
                )
        return stats

    @cached_property
    def task_features(self) -> dict[str, NDArray[np.float32]]:
        """Instruction -> text feature (P,) float32, for the tasks seen in training. UserError when
        the file is malformed or lists other tasks than the manifest.
        """
        path, arrays = self.path(TASKS), read_arrays(self.path(TASKS))
        tasks, features = (arrays.get(name, np.zeros(())) for name in ("tasks", "features"))
        names = texts(tasks)
        if names is None or tasks.ndim != 1:
            raise UserError(
                f"{path}: tasks are {tasks.dtype} {tasks.shape}, not a list of strings: "
                "re-run `mtdit export`"
            )
        wanted = (len(names), _width(self.manifest.graphs["text"].outputs))
        if names and (features.shape, features.dtype) != (wanted, np.float32):
            raise UserError(
                f"{path}: features are {features.dtype} {features.shape}, not float32 {wanted}: "
                "re-run `mtdit export`"
            )
        if set(names) != set(self.manifest.tasks):
            raise UserError(f"{path} lists other tasks than {MANIFEST}: re-run `mtdit export`")
        return dict(zip(names, features, strict=False))


def open_bundle(folder: Path, check_files: bool = True) -> Bundle:
    """Read and check a bundle. `check_files=False` skips the checksums, for code that has already
    opened it once.

    Raises UserError when the folder does not exist or is not a bundle, when the manifest is
    malformed or has another schema version, and when a file is missing, changed, or outside the
    folder.
    """
    folder = Path(folder)
    if not (folder / MANIFEST).is_file():
        raise UserError(_no_bundle(folder))
    manifest = _parse_manifest((folder / MANIFEST).read_bytes(), folder)
    _check_consistency(manifest, folder)
    for name, digest in manifest.files.items():
        _check_file(folder, name, digest, hashed=check_files)
    if manifest.digest != digest_of(manifest):
        raise UserError(
            f"{folder}/{MANIFEST} was changed after the export: "
            "copy the bundle again or re-run `mtdit export`"
        )
    return Bundle(folder, manifest)


def _no_bundle(folder: Path) -> str:
    if not folder.exists():
        names = (
            sorted(p.name for p in folder.parent.glob(f"*{SUFFIX}"))
            if folder.parent.is_dir()
            else []
        )
        near = difflib.get_close_matches(folder.name, names, n=1)
        hint = f"did you mean {folder.parent / near[0]}?" if near else "run `mtdit export` first"
        return f"no bundle at {folder}: {hint}"
    return (
        f"{folder} is not a bundle (it has no {MANIFEST}): "
        f"pass the *{SUFFIX} folder that `mtdit export` wrote"
    )


def write_manifest(folder: Path, manifest: Manifest) -> Manifest:
    """Hash every file of `folder` except engines, write manifest.json, and return the manifest with
    the hashes.
    """
    paths = sorted(p for p in folder.rglob("*") if p.is_file() and p.name != MANIFEST)
    names = [p.relative_to(folder).as_posix() for p in paths]
    files = {n: sha256(folder / n) for n in names if not n.startswith(f"{ENGINES}/")}
    manifest = replace(manifest, files=files)
    manifest = replace(manifest, digest=digest_of(manifest))
    part = folder / f"{MANIFEST}.part"
    part.write_text(json.dumps(asdict(manifest), indent=2) + "\n")
    part.replace(folder / MANIFEST)
    return manifest


def sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def digest_of(manifest: Manifest) -> str:
    text = json.dumps({**asdict(manifest), "digest": ""}, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def _check_file(folder: Path, name: str, digest: str, hashed: bool) -> None:
    if not _is_inside(folder, name):
        raise UserError(
            f"{folder}: manifest names {plain(name)!r}, which lies outside the bundle: "
            "do not use this bundle"
        )
    if not (folder / name).is_file():
        raise UserError(
            f"{folder}: {name} is missing: copy the whole bundle again or re-run `mtdit export`"
        )
    if hashed and sha256(folder / name) != digest:
        raise UserError(
            f"{folder}: {name} does not match its checksum: "
            "copy the bundle again or re-run `mtdit export`"
        )


def _is_inside(folder: Path, name: str) -> bool:
    pure = PurePosixPath(name)
    if (
        not pure.name
        or pure.is_absolute()
        or ".." in pure.parts
        or not name.isprintable()
        or len(name) > 200
    ):
        return False
    try:
        return (folder / name).resolve().is_relative_to(folder.resolve())
    except (OSError, RuntimeError):  # a symlink to itself; RuntimeError until Python 3.12
        return False


def _check_consistency(manifest: Manifest, folder: Path) -> None:
    """Check what the types cannot express, e.g. that files have checksums, that sizes are positive,
    that the executed actions lie inside the horizon.
    """
    problems = [*_odd_files(manifest), *_odd_facts(manifest)] or _wrong_tensors(manifest)
    if problems:
        raise UserError(f"{folder}/{MANIFEST}: {plain(problems[0])}: re-run `mtdit export`")


def _odd_files(m: Manifest) -> Iterator[str]:
    yield from (
        f"graph file {g.file} has no checksum" for g in m.graphs.values() if g.file not in m.files
    )
    yield from (f"{name} has no checksum" for name in (STATS, TASKS) if name not in m.files)
    yield from (
        f"graph {name!r} is missing"
        for name in ("text", "history", "denoiser")
        if name not in m.graphs
    )
    graphs = m.graphs.items()
    costs = [(name, cost) for name, graph in graphs for cost in (graph.flops, graph.weight_bytes)]
    yield from (
        f"graph {name!r} has a cost (flops or weight_bytes) out of range"
        for name, cost in costs
        if not 0 <= cost <= MOST_COST
    )
    if m.cameras and "vision" not in m.graphs:
        yield "graph 'vision' is missing"


def _odd_facts(m: Manifest) -> Iterator[str]:
    if m.sampler.kind not in SAMPLERS:
        yield f"sampler {m.sampler.kind!r} is unknown"
    if not 1 <= m.sampler.steps <= MOST:
        yield f"sampler takes {m.sampler.steps} steps, not 1 to {MOST}"
    if m.precision not in PRECISIONS:
        yield f"precision {m.precision!r} is unknown"
    sizes = {n: getattr(m, n) for n in ("n_obs_steps", "horizon", "n_action_steps", "fps")}
    yield from (f"{n} is {v}, not 1 to {MOST}" for n, v in sizes.items() if not 1 <= v <= MOST)
    yield from (
        f"joint {j.name!r} has an invalid unit, range or speed" for j in m.joints if not _is_sane(j)
    )
    for what, things in (("joint", m.joints), ("camera", m.cameras)):
        names = [thing.name for thing in things]
        yield from (
            f"two {what}s are called {name!r}"
            for name in dict.fromkeys(names)
            if names.count(name) > 1
        )
    if not m.joints:
        yield "it has no joints"
    if m.obs_spacing_ticks != 1:
        yield f"obs_spacing_ticks is {m.obs_spacing_ticks}, this mtdit supports only 1"
    if m.n_obs_steps - 1 + m.n_action_steps > m.horizon:
        yield "n_obs_steps - 1 + n_action_steps exceeds horizon"


def _wrong_tensors(m: Manifest) -> list[str]:
    """Problems of graphs whose inputs and outputs contradict the rest of the manifest. Only the
    widths of features are free.
    """
    unknown = sorted(set(m.graphs) - {"vision", "text", "history", "denoiser", "guided"})
    found = [f"graph {name!r} is unknown" for name in unknown]
    for name, (inputs, outputs) in _wanted_tensors(m).items():
        found += _differing(f"graph {name!r}", "input", m.graphs[name].inputs, inputs)
        found += _differing(f"graph {name!r}", "output", m.graphs[name].outputs, outputs)
    return found


def _wanted_tensors(m: Manifest) -> dict[str, tuple[list[Tensor], list[Tensor]]]:
    """Graph name -> the inputs and the outputs that it should have."""
    joints = len(m.joints)
    actions = (1, m.horizon, joints)
    text = Tensor(TEXT_FEATURE, (1, _width(m.graphs["text"].outputs)), "float32")
    ids = Tensor(TOKEN_IDS, (1, _width(m.graphs["text"].inputs)), "int64")
    known = Tensor(KNOWN, (1, _width(m.graphs["history"].outputs)), "float32")
    wanted, given = {"text": ([ids], [text])}, [known, Tensor(STATE, (1, joints), "float32")]
    given += [Tensor(name, actions, "float32") for name in (NOISE, PREFIX)]
    if m.sampler.draws > 1:
        given.append(Tensor(STEP_NOISE, (1, m.sampler.draws - 1, *actions[1:]), "float32"))
    earlier = [(EARLIER_STATE, joints)]
    if "vision" in m.graphs:
        width = _width(m.graphs["vision"].outputs)
        frames = [Tensor(frame_input(c.name), (c.height, c.width, 3), "uint8") for c in m.cameras]
        wanted["vision"] = (frames, [Tensor(FEATURES, (1, width), "float32")])
        given.append(Tensor(FEATURES, (1, width), "float32"))
        earlier.append((EARLIER_FEATURES, width))
    before = [
        Tensor(name, (1, m.n_obs_steps - 1, width), "float32")
        for name, width in earlier
        if m.n_obs_steps > 1
    ]
    wanted["history"] = ([text, *before], [known])
    for name, held in (("denoiser", PREFIX_MASK), ("guided", PREFIX_WEIGHTS)):
        if name in m.graphs:
            rows = Tensor(held, (1, m.horizon, 1), "float32")
            wanted[name] = ([*given, rows], [Tensor(ACTIONS, actions, "float32")])
    return wanted


def _width(tensors: tuple[Tensor, ...]) -> int:
    """Last dimension of the first tensor: a width that nothing else in the manifest states."""
    width = tensors[0].shape[-1] if tensors and tensors[0].shape else 1
    return width if 1 <= width <= MOST else 1


def _differing(where: str, what: str, got: tuple[Tensor, ...], wanted: list[Tensor]) -> list[str]:
    there, expected = {t.name: t for t in got}, {t.name: t for t in wanted}
    found = [f"{where} has no {what} {name!r}" for name in expected if name not in there]
    found += [
        f"{where} has an unexpected {what} {name!r}" for name in there if name not in expected
    ]
    found += [f"{where} lists an {what} twice"] if len(there) != len(got) else []
    both = [(there[name], expected[name]) for name in expected if name in there]
    return found + [
        f"{where}: {a.name} is {a.dtype} {a.shape}, not {b.dtype} {b.shape}"
        for a, b in both
        if a != b
    ]


def _is_sane(joint: Joint) -> bool:
    """Safety limits are computed from these numbers, and a NaN would pass every comparison."""
    is_finite = all(math.isfinite(value) for value in (joint.low, joint.high, joint.max_speed))
    return is_finite and joint.low <= joint.high and joint.max_speed >= 0 and joint.unit in UNITS


def _parse_manifest(text: bytes, folder: Path) -> Manifest:
    where = f"{folder}/{MANIFEST}"
    try:
        data = json.loads(text, object_pairs_hook=_no_key_twice)
    except (ValueError, RecursionError) as error:
        raise UserError(
            f"{where} is not valid JSON ({type(error).__name__}): copy the bundle again"
        ) from error
    version = data.get("schema_version") if isinstance(data, dict) else None
    if version != SCHEMA_VERSION:
        raise UserError(
            f"{where} has schema version {plain(repr(version), 40)}, "
            f"this mtdit reads {SCHEMA_VERSION}: export again or install the matching mtdit"
        )
    try:
        manifest: Manifest = from_json(Manifest, data, "manifest")
        from_json(
            dict[str, dict[str, float]],
            manifest.verification.get("stages", {}),
            "manifest.verification.stages",
        )
        from_json(
            dict[str, str], manifest.provenance.get("versions", {}), "manifest.provenance.versions"
        )
        return manifest
    except (TypeError, ValueError, OverflowError, RecursionError) as error:
        raise UserError(f"{where}: {plain(error)}: re-run `mtdit export`") from error


def _no_key_twice(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Build a JSON object and refuse duplicate keys: parsers disagree on which value counts."""
    if len(dict(pairs)) != len(pairs):
        raise ValueError("a key appears twice")
    return dict(pairs)


def from_json(kind: Any, data: Any, where: str) -> Any:
    """Convert a JSON value to the annotated type, strictly. `where` names the value in an error.

    Raises TypeError, ValueError, OverflowError or RecursionError.
    """
    origin, args = typing.get_origin(kind), typing.get_args(kind)
    if kind is Any:
        json.dumps(data, ensure_ascii=False).encode()  # raises on half a surrogate pair
        return data
    if is_dataclass(kind):
        return _build_dataclass(kind, data, where)
    if origin is tuple:
        items = _expect(data, list, where)
        if args[-1] is not Ellipsis and len(items) != len(args):
            raise ValueError(f"{where} must have {len(args)} entries, not {len(items)}")
        return tuple(from_json(args[0], item, f"{where}[{i}]") for i, item in enumerate(items))
    if origin is dict:
        items = _expect(data, dict, where).items()
        return {from_json(str, k, where): from_json(args[1], v, f"{where}.{k}") for k, v in items}
    if origin in (types.UnionType, typing.Union):
        return None if data is None else from_json(args[0], data, where)
    if kind is float and type(data) is int:
        return float(data)
    if kind is str:
        _expect(data, str, where).encode()
    return _expect(data, kind, where)


def _build_dataclass(kind: Any, data: Any, where: str) -> Any:
    hints = typing.get_type_hints(kind)
    data = _expect(data, dict, where)
    wrong = sorted(set(data) ^ set(hints))
    if wrong:
        raise ValueError(f"{where}.{wrong[0]} is {'unknown' if wrong[0] in data else 'missing'}")
    return kind(
        **{name: from_json(hint, data[name], f"{where}.{name}") for name, hint in hints.items()}
    )


def _expect(data: Any, kind: type, where: str) -> Any:
    if type(data) is not kind:
        raise TypeError(f"{where} must be {kind.__name__}, not {type(data).__name__}")
    return data


def read_arrays(path: Path) -> dict[str, NDArray[Any]]:
    """The arrays of an npz file. UserError when it is not one."""
    try:
        with zipfile.ZipFile(path), np.load(path, allow_pickle=False) as file:
            return dict(file)
    except (
        OSError,
        EOFError,
        ValueError,
        RuntimeError,
        MemoryError,
        zipfile.BadZipFile,
        zlib.error,
    ) as error:
        raise UserError(f"{path} is malformed ({plain(error)}): re-run `mtdit export`") from None


def texts(array: NDArray[Any]) -> list[str] | None:
    """The strings of an array, in order; None when it holds anything else, or characters that UTF-8
    cannot encode.
    """
    try:
        found = [str(word) for word in array.ravel().tolist()] if array.dtype.kind == "U" else None
        "".join(found or ()).encode()
    except (ValueError, SystemError):  # half a surrogate pair; a number that is not a character
        return None
    return found


def save_task_features(path: Path, features: Mapping[str, NDArray[np.float32]]) -> None:
    """Write instruction -> feature (P,) as an npz file without pickle."""
    tasks = np.array(list(features), dtype=np.str_)
    np.savez(
        path,
        tasks=tasks,
        features=np.stack(list(features.values())) if features else np.zeros((0, 0), np.float32),
    )
