"""Checkpoints both ways between LeRobot and us, and what happens to broken ones."""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from lerobot_oracle import STUCK, batches, lerobot_policy, our_policy, save_as_lerobot, statistics
from safetensors.torch import load_file, save_file
from small_dataset import JOINTS

from mtdit.checkpoint.find import find_last_checkpoint, last_run
from mtdit.checkpoint.names import LIVE, OPTIMIZER, PRETRAINED, TRAINING_STATE
from mtdit.checkpoint.read import open_checkpoint
from mtdit.checkpoint.training_state import read_training_state
from mtdit.checkpoint.write import PretrainedFiles, save_checkpoint, save_pretrained
from mtdit.policies.multi_task_dit.clip_lookup import load_tokenizer
from mtdit.policies.multi_task_dit.policy import MultiTaskDiT
from mtdit.stats import DatasetFacts
from mtdit.torch_policy import TorchPolicy, joint_names, open_policy
from mtdit_robots.errors import UserError

TASK = "push the red cube to the left"
DDIM = {"noise_scheduler_type": "DDIM", "num_inference_steps": 10, "prediction_type": "sample"}
FLOW = {"objective": "flow_matching", "num_integration_steps": 5}
SEPARATE = {"use_separate_rgb_encoder_per_camera": True}
POLICIES: list[tuple[int, dict[str, Any]]] = [  # cameras, options
    (2, {**DDIM, "n_obs_steps": 2}),
    (2, {**DDIM, **SEPARATE, "n_obs_steps": 1, "use_rope": False}),
    (2, {**FLOW, "n_obs_steps": 3}),
    (2, {**FLOW, **SEPARATE, "n_obs_steps": 2, "integration_method": "rk4"}),
    (0, {**FLOW, "n_obs_steps": 2}),
]


def facts() -> DatasetFacts:
    return DatasetFacts("small", 10, JOINTS, (TASK,), (30.0,) * 6, "so_follower")


def files_for(policy: MultiTaskDiT, clip: Path) -> PretrainedFiles:
    stats = statistics(np.random.default_rng(0))
    return PretrainedFiles(
        policy, policy.state_dict(), stats, facts(), load_tokenizer(clip), {"steps": 3}
    )


@pytest.fixture
def saved(clip_folder: Path, tmp_path: Path) -> Path:
    """One checkpoint of ours, with awake weights."""
    policy = our_policy(lerobot_policy(clip_folder, 2, **POLICIES[0][1]))
    return save_checkpoint(
        tmp_path / "run", 7, files_for(policy, clip_folder), {}, {"elapsed_s": 1.0}
    )


def observations(ticks: int) -> list[tuple[np.ndarray, dict[str, np.ndarray]]]:
    rng = np.random.default_rng(3)
    pose = rng.uniform(-60, 20, 6)
    walk = pose + np.cumsum(rng.normal(0, 1, (ticks, 6)), axis=0)
    walk[:, 4] = STUCK
    return [
        (p, {c: rng.integers(0, 256, (80, 96, 3), np.uint8) for c in ("top", "wrist")})
        for p in walk
    ]


def our_actions(policy: TorchPolicy, ticks: int, noises: list[np.ndarray]) -> np.ndarray:
    """LeRobot's queue, written out: every tick observes, an empty queue asks for a chunk."""
    policy.reset(TASK, seed=0)
    queue: list[np.ndarray] = []
    actions = []
    for positions, frames in observations(ticks):
        policy.observe(positions, frames)
        if not queue:
            start = policy.n_obs_steps - 1
            queue = list(policy.chunk(noises.pop(0))[start : start + policy.n_action_steps])
        actions.append(queue.pop(0))
    return np.array(actions)


