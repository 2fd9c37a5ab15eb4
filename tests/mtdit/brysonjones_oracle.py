"""A small policy as brysonjones/multitask_dit_policy builds, saves and samples it.

Of the libraries that repository calls: timm's CLIP tower, transformers' text model, diffusers'
schedulers. The denoiser is LeRobot's, which was taken from there. Only the wiring between them is
written out here.
"""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import timm
import torch
from diffusers import DDIMScheduler, DDPMScheduler
from lerobot.policies.multi_task_dit.modeling_multi_task_dit import DiffusionTransformer
from safetensors.torch import save_file
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn
from torchvision.transforms import CenterCrop, Resize
from transformers import CLIPTextModel, CLIPTokenizer, logging

CAMERAS = ("top", "wrist")
FRAME = (60, 80)  # height, width
RESIZED, IMAGE = (41, 47), 32
BACKBONE = "vit_base_patch16_clip_224.openai"
TASK = "push the red cube to the left"


def timm_tower(**options: Any) -> VisionTransformer:
    """timm's vit_base_patch16_clip_224 but for its size; random weights also where they start at
    zero.
    """
    size = {"img_size": IMAGE, "patch_size": 8, "embed_dim": 128, "depth": 3, "num_heads": 2}
    tower = timm.create_model(
        BACKBONE.partition(".")[0], pretrained=False, num_classes=0, **size, **options
    )
    for name, parameter in tower.named_parameters():
        if name.endswith(("bias", "norm.weight")):
            nn.init.normal_(parameter, mean=float(name.endswith("weight")), std=0.2)
    return tower.eval()


def config_json(
    clip: Path, transformer: dict[str, Any], objective: dict[str, Any], **top: Any
) -> dict[str, Any]:
    """What that repository's draccus.dump writes."""
    images = {f"observation.images.{c}": {"type": "VISUAL", "shape": [3, *FRAME]} for c in CAMERAS}
    vision = {
        "type": "clip",
        "use_separate_encoder_per_camera": False,
        "lr_multiplier": 0.1,
        "resize_shape": list(RESIZED),
        "crop_shape": [IMAGE, IMAGE],
        "crop_is_random": True,
        "backbone": BACKBONE,
    }
    network = {
        "hidden_dim": 32,
        "num_layers": 2,
        "num_heads": 2,
        "dropout": 0.1,
        "use_positional_encoding": True,
        "diffusion_step_embed_dim": 16,
        "use_rope": False,
        "rope_base": 10000.0,
    }
    return {
        "n_obs_steps": 2,
        "horizon": 12,
        "n_action_steps": 6,
        "normalization_mapping": {"VISUAL": "MEAN_STD", "STATE": "MIN_MAX", "ACTION": "MIN_MAX"},
        "drop_n_last_frames": 5,
        "observation_encoder": {"vision": vision, "text": {"type": "clip", "model": str(clip)}},
        "transformer": {**network, **transformer},
        "objective": objective,
        "do_mask_loss_for_padding": False,
        "optimizer_lr": 2e-05,
        "optimizer_betas": [0.95, 0.999],
        "optimizer_eps": 1e-08,
        "optimizer_weight_decay": 0.0,
        "input_features": {"observation.state": {"type": "STATE", "shape": [6]}, **images},
        "output_features": {"action": {"type": "ACTION", "shape": [6]}},
        "device": "cuda",
        **top,
    }


def diffusion(kind: str, **options: Any) -> dict[str, Any]:
    return {
        "type": "diffusion",
        "objective_name": "diffusion",
        "noise_scheduler_type": kind,
        "num_train_timesteps": 20,
        "beta_schedule": "squaredcos_cap_v2",
        "beta_start": 0.0001,
        "beta_end": 0.02,
        "prediction_type": "epsilon",
        "clip_sample": True,
        "clip_sample_range": 1.0,
        "num_inference_steps": 5,
        **options,
    }


def flow(**options: Any) -> dict[str, Any]:
    sampling = {"type": "beta", "strategy_name": "beta", "s": 0.9, "alpha": 1.25, "beta": 1.0}
    return {
        "type": "flow_matching",
        "objective_name": "flow_matching",
        "sigma_min": 0.0,
        "num_integration_steps": 4,
        "integration_method": "euler",
        "timestep_sampling": sampling,
        **options,
    }


def stats() -> dict[str, dict[str, np.ndarray]]:
    """Images are normalised by their own numbers; one joint never moved."""
    rng = np.random.default_rng(5)
    low = rng.uniform(-90, 0, 6).astype(np.float32)
    high = low + rng.uniform(20, 120, 6).astype(np.float32)
    low[4] = high[4] = -30.0
    pixels = {"mean": np.array([0.4, 0.5, 0.3]), "std": np.array([0.2, 0.25, 0.3])}
    image = {name: value.astype(np.float32).reshape(3, 1, 1) for name, value in pixels.items()}
    vectors = {
        "observation.state": {"min": low, "max": high},
        "action": {"min": low - 1, "max": high + 1},
    }
    return {**vectors, **{f"observation.images.{c}": image for c in CAMERAS}}


