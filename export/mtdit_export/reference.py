"""What the exported graphs are compared with: observations (probes), and what the torch policy in
float32 computes from them, stage by stage and with the same noise.

The comparison itself is `mtdit_runtime.verify.gates.check_outputs`, the same here and on the robot
computer. Also reads the frames with which int8 is calibrated.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from mtdit.checkpoint.read import Checkpoint
from mtdit.data.frame_sources import frame_sources
from mtdit.data.lerobot_dataset import Dataset
from mtdit.data.sampler import episode_bounds
from mtdit.policies.images import normalized_images
from mtdit.policies.multi_task_dit.clip_lookup import tokenize
from mtdit.policies.multi_task_dit.config import PolicyConfig
from mtdit.policies.multi_task_dit.policy import MultiTaskDiT
from mtdit.policies.multi_task_dit.rtc import sample_guided
from mtdit.policies.objectives import make_objective
from mtdit_export.options import FP32
from mtdit_export.rounding import half_products
from mtdit_runtime.policy.policy import draw_noise, prefix_inputs
from mtdit_runtime.verify.fixtures import (
    Array,
    Probe,
    ReferenceOutputs,
    Trial,
    guide_for,
    prefix_rows,
)
from mtdit_runtime.verify.gates import rms

N_PROBES = 4  # compared stage by stage
# Of a rounded bundle the executed actions are compared over that many observations, each with
# N_SEEDS noises: enough numbers to know the error that one action in a thousand exceeds.
N_TRIALS = 64
N_SEEDS = 4  # noises per observation, also to measure how much the policy itself varies
ROWS_READ = 2000  # frames come from the first rows of a dataset, since videos decode from the front
N_CALIBRATION = 32  # number of frames for int8
# synthetic frames consist of blocks of this size, so that contrast survives the resize and the
# golden files stay small
BLOCK_PX = 8


# -- probes --


def synthetic_probes(
    checkpoint: Checkpoint, tasks: Sequence[str], count: int = N_PROBES, seed: int = 0
) -> list[Probe]:
    """Probes with random frames of coloured blocks and random positions in the training range."""
    rng, config = np.random.default_rng(seed), checkpoint.config
    states = [rng.uniform(-1, 1, (config.n_obs_steps, config.state_dim)) for _ in range(count)]
    return [
        Probe(
            frames={
                c: _blocks(rng, (config.n_obs_steps, *size)) for c, size in config.cameras.items()
            },
            positions=checkpoint.state_stats.unnormalize(state),
            task=tasks[i % len(tasks)],
            noise=_noise(rng, config),
        )
        for i, state in enumerate(states)
    ]


def dataset_probes(
    dataset: Dataset, config: PolicyConfig, count: int = N_PROBES, seed: int = 0
) -> list[Probe]:
    """Probes from the first rows of a dataset, which must have the policy's cameras and sizes."""
    rng, first = np.random.default_rng(seed), episode_bounds(dataset.episode_ends)[0]
    rows = np.linspace(0, min(len(dataset.state), ROWS_READ) - 1, count).astype(int)
    # rows of each observation history; the first row of an episode repeats at its start
    seen = [np.maximum(row + np.arange(1 - config.n_obs_steps, 1), first[row]) for row in rows]
    frames = {
        camera: read_frames(dataset, camera, {int(r) for s in seen for r in s})
        for camera in config.cameras
    }
    return [
        Probe(
            frames={camera: np.stack([at[int(r)] for r in s]) for camera, at in frames.items()},
            positions=dataset.state[s],
            task=dataset.tasks[int(dataset.task[row])],
            noise=_noise(rng, config),
        )
        for row, s in zip(rows, seen, strict=True)
    ]


def draw_trials(probes: Sequence[Probe], config: PolicyConfig, seed: int = 1) -> list[Array]:
    """Noises for each probe, (N_SEEDS, T, A), or (N_SEEDS, draws, T, A) for DDPM."""
    rng = np.random.default_rng(seed)
    return [np.stack([_noise(rng, config) for _ in range(N_SEEDS)]) for _ in probes]


def calibration_frames(dataset: Dataset, cameras: Sequence[str]) -> list[list[NDArray[np.uint8]]]:
    """Frames spread over the first rows of a dataset: a list per row, with one frame (H, W, 3) per
    camera in the given order.
    """
    rows = np.linspace(0, min(len(dataset.state), ROWS_READ) - 1, N_CALIBRATION).astype(int)
    seen = [read_frames(dataset, camera, set(rows.tolist())) for camera in cameras]
    return [[at[row] for at in seen] for row in sorted(seen[0])]