def their_actions(folder: Path, ticks: int, noises: list[np.ndarray]) -> np.ndarray:
    """LeRobot's policy and processors, loaded from the folder; the noise of each chunk is put in
    where it draws it.
    """
    policy, before, after = loaded_as_lerobot_eval_does(folder)
    actions = []
    for positions, frames in observations(ticks):
        item: dict[str, Any] = {
            "observation.state": torch.from_numpy(positions).float(),
            "task": TASK,
        }
        for camera, frame in frames.items():
            item[f"observation.images.{camera}"] = (
                torch.from_numpy(frame).permute(2, 0, 1).float() / 255
            )
        torch.manual_seed(len(actions))
        if not policy._queues["action"]:
            noises.append(torch.randn(1, policy.config.horizon, 6)[0].numpy())
        torch.manual_seed(len(actions))
        actions.append(after(policy.select_action(before(item))).squeeze(0).numpy())
    return np.array(actions)


def loaded_as_lerobot_eval_does(folder: Path) -> tuple[Any, Any, Any]:
    """Config, policy and processors through the functions and overrides of lerobot-eval and
    lerobot-rollout.
    """
    from lerobot.configs.policies import PreTrainedConfig
    from lerobot.policies.factory import make_policy, make_pre_post_processors

    config = PreTrainedConfig.from_pretrained(folder, cli_overrides=["--device=cpu"])
    config.pretrained_path = folder
    vector = {"dtype": "float32", "shape": (6,), "names": list(JOINTS)}
    meta = SimpleNamespace(features={"action": vector, "observation.state": vector}, stats=None)
    overrides = {
        "device_processor": {"device": "cpu"},
        "rename_observations_processor": {"rename_map": {}},
    }
    before, after = make_pre_post_processors(
        config, pretrained_path=str(folder), preprocessor_overrides=overrides
    )
    return make_policy(config, ds_meta=meta), before, after


def assert_same_sixty_ticks(folder: Path) -> None:
    noises: list[np.ndarray] = []
    theirs = their_actions(folder, 60, noises)
    ours = our_actions(open_policy(folder), 60, noises)
    assert not noises, "both asked for the same number of chunks"
    assert np.ptp(ours, axis=0)[:4].min() > 1.0, "the arm moves, so there is something to compare"
    error = float(np.abs(ours - theirs).max())
    assert error < 1e-3, f"actions differ by up to {error:.1e} degrees"


@pytest.mark.parametrize(("cameras", "options"), POLICIES, ids=str)
def test_sixty_ticks_of_what_we_saved(
    cameras: int, options: dict[str, Any], clip_folder: Path, tmp_path: Path
) -> None:
    from lerobot.policies.multi_task_dit.modeling_multi_task_dit import MultiTaskDiTPolicy

    policy = our_policy(lerobot_policy(clip_folder, cameras, **options))
    save_pretrained(tmp_path / PRETRAINED, files_for(policy, clip_folder))
    strict = MultiTaskDiTPolicy.from_pretrained(tmp_path / PRETRAINED, strict=True)
    assert all(torch.equal(v, strict.state_dict()[k]) for k, v in policy.state_dict().items())
    assert_same_sixty_ticks(tmp_path / PRETRAINED)


@pytest.mark.parametrize(("cameras", "options"), POLICIES, ids=str)
def test_sixty_ticks_of_what_lerobot_saved(
    cameras: int, options: dict[str, Any], clip_folder: Path, tmp_path: Path
) -> None:
    """Written by LeRobot's own save_pretrained, read by us: same weights, statistics, tokens and
    actions.
    """
    theirs = lerobot_policy(clip_folder, cameras, **options)
    save_as_lerobot(theirs, tmp_path)
    checkpoint = open_checkpoint(tmp_path)
    assert checkpoint.facts is None
    assert joint_names(checkpoint) == JOINTS
    np.testing.assert_array_equal(
        checkpoint.action_stats.low, statistics(np.random.default_rng(1))["action"]["min"]
    )
    loaded = checkpoint.policy().state_dict()
    assert all(torch.equal(loaded[k], v) for k, v in theirs.state_dict().items())
    assert_same_sixty_ticks(tmp_path)


