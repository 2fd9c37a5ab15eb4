"""Recording demonstrations while an arm is driven: episodes, the pauses between them, and the keys
that steer both.

Knows phases and what becomes of an episode. Refuses to know who drives, what a key looks like and
how a dataset is laid out. Everything slow (finishing an episode, words for the user) happens in a
thread beside the control loop.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field

from mtdit_robots.errors import UserError
from mtdit_runtime.demonstrations import FEWEST_FRAMES, Episode, Recording
from mtdit_runtime.loop import Tick
from mtdit_runtime.safety import Stop

NEXT, AGAIN, STOP = ("right", "enter", "n"), ("left", "r"), ("escape", "q")
KEYS = "right or ENTER: on to the next   left or r: once more   q or ESC: enough"
READY_S = (
    3.0  # before the first episode: the follower's way to the leader's pose is no demonstration
)
SHORTEST_S = 0.3  # a key that was hit twice is no episode
SLOWEST_SHARE = 0.95  # of the rate the frames are marked with; a late tick now and then is nothing

Key = Callable[[], str | None]  # the key hit since it was last asked, if any


@dataclass(frozen=True)
class Plan:
    """What is to be recorded. UserError for a task without words, and for episodes that are over
    before they begin.
    """

    task: str
    episodes: int
    episode_s: float = 60.0
    reset_s: float = 60.0
    ready_s: float = READY_S

    def fewest_frames(self, fps: int) -> int:
        return max(FEWEST_FRAMES, math.ceil(SHORTEST_S * fps))

    def check(self, fps: int) -> None:
        """UserError for a plan of which nothing would be kept."""
        if not self.task.strip():
            raise UserError(
                'an empty task teaches nothing: say what is shown, e.g. --task "open the drawer"'
            )
        if round(self.episode_s * fps) < self.fewest_frames(fps):
            raise UserError(
                f"{self.episode_s:g} s at {fps} frames a second are no episode: use --episode-seconds "
                f"{self.fewest_frames(fps) / fps:g} or more"
            )


@dataclass
class Outcome:
    """What became of a session."""

    kept: int = 0
    frames: int = 0
    discarded: int = 0
    repeated: dict[str, int] = field(
        default_factory=dict
    )  # camera -> pictures shown twice, encoder too slow
    stale_frames: int = 0  # kept rows whose pictures were old: the arm held meanwhile
    slow_episodes: int = 0  # kept, though the loop was slower than their frames say
    interrupted: bool = False  # an episode was under way when the run ended


class Session:
    """An `on_tick` that records. After the run call `close`: it waits for what is being written.

    key: asked once per tick. say: called from another thread, never from the loop.
    """

    def __init__(
        self,
        recording: Recording,
        plan: Plan,
        key: Key = lambda: None,
        say: Callable[[str], None] = print,
    ) -> None:
        plan.check(recording.layout.fps)
        self.recording, self.plan, self.outcome = recording, plan, Outcome()
        self._key, self._tell = key, say
        self._writer = ThreadPoolExecutor(1, "recording")
        self._writing: Future[bool] | None = None
        self._episode: Episode | None = None
        self._stale = 0  # rows of the episode under way
        self._again = self._enough = False
        self._since_s, self._pause_s, self._now_s = 0.0, plan.ready_s, 0.0
        self._say(f"{recording.n_episodes} episodes so far; recording begins in {plan.ready_s:g} s")

    def __call__(self, tick: Tick) -> None:
        """Raises Stop when it is enough, UserError when the disk takes no more."""
        self._now_s = tick.time_s
        key = self._key()
        if self._episode is None:
            self._pause(key)
            return
        try:
            self._record(self._episode, tick, key)
        except OSError as error:
            raise self._no_room(error) from error

    def status(self) -> str:
        """One line for the screen."""
        number, elapsed_s = self.outcome.kept + 1, self._now_s - self._since_s
        if self._episode is not None:
            return f"RECORDING episode {number} of {self.plan.episodes}   {elapsed_s:.1f} / {self.plan.episode_s:g} s"
        if self._writing is not None:
            return "pause, the last episode is being written"
        return f"pause before episode {number}   {max(0.0, self._pause_s - elapsed_s):.1f} s left"

    def close(self) -> None:
        """Discard what was not finished, wait for what was, leave the dataset in order. Raises what
        writing raised.
        """
        try:
            if self._episode is not None:
                self._episode.discard()
                self._episode, self.outcome.interrupted = None, True
            if self._writing is not None:
                self._written()
        finally:
            self._writer.shutdown()
            self.recording.close()

    # -- while an episode is recorded

    def _record(self, episode: Episode, tick: Tick, key: str | None) -> None:
        episode.add(tick.observation.positions, tick.sent, tick.observation.frames)
        self._stale += not tick.fresh
        n_wanted = round(self.plan.episode_s * self.recording.layout.fps)
        if key in AGAIN:
            self._throw_away(episode, "once more")
        elif key in STOP or key in NEXT or len(episode) >= n_wanted:
            self._enough |= key in STOP
            self._end(episode)

    def _end(self, episode: Episode) -> None:
        if len(episode) < self.plan.fewest_frames(self.recording.layout.fps):
            self._throw_away(episode, f"{len(episode)} frames are too few")
            return
        rate_hz = len(episode) / (self._now_s - self._since_s)
        self._writing = self._writer.submit(self._keep, episode, self._stale, rate_hz)
        self._begin_pause(self.plan.reset_s)

    def _throw_away(self, episode: Episode, why: str) -> None:
        self.outcome.discarded += 1
        self._writer.submit(episode.discard)
        self._say(f"episode {self.outcome.kept + 1} not kept: {why}")
        self._begin_pause(self.plan.reset_s)

    def _begin_pause(self, pause_s: float) -> None:
        self._episode, self._since_s, self._pause_s = None, self._now_s, pause_s

    # -- between episodes

    def _pause(self, key: str | None) -> None:
        if self._writing is not None and self._writing.done():
            self._written()
        self._enough |= key in STOP
        self._again |= key in AGAIN and self._since_s > 0
        if self._writing is not None:
            return
        if self._again:
            self._take_back()
        elif self._enough or self.outcome.kept >= self.plan.episodes:
            raise Stop("duration")
        elif self._over(key):
            self._begin()

    def _over(self, key: str | None) -> bool:
        """Before the first episode a key must wait too: the arm is still on its way."""
        is_first = self._since_s == 0.0
        return self._now_s - self._since_s >= self._pause_s or (key in NEXT and not is_first)

    def _begin(self) -> None:
        self._episode, self._stale, self._since_s = (
            self.recording.begin(self.plan.task),
            0,
            self._now_s,
        )
        self._say(f"episode {self.outcome.kept + 1} of {self.plan.episodes}: {self.plan.task!r}")

    def _take_back(self) -> None:
        self._again = False
        if self.outcome.kept and self.recording.drop_last():
            self.outcome.kept -= 1
            self.outcome.discarded += 1
            self._say(f"episode {self.outcome.kept + 1} taken out again")

    # -- in the writer's thread

    def _keep(self, episode: Episode, stale: int, rate_hz: float) -> bool:
        self.recording.keep(episode)
        fps = self.recording.layout.fps
        seconds = len(episode) / fps
        lines = [f"episode {self.outcome.kept + 1} kept: {seconds:.1f} s, {len(episode)} frames"]
        for camera, n in episode.repeated.items():
            lines.append(
                f"{n} frames of {camera} were too many for the encoder, the ones before are shown instead"
            )
            self.outcome.repeated[camera] = self.outcome.repeated.get(camera, 0) + n
        if stale:
            lines.append(f"{stale} frames were old when the arm saw them: check the cameras")
        if rate_hz < SLOWEST_SHARE * fps:
            lines.append(
                f"only {rate_hz:.1f} of {fps} ticks a second: a policy learns it that much faster"
            )
            self.outcome.slow_episodes += 1
        self.outcome.stale_frames += stale
        self.outcome.frames += len(episode)
        self._tell("; ".join(lines))
        return True

    def _written(self) -> None:
        """Take the writer's answer. Raises Stop when the dataset cannot grow: going on would record
        for nothing.
        """
        writing, self._writing = self._writing, None
        try:
            self.outcome.kept += bool(writing and writing.result())
        except OSError as error:
            raise self._no_room(error) from error

    def _no_room(self, error: OSError) -> UserError:
        return UserError(
            f"{self.recording.root} cannot be written ({error}): make room, then --resume"
        )

    def _say(self, line: str) -> None:
        self._writer.submit(self._tell, line)