def read_frames(dataset: Dataset, camera: str, rows: set[int]) -> dict[int, NDArray[np.uint8]]:
    """Row -> frame (H, W, 3), the nearest to the row's time. Stops reading after the last row."""
    found: dict[int, NDArray[np.uint8]] = {}
    for source in frame_sources(dataset, camera, tolerance_s=0.5 / dataset.fps):
        wanted = rows.intersection(source.rows.tolist())
        for row, frame in source.frames() if wanted else ():
            if row in wanted:
                found[row] = frame
            if wanted <= found.keys():
                break
    return found


def _blocks(rng: np.random.Generator, shape: tuple[int, ...]) -> NDArray[np.uint8]:
    steps, height, width, _ = shape
    small = rng.integers(
        0, 256, (steps, height // BLOCK_PX + 1, width // BLOCK_PX + 1, 3), np.uint8
    )
    return small.repeat(BLOCK_PX, 1).repeat(BLOCK_PX, 2)[:, :height, :width]


def _noise(rng: np.random.Generator, config: PolicyConfig) -> Array:
    return draw_noise(rng, config.horizon, config.action_dim, make_objective(config).draws)


# -- reference --


class Reference:
    """Computes what the engines should give for a probe: the torch policy of a checkpoint, sampled
    as its config says, with tokens padded to the graph's length.

    `rtc`: also compute the guided chunk, with `mtdit.policies.multi_task_dit.rtc`. `half`: also
    measure what rounding to float16 costs in each stage.
    """

    def __init__(
        self,
        policy: MultiTaskDiT,
        checkpoint: Checkpoint,
        tokenizer: Any,
        rtc: bool = False,
        half: bool = False,
    ) -> None:
        self.policy, self.checkpoint, self.tokenizer = policy, checkpoint, tokenizer
        self.config, self.rtc, self.half = policy.config, rtc, half
        self._pooled: dict[str, tuple[Tensor, Tensor]] = {}  # task -> token ids, pooled text

    @torch.no_grad()
    def text(self, task: str) -> tuple[NDArray[np.int64], Array]:
        """Token ids (1, L) and the projected feature (1, P)."""
        ids, pooled = self._text(task)
        return ids.numpy(), self.policy.observation_encoder.text_encoder(pooled).numpy()

    def _text(self, task: str) -> tuple[Tensor, Tensor]:
        if task not in self._pooled:
            padded = replace(self.config, tokenizer_padding="max_length")
            ids = tokenize(self.tokenizer, [task], padded)
            self._pooled[task] = ids, self.policy.pooled_text(ids)
        return self._pooled[task]

    @torch.no_grad()
    def __call__(self, probe: Probe) -> ReferenceOutputs:
        policy, checkpoint = self.policy, self.checkpoint
        ids, text = self.text(probe.task)
        state, features, conditioning = self._observed(probe)
        noise, step_noise = draws(probe.noise[None])
        actions = policy.sample_from(conditioning, noise, step_noise).numpy()
        prefix = prefix_inputs(prefix_rows(actions), self.config.horizon).values()
        prefixed = policy.sample_from(
            conditioning, noise, step_noise, *map(torch.from_numpy, prefix)
        )
        rtc = None
        if self.rtc:
            guide = guide_for(actions)
            target = torch.from_numpy(guide.actions), torch.from_numpy(guide.weights)
            rtc = sample_guided(policy, conditioning, noise, *target, step_noise).numpy()
        e = ReferenceOutputs(
            features=None if features is None else features.numpy(),
            state=state.numpy(),
            token_ids=ids,
            text=text,
            history_modulation=self._history_modulation(conditioning),
            actions=actions,
            positions=checkpoint.action_stats.unnormalize(actions[0]),
            prefixed=prefixed.numpy(),
            spread=self._spread(conditioning),
            rtc=rtc,
        )
        return replace(e, rounding=self._rounding(probe, e, conditioning) if self.half else {})

    @torch.no_grad()
    def trial(self, probe: Probe, noises: Array) -> Trial:
        """What would be executed with each of these noises, see `draw_trials`."""
        *_, conditioning = self._observed(probe)
        return Trial(probe, noises, self._executed(conditioning, draws(noises)))

    def _observed(self, probe: Probe) -> tuple[Tensor, Tensor | None, Tensor]:
        """Normalised state (1, n_obs, J), features, and the denoiser's conditioning."""
        state = torch.from_numpy(self.checkpoint.state_stats.normalize(probe.positions)[None])
        features = self.policy.features(self._images(probe))
        _, pooled = self._text(probe.task)
        return state, features, self.policy.observation_encoder(state, features, pooled)

    def _images(self, probe: Probe) -> dict[str, Tensor]:
        """Camera -> (1, n_obs, 3, H, W) normalised."""
        return {
            camera: normalized_images(
                torch.from_numpy(frames), *self.checkpoint.image_scaling(camera)
            )[None]
            for camera, frames in probe.frames.items()
        }

    def _rounding(
        self, probe: Probe, e: ReferenceOutputs, conditioning: Tensor
    ) -> dict[str, float]:
        """Stage -> rms error that rounding its products to float16 causes by itself."""
        policy, (noise, step_noise) = self.policy, draws(probe.noise[None])
        with half_products(policy):
            features = policy.features(self._images(probe))
            pooled = policy.pooled_text(torch.from_numpy(e.token_ids))
            rounded: list[tuple[str, Array, Array]] = [
                ("text", policy.observation_encoder.text_encoder(pooled).numpy(), e.text),
                ("history", self._history_modulation(conditioning), e.history_modulation),
                (
                    "denoiser",
                    policy.sample_from(conditioning, noise, step_noise).numpy(),
                    e.actions,
                ),
            ]
        if features is not None and e.features is not None:
            rounded.append(("vision", features.numpy(), e.features))
        return {stage: rms(got - exact) for stage, got, exact in rounded}

    def _history_modulation(self, conditioning: Tensor) -> Array:
        """(1, M): the modulation of all blocks from text and earlier observations alone, without
        bias, time and the newest observation.
        """
        per_step = conditioning.unflatten(1, (self.config.n_obs_steps, -1)).clone()
        per_step[:, -1, : -self.config.hidden_dim] = 0  # all but the text; SiLU(0) = 0
        before = F.silu(per_step.flatten(1))
        weights = [
            w
            for name, w in self.policy.named_parameters()
            if name.endswith("adaLN_modulation.1.weight")
        ]
        return torch.cat(
            [F.linear(before, w[:, self.config.timestep_embed_dim :]) for w in weights], dim=1
        ).numpy()

    def _spread(self, conditioning: Tensor) -> float:
        """Rms deviation of the executed actions over noise seeds, in units."""
        shape = (self.policy.objective.draws, N_SEEDS, self.config.horizon, self.config.action_dim)
        noise = torch.randn(shape, generator=torch.Generator().manual_seed(0))
        executed = self._executed(conditioning, (noise[0], noise[1:]))
        return rms(executed - executed.mean(0))

    def _executed(self, conditioning: Tensor, noise: tuple[Tensor, Tensor]) -> Array:
        """(K, n_action_steps, J) units, from `draws`."""
        start, step_noise = noise
        chunks = self.policy.sample_from(conditioning.expand(len(start), -1), start, step_noise)
        return self.checkpoint.action_stats.unnormalize(self.policy.executed(chunks).numpy())


def draws(noises: Array) -> tuple[Tensor, Tensor]:
    """Noises (K, T, A) or (K, draws, T, A) -> what chunks start from (K, T, A), and the noise of
    each step (draws - 1, K, T, A).
    """
    each = torch.from_numpy(noises.reshape(len(noises), -1, *noises.shape[-2:])).transpose(0, 1)
    return each[0], each[1:]


# -- comparison --


@dataclass(frozen=True)
class Comparison:
    """What a bundle is compared with."""

    probes: Sequence[Probe]  # stage by stage, with
    expected: Sequence[ReferenceOutputs]
    trials: Sequence[Trial]  # only the executed actions; none for fp32, whose stages are exact

    @property
    def extent(self) -> str:
        if not self.trials:
            return f"{len(self.probes)} observations"
        return f"{len(self.trials)} observations with {len(self.trials[0].noises)} noises each"


def compared_with(
    reference: Reference, tasks: Sequence[str], dataset: Dataset | None, precision: str
) -> Comparison:
    """Compute what a bundle of this precision is compared with: on frames of the dataset, without
    one on random frames.
    """
    count = N_PROBES if precision == FP32 else N_TRIALS
    if dataset is None:
        probes = synthetic_probes(reference.checkpoint, tasks or ("",), count)
    else:
        probes = dataset_probes(dataset, reference.config, count)
    few = probes[:: count // N_PROBES]
    expected = [reference(probe) for probe in few]
    rounded = [] if precision == FP32 else probes
    noises = draw_trials(rounded, reference.config)
    return Comparison(few, expected, list(map(reference.trial, rounded, noises)))


def write_reference_frames(folder: Path, probe: Probe) -> None:
    """Write `reference/<camera>.png`: what a camera of the policy saw, to aim the real one by."""
    from PIL import Image

    folder.mkdir(exist_ok=True)
    for camera, frames in probe.frames.items():
        Image.fromarray(frames[-1]).save(folder / f"{camera}.png")
