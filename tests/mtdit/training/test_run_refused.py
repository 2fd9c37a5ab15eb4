"""What can be wrong with a run: one line that names it, and no checkpoint that is ruined."""

from __future__ import annotations

import os
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hub import Repository, SmallHub, folder_files, serving, use
from safetensors.torch import save_file
from small_cache import LENGTHS, write_cache
from small_recording import write
from small_run import config_for, run

from mtdit.checkpoint.names import LIVE, TRAINING_STATE
from mtdit.checkpoint.tensors import read_tensors
from mtdit.policies.multi_task_dit.clip_lookup import load_tokenizer
from mtdit.training.distributed import init_distributed
from mtdit.training.metrics import LOG
from mtdit.training.reporters import Silent
from mtdit.training.run import friendly_torch_errors, pick_device, prepare
from mtdit_robots.errors import UserError


def test_the_first_ruined_batch_is_named(clip_folder: Path, tmp_path: Path) -> None:
    """Losses are looked at every 50 steps only; still the line names the step and what it was
    trained on.
    """
    ruined = LENGTHS[0] + 5  # frame 5 of episode 1
    cache = write_cache(tmp_path / "frames", ruined=[ruined])
    config = config_for(
        cache, tmp_path / "run", clip_folder, steps=1000, log_every=50, save_every=1000
    )
    loader = prepare(config, init_distributed(torch.device("cpu"), "no"), Silent()).loader
    first = [_touches(loader.rows_of(step), ruined) for step in range(50)].index(True)
    assert first > 0
    with pytest.raises(UserError) as error:
        run(config)
    assert re.search(
        rf"the loss is not finite at step {first + 1}, trained on .*episode 1 frame \d",
        str(error.value),
    )
    assert not (tmp_path / "run/checkpoints").exists()
    assert (tmp_path / "run" / LOG).read_text() == ""


def _touches(rows: np.ndarray, ruined: int) -> bool:
    """Whether one of the chunks from `rows` on contains the ruined action of episode 1."""
    return bool(((rows >= LENGTHS[0]) & (rows <= ruined) & (rows + 16 > ruined)).any())


@pytest.mark.filterwarnings("ignore:invalid value encountered in subtract:RuntimeWarning")  # inf
def test_a_checkpoint_due_after_a_ruined_step_is_not_written(
    clip_folder: Path, tmp_path: Path
) -> None:
    cache = write_cache(tmp_path / "frames", ruined=range(LENGTHS[0]))
    options = {"log_every": 1000, "save_every": 1, "steps": 1000, "batch_size": 2}
    with pytest.raises(UserError, match=r"not finite at step (\d+)") as error:
        run(config_for(cache, tmp_path / "run", clip_folder, **options))
    step = int(re.search(r"at step (\d+)", str(error.value))[1])  # type: ignore[index]
    last = tmp_path / "run/checkpoints/last"
    assert not last.exists() if step == 1 else os.readlink(last) == f"{step - 1:06d}"


def test_a_learning_rate_that_explodes_is_one_line(
    frames: Path, clip_folder: Path, tmp_path: Path
) -> None:
    policy = {"optimizer_lr": 1e30, "scheduler_warmup_steps": 0}
    with pytest.raises(UserError, match="not finite"):
        run(
            config_for(
                frames,
                tmp_path,
                clip_folder,
                policy=policy,
                steps=20,
                save_every=1,
                log_every=20,
                ema=False,
            )
        )


def test_a_loss_that_is_not_finite_stops_and_keeps_the_last_checkpoint(
    frames: Path, clip_folder: Path, tmp_path: Path
) -> None:
    config = config_for(frames, tmp_path, clip_folder, steps=3)
    run(config)
    wild = replace(config, resume=True, steps=10, policy={})
    state = tmp_path / "checkpoints/000003" / TRAINING_STATE / LIVE
    weights = read_tensors(state)
    save_file(
        {k: v * float("nan") if "output_proj.bias" in k else v for k, v in weights.items()}, state
    )
    with pytest.raises(UserError, match="not finite at step 4"):
        run(wild)
    assert os.readlink(tmp_path / "checkpoints/last") == "000003"


def test_devices() -> None:
    assert pick_device("auto").type in ("cpu", "cuda", "mps")
    for name in ("abacus", "", "meta", "xpu", "vulkan"):
        with pytest.raises(UserError, match="does not exist"):
            pick_device(name)
    for name in ("cpu:7", f"cuda:{torch.cuda.device_count()}"):
        with pytest.raises(UserError, match="is not available"):
            pick_device(name)


def test_too_little_memory_is_one_line() -> None:
    for allocate in (lambda: torch.empty(10**14), lambda: np.empty(10**15)):
        with pytest.raises(UserError, match="does not have enough memory"), friendly_torch_errors():
            allocate()


def test_fp16_needs_a_gpu(frames: Path, clip_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="bf16"):
        run(config_for(frames, tmp_path, clip_folder, amp="fp16"))


def test_a_clip_that_is_not_there(frames: Path, clip_folder: Path, tmp_path: Path) -> None:
    policy = {"vision_encoder_name": str(tmp_path / "my-clip")}
    with pytest.raises(UserError, match="cannot load the CLIP"):
        run(config_for(frames, tmp_path, clip_folder, policy=policy))


def test_a_hub_that_does_not_answer_is_asked_for_one_file_before_frames_are_decoded(
    clip_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    names = dict.fromkeys(("vision_encoder_name", "text_encoder_name"), "me/my-clip")
    config = config_for(write(tmp_path / "set"), tmp_path / "run", clip_folder, policy=names)
    files = Repository({"main": folder_files(clip_folder)})
    with serving(SmallHub({"me/my-clip": files})) as hub:
        use(hub, tmp_path, monkeypatch)
        hub.out_of_order = True
        with pytest.raises(UserError, match="cannot load the CLIP 'me/my-clip'"):
            run(config)
        asked = {request for request in hub.asked if "/me/my-clip/" in request}
        assert asked == {"HEAD /me/my-clip/resolve/main/config.json"}
        assert not (tmp_path / "run/frames").exists()
        hub.out_of_order = False
        load_tokenizer("me/my-clip")
        hub.out_of_order = True
        assert load_tokenizer("me/my-clip")("a cup")["input_ids"], "what came before is kept"


def test_frames_that_miss_the_towers_size(frames: Path, clip_folder: Path, tmp_path: Path) -> None:
    policy = {"image_resize_shape": [64, 64], "image_crop_shape": [60, 60]}
    with pytest.raises(
        UserError, match="60x60 pixels after resize and crop, but the vision tower needs 64x64"
    ):
        run(config_for(frames, tmp_path, clip_folder, policy=policy))
