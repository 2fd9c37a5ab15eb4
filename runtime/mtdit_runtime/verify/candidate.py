"""Runs a bundle's engines on the golden fixtures' inputs."""

from __future__ import annotations

import time
from collections.abc import Mapping
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mtdit_runtime.bundle.bundle import Bundle
from mtdit_runtime.bundle.manifest import (
    ACTIONS,
    EARLIER_FEATURES,
    EARLIER_STATE,
    FEATURES,
    HISTORY_MODULATION,
    PREFIX,
    PREFIX_WEIGHTS,
    STATE,
    TEXT_FEATURE,
    TOKEN_IDS,
    TOKENIZER,
    frame_input,
)
from mtdit_runtime.engines.choose import choose_engines
from mtdit_runtime.engines.engine import Engine, Engines
from mtdit_runtime.policy.bundle_policy import BundlePolicy
from mtdit_runtime.policy.policy import noise_inputs, prefix_inputs
from mtdit_runtime.policy.tokens import load_tokens
from mtdit_runtime.verify.fixtures import Array, Guide, Probe

# -- the candidate --


class WrongOutputError(Exception):
    """The output of an engine contradicts the manifest or the fixture."""


class EngineRunner:
    """Runs an opened bundle one stage at a time. `seconds`: stage -> duration of each call."""

    def __init__(self, bundle: Bundle, engines: Engines | None = None) -> None:
        graphs = bundle.manifest.graphs
        self.bundle, self.engines = bundle, engines or choose_engines(bundle, "onnx")
        self.tokens = load_tokens(bundle.path(TOKENIZER), graphs["text"].inputs[0].shape[-1])
        self.seconds: dict[str, list[float]] = {}

    @cached_property
    def text_engine(self) -> Engine:
        return self.engines.open_text()

    @cached_property
    def _policy(self) -> BundlePolicy:
        return BundlePolicy(self.bundle, self.engines)

    @cached_property
    def rtc_engine(self) -> Engine | None:
        return self.engines.open_rtc() if self.engines.open_rtc else None

    def features(self, probe: Probe) -> Array | None:
        """(1, n_obs, n_cam * D), with one call per observation step as on the robot."""
        if self.engines.vision is None:
            return None
        steps = [
            {frame_input(c): f[i] for c, f in probe.frames.items()}
            for i in range(len(probe.positions))
        ]
        return np.stack(
            [self._run("vision", self.engines.vision, step)[FEATURES] for step in steps], axis=1
        )

    def text(self, task: str) -> tuple[NDArray[np.int64], Array]:
        ids = self.tokens(task)
        return ids, self._run("text", self.text_engine, {TOKEN_IDS: ids})[TEXT_FEATURE]

    def history_modulation(self, state: Array, text: Array, features: Array | None) -> Array:
        """(1, M) from states (1, n_obs, J), text (1, P) and features (1, n_obs, n_cam * D). The
        newest state and feature are not used.
        """
        inputs = {TEXT_FEATURE: text, EARLIER_STATE: state[:, :-1]}
        inputs |= {} if features is None else {EARLIER_FEATURES: features[:, :-1]}
        return self._run("history", self.engines.history, inputs)[HISTORY_MODULATION]

    def actions(
        self,
        state: Array,
        modulation: Array,
        noise: Array,
        features: Array | None,
        prefix: Array | None = None,
    ) -> Array:
        """(1, T, A) normalised. state, features: of all observations. prefix: (n, A) committed
        actions, the chunk's first rows.
        """
        rows = np.zeros((0, noise.shape[-1]), np.float32) if prefix is None else prefix
        inputs = prefix_inputs(rows, self.bundle.manifest.horizon)
        return self._denoise(
            "denoiser", self.engines.denoiser, state, modulation, noise, features, inputs
        )

    def rtc(
        self,
        state: Array,
        modulation: Array,
        noise: Array,
        features: Array | None,
        guide: Guide,
    ) -> Array:
        """(1, T, A) normalised, guided towards `guide`."""
        assert self.rtc_engine is not None, "the bundle has no guided graph"
        inputs = {PREFIX: guide.actions, PREFIX_WEIGHTS: guide.weights}
        return self._denoise("guided", self.rtc_engine, state, modulation, noise, features, inputs)

    def positions(self, probe: Probe, noises: Array | None = None) -> Array:
        """(T, A) in units, computed by the policy class that the robot uses; with K noises in place
        of the probe's own, (K, T, A).
        """
        self._policy.reset(probe.task, seed=0)
        for i, position in enumerate(probe.positions):
            frames = {c: f[i] for c, f in probe.frames.items()}
            self._policy.observe(position.astype(np.float64), frames)
        if noises is None:
            return self._policy.chunk(probe.noise).astype(np.float32)
        return np.stack([self._policy.chunk(noise) for noise in noises]).astype(np.float32)

    def _denoise(
        self,
        stage: str,
        engine: Engine,
        state: Array,
        modulation: Array,
        noise: Array,
        features: Array | None,
        more: Mapping[str, Array],
    ) -> Array:
        inputs = {
            HISTORY_MODULATION: modulation,
            STATE: state[:, -1],
            **noise_inputs(noise),
            **more,
        }
        inputs |= {} if features is None else {FEATURES: features[:, -1]}
        return self._run(stage, engine, inputs)[ACTIONS]

    def _run(
        self, stage: str, engine: Engine, inputs: Mapping[str, NDArray[Any]]
    ) -> Mapping[str, Array]:
        needed = {t.name: inputs[t.name] for t in self.bundle.manifest.graphs[stage].inputs}
        began = time.perf_counter()
        result = engine(needed)
        self.seconds.setdefault(stage, []).append(time.perf_counter() - began)
        for tensor in self.bundle.manifest.graphs[stage].outputs:
            if result[tensor.name].shape != tensor.shape:
                got = result[tensor.name].shape
                raise WrongOutputError(
                    f"{stage}: {tensor.name} has shape {got}, the manifest says {tensor.shape}"
                )
        return result
