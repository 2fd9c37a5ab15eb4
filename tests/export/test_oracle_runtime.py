"""LeRobot's own policy and processors against the exported bundle in the robot's runtime, with the
same noise.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from lerobot_policy import LeRobot, lerobot_noise

from mtdit_robots.robot import Positions
from mtdit_runtime.bundle.bundle import open_bundle
from mtdit_runtime.control.chunks import ChunkQueue
from mtdit_runtime.engines.choose import choose_engines
from mtdit_runtime.policy.bundle_policy import BundlePolicy
from mtdit_runtime.policy.policy import Chunk, Noise
from mtdit_runtime.verify.candidate import EngineRunner
from mtdit_runtime.verify.fixtures import Probe

CAMERAS = ("top", "wrist")
TASK = "push the red cube to the left"
UNSEEN = "Put the Sponge into the bowl, please!"
TICKS = 60


class SameNoise(BundlePolicy):
    """A BundlePolicy that takes its noise from a given sequence instead of its own generator."""

    noises: Iterator[Noise]

    def request(
        self, noise: Noise | None = None, committed: Positions | None = None
    ) -> Callable[[], Chunk]:
        return super().request(next(self.noises), committed)


def observation(rng: np.random.Generator, tick: int) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    positions = 30 * np.sin(tick / 10 + np.arange(6)) + rng.normal(0, 0.2, 6)
    return positions, {c: rng.integers(0, 256, (60, 80, 3), np.uint8) for c in CAMERAS}


@pytest.fixture(scope="module")
def lerobot(checkpoint: Path) -> LeRobot:
    return LeRobot(checkpoint)


@pytest.mark.parametrize("task", [TASK, UNSEEN])
@pytest.mark.parametrize("seed", range(3))
def test_every_stage_equals_lerobots(lerobot: LeRobot, bundle: Path, task: str, seed: int) -> None:
    opened, rng = open_bundle(bundle), np.random.default_rng(seed)
    observations = [observation(rng, tick) for tick in range(opened.manifest.n_obs_steps)]
    frames = {c: np.stack([f[c] for _, f in observations]) for c in CAMERAS}
    positions = np.stack([p for p, _ in observations]).astype(np.float32)
    probe = Probe(frames, positions, task, next(lerobot_noise(seed, opened.manifest.horizon)))
    wanted, candidate = lerobot.stages(probe, seed), EngineRunner(opened)

    features, (_, text) = candidate.features(probe), candidate.text(task)
    np.testing.assert_allclose(features, wanted["features"], atol=1e-5, rtol=0)
    np.testing.assert_allclose(text, wanted["text"], atol=1e-5, rtol=0)
    state = opened.stats["observation.state"].normalize(positions)[None]
    actions = candidate.actions(
        state, candidate.known(state, text, features), probe.noise, features
    )
    np.testing.assert_allclose(actions, wanted["actions"], atol=1e-4, rtol=0)
    np.testing.assert_allclose(candidate.positions(probe), wanted["degrees"], atol=0.01, rtol=0)


def test_sixty_ticks_equal_select_action(lerobot: LeRobot, bundle: Path) -> None:
    """In degrees, over eight chunks: history, queue, tokens, normalisation and graphs at once."""
    opened = open_bundle(bundle)
    policy = SameNoise(opened, choose_engines(opened, "onnx"))
    policy.noises = lerobot_noise(7, policy.horizon)
    queue, rng = ChunkQueue(policy), np.random.default_rng(7)
    queue.reset(TASK, seed=0)
    lerobot.policy.reset()
    torch.manual_seed(7)
    for tick in range(TICKS):
        positions, frames = observation(rng, tick)
        wanted = lerobot.act(positions, frames, TASK)
        np.testing.assert_allclose(
            queue.step(positions, frames).positions,
            wanted,
            atol=0.01,
            rtol=0,
            err_msg=f"tick {tick}",
        )
    assert queue.adopted == -(-TICKS // policy.n_action_steps)
