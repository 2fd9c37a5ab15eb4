"""Makes training batches from a dataset's arrays: windows, normalised tensors, random draws.

The windows are LeRobot's (lerobot/datasets/dataset_reader.py): observations at the offsets
1-n_obs_steps to 0, actions from 1-n_obs_steps on, clamped to the episode, with the clamped actions
marked as padding.

All random numbers of step n are drawn here for the whole global batch, from generators seeded by
(seed, n); a process takes its slice. So a resumed run sees the same batches as an uninterrupted
one, with any number of processes. `mtdit.data.prefetch` makes the batches ahead, in threads.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mtdit.data.augment import generator, random_offsets, shift
from mtdit.data.batch import HostBatch, RandomDraws, pinned
from mtdit.data.frame_cache import FrameCache
from mtdit.data.image_transforms import image_transforms
from mtdit.data.sampler import (
    Rows,
    Sampler,
    Shard,
    episode_bounds,
    held_out_episodes,
    quotas,
    task_shares,
    usable_rows,
)
from mtdit.policies.images import normalized_images
from mtdit.policies.multi_task_dit.config import PolicyConfig
from mtdit.policies.multi_task_dit.policy import Batch
from mtdit.policies.objectives import make_objective
from mtdit.stats import DatasetStats, feature_stats, image_scaling
from mtdit_robots.errors import UserError
from mtdit_robots.features import ACTION, STATE

MAX_VALIDATION_ROWS = 1024  # about a second on a GPU; more would not change the curve


class LoaderOptions(Protocol):
    """The fields of a TrainConfig that shape its batches."""

    @property
    def batch_size(self) -> int: ...
    @property
    def seed(self) -> int: ...
    @property
    def noise_samples(self) -> int: ...
    @property
    def random_shift_px(self) -> int: ...
    @property
    def random_brightness(self) -> float: ...
    @property
    def image_transforms(self) -> Mapping[str, Any] | None: ...
    @property
    def balance_tasks(self) -> bool: ...
    @property
    def task_weights(self) -> Mapping[str, float]: ...
    @property
    def val_split(self) -> float: ...


@dataclass
class Loader:
    """Makes the batches of a frame cache for one policy on one device.

    States and actions are normalised once, at the start. UserError when the settings do not fit
    the dataset.
    """

    cache: FrameCache
    config: PolicyConfig
    options: LoaderOptions
    stats: DatasetStats
    text: Tensor  # (tasks, W) pooled text features, on the device

    def __post_init__(self) -> None:
        self.state = torch.from_numpy(
            feature_stats(self.config, self.stats, STATE).normalize(self.cache.state)
        )
        self.action = torch.from_numpy(
            feature_stats(self.config, self.stats, ACTION).normalize(self.cache.action)
        )
        self.task = np.asarray(self.cache.task)
        self.ends = np.asarray(self.cache.episode_ends)
        self.first, self.last = episode_bounds(self.ends)
        self.scaling = {c: image_scaling(self.config, self.stats, c) for c in self.config.cameras}
        self.crop_slack = {c: self._crop_slack(c) for c in self.config.cameras}
        self.transforms = image_transforms(self.options.image_transforms)
        self.objective = make_objective(self.config)
        self.device = self.text.device
        self.pinned = self.device.type == "cuda"
        self._check_shift()
        self._split()

    def _check_shift(self) -> None:
        for camera in self.config.cameras:
            side = min(self.cache.frames[camera].shape[1:3])
            if self.options.random_shift_px >= side:
                raise UserError(
                    f"random_shift_px must be less than the {side} px of camera {camera!r}, "
                    f"got {self.options.random_shift_px}"
                )

    def _split(self) -> None:
        """Sets the training rows, the held-out rows, and how often each task is drawn."""
        tasks = self.cache.info.facts.tasks
        held = held_out_episodes(self.task[self.ends - 1].tolist(), tasks, self.options.val_split)
        usable = usable_rows(self.ends, self.config.drop_n_last_frames or 0)
        out = np.isin(np.searchsorted(self.ends, usable, side="right"), held)
        self.usable, self.held_out = usable[~out], usable[out]
        if not len(self.usable):
            raise UserError("every training episode is shorter than drop_n_last_frames; lower it")
        if len(held) and not len(self.held_out):
            raise UserError(
                "every held-out episode is shorter than drop_n_last_frames; lower it, or train "
                "without val_split"
            )
        present = {
            tasks[t]: self.usable[self.task[self.usable] == t]
            for t in np.unique(self.task[self.usable])
        }
        balance, weights = self.options.balance_tasks, self.options.task_weights
        self.shares = task_shares({t: len(r) for t, r in present.items()}, balance, weights)
        weighted = balance or bool(weights)
        counts = quotas(list(self.shares.values()), len(self.usable))
        self.sampler = Sampler(
            self.usable,
            self.options.seed,
            list(zip(present.values(), counts, strict=True)) if weighted else (),
        )

    def _crop_slack(self, camera: str) -> tuple[int, int]:
        """How far the crop may move down and right from the top left corner, in px."""
        height, width = self.config.image_resize_shape or self.config.cameras[camera][:2]
        kept = self.config.image_crop_shape or (height, width)
        return height - kept[0], width - kept[1]

    def rows_of(self, step: int, world: int = 1, parts: int = 1) -> Rows:
        """The rows of step `step`'s global batch, (batch_size * world * parts,)."""
        return self.sampler.step(step, self.options.batch_size * world * parts)

    def host_batches(self, step: int, parts: Sequence[Shard]) -> list[HostBatch]:
        """Parts of training step `step` on the CPU. Any thread may call it."""
        rows = self.rows_of(step, parts[0].world, parts[0].parts)
        draws, size = self.draw(step, len(rows)), self.options.batch_size
        return [self._host_batch(rows, p.rows(size), draws, p.count) for p in parts]

    def draw(self, step: int, count: int) -> RandomDraws:
        """The random numbers of the `count` samples of step `step`."""

        def per_camera(
            what: str, draw: Callable[[str, torch.Generator], Tensor]
        ) -> dict[str, Tensor]:
            source = generator(self.options.seed, step, what)
            return {camera: draw(camera, source) for camera in self.config.cameras}

        px, spread = self.options.random_shift_px, self.options.random_brightness
        slack, transforms = self.crop_slack, self.transforms
        noise, times = self._draw_noise(count, generator(self.options.seed, step, "noise"))
        crop = shift = brightness = tfs = None
        if self.config.image_crop_is_random and any(map(max, slack.values())):
            crop = per_camera("crop", lambda c, g: random_offsets(count, slack[c], g))
        if px:
            most = 2 * px, 2 * px
            shift = per_camera("shift", lambda _, g: random_offsets(count, most, g) - px)
        if spread:
            brightness = per_camera(
                "light", lambda _, g: 1 + spread * torch.randn(count, generator=g)
            )
        if transforms:
            size = count, transforms.numbers
            tfs = per_camera("tfs", lambda _, g: torch.rand(size, generator=g))
        return RandomDraws(noise, times, crop, shift, brightness, tfs)

    def _draw_noise(self, count: int, source: torch.Generator) -> tuple[Tensor, Tensor]:
        draws = count * self.options.noise_samples
        shape = (draws, self.config.horizon, self.config.action_dim)
        return self.objective.draw(torch.empty(1).expand(shape), source)

    def _host_batch(
        self, all_rows: Rows, part: slice, draws: RandomDraws, count: float
    ) -> HostBatch:
        """The batch around all_rows[part], which is one of `count` slices of all_rows (G,)."""
        c = self.config
        rows = all_rows[part]
        observed, _ = self._window(rows, c.n_obs_steps)
        commanded, is_pad = self._window(rows, c.horizon)

        def of_part(draws: Mapping[str, Tensor] | None) -> dict[str, Tensor] | None:
            return None if draws is None else {camera: d[part] for camera, d in draws.items()}

        k = self.options.noise_samples
        samples = slice(part.start * k, part.stop * k)
        valid = None
        if c.do_mask_loss_for_padding:
            valid = float(k * (~self._window(all_rows, c.horizon)[1]).sum() / count)
        host = HostBatch(
            frames={name: self._frames(name, observed, draws, part) for name in c.cameras},
            state=self.state[observed],
            task=torch.from_numpy(self.task[rows]),
            actions=self.action[commanded],
            is_pad=torch.from_numpy(is_pad),
            crop=of_part(draws.crop),
            brightness=of_part(draws.brightness),
            noise=draws.noise[samples],
            time=draws.time[samples],
            valid_actions=valid,
        )
        return HostBatch(**{n: pinned(v) for n, v in vars(host).items()}) if self.pinned else host

    def _window(self, rows: Rows, length: int) -> tuple[Rows, NDArray[np.bool_]]:
        """Rows (B, length) from n_obs_steps - 1 before each row on, clamped to its episode.

        The second array (B, length) is True where a row was clamped.
        """
        wanted = rows[:, None] + np.arange(
            1 - self.config.n_obs_steps, 1 - self.config.n_obs_steps + length
        )
        inside = np.clip(wanted, self.first[rows][:, None], self.last[rows][:, None])
        return inside, wanted != inside

    def _frames(self, camera: str, rows: Rows, draws: RandomDraws, part: slice) -> Tensor:
        """The frames (B, S, H, W, 3) of these rows (B, S), transformed and shifted at random."""
        source = self.cache.frames[camera]
        buffer = torch.empty(
            (*rows.shape, *source.shape[1:]), dtype=torch.uint8, pin_memory=self.pinned
        )
        frames = buffer.numpy()
        if isinstance(source, np.ndarray):
            np.take(source, rows, axis=0, out=frames, mode="clip")  # other modes copy twice
        else:
            frames[...] = source[rows]
        if draws.transforms is not None and self.transforms is not None:
            self.transforms.apply(frames, draws.transforms[camera][part])
        if draws.shift is not None:
            shift(frames, draws.shift[camera][part])
        return buffer

    def on_device(self, host: HostBatch) -> Batch:
        """Moves a batch to the device and normalises its frames there."""
        device = self.device

        def move(x: Tensor | None) -> Tensor | None:
            return None if x is None else x.to(device, non_blocking=True)

        factors = host.brightness or {}
        images = {
            name: normalized_images(
                frames.to(device, non_blocking=True), *self.scaling[name], move(factors.get(name))
            )
            for name, frames in host.frames.items()
        }
        return Batch(
            images=images,
            state=host.state.to(device, non_blocking=True),
            text=self.text[host.task.to(device, non_blocking=True)],
            actions=move(host.actions),
            is_pad=move(host.is_pad),
            crop=host.crop,
            noise=move(host.noise),
            time=move(host.time),
            valid_actions=host.valid_actions,
        )

    def validation(self, rank: int = 0, world: int = 1) -> Iterator[Batch]:
        """This process' share of the held-out batches, the same every time; none if val_split is 0.

        The validation loss is the mean of the batches' losses over all processes, weighted by the
        number of samples.
        """
        if not len(self.held_out):
            return
        most = min(len(self.held_out), MAX_VALIDATION_ROWS)
        rows = self.held_out[np.linspace(0, len(self.held_out) - 1, most).round().astype(np.int64)]
        seed, size = self.options.seed, self.options.batch_size
        noise, times = self._draw_noise(len(rows), generator(seed, 0, "validation"))
        draws = RandomDraws(noise, times)
        for first in range(rank * size, len(rows), world * size):
            part = slice(first, min(first + size, len(rows)))
            count = len(rows) / (part.stop - first)
            yield self.on_device(self._host_batch(rows, part, draws, count))

    def summary(self) -> list[str]:
        """Lines for the console: each task's share if it is weighted, and the held-out episodes."""
        lines = []
        if self.sampler.quotas:
            lines.append(
                "share of the samples: "
                + ", ".join(f"{t!r} {s:.0%}" for t, s in self.shares.items())
            )
        if len(self.held_out):
            episodes = len(np.unique(self.last[self.held_out]))
            lines.append(
                f"{episodes} of {len(self.ends)} episodes are held out for the validation loss"
            )
            numbers, counts = np.unique(self.task[self.ends - 1], return_counts=True)
            single = [self.cache.info.facts.tasks[t] for t in numbers[counts == 1]]
            if single:
                more = f" and {len(single) - 3} more" if len(single) > 3 else ""
                lines.append(
                    f"trained on and not held out, because they are a task's only episode: "
                    f"{', '.join(map(repr, single[:3]))}{more}"
                )
        return lines

    def describe_rows(self, rows: Sequence[int] | Rows, most: int = 8) -> str:
        """Rows as text: "episode 3 frame 17, ..."."""
        episodes = np.searchsorted(self.ends, rows, side="right")
        named = [
            f"episode {e} frame {r - self.first[r]}" for e, r in zip(episodes, rows, strict=True)
        ]
        more = f" and {len(named) - most} more" if len(named) > most else ""
        return ", ".join(named[:most]) + more
