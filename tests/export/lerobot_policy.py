"""LeRobot's own policy, as its rollout uses it, and the noise it draws."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mtdit_runtime.policy.policy import Noise
from mtdit_runtime.verify.fixtures import Probe


class LeRobot:
    """LeRobot's policy with its own pre- and post-processors, read from our checkpoint folder."""

    def __init__(self, checkpoint: Path) -> None:
        from lerobot.policies.factory import make_pre_post_processors
        from lerobot.policies.multi_task_dit.modeling_multi_task_dit import MultiTaskDiTPolicy

        self.policy = MultiTaskDiTPolicy.from_pretrained(str(checkpoint)).eval()
        self.before, self.after = make_pre_post_processors(
            self.policy.config, pretrained_path=str(checkpoint)
        )

    def prepare(
        self, positions: np.ndarray, frames: dict[str, np.ndarray], task: str
    ) -> dict[str, Any]:
        images = {
            f"observation.images.{c}": torch.from_numpy(f).float().permute(2, 0, 1) / 255
            for c, f in frames.items()
        }
        state = torch.from_numpy(positions.astype(np.float32))
        return self.before({"observation.state": state, "task": task, **images})

    def act(self, positions: np.ndarray, frames: dict[str, np.ndarray], task: str) -> np.ndarray:
        action = self.policy.select_action(self.prepare(positions, frames, task))
        return self.after(action)[0].numpy()

    @torch.no_grad()
    def stages(self, probe: Probe, seed: int) -> dict[str, np.ndarray]:
        """features (1, n_obs, n_cam * D), text, and the whole chunk, normalised and in degrees;
        noise after `seed`.
        """
        steps = [
            self.prepare(p, {c: f[i] for c, f in probe.frames.items()}, probe.task)
            for i, p in enumerate(probe.positions)
        ]
        batch = {k: v for k, v in steps[-1].items() if "language" in k}
        batch["observation.state"] = torch.stack([s["observation.state"] for s in steps], dim=1)
        keys = list(self.policy.config.image_features)
        if keys:
            batch["observation.images"] = torch.stack(
                [torch.stack([s[k] for k in keys], dim=1) for s in steps], dim=1
            )
        torch.manual_seed(seed)
        conditioning = self.policy.observation_encoder.encode(batch)
        per_step = conditioning.unflatten(1, (len(steps), -1))
        state, text = 6, self.policy.config.hidden_dim
        actions = self.policy.objective.conditional_sample(
            self.policy.noise_predictor, 1, conditioning
        )
        return {
            "features": per_step[:, :, state:-text].numpy(),
            "state": per_step[:, :, :state].numpy(),
            "text": per_step[:, 0, -text:].numpy(),
            "actions": actions.numpy(),
            "degrees": self.after(actions)[0].numpy(),
        }


def lerobot_noise(seed: int, horizon: int, draws: int = 1) -> Iterator[Noise]:
    """The noise LeRobot draws, chunk after chunk, after torch.manual_seed(seed)."""
    generator = torch.Generator().manual_seed(seed)
    while True:
        drawn = [torch.randn((1, horizon, 6), generator=generator).numpy() for _ in range(draws)]
        yield drawn[0][0] if draws == 1 else np.concatenate(drawn)
