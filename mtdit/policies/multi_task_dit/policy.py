"""The policy network: observation encoder, denoiser and objective, in normalised numbers.

Frames, states and actions are normalised before they get here and unnormalised afterwards
(`mtdit.data.loader` for training, `mtdit.torch_policy` for control).

`state_dict()` has exactly the keys and shapes of LeRobot's MultiTaskDiTPolicy, so weights load
strictly in both directions.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from mtdit.policies.multi_task_dit.clip import ClipShape
from mtdit.policies.multi_task_dit.clip_lookup import clip_shapes, load_clip
from mtdit.policies.multi_task_dit.config import PolicyConfig
from mtdit.policies.multi_task_dit.denoiser import Denoiser
from mtdit.policies.multi_task_dit.observation_encoder import ObservationEncoder
from mtdit.policies.objectives import make_objective

VISION_PREFIX = "observation_encoder.vision_encoder"  # also the start of "...vision_encoders.0"


@dataclass(frozen=True)
class Batch:
    """Normalised observations, and for training also actions, on one device."""

    images: Mapping[str, Tensor]  # camera -> (B, S, 3, H, W) float
    state: Tensor  # (B, S, J)
    text: Tensor  # (B, W) from `Policy.pooled_text`
    actions: Tensor | None = None  # (B, T, A)
    is_pad: Tensor | None = None  # (B, T) bool: outside the episode
    crop: Mapping[str, Tensor] | None = None  # camera -> (B, 2) int, top and left; None: centre
    noise: Tensor | None = None  # (B * K, T, A), K draws per sample; None: the loss draws it
    time: Tensor | None = None  # (B * K,); None: the loss draws it
    valid_actions: float | None = None  # divides a masked loss; None: the batch's own number


class MultiTaskDiT(nn.Module):
    """The policy network, with random weights.

    `MultiTaskDiT.pretrained` loads CLIP's weights, `mtdit.checkpoint.read` those of a trained
    policy.
    """

    def __init__(self, config: PolicyConfig, shape: ClipShape | None = None) -> None:
        super().__init__()
        self.config = config
        self.clip_shape = shape or clip_shapes(config)
        self.observation_encoder = ObservationEncoder(config, self.clip_shape)
        self.noise_predictor = Denoiser(config, self.observation_encoder.conditioning_dim)
        self.objective = make_objective(config)

    @classmethod
    def pretrained(cls, config: PolicyConfig) -> MultiTaskDiT:
        """A new policy with the pretrained weights of the CLIPs that the config names."""
        policy = cls(config)
        load_clip(policy.observation_encoder)
        return policy

    def pooled_text(self, token_ids: Tensor) -> Tensor:
        """Token ids (B, L) -> frozen text feature (B, W). It needs computing only once per task."""
        return self.observation_encoder.text_encoder.pooled(token_ids)

    def features(
        self, images: Mapping[str, Tensor], crop: Mapping[str, Tensor] | None = None
    ) -> Tensor | None:
        """Camera -> normalised (B, S, 3, H, W); returns (B, S, N * D), cameras in config order."""
        return self.observation_encoder.features(images, crop)

    def conditioning(self, batch: Batch) -> Tensor:
        """The denoiser's conditioning vector (B, C)."""
        return self.observation_encoder(
            batch.state, self.features(batch.images, batch.crop), batch.text
        )

    def loss(self, batch: Batch, noise_samples: int = 1) -> Tensor:
        """Mean squared error over the chunk.

        Each observation is encoded once and denoised with `noise_samples` draws.
        """
        assert batch.actions is not None, "a batch without actions has no loss"
        conditioning = self.conditioning(batch).repeat_interleave(noise_samples, dim=0)
        actions = batch.actions.repeat_interleave(noise_samples, dim=0)
        masked = self.config.do_mask_loss_for_padding and batch.is_pad is not None
        is_pad = batch.is_pad.repeat_interleave(noise_samples, dim=0) if masked else None  # type: ignore[union-attr]
        noise, time = batch.noise, batch.time
        if noise is None or time is None:
            noise, time = self.objective.draw(actions)
        return self.objective.loss(
            self._denoise(conditioning), actions, noise, time, is_pad, batch.valid_actions
        )

    forward = loss  # what data-parallel wrappers call

    @torch.no_grad()
    def sample_from(
        self,
        conditioning: Tensor,
        noise: Tensor,
        step_noise: Tensor | Sequence[Tensor] | None = None,
        prefix: Tensor | None = None,
        mask: Tensor | None = None,
    ) -> Tensor:
        """Conditioning (B, C), noise (B, T, A) -> actions (B, T, A).

        The other arguments are those of `Diffusion.sample`.
        """
        return self.objective.sample(self._denoise(conditioning), noise, step_noise, prefix, mask)

    def executed(self, chunk: Tensor) -> Tensor:
        """The executed part of a chunk (B, T, A): n_action_steps rows from the newest observation.

        (B, n_action_steps, A)
        """
        start = self.config.n_obs_steps - 1
        return chunk[:, start : start + self.config.n_action_steps]

    def parameter_groups(self) -> list[dict]:
        """Adam's two groups, as in LeRobot: all trained parameters except the vision towers', and
        the vision towers' with a lower learning rate.
        """
        lr = self.config.optimizer_lr
        vision, other = list(self._learning(vision=True)), list(self._learning(vision=False))
        return [
            {"params": other, "lr": lr},
            {"params": vision, "lr": lr * self.config.vision_encoder_lr_multiplier},
        ]

    def _learning(self, vision: bool) -> Iterator[nn.Parameter]:
        for name, parameter in self.named_parameters():
            if parameter.requires_grad and name.startswith(VISION_PREFIX) == vision:
                yield parameter

    def _denoise(self, conditioning: Tensor):  # type: ignore[no-untyped-def]
        return lambda x, time: self.noise_predictor(x, time, conditioning)
