"""Training: from a TrainConfig to a folder of checkpoints.

`train` prepares a run: a new one from a preset, one that starts from an earlier checkpoint, or one
that resumes. The training loop is in mtdit.training.loop.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Collection, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

import torch

from mtdit.checkpoint.find import find_last_checkpoint
from mtdit.checkpoint.names import LIVE, PRETRAINED, TRAIN_CONFIG, TRAINING_STATE
from mtdit.checkpoint.read import open_checkpoint, open_to_train
from mtdit.checkpoint.tensors import load_weights
from mtdit.checkpoint.write import PretrainedFiles
from mtdit.data.frame_cache import FrameCache, check_dataset, frame_cache
from mtdit.data.image_transforms import image_transforms
from mtdit.data.loader import Loader
from mtdit.policies.multi_task_dit.clip_lookup import load_tokenizer, tokenize
from mtdit.policies.multi_task_dit.config import PolicyConfig
from mtdit.policies.multi_task_dit.policy import MultiTaskDiT
from mtdit.policies.multi_task_dit.presets import PRESETS
from mtdit.stats import DatasetStats, with_imagenet_stats
from mtdit.training.checkpoints import (
    CheckpointManager,
    is_ours,
    new_train_state,
    output_dir_lock,
    resume,
)
from mtdit.training.config import TrainConfig
from mtdit.training.dataset_checks import dataset_warnings
from mtdit.training.distributed import ProcessGroup, init_distributed, rank0_errors, stop_requests
from mtdit.training.loop import fit
from mtdit.training.new_policy import ENCODERS, SMALLER, for_dataset, from_anywhere, policy_config
from mtdit.training.reporters import LineReporter, Reporter, Silent
from mtdit.training.trackers import tracked
from mtdit_robots.errors import UserError
from mtdit_runtime.files import read_json
from mtdit_runtime.text import first_line

log = logging.getLogger(__name__)

# --- preparing


def train(config: TrainConfig, reporter: Reporter | None = None) -> Path:
    """Trains or resumes training; returns the folder of the last checkpoint.

    UserError for everything that the user can fix. SIGINT and SIGTERM save a checkpoint after the
    current step and end the run normally; before the first step they raise KeyboardInterrupt. With
    `accelerate launch` or `torchrun`, every process calls this function.

    reporter: receives progress and messages. By default messages go to this module's logger and
    figures to the trackers of the config.
    """
    with stop_requests() as stop, friendly_torch_errors():
        with rank0_errors():
            device = pick_device(config.device)
            if config.amp == "fp16" and device.type != "cuda":
                raise UserError(
                    f"amp fp16 needs a CUDA GPU, but the device is {device.type}; "
                    "use amp bf16 or no"
                )
            team = init_distributed(device, config.amp)
        if team.device.type == "cuda":
            _enable_tf32()
        with (
            team.listening(),
            _lock_output_dir(config, team),
            _make_reporter(config, team, reporter) as shown,
        ):
            ready = team.in_turn(lambda: prepare(config, team, shown))
            learner = new_train_state(config, ready.policy)
            keeper = CheckpointManager(config, team, ready.files)
            if ready.resumed is not None:
                resume(learner, keeper, ready.resumed, shown.say)
            shown.began(learner.step)
            stop.training = True
            checkpoint = fit(config, learner, ready.loader, keeper, team, stop, shown)
            team.agree()  # no process ends before the main one has written the checkpoint
            return checkpoint


@dataclass(frozen=True)
class Ready:
    """What the training loop needs."""

    policy: MultiTaskDiT
    loader: Loader
    files: PretrainedFiles
    resumed: Path | None  # the checkpoint from which this run continues


def prepare(config: TrainConfig, team: ProcessGroup, shown: Reporter) -> Ready:
    """Reads the dataset, decodes frames if needed, and builds the policy on the team's device."""
    resumed = find_last_checkpoint(config.output_dir) if config.resume else None
    check_dataset(config.dataset)
    wanted = policy_config(config, resumed)
    cache_dir = config.cache_dir or config.output_dir / "frames"
    cache = frame_cache(
        config.dataset,
        cache_dir,
        wanted.image_resize_shape,
        shown.decoded,
        shown.say,
        config.frames,
    )
    wanted = for_dataset(wanted, cache, team.device)
    policy, stats = _start(config, wanted, cache, resumed)
    tokenizer = _tokenizer(wanted, config.init_from or resumed)
    shown.say(_summary(config, policy, cache, team.world))
    loader = _loader(config, policy.to(team.device), cache, stats, tokenizer)
    for line in (
        *loader.told(),
        *dataset_warnings(config, policy.config, cache, team.world, stats),
    ):
        shown.say(line)
    return Ready(
        policy,
        loader,
        PretrainedFiles(policy, {}, stats, cache.info.facts, tokenizer, _as_json(config)),
        resumed,
    )


