"""Training: from a TrainConfig to a folder of checkpoints.

`train` prepares a run: a new one from a preset, one that starts from an earlier checkpoint, or one
that resumes. The training loop is in mtdit.training.loop, the policy that a run starts from in
mtdit.training.new_policy.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Collection, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any

import torch

from mtdit.checkpoint.find import find_last_checkpoint
from mtdit.checkpoint.names import PRETRAINED, TRAIN_CONFIG
from mtdit.checkpoint.write import PretrainedFiles
from mtdit.data.frame_cache import FrameCache
from mtdit.data.frames import check_dataset, frame_cache
from mtdit.data.loader import Loader
from mtdit.policies.multi_task_dit.clip_lookup import tokenize
from mtdit.policies.multi_task_dit.policy import MultiTaskDiT
from mtdit.policies.multi_task_dit.presets import PRESETS
from mtdit.training.checkpoints import (
    CheckpointManager,
    TrainedOn,
    new_train_state,
    output_dir_lock,
    resume,
    written_by_mtdit,
)
from mtdit.training.config import TrainConfig
from mtdit.training.dataset_checks import dataset_warnings
from mtdit.training.distributed import ProcessGroup, init_distributed, rank0_errors, stop_requests
from mtdit.training.instructions import token_lines
from mtdit.training.loop import Run, fit
from mtdit.training.new_policy import (
    ENCODERS,
    SMALLER,
    earlier_checkpoint,
    from_anywhere,
    initial_config,
    initial_policy,
    initial_tokenizer,
    rename_map_of,
    with_dataset,
)
from mtdit.training.reporters import LineReporter, Reporter, Silent
from mtdit.training.trackers import tracked
from mtdit.training.units import check_same_units, facts_with_units
from mtdit_robots.errors import UserError
from mtdit_runtime.files import read_json
from mtdit_runtime.text import first_line

log = logging.getLogger(__name__)


def train(config: TrainConfig, reporter: Reporter | None = None) -> Path:
    """Trains a policy, or resumes a training; returns the folder of the last checkpoint.

    UserError for everything that the user can fix. SIGINT and SIGTERM save a checkpoint after the
    current step and end the run normally; before the first step they raise KeyboardInterrupt. With
    `accelerate launch` or `torchrun`, every process calls this function.

    reporter: receives progress and messages. By default messages go to this module's logger and
    figures to the trackers of the config.
    """
    with stop_requests() as stop, friendly_torch_errors():
        with rank0_errors():
            device = pick_device(config.device, config.amp)
            group = init_distributed(device, config.amp)
        if group.device.type == "cuda":
            # TF32 matrix products and cuDNN's autotuning, as in LeRobot's trainer
            torch.backends.cuda.matmul.allow_tf32 = True
            torch.backends.cudnn.allow_tf32 = True
            torch.backends.cudnn.benchmark = True
        with (
            group.exit_on_peer_failure(),
            output_dir_lock(config.output_dir) if group.main else nullcontext(),
            _make_reporter(config, group, reporter) as reporter,
        ):
            run = group.rank0_first(lambda: prepare(config, group, reporter))
            reporter.on_start(run.state.step)
            stop.training = True
            checkpoint = fit(config, group, run, stop, reporter)
            # no process ends before the main one has written the checkpoint
            group.all_reduce_max()
            return checkpoint


def prepare(config: TrainConfig, group: ProcessGroup, reporter: Reporter) -> Run:
    """Reads the dataset, decodes frames if needed, builds the policy on the group's device, and
    restores the state of the run that this one resumes.
    """
    resumed = find_last_checkpoint(config.output_dir) if config.resume else None
    check_dataset(config.dataset)
    earlier = earlier_checkpoint(config, resumed)
    for note in earlier.notes if earlier else ():
        reporter.say(note)
    policy_config = initial_config(config, earlier)
    tokenizer = initial_tokenizer(policy_config, earlier)
    cache = frame_cache(
        config.dataset,
        config.cache_dir or config.output_dir / "frames",
        policy_config.image_resize_shape,
        reporter.on_decode,
        reporter.say,
        config.frames,
        config.tolerance_seconds,
        config.check_frames,
        config.cameras,
        preferred=policy_config.image_keys.values(),
    )
    policy_config = with_dataset(policy_config, cache, group.device)
    names = rename_map_of(config, policy_config, cache, earlier)
    policy, stats = initial_policy(config, policy_config, cache, earlier)
    policy.to(group.device)
    reporter.say(_summary(config, policy, cache, group.world))

    # The frozen text tower runs only here, once for each task.
    tasks = cache.info.facts.tasks
    ids = tokenize(tokenizer, list(tasks), policy_config)
    text = policy.pooled_text(ids.to(group.device))
    loader = Loader(cache, policy_config, config, stats, text)
    warnings = dataset_warnings(config, policy_config, cache, group.world, stats)
    facts, unit_lines = facts_with_units(cache, config.units)
    check_same_units(facts, earlier)
    words = token_lines(tokenizer, tasks, ids, policy_config.tokenizer_max_length)
    for line in (*loader.summary(), *unit_lines, *words, *warnings):
        reporter.say(line)

    files = PretrainedFiles(
        policy,
        {},
        stats,
        facts,
        tokenizer,
        train_config_json(config),
        names,
        earlier.tokenizer_name if earlier else "",
    )
    state, checkpoints = (
        new_train_state(config, policy),
        CheckpointManager(
            config, group, files, TrainedOn(len(cache.episode_ends), len(cache.state))
        ),
    )
    if resumed is not None:
        resume(state, checkpoints, resumed, reporter.say)
    return Run(state, loader, checkpoints)


def resumed_config(config: TrainConfig, given: Collection[str]) -> TrainConfig:
    """The config for resuming: the `given` fields from `config`, all others from the earlier run.

    The earlier run may also be one of LeRobot's trainer; then the fields of its train_config.json
    that have the same meaning here are used.
    """
    checkpoint = find_last_checkpoint(config.output_dir)
    raw = read_json(checkpoint / PRETRAINED / TRAIN_CONFIG)
    earlier = raw if written_by_mtdit(checkpoint) else _from_lerobot(raw)
    own = {"dataset", "output_dir", "resume", "init_from", "policy", *given}
    kept = {
        f.name: earlier[f.name]
        for f in fields(TrainConfig)
        if f.name in earlier and f.name not in own
    }
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
        "tolerance_seconds": raw.get("tolerance_s"),
    }
    return {
        **{name: value for name, value in known.items() if value is not None and value > 0},
        "ema": bool(ema.get("enable")),
        "rename_map": raw.get("rename_map") or {},
        "imagenet_stats": bool(dataset.get("use_imagenet_stats", True)),
        "image_transforms": transforms if transforms.get("enable") else None,
    }


def pick_device(name: str, amp: str = "no") -> torch.device:
    """auto: CUDA, else Apple's GPU, else the CPU. UserError for a device that does not exist, or
    that cannot train with `amp`.
    """
    counts = {
        "cuda": torch.cuda.device_count(),
        "mps": int(torch.backends.mps.is_available()),
        "cpu": 1,
    }
    try:
        device = torch.device(next(k for k, n in counts.items() if n) if name == "auto" else name)
        count = counts[device.type]
    except (RuntimeError, KeyError):
        raise UserError(f"device {name!r} does not exist; use auto, cpu, cuda or mps") from None
    if (device.index or 0) >= count:
        raise UserError(
            f"device {name!r} is not available: torch finds {count} {device.type} device(s); "
            "use --device cpu"
        )
    if amp == "fp16" and device.type != "cuda":
        raise UserError(
            f"amp fp16 needs a CUDA GPU, but the device is {device.type}; use amp bf16 or no"
        )
    return device


def _make_reporter(
    config: TrainConfig, group: ProcessGroup, reporter: Reporter | None
) -> AbstractContextManager[Reporter]:
    if not group.main:
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
    limit = f" or {config.max_minutes:g} minutes" if config.max_minutes else ""
    return (
        f"{len(cache.episode_ends)} episodes, {len(cache.state)} frames, "
        f"{len(cache.frames)} cameras, tasks: {tasks}\n"
        f"{trained / 1e6:.1f} M parameters are trained, {frozen / 1e6:.1f} M are frozen; "
        f"{config.steps} steps{limit} with {config.samples_per_step(world)} samples per step"
    )


def train_config_json(config: TrainConfig) -> dict[str, Any]:
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
