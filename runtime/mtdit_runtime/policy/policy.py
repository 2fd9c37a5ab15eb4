"""The Policy protocol: observations in, action chunks out; and the noise that a chunk takes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from mtdit_robots.robot import Frame, Positions
from mtdit_robots.units import UNKNOWN
from mtdit_runtime.bundle.manifest import NOISE, PREFIX, PREFIX_MASK, STEP_NOISE, Joint
from mtdit_runtime.engines.engine import Arrays
from mtdit_runtime.timings import Timings

Chunk = NDArray[np.float64]  # (horizon, J) degrees, gripper 0..100
# (horizon, J) standard normal; DDPM (draws, horizon, J): the start, then the noise of each step
Noise = NDArray[np.float32]


class Policy(Protocol):
    """A trained policy: observations in, action chunks out. `mtdit.load` opens one.

    Positions and actions are in `units`, the gripper in 0..100. Actions are (J,) in the order of
    `joints`, positions (S,) in the order of `state_joints`: a dataset may name its vectors in
    different orders. `run` and `evaluate` find each value by its joint's name. Call `reset` once
    per episode, `observe` at every tick, and `chunk` (or `request`) whenever the actions of the
    last chunk run out. Use one object per thread.
    """

    @property
    def joints(self) -> tuple[str, ...]:
        """Joint names, in the order of the actions."""
        ...

    @property
    def state_joints(self) -> tuple[str, ...]:
        """Joint names, in the order of the positions that `observe` takes."""
        return self.joints

    @property
    def cameras(self) -> tuple[str, ...]:
        """Camera names, without the prefix "observation.images."."""
        ...

    @property
    def frame_sizes(self) -> Mapping[str, tuple[int, int]]:
        """Camera name -> (height, width) of the frames that it must deliver."""
        ...

    @property
    def n_obs_steps(self) -> int:
        """Observations that a chunk is computed from: the newest and those of the ticks before."""
        ...

    @property
    def horizon(self) -> int:
        """Rows of a chunk. Row n_obs_steps-1 is the action for the newest observation."""
        ...

    @property
    def n_action_steps(self) -> int:
        """Rows that are executed, from row n_obs_steps-1 on, before the next chunk."""
        ...

    @property
    def fps(self) -> int:
        """Ticks per second of the training data, at which the policy must be run."""
        ...

    @property
    def units(self) -> str:
        """The unit of the body joints: degrees, normalized, or unknown."""
        return UNKNOWN

    @property
    def demonstrated(self) -> tuple[Joint, ...]:
        """How far and how fast the demonstrations moved each joint; empty: not known."""
        return ()

    @property
    def timings(self) -> Timings:
        """Durations of the policy's own stages; empty if it measures none."""
        return Timings()

    def reset(self, task: str, seed: int) -> None:
        """Forget the observations; from here on follow `task`, with noise from
        `np.random.default_rng(seed)`.

        An instruction that is not in the training data is encoded here, which takes some time.
        """

    def observe(self, positions: Positions, frames: Mapping[str, Frame]) -> None:
        """Add an observation. Call at every tick, also while actions remain; it is cheap. The first
        observation fills the whole history.

        positions: (S,) degrees, gripper 0..100. frames: camera -> (H, W, 3) uint8 RGB, kept by
        reference; neither the policy nor the caller may write to them afterwards. UserError for a
        missing camera, and for positions or frames of another shape than in training.
        """

    def chunk(self, noise: Noise | None = None, committed: Positions | None = None) -> Chunk:
        """Compute a chunk, (horizon, J) in degrees; row n_obs_steps-1 belongs to the newest
        observation. Arguments as for `request`. RuntimeError before the first `reset`.
        """
        ...

    def request(
        self, noise: Noise | None = None, committed: Positions | None = None
    ) -> Callable[[], Chunk]:
        """Fix observations, task and noise now; calling the result, in any thread, computes the
        chunk (horizon, J).

        noise: (horizon, J) standard normal, for DDPM (steps, horizon, J); None draws it from the
        seed of `reset`. committed: (n, J) positions in units, n <= horizon: the chunk's first rows,
        which the robot will execute in any case. They are returned unchanged, and the other rows
        are denoised to continue them.
        """
        ...

    def prepare(self) -> Callable[[], None]:
        """Calling the result, in any thread, computes in advance the part of the next request that
        does not depend on the next `observe`. Optional: it only makes the next chunk faster.
        """
        ...


def draw_noise(rng: np.random.Generator, horizon: int, n_joints: int, draws: int = 1) -> Noise:
    """The noise of a chunk. Every Policy draws it here, so equal seeds give equal noise on every
    backend.
    """
    return rng.standard_normal(noise_shape(horizon, n_joints, draws), dtype=np.float32)


def noise_shape(horizon: int, n_joints: int, draws: int) -> tuple[int, ...]:
    return (horizon, n_joints) if draws == 1 else (draws, horizon, n_joints)


def given_noise(noise: Noise, horizon: int, n_joints: int, draws: int) -> Noise:
    """The caller's noise. ValueError when its shape is not the one that the policy would draw."""
    wanted = noise_shape(horizon, n_joints, draws)
    if noise.shape != wanted:
        raise ValueError(f"noise has shape {noise.shape}, this policy takes {wanted}")
    return noise


def noise_inputs(noise: Noise) -> Arrays:
    """The noise of a chunk as graph inputs: (1, horizon, J) to start from and the step noise
    (1, draws - 1, horizon, J).
    """
    draws = np.asarray(noise, np.float32).reshape(-1, *noise.shape[-2:])
    return {NOISE: draws[:1], STEP_NOISE: draws[None, 1:]}


def prefix_inputs(actions: NDArray[np.float32], horizon: int) -> Arrays:
    """Committed actions (n, J), normalised, as graph inputs: the prefix (1, horizon, J) and its
    mask (1, horizon, 1). ValueError when n > horizon.
    """
    count = len(actions)
    if count > horizon:
        raise ValueError(f"{count} committed actions do not fit a chunk of {horizon}")
    prefix = np.zeros((1, horizon, actions.shape[1]), np.float32)
    mask = np.zeros((1, horizon, 1), np.float32)
    prefix[0, :count], mask[0, :count] = actions, 1.0
    return {PREFIX: prefix, PREFIX_MASK: mask}
