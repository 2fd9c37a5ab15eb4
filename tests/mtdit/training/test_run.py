"""The trainer: what a run writes, time budget, interruption."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest
import torch
from small_run import Watcher, config_for, run

from mtdit.checkpoint.names import LIVE, PRETRAINED, TRAINING_STATE
from mtdit.checkpoint.read import open_checkpoint
from mtdit.checkpoint.tensors import read_tensors
from mtdit.training.distributed import INTERRUPT_GRACE_S, StopRequest
from mtdit.training.run import train


def test_average_is_saved_for_use_and_live_weights_beside_it(
    frames: Path, clip_folder: Path, tmp_path: Path
) -> None:
    checkpoint, _ = run(config_for(frames, tmp_path, clip_folder))
    used = read_tensors(checkpoint / PRETRAINED / "model.safetensors")
    live = read_tensors(checkpoint / TRAINING_STATE / LIVE)
    differs = {k for k in live if not torch.equal(used[k], live[k])}
    assert differs
    assert not any("text_model" in k for k in differs), "the frozen text tower has no average"
    plain, _ = run(config_for(frames, tmp_path / "plain", clip_folder, ema=False, steps=3))
    used, live = (
        read_tensors(plain / p)
        for p in (f"{PRETRAINED}/model.safetensors", f"{TRAINING_STATE}/{LIVE}")
    )
    assert all(torch.equal(used[k], live[k]) for k in live)


def test_loss_falls(frames: Path, clip_folder: Path, tmp_path: Path) -> None:
    options = {
        "steps": 40,
        "batch_size": 4,
        "save_every": 1000,
        "noise_samples": 4,
        "random_shift_px": 0,
    }
    policy = {"optimizer_lr": 2e-3, "scheduler_warmup_steps": 5}
    _, losses = run(config_for(frames, tmp_path, clip_folder, policy=policy, **options))
    assert sum(losses[-5:]) < 0.7 * sum(losses[:5]), losses


def test_bf16_trains(frames: Path, clip_folder: Path, tmp_path: Path) -> None:
    checkpoint, losses = run(config_for(frames, tmp_path, clip_folder, amp="bf16", steps=2))
    assert all(loss > 0 for loss in losses)
    weights = read_tensors(checkpoint / PRETRAINED / "model.safetensors")
    assert {v.dtype for v in weights.values()} == {torch.float32}


def test_time_budget_ends_the_run_and_its_schedule(
    frames: Path, clip_folder: Path, tmp_path: Path
) -> None:
    watcher = Watcher()
    options = {
        "steps": 1_000_000,
        "max_minutes": 0.05,
        "save_every": 1_000_000,
        "policy": {"scheduler_warmup_steps": 0},
    }
    checkpoint = train(config_for(frames, tmp_path, clip_folder, **options), watcher)
    last = watcher.reports[-1]
    assert checkpoint.name == f"{last.step:06d}"
    assert last.step < 100_000
    rates = [r.lr for r in watcher.reports]
    assert rates == sorted(rates, reverse=True)
    assert rates[-1] < 0.5 * rates[0]
    assert any("the time limit of 0.05 minutes is over" in line for line in watcher.lines)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_saves_and_ends_in_order(
    number: int, frames: Path, clip_folder: Path, tmp_path: Path
) -> None:
    """Twice within moments is still once: launchers pass a Ctrl-C on to processes that had it
    already.
    """
    before = signal.getsignal(number)
    watcher = Watcher(
        lambda step: [signal.raise_signal(number) for _ in range(2)] if step == 3 else None
    )
    checkpoint = train(
        config_for(frames, tmp_path, clip_folder, steps=1000, save_every=1000), watcher
    )
    assert checkpoint.name == "000003"
    assert [r.step for r in watcher.reports] == [1, 2, 3]
    assert signal.getsignal(number) is before, "the signal means again what it meant before"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_before_the_first_step_interrupts(
    number: int, frames: Path, clip_folder: Path, tmp_path: Path
) -> None:
    class Early(Watcher):
        def say(self, line: str) -> None:
            signal.raise_signal(number)

    before = signal.getsignal(number)
    with pytest.raises(KeyboardInterrupt):
        train(config_for(frames, tmp_path, clip_folder), Early())
    assert signal.getsignal(number) is before
    assert not (tmp_path / "checkpoints").exists()


def test_only_a_later_second_interrupt_is_meant() -> None:
    stop = StopRequest()
    stop.training = True
    stop.handle(signal.SIGINT, None)
    stop.handle(signal.SIGINT, None)
    assert stop.first_s is not None
    stop.first_s -= INTERRUPT_GRACE_S + 0.1
    stop.handle(signal.SIGTERM, None)
    with pytest.raises(KeyboardInterrupt):
        stop.handle(signal.SIGINT, None)
    assert stop.requested


def test_lerobot_loads_what_was_trained(frames: Path, clip_folder: Path, tmp_path: Path) -> None:
    """A run with the tiny preset alone: its own CLIP, named by config.json."""
    from lerobot.policies.multi_task_dit.modeling_multi_task_dit import MultiTaskDiTPolicy

    options = {"vision_encoder_name": "tiny", "text_encoder_name": "tiny"}
    checkpoint, _ = run(config_for(frames, tmp_path, clip_folder, steps=1, policy=options))
    theirs = MultiTaskDiTPolicy.from_pretrained(checkpoint / PRETRAINED, strict=True).state_dict()
    ours = open_checkpoint(tmp_path).policy().state_dict()
    assert all(torch.equal(ours[k], v) for k, v in theirs.items())
