"""Training: from a TrainConfig to a folder of checkpoints. `train` prepares, `fit` is the loop; read them in order.

Knows optimiser, schedule, averaging, checkpoints and interruption. Refuses to know how batches are made (mtdit.data),
what the loss is (mtdit.policy) and what files look like (mtdit.checkpoint).

Step n depends on the weights before it, the seed and n alone: its rows, augmentation, noise and dropout are drawn from
a generator seeded for it. A resumed run therefore gives the losses of an uninterrupted one; there is no generator state
to save. Recipe of LeRobot's trainer: Adam, vision towers at a lower rate, cosine to zero, gradient norm 10.
"""

from __future__ import annotations

import json
import math
import signal
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from torch import Tensor

from mtdit.checkpoint import (
    CLIP,
    PRETRAINED,
    TRAIN_CONFIG,
    TRAINING_STATE,
    WEIGHTS,
    Checkpoint,
    DatasetStats,
    PretrainedFiles,
    find_last_checkpoint,
    load_weights,
    open_checkpoint,
    read_tensors,
    save_checkpoint,
)
from mtdit.config import (
    PRESETS,
    PolicyConfig,
    policy_config_from_dict,
    policy_config_to_dict,
    read_json,
    with_features,
)
from mtdit.data import FrameCache, Loader, check_dataset, frame_cache, with_imagenet_stats
from mtdit.encoders import clip_shapes, load_tokenizer, tokenize
from mtdit.policy import Policy
from mtdit.report import Report, Reporter, console_reporter
from mtdit.tiny import make_tiny_clip
from mtdit.train_config import TrainConfig
from mtdit_robots.errors import UserError

LOG = "train_log.jsonl"
TINY_CLIP = "clip-tiny"
ENCODERS = {"vision_encoder_name", "text_encoder_name"}
OPTIMIZER, LIVE = "optimizer_state.safetensors", "live_weights.safetensors"


# --- preparing ----------------------------------------------------------------------------------------------------


def train(config: TrainConfig, reporter: Reporter | None = None) -> Path:
    """Trains, or goes on training, and returns the last checkpoint's folder. UserError for anything the user can mend.

    SIGINT and SIGTERM save a checkpoint after the current step and end the run in order.
    """
    with console_reporter() if reporter is None else _as_is(reporter) as shown:
        resumed = find_last_checkpoint(config.output_dir) if config.resume else None
        check_dataset(config.dataset)
        device = pick_device(config.device)
        if config.amp == "fp16" and device.type != "cuda":
            raise UserError(f"amp fp16 needs a CUDA GPU, the device is {device.type}; use amp bf16 or no")
        policy_config = _policy_config(config, resumed)
        cache_dir = config.cache_dir or config.output_dir / "frames"
        cache = frame_cache(config.dataset, cache_dir, policy_config.image_resize_shape, shown.decoded, shown.say)
        policy_config = _for_dataset(policy_config, cache, device)
        policy, stats = _start(config, policy_config, cache, resumed)
        tokenizer = _tokenizer(policy_config, config.init_from or resumed)
        shown.say(_summary(config, policy, cache))
        loader = _loader(config, policy.to(device), cache, stats, tokenizer)
        files = PretrainedFiles(policy, {}, stats, cache.info.facts, tokenizer, _as_json(config))
        return fit(config, policy, loader, files, resumed, shown.stepped)


def resumed_config(config: TrainConfig, given: Collection[str]) -> TrainConfig:
    """The config with everything but its `given` fields as the run that it resumes was started with."""
    path = find_last_checkpoint(config.output_dir) / PRETRAINED / TRAIN_CONFIG
    raw = read_json(path)
    if not isinstance(raw, dict) or "noise_samples" not in raw:
        raise UserError(f"{path} is not of `mtdit train`: start a new run with --init-from {config.output_dir}")
    own = {"dataset", "output_dir", "resume", "init_from", "policy", "cache_dir", *given}
    kept = {f.name: raw[f.name] for f in fields(TrainConfig) if f.name in raw and f.name not in own}
    return replace(config, **kept, policy={**raw.get("policy", {}), **config.policy})


def _policy_config(config: TrainConfig, resumed: Path | None) -> PolicyConfig:
    """The policy before it meets the dataset: the checkpoint's this run goes on from, else the preset; then options."""
    earlier = resumed or config.init_from
    if earlier is None:
        standard = {"vision_encoder_name": "tiny", "text_encoder_name": "tiny"} if config.preset == "tiny" else {}
        return with_features(_with_clip_folders({**standard, **config.policy}, config), config.preset, {}, {})
    checkpoint = open_checkpoint(earlier)
    fields = {k: v for k, v in policy_config_to_dict(checkpoint.config).items() if k != "type"}
    return policy_config_from_dict(
        {**fields, **_own_tiny_clip(checkpoint, config), **_with_clip_folders(config.policy, config)}
    )


