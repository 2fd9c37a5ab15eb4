"""The run log: positions, actions and commands of every tick in one npz file. From a log with
frames a policy's actions can be computed again without a robot.

Memory is bounded: the last MAX_TICKS ticks are kept, and camera frames, if requested, from the
first tick up to a number of megabytes. The file is written after the run.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mtdit_robots.errors import UserError
from mtdit_robots.files import new_file
from mtdit_robots.robot import Frame
from mtdit_runtime.control.report import Tick
from mtdit_runtime.files import read_arrays
from mtdit_runtime.policy.by_name import on_robot
from mtdit_runtime.policy.policy import Policy

VERSION = 1
MAX_TICKS = 108_000  # one hour at 30 Hz: 17 MB
VECTORS = ("positions", "wanted", "sent")  # (N, J)
SCALARS = {"index": np.int64, "time_s": np.float64, "work_s": np.float64, "fresh": np.bool_}  # (N,)
CHUNKS = ("chunk", "row", "requested")  # (N,) see chunks.ChunkQueue
FRAMES = "frames."  # (M, H, W, 3) per camera, of the first M ticks


class Recorder:
    """An `on_tick` that keeps every tick. joints, task and seed are stored for a replay.

    frames_mb: megabytes of frames to keep, without copying them; 0 keeps none.
    """

    def __init__(
        self,
        joints: Sequence[str],
        task: str,
        seed: int,
        frames_mb: float = 0,
        max_ticks: int = MAX_TICKS,
    ) -> None:
        self._meta = {"version": VERSION, "joints": list(joints), "task": task, "seed": seed}
        self._columns: dict[str, NDArray[Any]] = {
            n: np.empty((max_ticks, len(joints))) for n in VECTORS
        }
        self._columns |= {name: np.empty(max_ticks, dtype) for name, dtype in SCALARS.items()}
        self._columns |= {name: np.empty(max_ticks, np.int32) for name in CHUNKS}
        self._size, self._count = max_ticks, 0
        self._frames: list[Mapping[str, Frame]] = []
        self._frame_bytes_left = int(frames_mb * 1e6)

    def __call__(self, tick: Tick) -> None:
        row = self._count % self._size
        self._columns["positions"][row] = tick.observation.positions
        for name in ("wanted", "sent", *SCALARS, *CHUNKS):
            self._columns[name][row] = getattr(tick, name)
        self._keep_frames(tick.observation.frames)
        self._count += 1

    def save(self, path: Path) -> Path:
        """Write the log under a temporary name, then rename it to `path`. Returns `path`."""
        path.parent.mkdir(parents=True, exist_ok=True)
        arrays: dict[str, Any] = {"meta": np.array(json.dumps(self._meta))}
        with new_file(path) as part, part.open("wb") as file:
            np.savez(file, **arrays, **self._in_order(), **self._stacked_frames())
        return path

    def _keep_frames(self, frames: Mapping[str, Frame]) -> None:
        n_bytes = sum(frame.nbytes for frame in frames.values())
        if n_bytes <= self._frame_bytes_left and len(self._frames) == self._count:
            self._frame_bytes_left -= n_bytes
            self._frames.append(frames)
        else:
            self._frame_bytes_left = 0

    def _in_order(self) -> dict[str, Any]:
        if self._count <= self._size:
            return {name: column[: self._count] for name, column in self._columns.items()}
        return {
            name: np.roll(column, -(self._count % self._size), axis=0)
            for name, column in self._columns.items()
        }

    def _stacked_frames(self) -> dict[str, Any]:
        names = self._frames[0] if self._frames and self._count <= self._size else ()
        return {
            FRAMES + name: np.stack([frames[name] for frames in self._frames]) for name in names
        }


@dataclass(frozen=True)
class RunLog:
    """A run log. columns: name -> (N, ...); frames: camera -> (M, H, W, 3) uint8 RGB, M <= N."""

    joints: tuple[str, ...]
    task: str
    seed: int
    columns: dict[str, NDArray[Any]]
    frames: dict[str, NDArray[np.uint8]]

    def __len__(self) -> int:
        return len(self.columns["index"])


def load_log(path: Path) -> RunLog:
    """Read what `Recorder.save` wrote. Raises UserError if it is missing or not a run log."""
    if not path.is_file():
        raise UserError(f"no run log at {path}: record one with `mtdit run --log {path}`")
    try:
        arrays = read_arrays(path)
        meta = json.loads(str(arrays.pop("meta")))
        if meta["version"] != VERSION:
            raise ValueError(f"version {meta['version']}")
        frames = {
            n.removeprefix(FRAMES): arrays.pop(n) for n in list(arrays) if n.startswith(FRAMES)
        }
        return RunLog(tuple(meta["joints"]), meta["task"], meta["seed"], arrays, frames)
    except (ValueError, KeyError, UserError) as error:
        raise UserError(
            f"{path} is not a run log that this version of mtdit reads ({error}): record it again"
        ) from error


@dataclass(frozen=True)
class RecomputeReport:
    """Differences between a policy's actions and the logged ones, in degrees (gripper: percent)."""

    ticks: int
    max_error: float
    mean_error: float
    per_joint: dict[str, float]  # largest error


def recompute(log: RunLog, policy: Policy) -> RecomputeReport:
    """Give a policy the observations of a log and compare its actions with the logged ones.

    Chunks are requested and rows executed in the same ticks as in the run, so a real-time run with
    late chunks works too. Joints are found by name. Raises UserError when they are not the same,
    when the log lacks the frames of a camera or its first ticks, or when the policy did not act in
    it.
    """
    policy = on_robot(policy, log.joints, "the log")
    n_ticks = _replayable_ticks(log, policy)
    policy.reset(log.task, log.seed)
    chunks: dict[int, NDArray[np.float64]] = {}
    errors = []
    for tick in range(n_ticks):
        if log.columns["fresh"][tick]:
            policy.observe(
                log.columns["positions"][tick], {name: f[tick] for name, f in log.frames.items()}
            )
            if log.columns["requested"][tick] >= 0:
                chunks[int(log.columns["requested"][tick])] = policy.chunk()
        if log.columns["row"][tick] >= 0:
            row = policy.n_obs_steps - 1 + int(log.columns["row"][tick])
            action = chunks[int(log.columns["chunk"][tick])][row]
            errors.append(np.abs(action - log.columns["wanted"][tick]))
    return _recompute_report(errors, policy.joints)


def _replayable_ticks(log: RunLog, policy: Policy) -> int:
    missing = [name for name in policy.cameras if name not in log.frames]
    if missing:
        raise UserError(
            f"the log has no frames of camera {missing[0]!r}: record with `mtdit run --log-frames`"
        )
    if len(log) and log.columns["index"][0] != 0:
        raise UserError(
            "the run was too long, the log does not contain its first ticks: record a shorter run"
        )
    return min([len(log), *(len(log.frames[name]) for name in policy.cameras)])


def _recompute_report(errors: list[NDArray[np.float64]], joints: Sequence[str]) -> RecomputeReport:
    table = np.array(errors).reshape(-1, len(joints))  # (ticks, J)
    if not len(table):
        raise UserError("the policy did not act in any tick of this log: record another run")
    per_joint = dict(zip(joints, table.max(axis=0).tolist(), strict=True))
    return RecomputeReport(len(table), float(table.max()), float(table.mean()), per_joint)