def test_our_files_are_lerobots(saved: Path, clip_folder: Path, tmp_path: Path) -> None:
    """The processor files are, key by key, what LeRobot would have written."""
    from lerobot.policies.factory import make_pre_post_processors

    theirs = lerobot_policy(clip_folder, 2, **POLICIES[0][1])
    stats = {
        k: {n: torch.from_numpy(v) for n, v in s.items()}
        for k, s in statistics(np.random.default_rng(0)).items()
    }
    for processor in make_pre_post_processors(theirs.config, dataset_stats=stats):
        processor.save_pretrained(tmp_path / "theirs")
    for path in sorted((tmp_path / "theirs").iterdir()):
        own = saved / PRETRAINED / path.name
        if path.suffix == ".json":
            assert json.loads(own.read_text()) == json.loads(path.read_text()), path.name
        else:
            expected, found = load_file(path), load_file(own)
            assert {k: v.shape for k, v in expected.items()} == {
                k: v.shape for k, v in found.items()
            }


def test_moved_checkpoint_needs_no_clip_folder(saved: Path, tmp_path: Path) -> None:
    """We find the towers' shape and the tokenizer beside the weights, whatever the names in
    config.json.
    """
    moved = tmp_path / "elsewhere"
    shutil.copytree(saved / PRETRAINED, moved)
    raw = json.loads((moved / "config.json").read_text())
    gone = {"vision_encoder_name": "/gone/clip", "text_encoder_name": "/gone/clip"}
    (moved / "config.json").write_text(json.dumps({**raw, **gone}))
    policy = open_policy(moved)
    policy.reset(TASK, seed=0)
    policy.observe(*observations(1)[0])
    assert np.isfinite(policy.chunk()).all()


def test_found_by_run_checkpoint_or_folder(saved: Path) -> None:
    run = saved.parent.parent
    for path in (run, run / "checkpoints", run / "checkpoints/last", saved, saved / PRETRAINED):
        assert open_checkpoint(path).folder.resolve() == (saved / PRETRAINED).resolve(), path
    (run / "checkpoints/last").unlink()
    assert find_last_checkpoint(run) == saved


def test_a_failed_save_leaves_the_one_before(saved: Path, clip_folder: Path) -> None:
    """What cannot be written, first at the start of a checkpoint, then near its end."""
    run = saved.parent.parent
    files = files_for(open_checkpoint(saved).policy(), clip_folder)
    in_the_way = run / "checkpoints/.000008.part"
    in_the_way.write_text("a file where a folder must be made")
    with pytest.raises(UserError, match="the previous checkpoint is intact"):
        save_checkpoint(run, 8, files, {}, {})
    in_the_way.unlink()
    with pytest.raises(UserError, match="the previous checkpoint is intact"):
        save_checkpoint(run, 8, files, {"no/such/folder.safetensors": {"x": torch.zeros(1)}}, {})
    assert os.readlink(run / "checkpoints/last") == "000007"
    assert [p.name for p in (run / "checkpoints").iterdir() if "8" in p.name] == []
    open_checkpoint(run).policy()


def test_training_state_travels_with_the_checkpoint(clip_folder: Path, tmp_path: Path) -> None:
    policy = our_policy(lerobot_policy(clip_folder, 0))
    state = {"optimizer_state.safetensors": {"state/0/step": torch.tensor(3.0)}}
    folder = save_checkpoint(tmp_path, 3, files_for(policy, clip_folder), state, {"elapsed_s": 4.5})
    assert json.loads((folder / TRAINING_STATE / "training_step.json").read_text()) == {
        "step": 3,
        "elapsed_s": 4.5,
    }
    assert load_file(folder / TRAINING_STATE / "optimizer_state.safetensors")["state/0/step"] == 3
    again = save_checkpoint(tmp_path, 3, files_for(policy, clip_folder), state, {"elapsed_s": 5.0})
    assert again == folder