def _with_clip_folders(options: Mapping[str, Any], config: TrainConfig) -> dict[str, Any]:
    """Options with `tiny` made and local folders spelled out, so that LeRobot finds them from anywhere."""
    found = dict(options)
    for name in ENCODERS & found.keys():
        if found[name] == "tiny":
            found[name] = str(make_tiny_clip(config.output_dir.absolute() / TINY_CLIP))
        elif Path(found[name]).is_dir():
            found[name] = str(Path(found[name]).absolute())
    return found


def _own_tiny_clip(checkpoint: Checkpoint, config: TrainConfig) -> dict[str, str]:
    """A tiny CLIP of the checkpoint is made again in this run, since the earlier run's may be gone."""
    names = [name for name in ENCODERS if Path(getattr(checkpoint.config, name)).name == TINY_CLIP]
    shape = clip_shapes(checkpoint.config, beside=checkpoint.folder / CLIP) if names else None
    return {name: str(make_tiny_clip(config.output_dir.absolute() / TINY_CLIP, shape)) for name in names if shape}


def _for_dataset(config: PolicyConfig, cache: FrameCache, device: torch.device) -> PolicyConfig:
    """Takes the dataset's features, or checks that those of an earlier checkpoint fit it."""
    inputs, outputs = cache.info.input_features, cache.info.output_features
    if config.input_features and (dict(config.input_features), dict(config.output_features)) != (inputs, outputs):
        raise UserError(
            f"the checkpoint was trained on {_listed(config.input_features)}, the dataset has {_listed(inputs)}; "
            "record with the same joints and cameras or train from scratch"
        )
    return replace(config, input_features=inputs, output_features=outputs, device=device.type)


def _listed(features: Mapping[str, Any]) -> str:
    return ", ".join(f"{key}{list(feature.shape)}" for key, feature in features.items())


def _start(
    config: TrainConfig, policy_config: PolicyConfig, cache: FrameCache, resumed: Path | None
) -> tuple[Policy, DatasetStats]:
    """The policy this run begins with and the statistics it is normalised by."""
    torch.manual_seed(config.seed)
    stats = (
        with_imagenet_stats(cache.stats, list(cache.info.image_keys.values())) if config.imagenet_stats else cache.stats
    )
    if resumed is not None:
        checkpoint = open_checkpoint(resumed)
        policy = replace(checkpoint, config=policy_config).policy()
        load_weights(policy, resumed / TRAINING_STATE / LIVE)
        return policy, checkpoint.dataset_stats
    if config.init_from is not None:
        checkpoint = open_checkpoint(config.init_from)
        return replace(checkpoint, config=policy_config).policy(), checkpoint.dataset_stats
    return Policy.pretrained(policy_config), stats


def _tokenizer(config: PolicyConfig, earlier: Path | None) -> Any:
    return open_checkpoint(earlier).tokenizer() if earlier is not None else load_tokenizer(config.text_encoder_name)


def _loader(config: TrainConfig, policy: Policy, cache: FrameCache, stats: DatasetStats, tokenizer: Any) -> Loader:
    """The frozen text tower runs here, once per task of the dataset."""
    device = next(policy.parameters()).device
    ids = tokenize(tokenizer, list(cache.info.facts.tasks), policy.config)
    text = policy.pooled_text(ids.to(device))
    return Loader(
        cache, policy.config, stats, text, config.batch_size, config.seed,
        random_shift_px=config.random_shift_px, random_brightness=config.random_brightness,
    )  # fmt: skip


def pick_device(name: str) -> torch.device:
    """auto: CUDA, else Apple's GPU, else the CPU. UserError for a device that is not there."""
    if name == "auto":
        found = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
        return torch.device(found)
    if name.startswith("cuda") and not torch.cuda.is_available():
        raise UserError(f"device {name!r} is not available: torch sees no CUDA GPU; use --device cpu")
    try:
        return torch.device(name)
    except RuntimeError:
        raise UserError(f"device {name!r} does not exist; use auto, cpu or cuda") from None


# --- the loop -----------------------------------------------------------------------------------------------------


