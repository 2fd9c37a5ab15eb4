"""Runs a trained checkpoint in the control loop, computed by torch.

TorchPolicy keeps the observation history, normalises, and computes the text feature. With the same
noise its actions equal those of LeRobot's `select_action`. The robot computer runs bundles instead,
without torch (`mtdit_runtime.policy.bundle_policy`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from mtdit.checkpoint.read import Checkpoint, need_stats, open_checkpoint
from mtdit.data.frame_cache import dataset_facts
from mtdit.data.lerobot_dataset import open_dataset
from mtdit.policies.images import normalized_images
from mtdit.policies.multi_task_dit.clip_lookup import tokenize
from mtdit.stats import demonstrated_joints
from mtdit_robots.errors import UserError
from mtdit_robots.features import ACTION
from mtdit_robots.robot import Frame, Positions
from mtdit_robots.units import UNKNOWN
from mtdit_runtime.bundle.manifest import NOISE, PREFIX, PREFIX_MASK, STEP_NOISE, Joint
from mtdit_runtime.joint_order import listed
from mtdit_runtime.policy.history import History, Moment, check_observation
from mtdit_runtime.policy.policy import (
    Chunk,
    Noise,
    draw_noise,
    given_noise,
    noise_inputs,
    prefix_inputs,
)
from mtdit_runtime.timings import Timings

DEFAULT_FPS = 30  # LeRobot's default for SO-101 recordings; its checkpoints do not store fps


class TorchPolicy:
    """The runtime's Policy protocol for an opened checkpoint. Use one object per thread."""

    def __init__(self, checkpoint: Checkpoint, device: str | torch.device = "cpu") -> None:
        config = checkpoint.config
        self.checkpoint, self.device = checkpoint, torch.device(device)
        self.policy = checkpoint.policy(device)
        self.joints, self.state_joints = joint_names(checkpoint)
        self.cameras = tuple(config.cameras)
        self.frame_sizes = {name: shape[:2] for name, shape in config.cameras.items()}
        self.fps = checkpoint.facts.fps if checkpoint.facts else DEFAULT_FPS
        self.units = checkpoint.facts.units if checkpoint.facts else UNKNOWN
        self.demonstrated = demonstrated(checkpoint)
        self.n_obs_steps, self.horizon, self.n_action_steps = (
            config.n_obs_steps,
            config.horizon,
            config.n_action_steps,
        )
        self.timings = Timings()  # empty: torch runs on a workstation, where nobody tunes a stage
        self._state_stats, self._action_stats = checkpoint.state_stats, checkpoint.action_stats
        self._scaling = {camera: checkpoint.image_scaling(camera) for camera in self.cameras}
        self._tokenizer = checkpoint.tokenizer()
        self._texts: dict[str, Tensor] = {}
        self._text: Tensor | None = None
        self._history: History[Moment[Tensor]] = History(config.n_obs_steps)
        self._rng = np.random.default_rng(0)

    def reset(self, task: str, seed: int) -> None:
        self._history.clear()
        self._rng = np.random.default_rng(seed)
        if task not in self._texts:
            ids = tokenize(self._tokenizer, [task], self.policy.config).to(self.device)
            self._texts[task] = self.policy.pooled_text(ids)  # (1, W)
        self._text = self._texts[task]

    def observe(self, positions: Positions, frames: Mapping[str, Frame]) -> None:
        wanted = self.policy.config.state_dim
        check_observation(positions, frames, wanted, self.frame_sizes)
        self._history.push(Moment(torch.from_numpy(self._state_stats.normalize(positions)), frames))

    def request(
        self, noise: Noise | None = None, committed: Positions | None = None
    ) -> Callable[[], Chunk]:
        """Takes history, task, noise and prefix as they are now; returns a function that computes
        the chunk (horizon, J) in degrees.

        committed: (n, J) actions in degrees that the chunk must begin with.
        """
        if self._text is None:
            raise RuntimeError("call reset() before the first chunk")
        steps, text = self._history.steps(), self._text
        nothing = np.zeros((0, len(self.joints)))
        held = nothing if committed is None else np.array(committed)  # (n, J), a copy
        prefix = prefix_inputs(self._action_stats.normalize(held), self.horizon)
        arrays = {**noise_inputs(self._noise(noise)), **prefix}
        given = {name: torch.from_numpy(array).to(self.device) for name, array in arrays.items()}
        return lambda: self._chunk(steps, text, given, held)

    def prepare(self) -> Callable[[], None]:
        """Takes the observations that the next request will need; returns a function that encodes
        them ahead of time.
        """
        steps = self._history.steps_after_next()

        def encode() -> None:
            for moment in steps:
                self._feature(moment)

        return encode

    def chunk(self, noise: Noise | None = None, committed: Positions | None = None) -> Chunk:
        return self.request(noise, committed)()

    @torch.no_grad()
    def _chunk(
        self,
        steps: list[Moment[Tensor]],
        text: Tensor,
        given: Mapping[str, Tensor],
        held: Positions,
    ) -> Chunk:
        state = torch.stack([moment.state for moment in steps])[None].to(self.device)  # (1, S, D)
        features = (
            torch.stack([self._feature(moment) for moment in steps])[None] if self.cameras else None
        )
        conditioning = self.policy.observation_encoder(state, features, text)
        step_noise = given[STEP_NOISE].transpose(0, 1)  # (steps - 1, 1, T, A), empty without DDPM
        actions = self.policy.sample_from(
            conditioning, given[NOISE], step_noise, given[PREFIX], given[PREFIX_MASK]
        )[0]
        chunk = self._action_stats.unnormalize(actions.cpu().numpy()).astype(np.float64)
        chunk[: len(held)] = held  # exactly, without the rounding of normalisation
        return chunk

    @torch.no_grad()
    def _feature(self, moment: Moment[Tensor]) -> Tensor:
        """The feature (N * D,) of one observation, computed on the first call."""
        if moment.feature is None and self.cameras:
            images = {c: self._image(moment.frames[c], c) for c in self.cameras}
            features = self.policy.features(images)
            assert features is not None
            moment.feature, moment.frames = features[0, 0], {}
        return moment.feature if moment.feature is not None else torch.zeros(0)

    def _image(self, frame: Frame, camera: str) -> Tensor:
        pixels = torch.from_numpy(np.ascontiguousarray(frame)).to(self.device)
        return normalized_images(pixels, *self._scaling[camera])[None, None]  # (1, 1, 3, H, W)

    def _noise(self, noise: Noise | None) -> Noise:
        sizes = self.horizon, self.policy.config.action_dim, self.policy.objective.draws
        return draw_noise(self._rng, *sizes) if noise is None else given_noise(noise, *sizes)