# --- what resuming needs
# ------------------------------------------------------------------------------------------


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


def test_observations_that_do_not_fit(saved: Path) -> None:
    policy = open_policy(saved)
    with pytest.raises(RuntimeError, match="reset"):
        policy.request()
    policy.reset(TASK, seed=0)
    positions, frames = observations(1)[0]
    with pytest.raises(UserError, match=r"positions of shape \(5,\), the policy needs 6 joints"):
        policy.observe(positions[:5], frames)
    with pytest.raises(UserError, match="'wrist'"):
        policy.observe(positions, {"top": frames["top"]})
    with pytest.raises(UserError, match="delivers 96x40"):
        policy.observe(positions, {**frames, "top": frames["top"][:40]})


def test_seed_decides_the_noise(saved: Path) -> None:
    policy = open_policy(saved)
    chunks = []
    for seed in (1, 1, 2):
        policy.reset(TASK, seed=seed)
        policy.observe(*observations(1)[0])
        chunks.append(policy.chunk())
    assert np.array_equal(chunks[0], chunks[1])
    assert not np.allclose(chunks[0], chunks[2])


def test_a_request_is_frozen_and_preparing_changes_nothing(saved: Path) -> None:
    """What a worker computes later is what was asked, whatever has been observed since."""
    policy, seen = open_policy(saved), observations(3)
    noise = np.random.default_rng(0).standard_normal((12, 6), dtype=np.float32)
    policy.reset(TASK, seed=0)
    policy.observe(*seen[0])
    policy.prepare()()
    policy.observe(*seen[1])
    now, later = policy.chunk(noise), policy.request(noise)
    policy.observe(*seen[2])
    np.testing.assert_allclose(later(), now, atol=1e-5)
    assert not np.allclose(policy.chunk(noise), now, atol=1e-3)


# --- broken checkpoints
# -------------------------------------------------------------------------------------------


def test_nothing_there(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="mtdit train"):
        open_checkpoint(tmp_path / "nowhere")
    with pytest.raises(UserError, match="no checkpoint in"):
        open_checkpoint(tmp_path)


@pytest.mark.parametrize("found", ["pretrained_model", "checkpoint", "run"])
@pytest.mark.parametrize(
    ("config", "says"),
    [
        (
            {"type": "diffusion", "vision_backbone": "resnet18"},
            "Diffusion Policy.*not supported yet",
        ),
        ({"type": "act"}, "'act'.*not supported"),
        ({"type": "pi05"}, "'pi05'.*not supported"),
        ({"type": "smolvla"}, "'smolvla'.*not supported"),
        (
            {"type": "multi_task_dit", "vision_encoder_name": "google/siglip-base-patch16-224"},
            "must name a CLIP model",
        ),
        (
            {"type": "multi_task_dit", "vision_encoder_name": "facebook/dinov3-vitb16"},
            "must name a CLIP model",
        ),
        (
            {"model_type": "clip", "architectures": ["CLIPModel"]},
            "a transformers model .'clip'., not a policy",
        ),
    ],
)
def test_other_policies_are_told_apart(
    config: dict[str, Any], says: str, found: str, tmp_path: Path
) -> None:
    """As LeRobot's trainer lays a run out; every command opens checkpoints here."""
    folder = tmp_path / "run/checkpoints/000002/pretrained_model"
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(config))
    path = {"pretrained_model": folder, "checkpoint": folder.parent, "run": tmp_path / "run"}[found]
    with pytest.raises(UserError, match=says):
        open_checkpoint(path)


def edit_weights(folder: Path, change: Any) -> None:
    path = folder / PRETRAINED / "model.safetensors"
    weights = load_file(path)
    change(weights)
    save_file(weights, path)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (
            lambda w: w.pop("noise_predictor.input_proj.bias"),
            "lacks noise_predictor.input_proj.bias",
        ),
        (lambda w: w.update(extra=torch.zeros(1)), "unknown tensor 'extra'"),
        (
            lambda w: w.update({"noise_predictor.input_proj.bias": torch.zeros(3)}),
            r"\(3,\), not \(32,\)",
        ),
    ],
)
def test_weights_that_do_not_fit_are_refused(change: Any, says: str, saved: Path) -> None:
    edit_weights(saved, change)
    with pytest.raises(UserError, match=says):
        open_checkpoint(saved).policy()


