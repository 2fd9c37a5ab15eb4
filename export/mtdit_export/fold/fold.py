"""Folds a trained policy: exact algebra that rearranges its weights into four small modules.

Every rearrangement is an identity on real numbers; only the order of float operations changes.

- Denoiser: the AdaLN linear splits by columns into three parts. One depends on time (a constant per
  step), one on the newest observation (once per chunk), and one on the text and the earlier
  observations; the last is a module of its own, the history. The times and coefficients of all
  sampler steps are constants.
- The conditioning repeats the text for every observation step, so the text's columns are summed.
- Vision: antialiased resize and centre crop are one small matrix per axis. The last CLIP block is
  evaluated for the class token only, because nothing else is read from it.
- Attention's 1/sqrt(d) moves into the query weights, AdaLN's "1 +" into the constant part.

Uses LeRobot's parameter names and CLIP's architecture. Files and ONNX are left to `export` and
`trace`.

Shapes: N images, S patches + 1, L text tokens, D width, T horizon, A action dim, P text feature, O
observation steps, M = layers * 6 D numbers of modulation per call of the network.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import nn

from mtdit.policies.multi_task_dit.clip import VisionShape
from mtdit.policies.multi_task_dit.config import PolicyConfig
from mtdit.policies.multi_task_dit.policy import MultiTaskDiT
from mtdit_export.fold.clip import FoldedText, FoldedTower
from mtdit_export.fold.denoiser import (
    FoldedDenoiser,
    FoldedHistory,
    denoiser_blocks,
    observation_columns,
)
from mtdit_export.fold.frames import FoldedVision, Preprocess, Scaling
from mtdit_export.fold.layers import Weights, under


@dataclass(frozen=True)
class Folded:
    """The four modules of a bundle. `vision` is None for a policy without cameras."""

    vision: FoldedVision | None
    text: FoldedText
    history: FoldedHistory
    denoiser: FoldedDenoiser

    def modules(self) -> dict[str, nn.Module]:
        """Graph name -> module."""
        vision = {} if self.vision is None else {"vision": self.vision}
        return {**vision, "text": self.text, "history": self.history, "denoiser": self.denoiser}


def fold(policy: MultiTaskDiT, scaling: Mapping[str, Scaling]) -> Folded:
    """Fold a float32 policy. Its weights are copied, so the policy may be deleted afterwards.
    `scaling`: camera -> (offset, scale).
    """
    config, shape, weights = policy.config, policy.clip_shape, policy.state_dict()
    encoder, predictor = (
        under(weights, f"{part}.") for part in ("observation_encoder", "noise_predictor")
    )
    tower = under(encoder, "text_encoder.text_encoder.text_model.")
    projection = under(encoder, "text_encoder.projection.")
    return Folded(
        vision=fold_vision(encoder, config, scaling, shape.vision) if config.cameras else None,
        text=FoldedText(tower, projection, shape.text, config.tokenizer_max_length),
        history=FoldedHistory(observation_columns(denoiser_blocks(predictor, config), config)),
        denoiser=FoldedDenoiser(predictor, config),
    )


def fold_vision(
    encoder: Weights, config: PolicyConfig, scaling: Mapping[str, Scaling], shape: VisionShape
) -> FoldedVision:
    if config.use_separate_rgb_encoder_per_camera:
        prefixes = [f"vision_encoders.{i}.model.vision_model." for i in range(len(config.cameras))]
    else:
        prefixes = ["vision_encoder.model.vision_model."]
    towers = [FoldedTower(under(encoder, prefix), shape) for prefix in prefixes]
    prepare = [Preprocess(size[:2], config, scaling[name]) for name, size in config.cameras.items()]
    return FoldedVision(prepare, towers)
