"""The trainer: exact resume, time budget, interruption, averages, and what can go wrong."""

from __future__ import annotations

import json
import os
import re
import resource
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from small_cache import CAMERAS, LENGTHS, write_cache

from mtdit.checkpoint.names import LIVE, PRETRAINED, TRAIN_CONFIG, TRAINING_STATE, WEIGHTS
from mtdit.checkpoint.read import open_checkpoint
from mtdit.checkpoint.tensors import read_tensors
from mtdit.policies.multi_task_dit.config import PolicyConfig
from mtdit.training.checkpoints import output_dir_lock
from mtdit.training.config import TrainConfig
from mtdit.training.distributed import INTERRUPT_GRACE_S, StopRequest, init_distributed
from mtdit.training.loop import compile_in_place
from mtdit.training.metrics import LOG
from mtdit.training.optim import EMA, learning_rate_factor
from mtdit.training.reporters import Report, Silent, Validation
from mtdit.training.run import friendly_torch_errors, pick_device, prepare, resumed_config, train
from mtdit_robots.errors import UserError

SMALL = {
    "hidden_dim": 32,
    "num_layers": 1,
    "num_heads": 2,
    "timestep_embed_dim": 16,
    "scheduler_warmup_steps": 2,
}


class Watcher(Silent):
    """Keeps what it is told; `at` is called with every step that was reported."""

    def __init__(self, at: Callable[[int], None] = lambda step: None) -> None:
        self.reports: list[Report] = []
        self.validations: list[Validation] = []
        self.lines: list[str] = []
        self.at = at

    def say(self, line: str) -> None:
        self.lines.append(line)

    def on_report(self, report: Report) -> None:
        self.reports.append(report)
        self.at(report.step)

    def on_validation(self, validation: Validation) -> None:
        self.validations.append(validation)


