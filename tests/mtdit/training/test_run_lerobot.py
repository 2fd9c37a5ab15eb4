"""A run of LeRobot's trainer goes on here: weights, Adam and step are LeRobot's own after that."""

from __future__ import annotations

import copy
import signal
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from batches import batch_of
from lerobot.common.train_utils import save_checkpoint, update_last_checkpoint
from lerobot.configs.default import DatasetConfig
from lerobot.configs.train import TrainPipelineConfig
from lerobot.configs.types import FeatureType, PolicyFeature
from lerobot.policies.multi_task_dit.configuration_multi_task_dit import MultiTaskDiTConfig
from lerobot.policies.multi_task_dit.modeling_multi_task_dit import MultiTaskDiTPolicy
from lerobot.policies.multi_task_dit.processor_multi_task_dit import (
    make_multi_task_dit_pre_post_processors,
)
from small_cache import CAMERAS, TASKS, write_cache

from mtdit.checkpoint.names import LIVE, PRETRAINED, TRAINING_STATE, WEIGHTS
from mtdit.checkpoint.tensors import read_tensors
from mtdit.data.cache_folder import open_cache
from mtdit.data.loader import Loader
from mtdit.policies.multi_task_dit.clip_lookup import load_tokenizer, tokenize
from mtdit.policies.multi_task_dit.config import PolicyConfig
from mtdit.training.config import TrainConfig
from mtdit.training.distributed import init_distributed
from mtdit.training.reporters import Report, Silent
from mtdit.training.run import prepare, resumed_config, train

STEPS = 40  # of the schedule
DONE = 2  # by LeRobot before we go on


@dataclass
class Theirs:
    """LeRobot's policy, optimiser and schedule, and what they train on: the batches our loader
    makes.
    """

    policy: MultiTaskDiTPolicy
    optimizer: torch.optim.Optimizer
    schedule: Any
    ids: torch.Tensor  # (tasks, L)

    def step(self, loader: Loader, number: int) -> None:
        """What LeRobot's update_policy does, but with the noise and the times of our batch."""
        batch = batch_of(loader, number)
        rows = torch.from_numpy(loader.task[loader.rows_of(number)])
        prepared = {
            "observation.state": batch.state,
            "action": batch.actions,
            "observation.language.tokens": self.ids[rows],
            "observation.language.attention_mask": torch.ones_like(
                self.ids[rows], dtype=torch.bool
            ),
            **{f"observation.images.{c}": images for c, images in batch.images.items()},
        }
        conditioning = self.policy.observation_encoder.encode(self.policy._prepare_batch(prepared))
        loss = loader.objective.loss(
            lambda x, time: self.policy.noise_predictor(x, time, conditioning_vec=conditioning),
            batch.actions,
            batch.noise,
            batch.time,
            None,
        )
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.policy.parameters(), 10.0)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.schedule.step()


@pytest.fixture
def theirs(clip_folder: Path) -> Theirs:
    images = {
        f"observation.images.{c}": PolicyFeature(FeatureType.VISUAL, (3, 64, 64)) for c in CAMERAS
    }
    config = MultiTaskDiTConfig(
        input_features={"observation.state": PolicyFeature(FeatureType.STATE, (6,)), **images},
        output_features={"action": PolicyFeature(FeatureType.ACTION, (6,))},
        vision_encoder_name=str(clip_folder),
        text_encoder_name=str(clip_folder),
        device="cpu",
        push_to_hub=False,
        horizon=12,
        n_action_steps=6,
        hidden_dim=32,
        num_layers=1,
        num_heads=2,
        timestep_embed_dim=16,
        dropout=0.0,
        image_crop_shape=(64, 64),
        optimizer_lr=1e-3,
        optimizer_eps=1e-4,
        scheduler_warmup_steps=1,
    )
    torch.manual_seed(0)
    policy = MultiTaskDiTPolicy(config)
    optimizer = config.get_optimizer_preset().build(policy.get_optim_params())
    schedule = config.get_scheduler_preset().build(optimizer, num_training_steps=STEPS)
    ids = tokenize(
        load_tokenizer(clip_folder), list(TASKS), PolicyConfig(vision_encoder_name=str(clip_folder))
    )
    return Theirs(policy, optimizer, schedule, ids)


def save(theirs: Theirs, run: Path, frames: Path) -> Path:
    """As LeRobot's trainer does after DONE steps."""
    policy, step = theirs.policy, DONE
    config = TrainPipelineConfig(
        DatasetConfig("me/small"), policy=policy.config, output_dir=run, steps=STEPS, batch_size=4
    )
    stats = {
        k: {n: torch.from_numpy(v) for n, v in s.items()}
        for k, s in open_cache(frames).stats.items()
    }
    pre, post = make_multi_task_dit_pre_post_processors(policy.config, stats)
    folder = run / "checkpoints" / f"{step:06d}"
    save_checkpoint(
        folder,
        step,
        config,
        policy,
        theirs.optimizer,
        theirs.schedule,
        pre,
        post,
        1,
        config.batch_size,
    )
    update_last_checkpoint(folder)
    return folder


class OneStep(Silent):
    """Asks the training to stop after the first step it tells of."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def say(self, line: str) -> None:
        self.lines.append(line)

    def on_report(self, report: Report) -> None:
        signal.raise_signal(signal.SIGTERM)


def test_going_on_with_lerobots_run(theirs: Theirs, tmp_path: Path) -> None:
    frames, run = write_cache(tmp_path / "frames"), tmp_path / "run"
    save(theirs, run, frames)  # at first only for its options, which our loader needs
    bare = TrainConfig(
        str(frames), run, device="cpu", resume=True, log_every=1, imagenet_stats=False
    )
    config = resumed_config(bare, ["device", "log_every", "imagenet_stats"])
    assert (config.steps, config.batch_size, config.ema, config.save_every) == (
        STEPS,
        4,
        False,
        20_000,
    )
    loader = prepare(config, init_distributed(torch.device("cpu"), "no"), Silent()).loader
    for number in range(DONE):
        theirs.step(loader, number)
    save(theirs, run, frames)

    forgetful = copy.deepcopy(theirs)
    forgetful.optimizer.state.clear()
    for one in (theirs, forgetful):
        one.step(loader, DONE)
    watcher = OneStep()
    ours = train(config, watcher)

    assert ours.name == f"{DONE + 1:06d}"
    found = read_tensors(ours / PRETRAINED / WEIGHTS)
    assert furthest(found, theirs.policy.state_dict()) < 1e-6
    assert furthest(found, forgetful.policy.state_dict()) > 1e-4, "Adam's moments matter"
    assert any("is a checkpoint of LeRobot" in line for line in watcher.lines)
    assert (ours / TRAINING_STATE / LIVE).is_file(), "from here on the run is ours"
    assert resumed_config(bare, []).steps == STEPS
    MultiTaskDiTPolicy.from_pretrained(ours / PRETRAINED, strict=True)


def furthest(ours: Mapping[str, torch.Tensor], theirs: Mapping[str, torch.Tensor]) -> float:
    return max(float((ours[k] - v).abs().max()) for k, v in theirs.items())
