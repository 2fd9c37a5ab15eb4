"""A recording session: episodes, the pauses between them, and the keys that control both.

`teleoperate` drives the arm and `dataset_writer` writes the dataset. Everything slow (saving an
episode, messages for the user) happens in a thread beside the control loop.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from mtdit_robots.errors import UserError
from mtdit_runtime.control.report import Tick
from mtdit_runtime.control.safety import Stop
from mtdit_runtime.instructions import same_task, typed
from mtdit_runtime.recording.dataset_layout import FEWEST_FRAMES
from mtdit_runtime.recording.dataset_writer import DatasetWriter
from mtdit_runtime.recording.episode import Episode

log = logging.getLogger(__name__)

NEXT, AGAIN, STOP = ("right", "enter", "n"), ("left", "r"), ("escape", "q")
KEYS = "ENTER/right: finish episode, r/left: re-record, q/ESC: stop after this episode"
READY_S = 3.0  # before the first episode: the follower moves to the leader's pose
SHORTEST_S = 0.3  # shorter episodes come from a key that was hit twice
SLOWEST_SHARE = 0.95  # of the dataset's fps: a slower loop is reported, a few late ticks are not

Key = Callable[[], str | None]  # the key pressed since the last call, or None


@dataclass(frozen=True)
class SessionConfig:
    """What to record. ready_s: pause before the first episode; reset_s: before the others."""

    task: str
    episodes: int
    episode_s: float = 60.0
    reset_s: float = 60.0
    ready_s: float = READY_S

    def fewest_frames(self, fps: int) -> int:
        return max(FEWEST_FRAMES, math.ceil(SHORTEST_S * fps))

    def check(self, fps: int) -> None:
        """Raise UserError for an empty task, or one with control characters, and for episodes too
        short to be saved.
        """
        typed(self.task)
        if round(self.episode_s * fps) < self.fewest_frames(fps):
            raise UserError(
                f"an episode of {self.episode_s:g} s at {fps} Hz is too short: "
                f"use {self.fewest_frames(fps) / fps:g} s or more"
            )


@dataclass
class SessionStats:
    """The counts of a session."""

    kept: int = 0  # saved episodes
    frames: int = 0
    discarded: int = 0
    # camera -> frames replaced by the frame before, because the encoder was too slow
    repeated: dict[str, int] = field(default_factory=dict)
    stale_frames: int = 0  # saved frames whose images were stale; the arm held its pose meanwhile
    slow_episodes: int = 0  # saved, though the loop was slower than the dataset's fps
    interrupted: bool = False  # the run ended in the middle of an episode
    episodes: int = 0  # in the dataset, at the end

    def lines(self, root: Path) -> list[str]:
        """The session in a line, and one more line for each problem."""
        lines = [
            f"{self.kept} episodes saved ({self.frames} frames), {self.discarded} discarded; "
            f"{root} now has {self.episodes} episodes"
        ]
        if self.interrupted:
            lines.append("the episode that was being recorded at the end was not saved")
        for camera, n in self.repeated.items():
            lines.append(
                f"{n} frames of {camera} repeat the previous picture because the encoder was too "
                "slow: use smaller frames"
            )
        if self.slow_episodes:
            lines.append(
                f"{self.slow_episodes} episodes were recorded more slowly than their fps: "
                "use a lower fps, or smaller frames"
            )
        if self.stale_frames:
            lines.append(
                f"{self.stale_frames} frames have outdated pictures: "
                "check the cameras with `mtdit find-cameras`"
            )
        return lines


class Session:
    """An `on_tick` that records. Call `close` after the run: it waits for the last episode.

    key: called once per tick. say: called with each message for the user, from another thread.
    """

    def __init__(
        self,
        dataset: DatasetWriter,
        config: SessionConfig,
        key: Key = lambda: None,
        say: Callable[[str], None] | None = None,
    ) -> None:
        config.check(dataset.layout.fps)
        self.dataset, self.config, self.stats = dataset, config, SessionStats()
        self._key, self._tell = key, say or log.info
        self._writer = ThreadPoolExecutor(1, "recording")
        self._writing: Future[bool] | None = None
        self._episode: Episode | None = None
        self._stale = 0  # stale frames in the current episode
        self._rerecord = self._stop = False  # what the keys in a pause asked for
        self._since_s, self._pause_s, self._now_s = 0.0, config.ready_s, 0.0
        n_episodes = dataset.n_episodes
        self._say(
            f"the dataset has {n_episodes} episodes; recording starts in {config.ready_s:g} s"
        )

    def __call__(self, tick: Tick) -> None:
        """Raises Stop when the session is complete, UserError when the disk is full."""
        self._now_s = tick.time_s
        key = self._key()
        if self._episode is None:
            self._pause(key)
            return
        try:
            self._record(self._episode, tick, key)
        except OSError as error:
            raise self._cannot_write(error) from error

    def status(self) -> str:
        """One line for the screen."""
        number, elapsed_s = self.stats.kept + 1, self._now_s - self._since_s
        if self._episode is not None:
            clock = f"{elapsed_s:.1f} / {self.config.episode_s:g} s"
            return f"RECORDING episode {number} of {self.config.episodes}   {clock}"
        if self._writing is not None:
            return "pause, saving the last episode"
        return f"pause before episode {number}   {max(0.0, self._pause_s - elapsed_s):.1f} s left"

    def close(self) -> None:
        """Discard an unfinished episode and wait until the finished one is saved.

        Raises what saving raised.
        """
        try:
            if self._episode is not None:
                self._episode.discard()
                self._episode, self.stats.interrupted = None, True
            if self._writing is not None:
                self._finish_saving()
        finally:
            self._writer.shutdown()
            self.dataset.close()
            self.stats.episodes = self.dataset.n_episodes

    # -- while an episode is recorded

    def _record(self, episode: Episode, tick: Tick, key: str | None) -> None:
        episode.add(tick.observation.positions, tick.sent, tick.observation.frames)
        self._stale += not tick.fresh
        n_wanted = round(self.config.episode_s * self.dataset.layout.fps)
        if key in AGAIN:
            self._discard(episode, "it will be recorded again")
        elif key in STOP or key in NEXT or len(episode) >= n_wanted:
            self._stop |= key in STOP
            self._end(episode)

    def _end(self, episode: Episode) -> None:
        if len(episode) < self.config.fewest_frames(self.dataset.layout.fps):
            self._discard(episode, f"{len(episode)} frames are too few")
            return
        rate_hz = len(episode) / (self._now_s - self._since_s)
        self._writing = self._writer.submit(self._save, episode, self._stale, rate_hz)
        self._begin_pause(self.config.reset_s)

    def _discard(self, episode: Episode, why: str) -> None:
        self.stats.discarded += 1
        self._writer.submit(episode.discard)
        self._say(f"episode {self.stats.kept + 1} discarded: {why}")
        self._begin_pause(self.config.reset_s)

    def _begin_pause(self, pause_s: float) -> None:
        self._episode, self._since_s, self._pause_s = None, self._now_s, pause_s

    # -- between episodes

    def _pause(self, key: str | None) -> None:
        if self._writing is not None and self._writing.done():
            self._finish_saving()
        is_first = self._since_s == 0.0
        self._stop |= key in STOP
        self._rerecord |= key in AGAIN and not is_first
        if self._writing is not None:
            return
        # Before the first episode no key shortens the pause: the arm is still moving.
        is_over = self._now_s - self._since_s >= self._pause_s or (key in NEXT and not is_first)
        if self._rerecord:
            self._delete_last()
        elif self._stop or self.stats.kept >= self.config.episodes:
            raise Stop("duration")
        elif is_over:
            self._begin()

    def _begin(self) -> None:
        # A dataset may hold the same words in another form of Unicode: it stays one task.
        task = same_task(self.config.task, self.dataset.tasks) or self.config.task
        self._episode = self.dataset.begin(task)
        self._stale, self._since_s = 0, self._now_s
        self._say(f"episode {self.stats.kept + 1} of {self.config.episodes}: {self.config.task!r}")

    def _delete_last(self) -> None:
        self._rerecord = False
        if self.stats.kept and self.dataset.drop_last():
            self.stats.kept -= 1
            self.stats.discarded += 1
            self._say(f"episode {self.stats.kept + 1} deleted: it will be recorded again")

    # -- in the writer's thread

    def _save(self, episode: Episode, stale: int, rate_hz: float) -> bool:
        self.dataset.save_episode(episode)
        fps = self.dataset.layout.fps
        seconds = len(episode) / fps
        lines = [f"episode {self.stats.kept + 1} saved: {seconds:.1f} s, {len(episode)} frames"]
        for camera, n in episode.repeated.items():
            lines.append(
                f"the encoder was too slow: {n} frames of {camera} repeat the frame before"
            )
            self.stats.repeated[camera] = self.stats.repeated.get(camera, 0) + n
        if stale:
            lines.append(f"{stale} frames were stale: check the cameras")
        if rate_hz < SLOWEST_SHARE * fps:
            lines.append(
                f"the loop ran at {rate_hz:.1f} Hz instead of {fps} Hz: "
                "a policy will learn the motion faster than it was"
            )
            self.stats.slow_episodes += 1
        self.stats.stale_frames += stale
        self.stats.frames += len(episode)
        self._tell("; ".join(lines))
        return True

    def _finish_saving(self) -> None:
        """Count the saved episode. Raises UserError when it could not be written."""
        writing, self._writing = self._writing, None
        try:
            self.stats.kept += bool(writing and writing.result())
        except OSError as error:
            raise self._cannot_write(error) from error

    def _cannot_write(self, error: OSError) -> UserError:
        return UserError(
            f"cannot write to {self.dataset.root} ({error}): "
            "free some disk space, then continue with --resume"
        )

    def _say(self, line: str) -> None:
        self._writer.submit(self._tell, line)
