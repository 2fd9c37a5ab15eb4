"""The policy's configuration: a frozen dataclass that checks its values. The reader and writer of
LeRobot's config.json are in `mtdit.policies.multi_task_dit.config_json`.

Field names, defaults and rules are those of LeRobot's `multi_task_dit`
(lerobot/policies/multi_task_dit/configuration_multi_task_dit.py). This module does not import
torch, because the CLI reads it at start-up.

`PolicyConfig()` has LeRobot's defaults, because a key that config.json lacks means LeRobot's
default. A new training starts from a preset instead (`mtdit.policies.multi_task_dit.presets`).

Stricter than LeRobot: a crop larger than the frame is refused (LeRobot then crops nothing, and
CLIP fails), and so is everything that would fail at the first step. Laxer: cameras may differ in
size.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from mtdit.config import (
    MAX_LAYERS,
    Feature,
    Rule,
    check_features,
    check_image_shapes,
    check_normalization,
    check_types,
)
from mtdit_robots.errors import UserError
from mtdit_robots.features import ACTION, IMAGES, STATE
from mtdit_runtime.files import MAX_DIM

BETA_SCHEDULES = ("linear", "scaled_linear", "squaredcos_cap_v2", "laplace", "sigmoid")
DDPM_SCHEDULES = ("laplace", "sigmoid")  # diffusers' DDIM does not know them; ours does
SCHEDULERS = (
    "cosine",
    "cosine_with_restarts",
    "linear",
    "polynomial",
    "constant",
    "constant_with_warmup",
)
OPENAI_B16 = "openai/clip-vit-base-patch16"


@dataclass(frozen=True)
class PolicyConfig:
    """Everything that determines what the policy computes, with LeRobot's names and defaults.

    UserError names the first field whose value is not valid.
    """

    # The order of the VISUAL entries is the order of the cameras.
    input_features: Mapping[str, Feature] = field(default_factory=dict)
    output_features: Mapping[str, Feature] = field(default_factory=dict)

    n_obs_steps: int = 2
    horizon: int = 32
    n_action_steps: int = 24
    objective: str = "diffusion"  # or flow_matching

    noise_scheduler_type: str = "DDPM"  # or DDIM; training is the same
    num_train_timesteps: int = 100
    beta_schedule: str = "squaredcos_cap_v2"
    beta_start: float = 0.0001  # beta_start, beta_end: only linear, scaled_linear and sigmoid
    beta_end: float = 0.02
    prediction_type: str = "epsilon"  # or sample
    clip_sample: bool = True
    clip_sample_range: float = 1.0
    num_inference_steps: int | None = None  # None: num_train_timesteps

    sigma_min: float = 0.0
    num_integration_steps: int = 100
    integration_method: str = "euler"  # or rk4
    timestep_sampling_strategy: str = "beta"  # or uniform
    timestep_sampling_s: float = 0.999
    timestep_sampling_alpha: float = 1.5
    timestep_sampling_beta: float = 1.0

    hidden_dim: int = 512
    num_layers: int = 6
    num_heads: int = 8
    dropout: float = 0.1
    use_positional_encoding: bool = False
    timestep_embed_dim: int = 256
    use_rope: bool = True
    rope_base: float = 10000.0

    vision_encoder_name: str = OPENAI_B16  # Hub name or folder; LeRobot requires "clip" in it
    use_separate_rgb_encoder_per_camera: bool = False
    vision_encoder_lr_multiplier: float = 0.1
    image_resize_shape: tuple[int, int] | None = None  # H, W
    image_crop_shape: tuple[int, int] | None = (224, 224)  # H, W, after the resize
    image_crop_is_random: bool = True

    text_encoder_name: str = OPENAI_B16
    tokenizer_max_length: int = 77
    tokenizer_padding: str = "max_length"
    tokenizer_padding_side: str = "right"
    tokenizer_truncation: bool = True

    normalization_mapping: Mapping[str, str] = field(
        default_factory=lambda: {"VISUAL": "MEAN_STD", "STATE": "MIN_MAX", "ACTION": "MIN_MAX"}
    )

    optimizer_lr: float = 2e-5
    optimizer_betas: tuple[float, float] = (0.95, 0.999)
    optimizer_eps: float = 1e-8
    optimizer_weight_decay: float = 0.0
    scheduler_name: str = "cosine"
    scheduler_warmup_steps: int = 0
    do_mask_loss_for_padding: bool = False
    drop_n_last_frames: int | None = None  # None: horizon - n_action_steps - n_obs_steps + 1

    device: str | None = None
    use_amp: bool = False

    def __post_init__(self) -> None:
        check_types(self)
        if self.drop_n_last_frames is None:
            object.__setattr__(
                self,
                "drop_n_last_frames",
                self.horizon - self.n_action_steps - self.n_obs_steps + 1,
            )
        _check_policy(self)

    @property
    def cameras(self) -> dict[str, tuple[int, int, int]]:
        """Camera name -> (H, W, 3), in the network's order."""
        images = {k: f.shape for k, f in self.input_features.items() if f.type == "VISUAL"}
        return {k.removeprefix(IMAGES): (s[1], s[2], s[0]) for k, s in images.items()}

    @property
    def image_keys(self) -> dict[str, str]:
        """Camera name -> dataset key. LeRobot accepts VISUAL keys without the usual prefix."""
        return {
            k.removeprefix(IMAGES): k for k, f in self.input_features.items() if f.type == "VISUAL"
        }

    @property
    def state_dim(self) -> int:
        return self.input_features[STATE].shape[0]

    @property
    def action_dim(self) -> int:
        return self.output_features[ACTION].shape[0]

    @property
    def inference_steps(self) -> int:
        return (
            self.num_train_timesteps
            if self.num_inference_steps is None
            else self.num_inference_steps
        )