def open_policy(
    path: Path, device: str | torch.device = "cpu", dataset: str | None = None
) -> TorchPolicy:
    """A TorchPolicy from a run, a checkpoint or a pretrained_model folder. UserError if there is no
    policy.

    dataset: what it was trained on, for a checkpoint of LeRobot, which names no joints.
    """
    checkpoint = open_checkpoint(path)
    if dataset is not None and checkpoint.facts is None:
        checkpoint = replace(checkpoint, facts=dataset_facts(open_dataset(dataset)))
    return TorchPolicy(checkpoint, device)


def joint_names(checkpoint: Checkpoint) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The joint names of action and state. A checkpoint of LeRobot has none: nobody knows which
    joint a number belongs to, so they are numbered, and no robot has such joints.

    UserError with both lists when a vector has another number of values than of names.
    """
    config, facts = checkpoint.config, checkpoint.facts
    if facts is None:
        return numbered(config.action_dim), numbered(config.state_dim)
    if (len(facts.joints), len(facts.state_joints)) != (config.action_dim, config.state_dim):
        raise UserError(
            f"{checkpoint.folder} has {config.state_dim} states and {config.action_dim} actions, "
            f"but these names: state {listed(facts.state_joints)}; action {listed(facts.joints)}: "
            f"pass the dataset that it was trained on"
        )
    return facts.joints, facts.state_joints


def demonstrated(checkpoint: Checkpoint) -> tuple[Joint, ...]:
    """The joints with the ranges and speeds of the dataset; empty for a checkpoint that does not
    store them. UserError when they are damaged.
    """
    ends = ("min", "max")
    known = checkpoint.dataset_stats.get(ACTION, {})
    if checkpoint.facts is None or not set(ends) <= set(known):
        return ()
    need_stats(checkpoint, ACTION, ends)
    return demonstrated_joints(checkpoint.facts, known)


def numbered(count: int) -> tuple[str, ...]:
    return tuple(f"unnamed_{i + 1}" for i in range(count))
