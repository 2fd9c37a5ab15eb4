"""The trained policy against the graphs: stage by stage, then from frames to degrees, with the same noise.

The reference is the torch policy in float32; the candidate is the runtime itself (`OnnxEngine`, `BundlePolicy`), so
that history, tokens and normalisation are compared too. Knows what counts as equal. Refuses to know how the graphs came
to be.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mtdit.checkpoint import Checkpoint
from mtdit.config import PolicyConfig
from mtdit.data import normalized_images
from mtdit.dataset import Dataset
from mtdit.encoders import tokenize
from mtdit.policy import Batch, Policy
from mtdit.sampling import episode_bounds
from mtdit_export.errors import ExportError
from mtdit_export.precision import FP32
from mtdit_runtime.bundle import (
    ACTIONS,
    FEATURES,
    NOISE,
    STATE,
    TEXT_FEATURE,
    TOKEN_IDS,
    TOKENIZER,
    Bundle,
    frame_input,
)
from mtdit_runtime.engine import Engine, choose_engines
from mtdit_runtime.policy import BundlePolicy
from mtdit_runtime.tokens import load_tokens

Array = NDArray[np.float32]

N_PROBES = 4
N_SEEDS = 8  # chunks drawn per observation to see how far the policy itself varies
ROWS_READ = 400  # of a dataset's frames; videos are decoded from the front
BLOCK_PX = 8  # synthetic frames are blocks of this size: contrast survives the resize, and the golden files stay small

FP32_LIMIT = 1e-4  # normalised; for features relative to their largest value
FP16_SHARE_OF_SPREAD = 0.02
FP16_LIMIT_UNITS = 0.1  # degrees; also percent of the gripper
NEGLIGIBLE_UNITS = 0.02  # a quarter of a servo tick, for policies that hardly vary


@dataclass(frozen=True)
class Probe:
    """One observation history as a robot gives it, and the noise to denoise."""

    frames: Mapping[str, NDArray[np.uint8]]  # camera -> (n_obs, H, W, 3)
    positions: Array  # (n_obs, J) units
    task: str
    noise: Array  # (T, A)


@dataclass(frozen=True)
class Expected:
    """What the torch policy makes of a probe."""

    features: Array | None  # (1, n_obs, n_cam * D)
    state: Array  # (1, n_obs, J) normalised
    token_ids: NDArray[np.int64]  # (1, L)
    text: Array  # (1, P)
    actions: Array  # (1, T, A) normalised
    positions: Array  # (T, A) units
    spread: float  # units, rms deviation of the executed actions over noise seeds


@dataclass(frozen=True)
class Verification:
    """Stage -> figures. `failures` is empty when every gate held."""

    stages: dict[str, dict[str, float]]
    failures: list[str]


# -- probes --


def synthetic_probes(checkpoint: Checkpoint, tasks: Sequence[str], count: int = N_PROBES, seed: int = 0) -> list[Probe]:
    """Blocky random frames and positions within the training range."""
    rng, config = np.random.default_rng(seed), checkpoint.config
    states = [rng.uniform(-1, 1, (config.n_obs_steps, config.state_dim)) for _ in range(count)]
    return [
        Probe(
            frames={c: _blocks(rng, (config.n_obs_steps, *size)) for c, size in config.cameras.items()},
            positions=checkpoint.state_stats.unnormalize(state),
            task=tasks[i % len(tasks)],
            noise=_noise(rng, config),
        )
        for i, state in enumerate(states)
    ]


def dataset_probes(dataset: Dataset, config: PolicyConfig, count: int = N_PROBES, seed: int = 0) -> list[Probe]:
    """Observations of the dataset's first episodes. The dataset has the policy's cameras and sizes."""
    rng, first = np.random.default_rng(seed), episode_bounds(dataset.episode_ends)[0]
    rows = np.linspace(0, min(len(dataset.state), ROWS_READ) - 1, count).astype(int)
    seen = [np.maximum(row + np.arange(1 - config.n_obs_steps, 1), first[row]) for row in rows]  # edges repeat
    frames = {camera: read_frames(dataset, camera, {int(r) for s in seen for r in s}) for camera in config.cameras}
    return [
        Probe(
            frames={camera: np.stack([at[int(r)] for r in s]) for camera, at in frames.items()},
            positions=dataset.state[s],
            task=dataset.tasks[int(dataset.task[row])],
            noise=_noise(rng, config),
        )
        for row, s in zip(rows, seen, strict=True)
    ]


def read_frames(dataset: Dataset, camera: str, rows: set[int]) -> dict[int, NDArray[np.uint8]]:
    """Row -> frame (H, W, 3). Reads no further than it must."""
    found: dict[int, NDArray[np.uint8]] = {}
    for row, frame in dataset.frames(camera):
        if row in rows:
            found[row] = frame
        if len(found) == len(rows):
            break
    return found


def _blocks(rng: np.random.Generator, shape: tuple[int, ...]) -> NDArray[np.uint8]:
    steps, height, width, _ = shape
    small = rng.integers(0, 256, (steps, height // BLOCK_PX + 1, width // BLOCK_PX + 1, 3), np.uint8)
    return small.repeat(BLOCK_PX, 1).repeat(BLOCK_PX, 2)[:, :height, :width]


def _noise(rng: np.random.Generator, config: PolicyConfig) -> Array:
    return rng.standard_normal((config.horizon, config.action_dim), np.float32)


# -- reference --


class Reference:
    """The torch policy of a checkpoint, sampled as its config says. Tokens are padded as the graph wants them."""

    def __init__(self, policy: Policy, checkpoint: Checkpoint, tokenizer: Any) -> None:
        self.policy, self.checkpoint, self.tokenizer = policy, checkpoint, tokenizer
        self.config = policy.config

    @torch.no_grad()
    def text(self, task: str) -> tuple[NDArray[np.int64], Array]:
        """Token ids (1, L) and the projected feature (1, P)."""
        ids = tokenize(self.tokenizer, [task], replace(self.config, tokenizer_padding="max_length"))
        return ids.numpy(), self._project(self.policy.pooled_text(ids)).numpy()

    @torch.no_grad()
    def __call__(self, probe: Probe) -> Expected:
        state = self.checkpoint.state_stats.normalize(probe.positions)[None]
        ids, text = self.text(probe.task)
        images = {camera: self._images(frames, camera) for camera, frames in probe.frames.items()}
        features = self.policy.features(images)
        batch = Batch(images, torch.from_numpy(state), self.policy.pooled_text(torch.from_numpy(ids)))
        conditioning = self.policy.conditioning(batch)
        actions = self.policy.sample_from(conditioning, torch.from_numpy(probe.noise)[None]).numpy()
        return Expected(
            features=None if features is None else features.numpy(),
            state=state,
            token_ids=ids,
            text=text,
            actions=actions,
            positions=self.checkpoint.action_stats.unnormalize(actions[0]),
            spread=self._spread(conditioning),
        )

    def _project(self, pooled: Tensor) -> Tensor:
        return self.policy.observation_encoder.text_encoder(pooled)

    def _images(self, frames: NDArray[np.uint8], camera: str) -> Tensor:
        return normalized_images(torch.from_numpy(frames), *self.checkpoint.image_scaling(camera))[None]

    def _spread(self, conditioning: Tensor) -> float:
        """How much the executed actions vary with the noise alone, in units."""
        shape = (N_SEEDS, self.config.horizon, self.config.action_dim)
        noise = torch.randn(shape, generator=torch.Generator().manual_seed(0))
        chunks = self.policy.sample_from(conditioning.expand(N_SEEDS, -1), noise)
        positions = self.checkpoint.action_stats.unnormalize(self.policy.executed(chunks).numpy())
        return float(np.sqrt(np.mean((positions - positions.mean(0)) ** 2)))


# -- candidate --


class Candidate:
    """An opened bundle on the CPU, one stage at a time. `seconds`: stage -> duration of every call."""

    def __init__(self, bundle: Bundle) -> None:
        graphs = bundle.manifest.graphs
        self.bundle, self.engines = bundle, choose_engines(bundle, "onnx")
        self.open_text = self.engines.open_text()
        self.tokens = load_tokens(bundle.path(TOKENIZER), graphs["text"].inputs[0].shape[-1])
        self.asked = {tensor.name for tensor in graphs["denoiser"].inputs}
        self.seconds: dict[str, list[float]] = {}

    def features(self, probe: Probe) -> Array | None:
        """(1, n_obs, n_cam * D): one call per observation step, as on the robot."""
        if self.engines.vision is None:
            return None
        steps = [{frame_input(c): f[i] for c, f in probe.frames.items()} for i in range(len(probe.positions))]
        return np.stack([self._run("vision", self.engines.vision, step)[FEATURES] for step in steps], axis=1)

    def text(self, task: str) -> tuple[NDArray[np.int64], Array]:
        ids = self.tokens(task)
        return ids, self._run("text", self.open_text, {TOKEN_IDS: ids})[TEXT_FEATURE]

    def actions(self, state: Array, text: Array, noise: Array, features: Array | None) -> Array:
        inputs = {STATE: state, TEXT_FEATURE: text, NOISE: noise[None], FEATURES: features}
        asked = {name: array for name, array in inputs.items() if name in self.asked and array is not None}
        return self._run("denoiser", self.engines.denoiser, asked)[ACTIONS]

    def positions(self, probe: Probe) -> Array:
        """(T, A) in units, by the robot's own policy class."""
        policy = BundlePolicy(self.bundle, self.engines)
        policy.reset(probe.task, seed=0)
        for i, position in enumerate(probe.positions):
            policy.observe(position.astype(np.float64), {c: f[i] for c, f in probe.frames.items()})
        return policy.chunk(probe.noise).astype(np.float32)

    def _run(self, stage: str, engine: Engine, inputs: Mapping[str, NDArray[Any]]) -> Mapping[str, Array]:
        began = time.perf_counter()
        result = engine(inputs)
        self.seconds.setdefault(stage, []).append(time.perf_counter() - began)
        return result