def test_damaged_files(saved: Path) -> None:
    folder = saved / PRETRAINED
    weights = folder / "model.safetensors"
    (folder / "clip/config.json").write_text("[]")
    with pytest.raises(UserError, match="CLIP"):
        open_checkpoint(saved).policy()
    (folder / "clip/config.json").unlink()
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(UserError, match="cannot be read"):
        open_checkpoint(saved).policy()
    weights.unlink()
    with pytest.raises(UserError, match="does not exist"):
        open_checkpoint(saved).policy()
    (folder / "mtdit.json").write_text('{"colour": 1}')
    with pytest.raises(UserError, match=r"mtdit\.json"):
        open_checkpoint(saved)
    (folder / "mtdit.json").unlink()
    (folder / "policy_preprocessor.json").write_text("[]")
    with pytest.raises(UserError, match="does not name the normalizer's file of statistics"):
        open_checkpoint(saved)
    (folder / "policy_preprocessor.json").write_text('{"steps": []}')
    with pytest.raises(UserError, match="does not name the normalizer's file of statistics"):
        open_checkpoint(saved)


def test_paths_that_are_no_checkpoint(saved: Path, tmp_path: Path) -> None:
    weights = saved / PRETRAINED / "model.safetensors"
    with pytest.raises(UserError, match=rf"is a file: give its folder, {saved / PRETRAINED}"):
        open_checkpoint(weights)
    alone = tmp_path / "alone"
    alone.mkdir()
    shutil.copyfile(weights, alone / "model.safetensors")
    with pytest.raises(
        UserError, match=r"has model\.safetensors but no config\.json: copy the whole"
    ):
        open_checkpoint(alone)
    (alone / "config.json").write_text("[1, 2]")
    with pytest.raises(UserError, match="describes no policy: it has no 'type'"):
        open_checkpoint(alone)
    shutil.copyfile(saved / PRETRAINED / "config.json", alone / "config.json")
    with pytest.raises(
        UserError, match=r"no policy_preprocessor\.json, which names the file of statistics"
    ):
        open_checkpoint(alone)


def test_the_last_run_is_the_one_that_saved_last(saved: Path, tmp_path: Path) -> None:
    outputs = tmp_path / "outputs"
    with pytest.raises(UserError, match="run `mtdit train` first"):
        last_run(outputs)
    runs = [
        outputs / name
        for name in ("train", "demo/train", "train/2026-08-03/12-00-00_multi_task_dit")
    ]
    for i, run in enumerate(runs):
        folder = run / "checkpoints/000007/pretrained_model"
        folder.mkdir(parents=True)
        shutil.copyfile(saved / PRETRAINED / "config.json", folder / "config.json")
        os.utime(folder / "config.json", (1000 + i, 1000 + i))
        assert last_run(outputs) == run
    os.utime(runs[0] / "checkpoints/000007/pretrained_model/config.json", (2000, 2000))
    assert last_run(outputs) == runs[0]


def test_statistics_that_are_not_there(saved: Path) -> None:
    checkpoint = open_checkpoint(saved)
    without = replace(
        checkpoint,
        dataset_stats={k: v for k, v in checkpoint.dataset_stats.items() if k != "action"},
    )
    with pytest.raises(UserError, match="'action'"):
        _ = without.action_stats
    bare = replace(
        checkpoint,
        dataset_stats={**checkpoint.dataset_stats, "action": {"mean": np.zeros(6, np.float32)}},
    )
    with pytest.raises(UserError, match="statistics lack 'min', which MIN_MAX needs"):
        _ = bare.action_stats
