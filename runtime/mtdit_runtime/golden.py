"""Compares a bundle's opened engines with its golden fixtures: do they compute the trained policy?

A fixture is one observation with its noise and what torch computed from it. The same gates judge an
export, `mtdit verify` and an engine that was just built on the robot computer. Needs no torch.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mtdit_robots.errors import UserError
from mtdit_runtime.bundle import (
    ACTION_KEY,
    ACTIONS,
    EARLIER_FEATURES,
    EARLIER_STATE,
    FEATURES,
    GOLDEN,
    KNOWN,
    MOST,
    NOISE,
    PREFIX,
    PREFIX_WEIGHTS,
    STATE,
    STATE_KEY,
    TEXT_FEATURE,
    TOKEN_IDS,
    TOKENIZER,
    Bundle,
    Manifest,
    frame_input,
    read_arrays,
    texts,
)
from mtdit_runtime.engine import Engine, Engines, choose_engines
from mtdit_runtime.policy import BundlePolicy, noise_inputs, noise_shape, prefix_inputs
from mtdit_runtime.prefix import prefix_weights
from mtdit_runtime.tokens import load_tokens

Array = NDArray[np.float32]
Pair = tuple[Array, Array]  # got, wanted

FP32_LIMIT = 1e-4  # normalised; for features relative to their largest value
FEATURE_STAGES = ("tasks", "vision", "text", "all tasks", "history")  # limits scale with "largest"
EXACT = {  # precision -> stages that are float32 and must stay within FP32_LIMIT
    "fp32": ("state", *FEATURE_STAGES, "denoiser", "held", "guided", "chunk"),
    "fp16": ("state", "tasks"),
    "int8": ("state", "tasks", "history", "denoiser", "held", "guided"),
}
# largest error of a feature, relative to its largest value, even if the actions are still close
ROUGH = {"fp16": 0.02, "int8": 0.25}
# rms error of the executed actions, relative to their rms deviation over noise seeds
SHARE_OF_SPREAD = {"fp16": 0.02, "int8": 0.1}
LIMIT_UNITS = {"fp16": 0.1}  # degrees, or percent for the gripper
NEGLIGIBLE_UNITS = 0.02  # a quarter of a servo tick, for policies that hardly vary
SUSPECT = 10  # a stage whose error is this many times that at export is named in the failure

# further arrays of a fixture
POSITIONS, TASK, UNITS, HELD, GUIDED = "positions", "task", "actions_units", "held", "guided"


@dataclass(frozen=True)
class Probe:
    """One observation history as a robot reports it, and the noise to denoise."""

    frames: Mapping[str, NDArray[np.uint8]]  # camera -> (n_obs, H, W, 3)
    positions: Array  # (n_obs, J) units
    task: str
    noise: Array  # (T, A); DDPM: (draws, T, A)


@dataclass(frozen=True)
class Expected:
    """What the torch policy computes from a probe."""

    features: Array | None  # (1, n_obs, n_cam * D)
    state: Array  # (1, n_obs, J) normalised
    token_ids: NDArray[np.int64]  # (1, L)
    text: Array  # (1, P)
    known: Array  # (1, M)
    actions: Array  # (1, T, A) normalised
    positions: Array  # (T, A) units
    held: Array  # (1, T, A) normalised, with `held_rows(actions)` as committed prefix
    spread: float  # units, rms deviation of the executed actions over noise seeds
    guided: Array | None = None  # (1, T, A) normalised, guided towards `guide_for(actions)`


@dataclass(frozen=True)
class Verification:
    """Stage -> figures. `failures` is empty when every gate passed."""

    stages: dict[str, dict[str, float]]
    failures: list[str]


# -- fixtures --


def write_golden(folder: Path, probes: Sequence[Probe], expected: Sequence[Expected]) -> None:
    """Write `golden/0.npz` ...: observation and noise, and the result of every stage, so that the
    robot computer can check its engines.

    Arrays: frame.<camera> (n_obs, H, W, 3), positions (n_obs, J), task, noise as in a probe; then
    features (absent without cameras) and state of all observations; token_ids, text, known and
    actions as in the graphs; held and (with a guided graph) guided, shaped like actions;
    actions_units (T, A).
    """
    folder.mkdir(exist_ok=True)
    for i, (probe, e) in enumerate(zip(probes, expected, strict=True)):
        arrays: dict[str, NDArray[Any]] = {frame_input(c): f for c, f in probe.frames.items()}
        arrays |= {POSITIONS: probe.positions, TASK: np.array(probe.task), NOISE: probe.noise}
        arrays |= {STATE: e.state, TOKEN_IDS: e.token_ids, TEXT_FEATURE: e.text, KNOWN: e.known}
        arrays |= {ACTIONS: e.actions, UNITS: e.positions, HELD: e.held}
        arrays |= {
            name: a for name, a in ((FEATURES, e.features), (GUIDED, e.guided)) if a is not None
        }
        np.savez_compressed(folder / f"{i}.npz", **arrays)  # type: ignore[arg-type]


def read_golden(bundle: Bundle) -> tuple[list[Probe], list[Expected]]:
    """Read what `write_golden` wrote. UserError when there is no fixture or one is malformed."""
    names = sorted(name for name in bundle.manifest.files if name.startswith(f"{GOLDEN}/"))
    if not names:
        raise UserError(
            f"{bundle.folder} has no {GOLDEN} fixtures to check against: run `mtdit export` again"
        )
    spread = _spread(bundle)
    pairs = [_read(bundle, name, spread) for name in names]
    return [probe for probe, _ in pairs], [e for _, e in pairs]


def _spread(bundle: Bundle) -> float:
    """In units. UserError when the manifest's figure is out of range."""
    spread = recorded(bundle).get("robot", {}).get("spread", 0.0)
    if not 0 <= spread <= MOST:
        raise UserError(
            f"{bundle.folder}: the manifest gives {spread:g} as the spread of the actions "
            "over noise, which is impossible: run `mtdit export` again"
        )
    return float(spread)