def input_size(config: PolicyConfig, camera: str) -> tuple[int, int]:
    """Height and width of a camera's image at the vision tower, after resize and crop."""
    height, width, _ = config.cameras[camera]
    return config.image_crop_shape or config.image_resize_shape or (height, width)


def _check_policy(c: PolicyConfig) -> None:
    """UserError with the message of the first rule that does not hold."""
    _check_one_of(c)
    check_normalization(c.normalization_mapping)
    for holds, message in (
        *_network_rules(c),
        *_sampling_rules(c),
        *_optimizer_rules(c),
        *_text_rules(c),
    ):
        if not holds:
            raise UserError(message)
    check_features(c)
    check_image_shapes(c.cameras, c.image_resize_shape, c.image_crop_shape)


def _network_rules(c: PolicyConfig) -> list[Rule]:
    """Sizes of the denoiser and of the action chunk."""
    return [
        *(
            (getattr(c, n) >= 1, f"{n} must be at least 1, got {getattr(c, n)}")
            for n in _POSITIVE_INTS
        ),
        *(
            (getattr(c, n) <= MAX_DIM, f"{n} must be at most {MAX_DIM}, got {getattr(c, n)}")
            for n in _POSITIVE_INTS
        ),
        (
            c.num_layers <= MAX_LAYERS,
            f"num_layers must be at most {MAX_LAYERS}, got {c.num_layers}",
        ),
        (
            c.horizon >= c.n_obs_steps,
            f"horizon must be at least n_obs_steps ({c.n_obs_steps}), got {c.horizon}",
        ),
        (
            c.n_action_steps <= c.horizon - c.n_obs_steps + 1,
            "n_action_steps must be at most horizon - n_obs_steps + 1 = "
            f"{c.horizon - c.n_obs_steps + 1}, got {c.n_action_steps}",
        ),
        (
            c.drop_n_last_frames is not None and c.drop_n_last_frames >= 0,
            f"drop_n_last_frames must not be negative, got {c.drop_n_last_frames}",
        ),
        (
            c.hidden_dim % max(c.num_heads, 1) == 0,
            f"hidden_dim must be divisible by num_heads, got {c.hidden_dim} and {c.num_heads}",
        ),
        (
            not c.use_rope or c.hidden_dim // max(c.num_heads, 1) % 2 == 0,
            "hidden_dim / num_heads must be even with use_rope, "
            f"got {c.hidden_dim} / {c.num_heads}",
        ),
        (
            4 <= c.timestep_embed_dim <= MAX_DIM and c.timestep_embed_dim % 2 == 0,
            f"timestep_embed_dim must be an even number from 4 to {MAX_DIM}, "
            f"got {c.timestep_embed_dim}",
        ),
        (0.0 <= c.dropout < 1.0, f"dropout must be in [0, 1), got {c.dropout}"),
        (c.rope_base > 0, f"rope_base must be positive, got {c.rope_base}"),
    ]