class Theirs(nn.Module):
    """That policy: its parameter names, its features, its samplers."""

    def __init__(self, raw: dict[str, Any], **tower: Any) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.raw, network = raw, SimpleNamespace(**raw["transformer"])
        clip = raw["observation_encoder"]["text"]["model"]
        self.tokenizer = CLIPTokenizer.from_pretrained(clip)
        logging.set_verbosity_error()  # the folder holds the vision tower too; that is no news
        text = nn.Module()
        text.text_encoder = CLIPTextModel.from_pretrained(clip)
        text.projection = nn.Linear(text.text_encoder.config.hidden_size, network.hidden_dim)
        vision = nn.Module()
        vision.model = timm_tower(**tower)
        self.observation_encoder = nn.Module()
        self.observation_encoder.vision_encoder, self.observation_encoder.text_encoder = (
            vision,
            text,
        )
        network.horizon, network.action_feature = raw["horizon"], SimpleNamespace(shape=(6,))
        network.timestep_embed_dim = network.diffusion_step_embed_dim
        per_step = 6 + len(CAMERAS) * vision.model.embed_dim + network.hidden_dim
        self.noise_predictor = DiffusionTransformer(network, raw["n_obs_steps"] * per_step)
        for name, parameter in self.noise_predictor.named_parameters():
            if "adaLN" in name:
                nn.init.normal_(parameter, std=0.05)
        self.eval()

    def save(self, folder: Path) -> Path:
        folder.mkdir(parents=True)
        names = {n: n.replace("multihead_attn", "attn") for n in self.state_dict()}
        save_file(
            {names[n]: v.contiguous() for n, v in self.state_dict().items()},
            folder / "model.safetensors",
        )
        (folder / "config.json").write_text(json.dumps(self.raw, indent=4))
        listed = {
            key: {name: v.tolist() for name, v in values.items()} for key, values in stats().items()
        }
        (folder / "dataset_stats.json").write_text(json.dumps(listed, indent=2))
        return folder

    def features(self, frames: dict[str, np.ndarray], camera: str) -> Tensor:
        """(S, H, W, 3) uint8 of one camera -> (S, D)."""
        known = {k: torch.from_numpy(v) for k, v in stats()[f"observation.images.{camera}"].items()}
        images = torch.from_numpy(frames[camera]).permute(0, 3, 1, 2).float() / 255
        pixels = CenterCrop((IMAGE, IMAGE))(
            Resize(RESIZED, antialias=True)((images - known["mean"]) / known["std"])
        )
        return self.observation_encoder.vision_encoder.model.forward_features(pixels)[:, 0]

    def text(self, task: str) -> Tensor:
        tokens = self.tokenizer([task], padding=True, truncation=True, return_tensors="pt")
        encoder = self.observation_encoder.text_encoder
        return encoder.projection(encoder.text_encoder(**tokens).pooler_output)

    @torch.no_grad()
    def chunk(
        self, positions: np.ndarray, frames: dict[str, np.ndarray], noise: np.ndarray
    ) -> np.ndarray:
        """Positions (S, 6), noise (T, 6) -> actions (T, 6) in degrees."""
        known = {key: {k: torch.from_numpy(v) for k, v in s.items()} for key, s in stats().items()}
        low, high = known["observation.state"].values()
        span = torch.where(high == low, torch.tensor(1e-8), high - low)
        state = 2 * (torch.from_numpy(positions).float() - low) / span - 1
        per_step = [
            state,
            *(self.features(frames, c) for c in CAMERAS),
            self.text(TASK).expand(len(state), -1),
        ]
        conditioning = torch.cat(per_step, dim=-1).reshape(1, -1)
        actions = self.sample(torch.from_numpy(noise)[None], conditioning)[0]
        low, high = known["action"].values()
        return (
            (actions + 1) / 2 * torch.where(high == low, torch.tensor(1e-8), high - low) + low
        ).numpy()

    def sample(self, x: Tensor, conditioning: Tensor) -> Tensor:
        objective = self.raw["objective"]
        if objective["type"] == "flow_matching":
            count = objective["num_integration_steps"]
            for time in torch.linspace(0, 1, count + 1)[:-1]:
                x = x + self.noise_predictor(x, time[None], conditioning) / count
            return x
        kind = {"DDPM": DDPMScheduler, "DDIM": DDIMScheduler}[objective["noise_scheduler_type"]]
        named = (
            "num_train_timesteps",
            "beta_start",
            "beta_end",
            "beta_schedule",
            "prediction_type",
        )  # no clipping
        scheduler = kind(**{name: objective[name] for name in named})
        scheduler.set_timesteps(
            objective["num_inference_steps"] or objective["num_train_timesteps"]
        )
        for time in scheduler.timesteps:
            x = scheduler.step(
                self.noise_predictor(x, time[None], conditioning), time, x
            ).prev_sample
        return x