def _read(bundle: Bundle, name: str, spread: float) -> tuple[Probe, Expected]:
    a, path = read_arrays(bundle.path(name)), bundle.path(name)
    wanted = _wanted_arrays(bundle.manifest, GUIDED in a)
    if missing := [key for key in (TASK, *wanted) if key not in a]:
        raise UserError(f"{path} lacks {missing[0]}: run `mtdit export` again")
    for key, (shape, dtype) in wanted.items():
        if (a[key].shape, a[key].dtype) != (shape, dtype):
            got = f"{a[key].dtype} {a[key].shape}"
            raise UserError(
                f"{path}: {key} is {got}, not {dtype} {shape}: run `mtdit export` again"
            )
    task = texts(a[TASK])
    if task is None or a[TASK].shape != ():
        raise UserError(
            f"{path}: {TASK} is {a[TASK].dtype} {a[TASK].shape}, not a string: "
            "run `mtdit export` again"
        )
    frames = {camera.name: a[frame_input(camera.name)] for camera in bundle.manifest.cameras}
    observed = a.get(FEATURES), a[STATE], a[TOKEN_IDS], a[TEXT_FEATURE], a[KNOWN]
    e = Expected(*observed, a[ACTIONS], a[UNITS], a[HELD], spread, a.get(GUIDED))
    return Probe(frames, a[POSITIONS], task[0], a[NOISE]), e


def _wanted_arrays(m: Manifest, guided: bool) -> dict[str, tuple[tuple[int, ...], str]]:
    """Array name -> the shape and dtype that it must have in a fixture."""
    text, history, denoiser = (m.graphs[name] for name in ("text", "history", "denoiser"))
    j = len(m.joints)
    wanted = {
        t.name: (t.shape, t.dtype)
        for t in (*text.inputs, *text.outputs, *history.outputs, *denoiser.outputs)
    }
    seen = [t for t in denoiser.inputs if t.name in (STATE, FEATURES)]
    wanted |= {t.name: ((1, m.n_obs_steps, *t.shape[1:]), t.dtype) for t in seen}
    wanted |= {
        frame_input(c.name): ((m.n_obs_steps, c.height, c.width, 3), "uint8") for c in m.cameras
    }
    wanted |= dict.fromkeys((HELD, *([GUIDED] if guided else [])), wanted[ACTIONS])
    rows = {
        POSITIONS: (m.n_obs_steps, j),
        UNITS: (m.horizon, j),
        NOISE: noise_shape(m.horizon, j, m.sampler.draws),
    }
    return wanted | {name: (shape, "float32") for name, shape in rows.items()}