def resumed_config(config: TrainConfig, given: Collection[str]) -> TrainConfig:
    """The config for resuming: the `given` fields from `config`, all others from the earlier run.

    The earlier run may also be one of LeRobot's trainer; then the fields of its train_config.json
    that have the same meaning here are used.
    """
    checkpoint = find_last_checkpoint(config.output_dir)
    raw = read_json(checkpoint / PRETRAINED / TRAIN_CONFIG)
    earlier = raw if is_ours(checkpoint) else _from_lerobot(raw)
    own = {"dataset", "output_dir", "resume", "init_from", "policy", *given}
    kept = {
        f.name: earlier[f.name]
        for f in fields(TrainConfig)
        if f.name in earlier and f.name not in own
    }
    if kept.get("cache_dir"):
        kept["cache_dir"] = Path(kept["cache_dir"])
    return replace(config, **kept, policy={**earlier.get("policy", {}), **config.policy})


def _from_lerobot(raw: Any) -> dict[str, Any]:
    """LeRobot's train_config.json as TrainConfig fields. LeRobot 0.6.1 has no EMA."""
    if not isinstance(raw, dict) or "steps" not in raw:
        raise UserError(
            f"the run's {TRAIN_CONFIG} has no 'steps'; start a new run with --init-from"
        )
    dataset, optimizer, ema = (raw.get(part) or {} for part in ("dataset", "optimizer", "ema"))
    transforms = dataset.get("image_transforms") or {}
    known = {
        "steps": raw["steps"],
        "batch_size": raw.get("batch_size"),
        "seed": raw.get("seed"),
        "save_every": raw.get("save_freq"),
        "log_every": raw.get("log_freq"),
        "val_every": raw.get("eval_steps"),
        "grad_clip_norm": optimizer.get("grad_clip_norm"),
        "val_split": dataset.get("eval_split"),
    }
    return {
        **{name: value for name, value in known.items() if value is not None and value > 0},
        "ema": bool(ema.get("enable")),
        "imagenet_stats": bool(dataset.get("use_imagenet_stats", True)),
        "image_transforms": transforms if transforms.get("enable") else None,
    }


def _start(
    config: TrainConfig, policy_config: PolicyConfig, cache: FrameCache, resumed: Path | None
) -> tuple[MultiTaskDiT, DatasetStats]:
    """The policy at the start of this run, and the statistics that normalise it."""
    torch.manual_seed(config.seed)
    stats = (
        with_imagenet_stats(cache.stats, list(cache.info.image_keys.values()))
        if config.imagenet_stats
        else cache.stats
    )
    if resumed is not None:
        checkpoint = open_checkpoint(resumed)
        policy = replace(checkpoint, config=policy_config).policy()
        live = resumed / TRAINING_STATE / LIVE
        if live.is_file():  # not in LeRobot's checkpoints: their model.safetensors is live
            load_weights(policy, live)
        return policy, checkpoint.dataset_stats
    if config.init_from is not None:
        checkpoint = open_to_train(config.init_from)
        return replace(checkpoint, config=policy_config).policy(), checkpoint.dataset_stats
    return MultiTaskDiT.pretrained(policy_config), stats


def _tokenizer(config: PolicyConfig, earlier: Path | None) -> Any:
    return (
        open_checkpoint(earlier).tokenizer()
        if earlier is not None
        else load_tokenizer(config.text_encoder_name)
    )


