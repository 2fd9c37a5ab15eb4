"""What a training needs to go on, LeRobot's and ours."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from lerobot_oracle import batches, lerobot_policy, our_policy
from safetensors.torch import save_file
from small_checkpoint import POLICIES, SEPARATE, files_for

from mtdit.checkpoint.names import LIVE, OPTIMIZER, TRAINING_STATE
from mtdit.checkpoint.training_state import read_training_state
from mtdit.checkpoint.write import save_checkpoint
from mtdit_robots.errors import UserError


@pytest.mark.parametrize("options", [{}, SEPARATE], ids=str)
def test_lerobots_training_state(
    options: dict[str, Any], clip_folder: Path, tmp_path: Path
) -> None:
    """Two steps of LeRobot's Adam, saved by LeRobot: ours goes on to the same third step."""
    theirs = lerobot_policy(clip_folder, 2, **POLICIES[0][1], **options)
    ours = our_policy(theirs)
    their_batch, batch = batches(ours, clip_folder)
    adam = theirs.config.get_optimizer_preset().build(theirs.get_optim_params())

    def step(seed: int) -> None:
        torch.manual_seed(seed)
        adam.zero_grad()
        theirs.forward(their_batch)[0].backward()
        adam.step()

    step(0)
    step(1)
    folder = lerobot_checkpoint(theirs, adam, tmp_path)
    state = read_training_state(folder)
    assert (state.step, state.elapsed_s, state.numbers["batch_size"]) == (2, 0.0, 3)
    assert state.average is state.weights
    ours.load_state_dict(dict(state.weights))
    own = torch.optim.Adam(ours.parameter_groups(), betas=(0.95, 0.999))
    own.load_state_dict({**own.state_dict(), "state": dict(state.adam)})
    step(2)
    torch.manual_seed(2)
    ours.loss(batch).backward()
    own.step()
    for (name, mine), other in zip(ours.named_parameters(), theirs.parameters(), strict=True):
        assert torch.allclose(mine, other, atol=1e-6), name
    assert not torch.equal(
        ours.noise_predictor.input_proj.weight, state.weights["noise_predictor.input_proj.weight"]
    )

    averaged = folder / "pretrained_model_ema"  # as LeRobot keeps it from 0.6.2 on
    theirs.save_pretrained(averaged)
    assert torch.equal(read_training_state(folder).average[name], other)


def lerobot_checkpoint(policy: Any, adam: torch.optim.Optimizer, run: Path) -> Path:
    from lerobot.common.train_utils import save_checkpoint as save
    from lerobot.common.train_utils import update_last_checkpoint
    from lerobot.configs.default import DatasetConfig
    from lerobot.configs.train import TrainPipelineConfig

    folder = run / "checkpoints/000002"
    save(
        folder,
        2,
        TrainPipelineConfig(DatasetConfig("x/y"), policy=policy.config),
        policy,
        adam,
        None,
        num_processes=1,
        batch_size=3,
    )
    update_last_checkpoint(folder)
    return folder


def test_our_training_state(clip_folder: Path, tmp_path: Path) -> None:
    """Live weights beside the average, Adam by number, seconds."""
    policy = our_policy(lerobot_policy(clip_folder, 0))
    files = files_for(policy, clip_folder)
    live = {k: v + 1 for k, v in policy.state_dict().items()}
    tensors = {
        OPTIMIZER: {"state/3/step": torch.tensor(5.0), "state/3/exp_avg": torch.ones(2)},
        LIVE: live,
    }
    state = read_training_state(save_checkpoint(tmp_path, 5, files, tensors, {"elapsed_s": 4.5}))
    name = "noise_predictor.input_proj.bias"
    assert torch.equal(state.weights[name], live[name])
    assert torch.equal(state.average[name], policy.state_dict()[name])
    assert (state.step, state.elapsed_s, list(state.adam)) == (5, 4.5, [3])
    assert {k: float(v.sum()) for k, v in state.adam[3].items()} == {"step": 5.0, "exp_avg": 2.0}


def test_training_states_that_cannot_be_resumed(saved: Path) -> None:
    folder = saved / TRAINING_STATE
    with pytest.raises(UserError, match=r"optimizer_state.*does not exist"):
        read_training_state(saved)
    save_file({"state/noise_predictor.input_proj.bias/step": torch.zeros(1)}, folder / OPTIMIZER)
    with pytest.raises(UserError, match=r"not the state of a single Adam.*--init-from"):
        read_training_state(saved)
    (folder / "training_step.json").write_text('{"step": "seven"}')
    with pytest.raises(UserError, match="has no valid 'step'"):
        read_training_state(saved)
    (folder / "training_step.json").unlink()
    with pytest.raises(UserError, match="--init-from"):
        read_training_state(saved)