def recorded(bundle: Bundle) -> Mapping[str, Mapping[str, float]]:
    """Stage -> figures measured at export; empty while the export is still running."""
    stages = bundle.manifest.verification.get("stages", {})
    return stages if isinstance(stages, dict) else {}


# -- the candidate --


class WrongOutputError(Exception):
    """The output of an engine contradicts the manifest or the fixture."""


class Candidate:
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
    def guided_engine(self) -> Engine | None:
        return self.engines.open_guided() if self.engines.open_guided else None

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

    def known(self, state: Array, text: Array, features: Array | None) -> Array:
        """(1, M) from states (1, n_obs, J), text (1, P) and features (1, n_obs, n_cam * D). The
        newest state and feature are not used.
        """
        inputs = {TEXT_FEATURE: text, EARLIER_STATE: state[:, :-1]}
        inputs |= {} if features is None else {EARLIER_FEATURES: features[:, :-1]}
        return self._run("history", self.engines.history, inputs)[KNOWN]

    def actions(
        self,
        state: Array,
        known: Array,
        noise: Array,
        features: Array | None,
        held: Array | None = None,
    ) -> Array:
        """(1, T, A) normalised. state, features: of all observations. held: (n, A) committed
        actions, the chunk's first rows.
        """
        horizon = self.bundle.manifest.horizon
        prefix = prefix_inputs(
            np.zeros((0, noise.shape[-1]), np.float32) if held is None else held, horizon
        )
        return self._denoise(
            "denoiser", self.engines.denoiser, state, known, noise, features, prefix
        )

    def guided(
        self, state: Array, known: Array, noise: Array, features: Array | None, guide: Guide
    ) -> Array:
        """(1, T, A) normalised, guided towards `guide`."""
        assert self.guided_engine is not None, "the bundle has no guided graph"
        inputs = {PREFIX: guide.actions, PREFIX_WEIGHTS: guide.weights}
        return self._denoise("guided", self.guided_engine, state, known, noise, features, inputs)

    def positions(self, probe: Probe) -> Array:
        """(T, A) in units, computed by the policy class that the robot uses."""
        policy = BundlePolicy(self.bundle, self.engines)
        policy.reset(probe.task, seed=0)
        for i, position in enumerate(probe.positions):
            policy.observe(position.astype(np.float64), {c: f[i] for c, f in probe.frames.items()})
        return policy.chunk(probe.noise).astype(np.float32)

    def _denoise(
        self,
        stage: str,
        engine: Engine,
        state: Array,
        known: Array,
        noise: Array,
        features: Array | None,
        more: Mapping[str, Array],
    ) -> Array:
        inputs = {KNOWN: known, STATE: state[:, -1], **noise_inputs(noise), **more}
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


@dataclass(frozen=True)
class Guide:
    """The target of the guided graph, shaped as its inputs."""

    actions: Array  # (1, T, A) normalised
    weights: Array  # (1, T, 1) in 0..1