def _sampling_rules(c: PolicyConfig) -> list[Rule]:
    """Noise schedule, denoising steps, flow matching."""
    return [
        (
            c.beta_schedule in ("squaredcos_cap_v2", "laplace")
            or 0.0 < c.beta_start <= c.beta_end < 1.0,
            "beta_start and beta_end must satisfy 0 < beta_start <= beta_end < 1, "
            f"got {c.beta_start} and {c.beta_end}",
        ),
        (c.clip_sample_range > 0, f"clip_sample_range must be positive, got {c.clip_sample_range}"),
        (
            1 <= c.inference_steps <= c.num_train_timesteps,
            f"num_inference_steps must be from 1 to num_train_timesteps ({c.num_train_timesteps}), "
            f"got {c.inference_steps}",
        ),
        (
            0.0 <= c.sigma_min < 1.0,
            f"sigma_min must be in [0, 1), got {c.sigma_min}; at 1 a sample is only noise",
        ),
        (
            0.0 < c.timestep_sampling_s <= 1.0,
            f"timestep_sampling_s must be in (0, 1], got {c.timestep_sampling_s}",
        ),
        (
            c.timestep_sampling_alpha > 0,
            f"timestep_sampling_alpha must be positive, got {c.timestep_sampling_alpha}",
        ),
        (
            c.timestep_sampling_beta > 0,
            f"timestep_sampling_beta must be positive, got {c.timestep_sampling_beta}",
        ),
    ]


def _optimizer_rules(c: PolicyConfig) -> list[Rule]:
    """Learning rates, Adam's numbers, warm-up."""
    return [
        (c.optimizer_lr > 0, f"optimizer_lr must be positive, got {c.optimizer_lr}"),
        (c.optimizer_eps > 0, f"optimizer_eps must be positive, got {c.optimizer_eps}"),
        *(
            (getattr(c, n) >= 0, f"{n} must not be negative, got {getattr(c, n)}")
            for n in (
                "optimizer_weight_decay",
                "vision_encoder_lr_multiplier",
                "scheduler_warmup_steps",
            )
        ),
        (
            isinstance(c.optimizer_betas, tuple)
            and len(c.optimizer_betas) == 2
            and all(isinstance(b, (int, float)) and 0.0 <= b < 1.0 for b in c.optimizer_betas),
            "optimizer_betas must be two numbers in [0, 1), e.g. [0.95, 0.999], "
            f"got {c.optimizer_betas!r}",
        ),
    ]


def _text_rules(c: PolicyConfig) -> list[Rule]:
    """The names of the CLIP encoders, and the tokenizer."""
    return [
        (
            "clip" in c.vision_encoder_name.lower(),
            "vision_encoder_name must name a CLIP model (LeRobot requires 'clip' in the name), "
            f"got {c.vision_encoder_name!r}",
        ),
        (
            "clip" in c.text_encoder_name.lower(),
            "text_encoder_name must name a CLIP model (LeRobot requires 'clip' in the name), "
            f"got {c.text_encoder_name!r}",
        ),
        (
            3 <= c.tokenizer_max_length <= 77,
            "tokenizer_max_length must be from 3 (start token, one word, end token) to 77, "
            f"got {c.tokenizer_max_length}",
        ),
        (
            c.tokenizer_padding_side == "right",
            "tokenizer_padding_side must be 'right': CLIP reads its feature at the first EOS",
        ),
    ]


_POSITIVE_INTS = (
    "n_obs_steps",
    "horizon",
    "n_action_steps",
    "num_train_timesteps",
    "num_integration_steps",
    "hidden_dim",
    "num_layers",
    "num_heads",
)
_ONE_OF: dict[str, tuple[str, ...]] = {
    "objective": ("diffusion", "flow_matching"),
    "noise_scheduler_type": ("DDPM", "DDIM"),
    "beta_schedule": BETA_SCHEDULES,
    "prediction_type": ("epsilon", "sample"),
    "integration_method": ("euler", "rk4"),
    "timestep_sampling_strategy": ("beta", "uniform"),
    "scheduler_name": SCHEDULERS,
    "tokenizer_padding": ("max_length", "longest"),
}


def _check_one_of(c: PolicyConfig) -> None:
    for name, choices in _ONE_OF.items():
        if getattr(c, name) not in choices:
            raise UserError(f"{name} must be one of {', '.join(choices)}, got {getattr(c, name)!r}")