# -- comparison --

Pair = tuple[Array, Array]  # got, wanted


def verify(bundle: Bundle, probes: Sequence[Probe], expected: Sequence[Expected]) -> Verification:
    """Holds an opened bundle against the torch policy.

    "denoiser" gets the reference's features and text, "chunk" the graphs' own; both are normalised actions. "robot" is
    the executed part of the chunk in units.
    """
    candidate = Candidate(bundle)
    per_probe = [compare(candidate, p, e) for p, e in zip(probes, expected, strict=True)]
    stages = {stage: figures([pairs[stage] for pairs in per_probe]) for stage in per_probe[0]}
    for stage, seconds in candidate.seconds.items():
        stages[stage]["latency_ms"] = 1e3 * statistics.median(seconds)
    stages["robot"]["spread"] = float(np.sqrt(np.mean([e.spread**2 for e in expected])))
    return Verification(stages, failures(stages, bundle.manifest.precision))


def compare(candidate: Candidate, probe: Probe, e: Expected) -> dict[str, Pair]:
    features, (ids, text) = candidate.features(probe), candidate.text(probe.task)
    if not np.array_equal(ids, e.token_ids):
        raise ExportError(f"tokens of {probe.task!r} differ between checkpoint and bundle: its tokenizer is not CLIP's")
    m = candidate.bundle.manifest
    executed = slice(m.n_obs_steps - 1, m.n_obs_steps - 1 + m.n_action_steps)
    pairs = {
        "text": (text, e.text),
        "denoiser": (candidate.actions(e.state, e.text, probe.noise, e.features), e.actions),
        "chunk": (candidate.actions(e.state, text, probe.noise, features), e.actions),
        "robot": (candidate.positions(probe)[executed], e.positions[executed]),
    }
    if features is not None and e.features is not None:
        pairs = {"vision": (features, e.features), **pairs}
    return pairs