def held_rows(actions: Array) -> Array:
    """The committed prefix (n, A) of a check, made from a chunk (1, T, A): its first rows, halved,
    because with unchanged rows the rest of the chunk would not change either.
    """
    return 0.5 * actions[0, : max(1, actions.shape[1] // 4)]


def guide_for(actions: Array) -> Guide:
    """The guide of a check, made from a chunk (1, T, A): halved, or there would be no error to
    correct.
    """
    horizon = actions.shape[1]
    weights = prefix_weights(horizon, max(1, horizon // 8), max(2, horizon // 2))
    return Guide((0.5 * actions).astype(np.float32), weights[None, :, None])


# -- the gates --


def labelled(stage: str) -> str:
    """A stage's name in a table, with the unit of its errors where they are in degrees."""
    return f"{stage}, degrees" if stage == "units" or stage.endswith("robot") else stage


def check(
    bundle: Bundle,
    engines: Engines,
    probes: Sequence[Probe],
    expected: Sequence[Expected],
    text: bool = True,
) -> Verification:
    """Compare opened engines with what torch computed, stage by stage.

    - "state", "units": the bundle's statistics applied to positions and to the reference's actions.
    - "tasks": the stored text features of the probes' tasks; "all tasks": the text graph against
      all stored features.
    - "vision", "text", "history": each graph alone, with the reference's inputs.
    - "denoiser", "held" (with a committed prefix), "guided": normalised actions, likewise with the
      reference's inputs. "chunk": normalised actions with everything computed by the graphs.
    - "robot": the executed actions in units, as the robot computes them. "held robot", "guided
      robot": those of "held" and "guided". "text robot": those of "chunk", whose text feature
      comes from the text graph, as for a task that is not in tasks.npz.

    text=False leaves the text encoder out.
    """
    candidate = Candidate(bundle, engines)
    try:
        per_probe = [compare(candidate, p, e, text) for p, e in zip(probes, expected, strict=True)]
    except WrongOutputError as error:
        return Verification({}, [str(error)])
    pairs = {stage: [of_probe[stage] for of_probe in per_probe] for stage in per_probe[0]}
    pairs |= compare_tasks(candidate, probes, expected, text)
    stages = {stage: figures(some) for stage, some in pairs.items()}
    for stage, seconds in candidate.seconds.items():
        stages[stage]["latency_ms"] = 1e3 * statistics.median(seconds)
    stages["robot"]["spread"] = float(np.sqrt(np.mean([e.spread**2 for e in expected])))
    found = failures(stages, bundle.manifest.precision)
    if found and all(line.partition(":")[0].endswith("robot") for line in found):
        found += suspects(stages, recorded(bundle))
    return Verification(stages, found)


def check_bundle(bundle: Bundle, engines: Engines, text: bool = True) -> Verification:
    """`check` against the fixtures in the bundle."""
    return check(bundle, engines, *read_golden(bundle), text=text)


def compare(
    candidate: Candidate, probe: Probe, e: Expected, with_text: bool = True
) -> dict[str, Pair]:
    """Stage -> (got, wanted) for one probe. WrongOutputError when the token ids differ."""
    features, stats = candidate.features(probe), candidate.bundle.stats
    pairs = {
        "state": (stats[STATE_KEY].normalize(probe.positions)[None], e.state),
        "units": (stats[ACTION_KEY].unnormalize(e.actions[0]), e.positions),
    }
    if features is not None and e.features is not None:
        pairs["vision"] = (features, e.features)
    text = e.text
    if with_text:
        ids, text = candidate.text(probe.task)
        if not np.array_equal(ids, e.token_ids):
            raise WrongOutputError(
                f"text: the tokens of {probe.task!r} differ, the tokenizer is not the checkpoint's"
            )
        pairs["text"] = (text, e.text)
    pairs["history"] = (candidate.known(e.state, e.text, e.features), e.known)
    given = e.state, e.known, probe.noise, e.features
    pairs["denoiser"] = (candidate.actions(*given), e.actions)
    pairs["held"] = (candidate.actions(*given, held=held_rows(e.actions)), e.held)
    if candidate.guided_engine is not None and e.guided is not None:
        pairs["guided"] = (candidate.guided(*given, guide_for(e.actions)), e.guided)
    m = candidate.bundle.manifest
    executed = slice(m.n_obs_steps - 1, m.n_obs_steps - 1 + m.n_action_steps)
    known = candidate.known(e.state, text, features)
    pairs["chunk"] = (candidate.actions(e.state, known, probe.noise, features), e.actions)
    pairs["robot"] = (candidate.positions(probe)[executed], e.positions[executed])
    for stage, name in (
        ("chunk", "text robot"),
        ("held", "held robot"),
        ("guided", "guided robot"),
    ):
        if stage in pairs and (with_text or stage != "chunk"):
            got, wanted = (stats[ACTION_KEY].unnormalize(actions[0]) for actions in pairs[stage])
            pairs[name] = (got[executed], wanted[executed])
    return pairs


def compare_tasks(
    candidate: Candidate, probes: Sequence[Probe], expected: Sequence[Expected], with_text: bool
) -> dict[str, list[Pair]]:
    known = candidate.bundle.task_features
    pairs = {
        "tasks": [
            (known[p.task], e.text[0])
            for p, e in zip(probes, expected, strict=True)
            if p.task in known
        ]
    }
    if with_text:
        pairs["all tasks"] = [
            (candidate.text(task)[1][0], feature) for task, feature in known.items()
        ]
    return {stage: some for stage, some in pairs.items() if some}


def figures(pairs: Sequence[Pair]) -> dict[str, float]:
    """Errors of a stage over all probes, and its largest expected value. NaN counts as an infinite
    error.
    """
    errors = np.abs(np.stack([np.asarray(got, np.float64) - wanted for got, wanted in pairs]))
    errors = np.where(np.isfinite(errors), errors, np.inf)
    return {
        "max_error": float(errors.max()),
        "mean_error": float(errors.mean()),
        "rms_error": float(np.sqrt(np.mean(errors**2))),
        "largest": float(max(np.abs(wanted).max() for _, wanted in pairs)),
    }


def failures(stages: Mapping[str, Mapping[str, float]], precision: str) -> list[str]:
    """One line, "<stage>: ...", per gate that fails."""
    infinite = [stage for stage, f in stages.items() if f["max_error"] == np.inf]
    if infinite:
        return [
            f"{stage}: max error inf, the output holds NaN or infinite values" for stage in infinite
        ]
    found = [
        line
        for stage in EXACT[precision]
        if stage in stages
        for line in _inexact(stage, stages[stage])
    ]
    found += _inexact_units("units", stages["units"]) if "units" in stages else []
    in_units = [stage for stage in stages if stage.endswith("robot")]
    if precision in SHARE_OF_SPREAD:
        features = [
            stage for stage in FEATURE_STAGES if stage in stages and stage not in EXACT[precision]
        ]
        found += [
            line for stage in features for line in _rough(stage, stages[stage], ROUGH[precision])
        ]
        spread = stages["robot"]["spread"] if in_units else 0.0
        return found + [
            line for stage in in_units for line in _off(stage, stages[stage], precision, spread)
        ]
    return found or [line for stage in in_units for line in _inexact_units(stage, stages[stage])]


def _inexact(stage: str, f: Mapping[str, float]) -> list[str]:
    limit = FP32_LIMIT * (max(1.0, f["largest"]) if stage in FEATURE_STAGES else 1.0)
    return (
        []
        if f["max_error"] <= limit
        else [f"{stage}: max error {f['max_error']:.2g} exceeds {limit:.2g}"]
    )


def _rough(stage: str, f: Mapping[str, float], share: float) -> list[str]:
    limit = share * f["largest"]
    if f["max_error"] <= limit:
        return []
    return [
        f"{stage}: max error {f['max_error']:.2g} exceeds {limit:.2g}, "
        f"{share:.0%} of the largest value"
    ]


def _inexact_units(stage: str, f: Mapping[str, float]) -> list[str]:
    """Catches wrong statistics or units, which exact normalised actions would hide."""
    limit = max(NEGLIGIBLE_UNITS, FP32_LIMIT * f["largest"])
    error = f["max_error"]
    return [] if error <= limit else [f"{stage}: max error {error:.2g} exceeds {limit:.2g} degrees"]


def _off(stage: str, f: Mapping[str, float], precision: str, spread: float) -> list[str]:
    share, found = SHARE_OF_SPREAD[precision], []
    limit = max(share * spread, NEGLIGIBLE_UNITS)
    if not f["rms_error"] <= limit:
        found.append(
            f"{stage}: rms error {f['rms_error']:.2g} exceeds {limit:.2g} degrees, "
            f"{share:.0%} of the spread over noise"
        )
    if not f["max_error"] <= LIMIT_UNITS.get(precision, np.inf):
        found.append(
            f"{stage}: max error {f['max_error']:.2g} exceeds {LIMIT_UNITS[precision]} degrees"
        )
    return found


def suspects(
    stages: Mapping[str, Mapping[str, float]], at_export: Mapping[str, Mapping[str, float]]
) -> list[str]:
    """Stages whose error is far larger than at export: where to look when only the robot's
    positions are wrong.
    """
    return [
        f"{stage} has rms error {stages[stage]['rms_error']:.2g}, "
        f"it was {at_export[stage]['rms_error']:.2g} at export"
        for stage in ("vision", "text", "history", "denoiser", "held", "guided")
        if stage in stages
        and stage in at_export
        and stages[stage]["rms_error"] > SUSPECT * at_export[stage].get("rms_error", np.inf)
    ]