def fit(
    config: TrainConfig,
    policy: Policy,
    loader: Loader,
    files: PretrainedFiles,
    resumed: Path | None,
    on_report: Callable[[Report], None],
) -> Path:
    """The training loop. Returns the folder of the checkpoint it ended with."""
    AcceleratorState._reset_state()  # one process may train twice, with another precision
    accelerator = Accelerator(mixed_precision=config.amp, cpu=loader.device.type == "cpu")
    optimizer = make_optimizer(policy, loader.device)
    average = Average(policy, config.ema_max_decay) if config.ema else None
    step, earlier_s = _restore(resumed, policy, optimizer, average)
    model, optimizer = accelerator.prepare(policy, optimizer)
    model.train()
    log = Log(config, step, earlier_s, on_report)
    checkpoint = resumed

    with stop_requests() as stopped:
        while step < config.steps and log.fraction < 1.0 and not stopped():
            torch.manual_seed(config.seed * 1_000_003 + step)
            batch = loader.step(step)
            lr = set_learning_rate(optimizer, policy.config, step, config.steps, log.fraction)
            with accelerator.autocast():
                loss = model(batch, config.noise_samples)
            accelerator.backward(loss)
            grad_norm = accelerator.clip_grad_norm_(model.parameters(), config.grad_clip_norm)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            if average is not None:
                average.update(policy, step)
            step += 1
            log.add(step, loss.detach(), lr, grad_norm, samples=len(batch.state))
            if step % config.save_every == 0:
                checkpoint = _save(config, step, log, policy, average, optimizer, files)

    if checkpoint is None or checkpoint.name != f"{step:06d}":
        checkpoint = _save(config, step, log, policy, average, optimizer, files)
    return checkpoint


def make_optimizer(policy: Policy, device: torch.device) -> torch.optim.Adam:
    c = policy.config
    fused = device.type in ("cuda", "cpu")
    return torch.optim.Adam(
        policy.parameter_groups(),
        betas=c.optimizer_betas,
        eps=c.optimizer_eps,
        weight_decay=c.optimizer_weight_decay,
        fused=fused,
    )


def set_learning_rate(
    optimizer: torch.optim.Optimizer, config: PolicyConfig, step: int, steps: int, fraction: float
) -> float:
    """Sets both groups' rates for this step and returns the first group's."""
    factor = learning_rate_factor(config, step, steps, fraction)
    rates = (config.optimizer_lr, config.optimizer_lr * config.vision_encoder_lr_multiplier)
    for group, rate in zip(optimizer.param_groups, rates, strict=True):
        group["lr"] = rate * factor
    return rates[0] * factor


def learning_rate_factor(config: PolicyConfig, step: int, steps: int, fraction: float = 0.0) -> float:
    """Linear warm-up, then half a cosine to zero at `steps`, or at fraction 1 of the time, whichever is sooner.

    With fraction 0 equal to diffusers' get_cosine_schedule_with_warmup, which LeRobot uses.
    """
    warmup = config.scheduler_warmup_steps
    if step < warmup and config.scheduler_name != "constant":
        return step / warmup
    if config.scheduler_name != "cosine":
        return 1.0
    done = max((step - warmup) / max(1, steps - warmup), fraction)
    return 0.5 * (1.0 + math.cos(math.pi * min(done, 1.0)))


class Average:
    """Exponential moving average of the learned weights. Short at first, longer as training goes on.

    Decay after n updates: 1 - (1 + n) ** -0.75, at most `max_decay` (the rule of diffusers' EMAModel).
    """

    def __init__(self, policy: Policy, max_decay: float) -> None:
        self.max_decay = max_decay
        self.weights = {n: p.detach().clone() for n, p in policy.named_parameters() if p.requires_grad}

    @torch.no_grad()
    def update(self, policy: Policy, step: int) -> None:
        decay = min(self.max_decay, 1.0 - (1.0 + step) ** -0.75)
        live = [p.detach() for p in policy.parameters() if p.requires_grad]
        torch._foreach_lerp_(list(self.weights.values()), live, 1.0 - decay)


class Log:
    """Counts, times and writes down: one Report every `log_every` steps, to the file and to whoever watches."""

    def __init__(self, config: TrainConfig, step: int, earlier_s: float, on_report: Callable[[Report], None]) -> None:
        self.config, self.on_report, self.earlier_s = config, on_report, earlier_s
        self.began = self.last_s = time.perf_counter()
        self.step = step
        self.losses: list[Tensor] = []
        self.samples = 0
        config.output_dir.mkdir(parents=True, exist_ok=True)
        self.file = config.output_dir / LOG
        kept = self.file.read_text().splitlines(keepends=True) if step and self.file.is_file() else []
        self.file.write_text("".join(line for line in kept if json.loads(line)["step"] <= step))

    @property
    def elapsed_s(self) -> float:
        return self.earlier_s + time.perf_counter() - self.began

    @property
    def fraction(self) -> float:
        """Share of max_minutes that is used up; 0 without a limit."""
        return self.elapsed_s / (60.0 * self.config.max_minutes) if self.config.max_minutes else 0.0

    def add(self, step: int, loss: Tensor, lr: float, grad_norm: Tensor, samples: int) -> None:
        self.step, self.samples = step, self.samples + samples
        self.losses.append(loss)
        if step % self.config.log_every and step != self.config.steps:
            return
        report = self._report(lr, float(grad_norm))
        with self.file.open("a") as file:
            file.write(json.dumps(asdict(report)) + "\n")
        self.on_report(report)
        self.check()
        self.losses = []

    def check(self) -> None:
        """UserError as soon as a loss is known not to be finite: nothing after it can be trusted."""
        if self.losses and not torch.isfinite(torch.stack(self.losses)).all():
            raise UserError(
                f"the loss is not finite at step {self.step}; the last checkpoint is good: "
                "resume it with a lower optimizer_lr, or without amp"
            )

    def _report(self, lr: float, grad_norm: float) -> Report:
        now = time.perf_counter()
        rate = self.samples / max(now - self.last_s, 1e-9)
        self.last_s, self.samples = now, 0
        loss = float(torch.stack(self.losses).mean())
        progress = min(1.0, max(self.step / self.config.steps, self.fraction))
        return Report(self.step, self.config.steps, loss, lr, grad_norm, rate, 0.0, 0.0, self.elapsed_s, progress)