def figures(pairs: Sequence[Pair]) -> dict[str, float]:
    """Errors of a stage over all probes, and the largest value they stand beside. NaN errs infinitely."""
    errors = np.abs(np.stack([np.asarray(got, np.float64) - wanted for got, wanted in pairs]))
    errors = np.where(np.isfinite(errors), errors, np.inf)
    return {
        "max_error": float(errors.max()),
        "mean_error": float(errors.mean()),
        "rms_error": float(np.sqrt(np.mean(errors**2))),
        "largest": float(max(np.abs(wanted).max() for _, wanted in pairs)),
    }


def failures(stages: Mapping[str, Mapping[str, float]], precision: str) -> list[str]:
    """One line per gate that does not hold."""
    if precision == FP32:
        limits = {s: FP32_LIMIT * max(1.0, f["largest"]) for s, f in stages.items() if s in ("vision", "text")}
        limits |= dict.fromkeys(("denoiser", "chunk"), FP32_LIMIT)
        return [
            f"{stage}: max error {stages[stage]['max_error']:.2g} exceeds {limit:.2g}"
            for stage, limit in limits.items()
            if not stages[stage]["max_error"] <= limit
        ]
    robot, found = stages["robot"], []
    share = max(FP16_SHARE_OF_SPREAD * robot["spread"], NEGLIGIBLE_UNITS)
    if not robot["rms_error"] <= share:
        found.append(f"robot: rms error {robot['rms_error']:.2g} exceeds {share:.2g}, 2 % of the spread over noise")
    if not robot["max_error"] <= FP16_LIMIT_UNITS:
        found.append(f"robot: max error {robot['max_error']:.2g} degrees exceeds {FP16_LIMIT_UNITS}")
    return found


# -- fixtures --


def write_golden(folder: Path, probes: Sequence[Probe], expected: Sequence[Expected]) -> None:
    """`golden/0.npz` ...: raw observation and noise -> every stage and the actions, for a check on the target.

    Arrays: frame.<camera> (n_obs, H, W, 3), positions (n_obs, J), task, noise (T, A); then features (without cameras:
    absent), state, token_ids, text, actions as in the graphs, and actions_units (T, A).
    """
    folder.mkdir(exist_ok=True)
    for i, (probe, e) in enumerate(zip(probes, expected, strict=True)):
        arrays: dict[str, NDArray[Any]] = {frame_input(c): f for c, f in probe.frames.items()}
        arrays |= {"positions": probe.positions, "task": np.array(probe.task), NOISE: probe.noise}
        arrays |= {} if e.features is None else {FEATURES: e.features}
        arrays |= {STATE: e.state, TOKEN_IDS: e.token_ids, TEXT_FEATURE: e.text, ACTIONS: e.actions}
        np.savez_compressed(folder / f"{i}.npz", actions_units=e.positions, **arrays)  # type: ignore[arg-type]


def write_reference(folder: Path, probe: Probe) -> None:
    """`reference/<camera>.png`: what the policy is used to seeing, to compare a camera with."""
    from PIL import Image

    folder.mkdir(exist_ok=True)
    for camera, frames in probe.frames.items():
        Image.fromarray(frames[-1]).save(folder / f"{camera}.png")