@pytest.fixture(scope="module")
def frames(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_cache(tmp_path_factory.mktemp("cache") / "frames")


def config_for(frames: Path, out: Path, clip: Path, **options: Any) -> TrainConfig:
    policy = {
        **SMALL,
        "vision_encoder_name": str(clip),
        "text_encoder_name": str(clip),
        **options.pop("policy", {}),
    }
    chosen = {
        "steps": 6,
        "batch_size": 4,
        "log_every": 1,
        "save_every": 3,
        "random_shift_px": 2,
        "device": "cpu",
    }
    return TrainConfig(str(frames), out, preset="tiny", policy=policy, **{**chosen, **options})


def run(config: TrainConfig) -> tuple[Path, list[float]]:
    watcher = Watcher()
    checkpoint = train(config, watcher)
    return checkpoint, [r.loss for r in watcher.reports]


def test_resume_is_exact(frames: Path, clip_folder: Path, tmp_path: Path) -> None:
    """Losses, weights and averages of a run that stopped half-way equal those of one that did not.
    Dropout is on.
    """
    policy = {"dropout": 0.2}
    whole = config_for(frames, tmp_path / "whole", clip_folder, policy=policy, noise_samples=2)
    straight, losses = run(whole)
    halves = replace(whole, output_dir=tmp_path / "halves")
    _, first = run(replace(halves, steps=6, max_minutes=None, save_every=3))
    for name in ("000006", "last"):
        link = tmp_path / "halves/checkpoints" / name
        link.unlink() if link.is_symlink() else link.rename(tmp_path / name)
    resumed, second = run(replace(halves, resume=True))
    assert first == losses
    assert second == losses[3:]
    for file in (f"{PRETRAINED}/model.safetensors", f"{TRAINING_STATE}/{LIVE}"):
        expected, found = read_tensors(straight / file), read_tensors(resumed / file)
        assert all(torch.equal(found[k], v) for k, v in expected.items()), file
    logged = [
        json.loads(line)["step"] for line in (tmp_path / "halves" / LOG).read_text().splitlines()
    ]
    assert logged == [1, 2, 3, 4, 5, 6]


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


def test_init_from_starts_at_the_checkpoints_weights(
    frames: Path, clip_folder: Path, tmp_path: Path
) -> None:
    first, _ = run(config_for(frames, tmp_path / "a", clip_folder, steps=3))
    options = {"init_from": first, "steps": 1, "ema": False}
    second, _ = run(config_for(frames, tmp_path / "b", clip_folder, **options))
    start = open_checkpoint(first).policy().state_dict()
    moved = open_checkpoint(second).policy().state_dict()
    assert all((moved[k] - v).abs().max() < 1e-3 for k, v in start.items()), (
        "one warm-up step moves little"
    )


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


# --- held-out episodes, what is kept
# ------------------------------------------------------------------------------


def test_held_out_loss_is_that_of_the_weights_in_use(
    frames: Path, clip_folder: Path, tmp_path: Path
) -> None:
    """Dropout is on in training and off here; masking too must weigh every batch by its samples."""
    policy = {"dropout": 0.2, "do_mask_loss_for_padding": True}
    config = config_for(
        frames, tmp_path, clip_folder, policy=policy, val_split=0.3, val_every=2, noise_samples=2
    )
    watcher = Watcher()
    train(config, watcher)
    assert [v.step for v in watcher.validations] == [2, 4, 6]
    lines = [json.loads(line) for line in (tmp_path / LOG).read_text().splitlines()]
    assert [line["val_loss"] for line in lines if "val_loss" in line] == [
        v.loss for v in watcher.validations
    ]

    best = min(watcher.validations, key=lambda v: v.loss)
    assert best == [v for v in watcher.validations if v.best][-1]
    assert os.readlink(tmp_path / "checkpoints/best") == f"{best.step:06d}"
    acting = open_checkpoint(tmp_path / "checkpoints/best").policy()
    loader = replace(
        prepare(config, init_distributed(torch.device("cpu"), "no"), Silent()).loader,
        options=replace(config, batch_size=65_536),
    )
    with torch.no_grad():
        (everything,) = loader.validation()
        assert best.loss == pytest.approx(float(acting.loss(everything, 2)), abs=1e-6)


def test_validation_changes_nothing(frames: Path, clip_folder: Path, tmp_path: Path) -> None:
    often = config_for(
        frames,
        tmp_path / "often",
        clip_folder,
        steps=3,
        val_split=0.3,
        val_every=1,
        policy={"dropout": 0.2},
    )
    seldom = replace(often, output_dir=tmp_path / "seldom", val_every=100)
    (a, losses), (b, same) = run(often), run(seldom)
    assert losses == same
    for file in (f"{PRETRAINED}/{WEIGHTS}", f"{TRAINING_STATE}/{LIVE}"):
        one, other = read_tensors(a / file), read_tensors(b / file)
        assert all(torch.equal(other[k], v) for k, v in one.items()), file


def test_no_episodes_held_out_no_best(frames: Path, clip_folder: Path, tmp_path: Path) -> None:
    run(config_for(frames, tmp_path, clip_folder, steps=2, val_every=1))
    assert sorted(p.name for p in (tmp_path / "checkpoints").iterdir()) == ["000002", "last"]


def test_the_best_is_remembered_when_a_run_goes_on(
    frames: Path, clip_folder: Path, tmp_path: Path
) -> None:
    """And it outlives pruning, however long ago it was."""
    options = {"val_split": 0.3, "val_every": 1, "save_every": 1, "keep_checkpoints": 2}
    config = config_for(frames, tmp_path, clip_folder, steps=2, **options)
    run(config)
    state = tmp_path / "checkpoints/000002" / TRAINING_STATE / "training_step.json"
    state.write_text(
        json.dumps({**json.loads(state.read_text()), "best": {"step": 1, "loss": 1e-9}})
    )
    watcher = Watcher()
    train(replace(config, resume=True, steps=5), watcher)
    assert [v.best for v in watcher.validations] == [False] * 3, "nothing is better than 1e-9"
    kept = sorted(p.name for p in (tmp_path / "checkpoints").iterdir())
    assert kept == ["000001", "000004", "000005", "best", "last"]
    assert os.readlink(tmp_path / "checkpoints/best") == "000001"
    assert os.readlink(tmp_path / "checkpoints/last") == "000005"


@contextmanager
def disk() -> Iterator[Callable[[], None]]:
    """Once called, the kernel refuses files of more than 200 kB: to a program the same as a disk
    that is full.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        yield lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, hard))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_full_disk_leaves_the_checkpoint_before(
    frames: Path, clip_folder: Path, tmp_path: Path
) -> None:
    config = config_for(frames, tmp_path, clip_folder, steps=6, save_every=2)
    with (
        disk() as fill,
        pytest.raises(UserError, match=r"cannot write .*000004.*the previous checkpoint is intact"),
    ):
        train(config, Watcher(lambda step: fill() if step == 3 else None))
    assert sorted(p.name for p in (tmp_path / "checkpoints").iterdir()) == ["000002", "last"]
    _, losses = run(replace(config, resume=True))
    assert len(losses) == 4, "and it can be gone on from"


def test_lerobot_loads_what_was_trained(frames: Path, clip_folder: Path, tmp_path: Path) -> None:
    """A run with the tiny preset alone: its own CLIP, named by config.json."""
    from lerobot.policies.multi_task_dit.modeling_multi_task_dit import MultiTaskDiTPolicy

    options = {"vision_encoder_name": "tiny", "text_encoder_name": "tiny"}
    checkpoint, _ = run(config_for(frames, tmp_path, clip_folder, steps=1, policy=options))
    theirs = MultiTaskDiTPolicy.from_pretrained(checkpoint / PRETRAINED, strict=True).state_dict()
    ours = open_checkpoint(tmp_path).policy().state_dict()
    assert all(torch.equal(ours[k], v) for k, v in theirs.items())


def test_init_from_a_run_that_was_moved_makes_its_own_clip(
    frames: Path, clip_folder: Path, tmp_path: Path
) -> None:
    options = {"vision_encoder_name": "tiny", "text_encoder_name": "tiny"}
    run(config_for(frames, tmp_path / "a", clip_folder, steps=1, policy=options))
    (tmp_path / "a").rename(tmp_path / "moved")
    again = config_for(frames, tmp_path / "b", clip_folder, steps=1, init_from=tmp_path / "moved")
    second, _ = run(replace(again, policy={}))
    assert open_checkpoint(second).config.vision_encoder_name == str(tmp_path / "b/clip-tiny")
    assert (tmp_path / "b/clip-tiny/model.safetensors").is_file()


def test_options_change_what_a_checkpoint_goes_on_with(
    frames: Path, clip_folder: Path, tmp_path: Path
) -> None:
    first, _ = run(config_for(frames, tmp_path / "a", clip_folder, steps=1))
    policy = {"optimizer_lr": 1e-5, "scheduler_warmup_steps": 0}
    second, _ = run(
        config_for(frames, tmp_path / "b", clip_folder, steps=1, init_from=first, policy=policy)
    )
    assert open_checkpoint(second).config.optimizer_lr == 1e-5
    with pytest.raises(UserError, match="does not match"):
        run(
            config_for(
                frames, tmp_path / "c", clip_folder, init_from=first, policy={"num_layers": 2}
            )
        )


# --- small pieces
# -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    ["cosine", "cosine_with_restarts", "linear", "polynomial", "constant", "constant_with_warmup"],
)
def test_schedule_is_lerobots(name: str) -> None:
    from diffusers.optimization import get_scheduler

    optimizer = torch.optim.Adam([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    theirs = get_scheduler(name, optimizer, num_warmup_steps=5, num_training_steps=40)
    config = PolicyConfig(scheduler_name=name, scheduler_warmup_steps=5)
    for step in range(40):
        assert learning_rate_factor(config, step, 40) == pytest.approx(
            theirs.get_last_lr()[0], abs=2e-7
        )
        optimizer.step()
        theirs.step()


def test_schedule_follows_the_time_when_that_is_further() -> None:
    config = PolicyConfig()
    assert learning_rate_factor(config, 10, 1000, fraction=0.5) == pytest.approx(0.5)
    assert learning_rate_factor(config, 500, 1000, fraction=0.1) == pytest.approx(0.5)
    assert learning_rate_factor(config, 10, 1000, fraction=1.2) == pytest.approx(0.0)
    assert learning_rate_factor(PolicyConfig(scheduler_name="constant"), 999, 1000) == 1.0


def test_average_is_short_at_first(clip_folder: Path) -> None:
    from lerobot_oracle import lerobot_policy, our_policy

    policy = our_policy(lerobot_policy(clip_folder, 0))
    average = EMA(policy, max_decay=0.99)
    name = "noise_predictor.output_proj.bias"
    with torch.no_grad():
        policy.get_parameter(name).fill_(1.0)
    average.weights[name].zero_()
    average.update(step=0)
    assert average.weights[name].tolist() == [1.0] * 6, "decay 0: takes the weights as they are"
    average.weights[name].zero_()
    average.update(step=10**9)
    torch.testing.assert_close(average.weights[name], torch.full((6,), 0.01))


# torch's own tracer looks at .grad of what it traces, and warns of that itself
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")
def test_compiled_it_computes_the_same(clip_folder: Path) -> None:
    """Traced forward and backward as --compile has them; inductor's code for them takes minutes to
    make on a CPU.
    """
    from lerobot_oracle import batches, lerobot_policy, our_policy

    policy = our_policy(lerobot_policy(clip_folder, 2, num_layers=1))
    _, batch = batches(policy, clip_folder)
    batch = replace(
        batch, **dict(zip(("noise", "time"), policy.objective.draw(batch.actions), strict=True))
    )
    names = list(policy.state_dict())

    def computed() -> dict[str, torch.Tensor]:
        policy.zero_grad()
        loss = policy.loss(batch)
        loss.backward()
        return {
            "loss": loss.detach(),
            **{n: p.grad.clone() for n, p in policy.named_parameters() if p.grad is not None},
        }

    eager = computed()
    compile_in_place(policy, backend="aot_eager")
    torch._dynamo.utils.counters.clear()
    compiled = computed()
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 2, (
        "one of the vision tower, one of the denoiser"
    )
    assert compiled.keys() == eager.keys()
    worst = max((float((compiled[k] - v).abs().max()), k) for k, v in eager.items())
    assert worst[0] < 1e-6, worst
    assert list(policy.state_dict()) == names


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")
def test_a_compiler_that_fails_is_one_line(clip_folder: Path) -> None:
    from lerobot_oracle import batches, lerobot_policy, our_policy

    def broken(graph: torch.fx.GraphModule, inputs: list[torch.Tensor]) -> Callable[..., Any]:
        raise RuntimeError("g++ not found\nand much more")

    policy = our_policy(lerobot_policy(clip_folder, 0, num_layers=1))
    _, batch = batches(policy, clip_folder)
    compile_in_place(policy, backend=broken)
    with (
        pytest.raises(UserError, match=r"g\+\+ not found.*train without --compile"),
        friendly_torch_errors(),
    ):
        policy.loss(batch)


# --- what can be wrong
# --------------------------------------------------------------------------------------------


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


def test_resuming_takes_the_runs_own_options(
    frames: Path, clip_folder: Path, tmp_path: Path
) -> None:
    """Who types only --dataset, --out and --resume gets the run that was interrupted, not the
    defaults.
    """
    began = config_for(
        frames, tmp_path / "run", clip_folder, steps=2, noise_samples=3, random_brightness=0.05
    )
    run(began)
    bare = TrainConfig(str(frames), tmp_path / "run", resume=True, steps=5)
    assert resumed_config(bare, ["steps"]) == replace(began, resume=True, steps=5)
    assert resumed_config(bare, []).steps == 2


def test_a_run_can_be_resumed_from_another_folder(
    frames: Path, clip_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever was given as a relative path is kept as an absolute one; the cache of the frames is
    found again.
    """
    monkeypatch.chdir(frames.parent)
    clip = {
        "vision_encoder_name": os.path.relpath(clip_folder),
        "text_encoder_name": os.path.relpath(clip_folder),
    }
    options = {"steps": 1, "cache_dir": Path("elsewhere"), "policy": clip}
    run(config_for(Path(frames.name), tmp_path / "run", clip_folder, **options))
    kept = json.loads((tmp_path / "run/checkpoints/last" / PRETRAINED / TRAIN_CONFIG).read_text())
    assert kept["dataset"] == str(frames)
    again = resumed_config(TrainConfig(str(frames), tmp_path / "run", resume=True), [])
    assert again.cache_dir == frames.parent / "elsewhere"
    kept_clip = again.policy["vision_encoder_name"]
    assert os.path.isabs(kept_clip)
    assert Path(kept_clip).samefile(clip_folder)


def test_two_trainings_in_one_folder(frames: Path, clip_folder: Path, tmp_path: Path) -> None:
    config = config_for(frames, tmp_path, clip_folder, steps=1)
    with output_dir_lock(tmp_path), pytest.raises(UserError, match="another training"):
        run(config)
    run(config)


def test_what_resuming_has_to_say(frames: Path, clip_folder: Path, tmp_path: Path) -> None:
    config = config_for(frames, tmp_path, clip_folder, steps=2, policy={"optimizer_betas": [0, 0]})
    run(config)
    watcher = Watcher()
    train(replace(config, resume=True, steps=1, val_split=0.2), watcher)
    told = " ".join(watcher.lines)
    assert "raise --steps to continue" in told
    assert "episodes this run has trained on" in told


def test_nothing_to_resume(frames: Path, clip_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no checkpoint"):
        run(config_for(frames, tmp_path / "new", clip_folder, resume=True))


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


def test_frames_that_miss_the_towers_size(frames: Path, clip_folder: Path, tmp_path: Path) -> None:
    policy = {"image_resize_shape": [64, 64], "image_crop_shape": [60, 60]}
    with pytest.raises(
        UserError, match="60x60 pixels after resize and crop, but the vision tower needs 64x64"
    ):
        run(config_for(frames, tmp_path, clip_folder, policy=policy))


def test_init_from_another_arm(frames: Path, clip_folder: Path, tmp_path: Path) -> None:
    first, _ = run(config_for(frames, tmp_path / "a", clip_folder, steps=1))
    path = first / PRETRAINED / "config.json"
    raw = json.loads(path.read_text())
    del raw["input_features"]["observation.images.wrist"]
    path.write_text(json.dumps(raw))
    with pytest.raises(UserError, match=r"trained on .*dataset has .*wrist"):
        run(config_for(frames, tmp_path / "b", clip_folder, init_from=first))


def test_a_checkpoint_keeps_its_order_of_cameras(
    frames: Path, clip_folder: Path, tmp_path: Path
) -> None:
    """The dataset's is another one; the network tells cameras by their place."""
    first, _ = run(config_for(frames, tmp_path / "a", clip_folder, steps=1))
    path = first / PRETRAINED / "config.json"
    raw = json.loads(path.read_text())
    path.write_text(
        json.dumps({**raw, "input_features": dict(reversed(raw["input_features"].items()))})
    )
    second, _ = run(config_for(frames, tmp_path / "b", clip_folder, steps=1, init_from=first))
    assert list(open_checkpoint(second).config.cameras) == list(reversed(CAMERAS))


def test_held_out_episodes_that_no_window_fits(
    frames: Path, clip_folder: Path, tmp_path: Path
) -> None:
    """The longest held-out episode has 26 frames; one of 31 is left to train on."""
    options = {"val_split": 0.3, "policy": {"drop_n_last_frames": 28}}
    with pytest.raises(UserError, match="held-out episode is shorter"):
        run(config_for(frames, tmp_path, clip_folder, **options))