def _loader(
    config: TrainConfig,
    policy: MultiTaskDiT,
    cache: FrameCache,
    stats: DatasetStats,
    tokenizer: Any,
) -> Loader:
    """The loader, with the text features of all tasks: the frozen text tower runs only here."""
    device = next(policy.parameters()).device
    ids = tokenize(tokenizer, list(cache.info.facts.tasks), policy.config)
    text = policy.pooled_text(ids.to(device))
    return Loader(
        cache,
        policy.config,
        stats,
        text,
        config.batch_size,
        config.seed,
        random_shift_px=config.random_shift_px,
        random_brightness=config.random_brightness,
        noise_samples=config.noise_samples,
        balance_tasks=config.balance_tasks,
        task_weights=config.task_weights,
        val_split=config.val_split,
        transforms=image_transforms(config.image_transforms),
    )


def _enable_tf32() -> None:
    """Enables TF32 matrix products and cuDNN's autotuning, as LeRobot's trainer does."""
    torch.backends.cuda.matmul.allow_tf32 = True
    torch.backends.cudnn.allow_tf32 = True
    torch.backends.cudnn.benchmark = True


def pick_device(name: str) -> torch.device:
    """auto: CUDA, else Apple's GPU, else the CPU. UserError for a device that does not exist."""
    counts = {
        "cuda": torch.cuda.device_count(),
        "mps": int(torch.backends.mps.is_available()),
        "cpu": 1,
    }
    if name == "auto":
        return torch.device(next(kind for kind, count in counts.items() if count))
    try:
        device = torch.device(name)
        count = counts[device.type]
    except (RuntimeError, KeyError):
        raise UserError(f"device {name!r} does not exist; use auto, cpu, cuda or mps") from None
    if (device.index or 0) >= count:
        raise UserError(
            f"device {name!r} is not available: torch finds {count} {device.type} device(s); "
            "use --device cpu"
        )
    return device


# --- console, errors, log


def _lock_output_dir(config: TrainConfig, team: ProcessGroup) -> AbstractContextManager[None]:
    return output_dir_lock(config.output_dir) if team.main else nullcontext()


def _make_reporter(
    config: TrainConfig, team: ProcessGroup, reporter: Reporter | None
) -> AbstractContextManager[Reporter]:
    if not team.main:
        return nullcontext(Silent())
    if reporter is None:
        return tracked(config, LineReporter(log.info))
    return nullcontext(reporter)


@contextmanager
def friendly_torch_errors() -> Iterator[None]:
    """Turns torch's long messages about memory and torch.compile into a UserError of one line."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        gist = first_line(error, 200, lines=2)  # torch._dynamo gives the reason in the second
        if isinstance(error, torch.OutOfMemoryError):
            more = "lower batch_size and raise grad_accumulation, or use amp bf16"
            problem = f"the GPU does not have enough memory ({gist}); {more}"
        elif isinstance(error, MemoryError) or "DefaultCPUAllocator" in str(error):
            problem = f"this computer does not have enough memory ({gist}); {SMALLER}"
        elif type(error).__module__.startswith(("torch._dynamo", "torch._inductor")):
            problem = f"torch.compile does not work here ({gist}); train without --compile"
        else:
            raise
        raise UserError(problem) from None


def _summary(config: TrainConfig, policy: MultiTaskDiT, cache: FrameCache, world: int) -> str:
    tasks = ", ".join(repr(t) for t in cache.info.facts.tasks)
    trained = sum(p.numel() for p in policy.parameters() if p.requires_grad)
    frozen = sum(p.numel() for p in policy.parameters()) - trained
    goal = f"{config.max_minutes:g} minutes" if config.max_minutes else f"{config.steps} steps"
    return (
        f"{len(cache.episode_ends)} episodes, {len(cache.state)} frames, "
        f"{len(cache.frames)} cameras, tasks: {tasks}\n"
        f"{trained / 1e6:.1f} M parameters are trained, {frozen / 1e6:.1f} M are frozen; "
        f"{goal} with {config.samples_per_step(world)} samples per step"
    )


def _as_json(config: TrainConfig) -> dict[str, Any]:
    """The content of train_config.json, with absolute paths: a run resumes from any folder."""
    encoders = {
        n: from_anywhere(v) for n, v in config.policy.items() if n in ENCODERS and v != "tiny"
    }
    config = replace(
        config,
        dataset=from_anywhere(config.dataset),
        policy={**config.policy, **encoders},
        cache_dir=config.cache_dir and config.cache_dir.absolute(),
    )
    return {
        "preset_fields": PRESETS[config.preset],
        **json.loads(json.dumps(asdict(config), default=str)),
    }