@contextmanager
def stop_requests() -> Iterator[Callable[[], bool]]:
    """Inside, SIGINT and SIGTERM only note that a stop is wanted; a second SIGINT interrupts at once."""
    wanted: list[int] = []

    def note(number: int, _frame: object) -> None:
        if wanted and number == signal.SIGINT:
            raise KeyboardInterrupt
        wanted.append(number)

    try:
        before = {s: signal.signal(s, note) for s in (signal.SIGINT, signal.SIGTERM)}
    except ValueError:  # not the main thread: whoever runs us there stops us in another way
        before = {}
    try:
        yield lambda: bool(wanted)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


# --- saving and resuming ------------------------------------------------------------------------------------------


def _save(
    config: TrainConfig,
    step: int,
    log: Log,
    policy: Policy,
    average: Average | None,
    optimizer: torch.optim.Optimizer,
    files: PretrainedFiles,
) -> Path:
    """pretrained_model holds the weights to be used, averaged if there is an average; live ones go beside it."""
    log.check()
    live = {k: v.detach().cpu() for k, v in policy.state_dict().items()}
    used = {**live, **average.weights} if average is not None else live
    state = {LIVE: live, OPTIMIZER: optimizer_tensors(optimizer)}
    numbers = {"elapsed_s": log.elapsed_s, "batch_size": config.batch_size, "num_processes": 1}
    return save_checkpoint(config.output_dir, step, replace(files, weights=used), state, numbers)


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Adam's state as LeRobot keeps it: state/<parameter number>/<name>."""
    state = optimizer.state_dict()["state"]
    return {f"state/{i}/{n}": v.detach().cpu() for i, values in state.items() for n, v in values.items()}


def _restore(
    resumed: Path | None, policy: Policy, optimizer: torch.optim.Optimizer, average: Average | None
) -> tuple[int, float]:
    """Fills optimiser and average from a checkpoint; returns its step and the seconds trained so far."""
    if resumed is None:
        return 0, 0.0
    numbers = read_json(resumed / TRAINING_STATE / "training_step.json")
    states: dict[int, dict[str, Tensor]] = {}
    for key, value in read_tensors(resumed / TRAINING_STATE / OPTIMIZER).items():
        _, index, name = key.split("/")
        states.setdefault(int(index), {})[name] = value
    optimizer.load_state_dict({**optimizer.state_dict(), "state": states})
    if average is not None:
        weights = read_tensors(open_checkpoint(resumed).folder / WEIGHTS)
        average.weights = {n: weights[n].to(p.device) for n, p in policy.named_parameters() if n in average.weights}
    return int(numbers["step"]), float(numbers["elapsed_s"])


# --- telling ------------------------------------------------------------------------------------------------------


@contextmanager
def _as_is(reporter: Reporter) -> Iterator[Reporter]:
    yield reporter


def _summary(config: TrainConfig, policy: Policy, cache: FrameCache) -> str:
    facts, learned = cache.info.facts, sum(p.numel() for p in policy.parameters() if p.requires_grad)
    tasks = ", ".join(repr(t) for t in facts.tasks)
    frozen = sum(p.numel() for p in policy.parameters()) - learned
    goal = f"{config.max_minutes:g} minutes" if config.max_minutes else f"{config.steps} steps"
    return (
        f"{len(cache.episode_ends)} episodes, {len(cache.state)} frames, {len(cache.frames)} cameras, tasks: {tasks}\n"
        f"{learned / 1e6:.1f} M parameters learn, {frozen / 1e6:.1f} M are frozen; {goal} at batch {config.batch_size}"
    )


def _as_json(config: TrainConfig) -> dict[str, Any]:
    return {"preset_fields": PRESETS[config.preset], **json.loads(json.dumps(asdict(config), default=str))}
