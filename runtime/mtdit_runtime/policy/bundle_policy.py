"""A bundle as a Policy: encodes frames once, caches features, runs the denoiser."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mtdit_robots.errors import UserError
from mtdit_robots.features import ACTION
from mtdit_robots.features import STATE as STATE_FEATURE
from mtdit_robots.robot import Frame, Positions
from mtdit_runtime.bundle.bundle import Bundle
from mtdit_runtime.bundle.manifest import (
    ACTIONS,
    EARLIER_FEATURES,
    EARLIER_STATE,
    FEATURES,
    HISTORY_MODULATION,
    PREFIX_MASK,
    PREFIX_WEIGHTS,
    STATE,
    TEXT_FEATURE,
    TOKEN_IDS,
    TOKENIZER,
    frame_input,
)
from mtdit_runtime.engines.engine import Arrays, Engine, Engines
from mtdit_runtime.normalize import Stats
from mtdit_runtime.policy.history import History, Moment, check_observation
from mtdit_runtime.policy.policy import (
    Chunk,
    Noise,
    draw_noise,
    given_noise,
    noise_inputs,
    prefix_inputs,
)
from mtdit_runtime.policy.tokens import load_tokens
from mtdit_runtime.timings import Timings

_Moment = Moment[NDArray[np.float32]]


@dataclass(frozen=True)
class _HistoryResult:
    """Result of the history graph for a text feature and the observations before the newest."""

    text: NDArray[np.float32]
    earlier: list[_Moment]
    part: NDArray[np.float32]  # (1, M), added to the denoiser's modulation

    def is_of(self, text: NDArray[np.float32], earlier: list[_Moment]) -> bool:
        """Whether it was computed from these objects (a _Moment equals only itself)."""
        return self.text is text and self.earlier == earlier


class BundlePolicy:
    """A Policy computed by a bundle's graphs.

    Each frame is encoded at most once, and only if a chunk needs it. `frames_encoded` and
    `texts_encoded` count what was encoded, `timings` times the stages vision, text, history,
    denoiser and guided. `rtc`: also open the guided denoiser; UserError when the bundle has
    none.
    """

    def __init__(self, bundle: Bundle, engines: Engines, rtc: bool = False) -> None:
        m = bundle.manifest
        self.joints = tuple(joint.name for joint in m.joints)
        self.state_joints = m.state_joints
        self.frame_sizes = {camera.name: (camera.height, camera.width) for camera in m.cameras}
        self.cameras = tuple(self.frame_sizes)
        self.n_obs_steps, self.horizon = m.n_obs_steps, m.horizon
        self.n_action_steps, self.fps = m.n_action_steps, m.fps
        self.units, self.demonstrated = m.units, m.joints
        self.timings = Timings()
        self.frames_encoded = self.texts_encoded = 0
        self._bundle, self._engines = bundle, engines
        self._state_stats = _stats(bundle, STATE_FEATURE)
        self._action_stats = _stats(bundle, ACTION)
        self._denoisers: dict[str, Engine] = {"denoiser": engines.denoiser}
        if rtc:
            self._denoisers["guided"] = _open_rtc(bundle, engines)
        self._texts: dict[str, NDArray[np.float32]] = dict(bundle.task_features)
        self._text: NDArray[np.float32] | None = None
        self._last_history: _HistoryResult | None = None
        self._history: History[_Moment] = History(m.n_obs_steps)
        self._rng = np.random.default_rng(0)
        self._lock = threading.Lock()  # engines are not re-entrant

    def reset(self, task: str, seed: int) -> None:
        self._history.clear()
        self._rng = np.random.default_rng(seed)
        if task not in self._texts:
            self._texts[task] = self._encode_text(task)
        self._text = self._texts[task]

    def observe(self, positions: Positions, frames: Mapping[str, Frame]) -> None:
        check_observation(positions, frames, len(self.state_joints), self.frame_sizes)
        self._history.push(Moment(self._state_stats.normalize(positions), frames))

    def request(
        self, noise: Noise | None = None, committed: Positions | None = None
    ) -> Callable[[], Chunk]:
        steps, text = self._observed()
        # (n, J), a copy
        held = np.zeros((0, len(self.joints))) if committed is None else np.array(committed)
        prefix = prefix_inputs(self._action_stats.normalize(held), self.horizon)
        given = {**noise_inputs(self._noise(noise)), **prefix}

        def compute() -> Chunk:
            chunk = self._denoise("denoiser", steps, text, given)
            chunk[: len(held)] = held  # undoes the rounding of normalize and unnormalize
            return chunk

        return compute

    def request_guided(
        self, previous: Positions, weights: NDArray[np.float32], noise: Noise | None = None
    ) -> Callable[[], Chunk]:
        """Like `request`, but guided towards the chunk being executed instead of fixed to it.

        previous: (n, J) positions in units: what the old chunk plans for the new one's first n
        rows. weights: (horizon,) in 0..1, see `prefix_weights`; they do not count beyond row n. The
        policy must have been opened with `rtc`.
        """
        steps, text = self._observed()
        inputs = prefix_inputs(self._action_stats.normalize(np.asarray(previous)), self.horizon)
        rows = np.asarray(weights, np.float32).reshape(1, self.horizon, 1)
        inputs[PREFIX_WEIGHTS] = inputs.pop(PREFIX_MASK) * rows
        given = {**noise_inputs(self._noise(noise)), **inputs}
        return lambda: self._denoise("guided", steps, text, given)

    def _observed(self) -> tuple[list[_Moment], NDArray[np.float32]]:
        """The observations and the text feature for a request made now."""
        if self._text is None:
            raise RuntimeError("reset() must come before the first chunk")
        return self._history.steps(), self._text

    def prepare(self) -> Callable[[], None]:
        steps, text = self._history.steps_after_next(), self._text

        def work_ahead() -> None:
            if text is not None and len(steps) == self.n_obs_steps - 1:
                self._history_modulation(text, steps)

        return work_ahead

    def chunk(self, noise: Noise | None = None, committed: Positions | None = None) -> Chunk:
        return self.request(noise, committed)()

    def _noise(self, noise: Noise | None) -> Noise:
        sizes = self.horizon, len(self.joints), self._bundle.manifest.sampler.draws
        return draw_noise(self._rng, *sizes) if noise is None else given_noise(noise, *sizes)

    def _denoise(
        self, graph: str, steps: Sequence[_Moment], text: NDArray[np.float32], given: Arrays
    ) -> Chunk:
        *earlier, newest = steps
        modulation = self._history_modulation(text, earlier)
        observed = {
            HISTORY_MODULATION: modulation,
            FEATURES: self._feature(newest)[None],
            STATE: newest.state[None],
        }
        with self._lock:
            result = self._run(graph, self._denoisers[graph], {**given, **observed})
        actions = result[ACTIONS][0]  # (horizon, J) normalised
        return self._action_stats.unnormalize(actions).astype(np.float64)

    def _history_modulation(
        self, text: NDArray[np.float32], earlier: list[_Moment]
    ) -> NDArray[np.float32]:
        """(1, M): the modulation's part from text and earlier observations, computed again only
        when one of them has changed.
        """
        features = [self._feature(moment) for moment in earlier]
        with self._lock:
            if self._last_history is None or not self._last_history.is_of(text, earlier):
                inputs = {TEXT_FEATURE: text[None]}
                if earlier:  # (1, n_obs - 1, n_cam * D) and (1, n_obs - 1, J)
                    inputs[EARLIER_FEATURES] = np.stack(features)[None]
                    inputs[EARLIER_STATE] = np.stack([moment.state for moment in earlier])[None]
                part = self._run("history", self._engines.history, inputs)[HISTORY_MODULATION]
                self._last_history = _HistoryResult(text, earlier, part)
            return self._last_history.part

    def _run(self, graph: str, engine: Engine, inputs: Arrays) -> Arrays:
        needed = {t.name: inputs[t.name] for t in self._bundle.manifest.graphs[graph].inputs}
        with self.timings.time(graph):
            return engine(needed)

    def _feature(self, moment: _Moment) -> NDArray[np.float32]:
        """(n_cam * D,) of one observation, encoded on the first call."""
        with self._lock:
            if moment.feature is None:
                moment.feature = self._encode(moment.frames)
                moment.frames = {}
            return moment.feature

    def _encode(self, frames: Mapping[str, Frame]) -> NDArray[np.float32]:
        if self._engines.vision is None:
            return np.zeros(0, np.float32)
        inputs: Arrays = {frame_input(name): frames[name] for name in self.cameras}
        feature = self._run("vision", self._engines.vision, inputs)[FEATURES][0]
        self.frames_encoded += len(self.cameras)
        return feature

    def _encode_text(self, task: str) -> NDArray[np.float32]:
        graph = self._bundle.manifest.graphs["text"]
        tokens = load_tokens(self._bundle.path(TOKENIZER), length=graph.inputs[0].shape[-1])
        result = self._run("text", self._engines.open_text(), {TOKEN_IDS: tokens(task)})
        self.texts_encoded += 1
        return result[TEXT_FEATURE][0]  # (P,)


def _stats(bundle: Bundle, key: str) -> Stats:
    if key not in bundle.stats:
        raise UserError(f"{bundle.folder}: the statistics lack {key!r}: re-run `mtdit export`")
    return bundle.stats[key]


def _open_rtc(bundle: Bundle, engines: Engines) -> Engine:
    if engines.open_rtc is None:
        raise UserError(f"{bundle.folder} has no guided denoiser: export it again with --rtc")
    return engines.open_rtc()
