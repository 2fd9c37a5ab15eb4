"""A trained checkpoint as a policy the control loop can run, computed by torch.

Knows the observation history, normalisation and the text feature; with the same noise its actions
are LeRobot's `select_action`. Refuses to know robots, clocks and queues. The robot computer runs
bundles instead, without torch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from mtdit.checkpoint import Checkpoint, open_checkpoint
from mtdit.data import normalized_images
from mtdit.encoders import tokenize
from mtdit_robots.errors import UserError
from mtdit_robots.robot import Frame, Positions
from mtdit_robots.so101 import JOINTS
from mtdit_runtime.bundle import NOISE, PREFIX, PREFIX_MASK, STEP_NOISE
from mtdit_runtime.policy import (
    Chunk,
    History,
    Noise,
    draw_noise,
    given_noise,
    noise_inputs,
    prefix_inputs,
)

DEFAULT_FPS = 30  # of SO-101 recordings; a checkpoint that LeRobot wrote does not say


@dataclass
class _Moment:
    """One observation inside the policy. Frames are dropped once their feature is known."""

    state: Tensor  # (J,) normalised
    frames: Mapping[str, Frame]
    feature: Tensor | None = None  # (N * D,)


class TorchPolicy:
    """The runtime's Policy protocol for an opened checkpoint. One per thread."""

    def __init__(self, checkpoint: Checkpoint, device: str | torch.device = "cpu") -> None:
        config = checkpoint.config
        self.checkpoint, self.device = checkpoint, torch.device(device)
        self.policy = checkpoint.policy(device)
        self.joints = joint_names(checkpoint)
        self.cameras = tuple(config.cameras)
        self.fps = checkpoint.facts.fps if checkpoint.facts else DEFAULT_FPS
        self.n_obs_steps, self.horizon, self.n_action_steps = (
            config.n_obs_steps,
            config.horizon,
            config.n_action_steps,
        )
        self._state_stats, self._action_stats = checkpoint.state_stats, checkpoint.action_stats
        self._scaling = {camera: checkpoint.image_scaling(camera) for camera in self.cameras}
        self._tokenizer = checkpoint.tokenizer()
        self._texts: dict[str, Tensor] = {}
        self._text: Tensor | None = None
        self._history: History[_Moment] = History(config.n_obs_steps)
        self._rng = np.random.default_rng(0)

    def reset(self, task: str, seed: int) -> None:
        self._history.clear()
        self._rng = np.random.default_rng(seed)
        if task not in self._texts:
            ids = tokenize(self._tokenizer, [task], self.policy.config).to(self.device)
            self._texts[task] = self.policy.pooled_text(ids)  # (1, W)
        self._text = self._texts[task]

    def observe(self, positions: Positions, frames: Mapping[str, Frame]) -> None:
        self._check(positions, frames)
        self._history.push(
            _Moment(torch.from_numpy(self._state_stats.normalize(positions)), frames)
        )

    def request(
        self, noise: Noise | None = None, committed: Positions | None = None
    ) -> Callable[[], Chunk]:
        """Freezes history, task, noise and prefix now; the result computes the chunk (horizon, J)
        in degrees.
        """
        if self._text is None:
            raise RuntimeError("reset() must come before the first chunk")
        steps, text = self._history.steps(), self._text
        held = (
            np.zeros((0, len(self.joints))) if committed is None else np.array(committed)
        )  # (n, J), a copy
        prefix = prefix_inputs(self._action_stats.normalize(held), self.horizon)
        arrays = {**noise_inputs(self._noise(noise)), **prefix}
        given = {name: torch.from_numpy(array).to(self.device) for name, array in arrays.items()}
        return lambda: self._chunk(steps, text, given, held)

    def prepare(self) -> Callable[[], None]:
        """Freezes now what a request after the next observation will need; the result encodes it
        ahead.
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
        self, steps: list[_Moment], text: Tensor, given: Mapping[str, Tensor], held: Positions
    ) -> Chunk:
        state = torch.stack([moment.state for moment in steps])[None].to(self.device)  # (1, S, J)
        features = (
            torch.stack([self._feature(moment) for moment in steps])[None] if self.cameras else None
        )
        conditioning = self.policy.observation_encoder(state, features, text)
        on_the_way = given[STEP_NOISE].transpose(0, 1)  # (steps - 1, 1, T, A), empty but for DDPM
        actions = self.policy.sample_from(
            conditioning, given[NOISE], on_the_way, given[PREFIX], given[PREFIX_MASK]
        )[0]
        chunk = self._action_stats.unnormalize(actions.cpu().numpy()).astype(np.float64)
        chunk[: len(held)] = held  # what normalising there and back rounds off
        return chunk

    @torch.no_grad()
    def _feature(self, moment: _Moment) -> Tensor:
        """(N * D,) of one observation, encoded on the first call."""
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

    def _check(self, positions: Positions, frames: Mapping[str, Frame]) -> None:
        if positions.shape != (self.policy.config.state_dim,):
            wanted = self.policy.config.state_dim
            raise UserError(
                f"the robot gave {positions.shape[0]} positions, the policy needs {wanted}; check the arm"
            )
        for camera, shape in self.policy.config.cameras.items():
            if camera not in frames:
                raise UserError(
                    f"no frame of camera {camera!r}; connect it or rename a camera to {camera!r}"
                )
            if frames[camera].shape != shape:
                got = frames[camera].shape
                raise UserError(
                    f"camera {camera!r} gives {got}, the policy was trained on {shape}; set that size"
                )


def open_policy(path: Path, device: str | torch.device = "cpu") -> TorchPolicy:
    """A TorchPolicy from a run, a checkpoint or a pretrained_model folder. UserError when there is
    none.
    """
    return TorchPolicy(open_checkpoint(path), device)


def joint_names(checkpoint: Checkpoint) -> tuple[str, ...]:
    """The checkpoint's joints; of one that LeRobot wrote, the SO-101's if it moves six."""
    if checkpoint.facts is not None:
        return checkpoint.facts.joints
    count = checkpoint.config.action_dim
    return tuple(JOINTS) if count == len(JOINTS) else tuple(f"joint_{i + 1}" for i in range(count))
