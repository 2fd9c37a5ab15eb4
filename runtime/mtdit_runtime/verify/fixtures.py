"""Golden fixtures: recorded inputs and the outputs that the trained policy computed for them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mtdit_robots.errors import UserError
from mtdit_runtime.bundle.bundle import Bundle
from mtdit_runtime.bundle.manifest import (
    ACTIONS,
    FEATURES,
    GOLDEN,
    HISTORY_MODULATION,
    NOISE,
    STATE,
    TEXT_FEATURE,
    TOKEN_IDS,
    Manifest,
    frame_input,
)
from mtdit_runtime.files import MAX_DIM, read_arrays
from mtdit_runtime.policy.policy import noise_shape
from mtdit_runtime.policy.rtc import prefix_weights

Array = NDArray[np.float32]

# further arrays of a fixture
POSITIONS, TASK, UNITS, PREFIXED, RTC = "positions", "task", "actions_units", "held", "guided"
SPREAD, ROUNDING = "spread", "rounding"  # figures of a stage that only torch can measure


@dataclass(frozen=True)
class Probe:
    """One observation history as a robot reports it, and the noise to denoise."""

    frames: Mapping[str, NDArray[np.uint8]]  # camera -> (n_obs, H, W, 3)
    positions: Array  # (n_obs, S) units, in the order of the state
    task: str
    noise: Array  # (T, A); DDPM: (draws, T, A)


@dataclass(frozen=True)
class ReferenceOutputs:
    """What the torch policy computes from a probe."""

    features: Array | None  # (1, n_obs, n_cam * D)
    state: Array  # (1, n_obs, S) normalised
    token_ids: NDArray[np.int64]  # (1, L)
    text: Array  # (1, P)
    history_modulation: Array  # (1, M), the tensor "known"
    actions: Array  # (1, T, A) normalised
    positions: Array  # (T, A) units
    prefixed: Array  # (1, T, A) normalised, with `prefix_rows(actions)` as committed prefix
    spread: float  # units, rms deviation of the executed actions over noise seeds
    rtc: Array | None = None  # (1, T, A) normalised, guided towards `guide_for(actions)`
    # fp16: stage -> rms error that rounding its products to float16 causes by itself
    rounding: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Trial:
    """An observation, and what the torch policy would execute for each of K noises."""

    probe: Probe  # its own noise is not used
    noises: Array  # (K, T, A); DDPM: (K, draws, T, A)
    executed: Array  # (K, n_action_steps, J) units


# -- fixtures --


def write_golden(
    folder: Path, probes: Sequence[Probe], expected: Sequence[ReferenceOutputs]
) -> None:
    """Write `golden/0.npz` ...: observation and noise, and the result of every stage, so that the
    robot computer can check its engines.

    Arrays: frame.<camera> (n_obs, H, W, 3), positions (n_obs, S), task, noise as in a probe; then
    features (absent without cameras) and state of all observations; token_ids, text, known and
    actions as in the graphs; held and (with a guided graph) guided, shaped like actions;
    actions_units (T, A).
    """
    folder.mkdir(exist_ok=True)
    for i, (probe, e) in enumerate(zip(probes, expected, strict=True)):
        arrays: dict[str, NDArray[Any]] = {frame_input(c): f for c, f in probe.frames.items()}
        arrays |= {POSITIONS: probe.positions, TASK: np.array(probe.task), NOISE: probe.noise}
        arrays |= {
            STATE: e.state,
            TOKEN_IDS: e.token_ids,
            TEXT_FEATURE: e.text,
            HISTORY_MODULATION: e.history_modulation,
        }
        arrays |= {ACTIONS: e.actions, UNITS: e.positions, PREFIXED: e.prefixed}
        arrays |= {name: a for name, a in ((FEATURES, e.features), (RTC, e.rtc)) if a is not None}
        np.savez_compressed(folder / f"{i}.npz", **arrays)  # type: ignore[arg-type]


def read_golden(bundle: Bundle) -> tuple[list[Probe], list[ReferenceOutputs]]:
    """Read what `write_golden` wrote. UserError when there is no fixture or one is malformed."""
    names = sorted(name for name in bundle.manifest.files if name.startswith(f"{GOLDEN}/"))
    if not names:
        raise UserError(
            f"{bundle.folder} has no {GOLDEN} fixtures to check against: run `mtdit export` again"
        )
    spread = _recorded(bundle, "robot", SPREAD, "spread of the actions over noise")
    rounding = {
        stage: _recorded(bundle, stage, ROUNDING, f"error of {stage} in float16")
        for stage, figures in recorded(bundle).items()
        if ROUNDING in figures
    }
    pairs = [_read(bundle, name, spread, rounding) for name in names]
    return [probe for probe, _ in pairs], [e for _, e in pairs]


def _recorded(bundle: Bundle, stage: str, figure: str, meaning: str) -> float:
    """A figure measured at export, 0 if there is none. UserError when it is out of range."""
    value = recorded(bundle).get(stage, {}).get(figure, 0.0)
    if not 0 <= value <= MAX_DIM:
        raise UserError(
            f"{bundle.folder}: the manifest gives {value:g} as the {meaning}, "
            "which is impossible: run `mtdit export` again"
        )
    return float(value)


def _read(
    bundle: Bundle, name: str, spread: float, rounding: Mapping[str, float]
) -> tuple[Probe, ReferenceOutputs]:
    a, path = read_arrays(bundle.path(name)), bundle.path(name)
    wanted = _wanted_arrays(bundle.manifest, RTC in a)
    if missing := [key for key in (TASK, *wanted) if key not in a]:
        raise UserError(f"{path} lacks {missing[0]}: run `mtdit export` again")
    for key, (shape, dtype) in wanted.items():
        if (a[key].shape, a[key].dtype) != (shape, dtype):
            got = f"{a[key].dtype} {a[key].shape}"
            raise UserError(
                f"{path}: {key} is {got}, not {dtype} {shape}: run `mtdit export` again"
            )
    if a[TASK].dtype.kind != "U" or a[TASK].shape != ():
        raise UserError(
            f"{path}: {TASK} is {a[TASK].dtype} {a[TASK].shape}, not a string: "
            "run `mtdit export` again"
        )
    frames = {camera.name: a[frame_input(camera.name)] for camera in bundle.manifest.cameras}
    observed = a.get(FEATURES), a[STATE], a[TOKEN_IDS], a[TEXT_FEATURE], a[HISTORY_MODULATION]
    e = ReferenceOutputs(*observed, a[ACTIONS], a[UNITS], a[PREFIXED], spread, a.get(RTC), rounding)
    return Probe(frames, a[POSITIONS], str(a[TASK]), a[NOISE]), e


def _wanted_arrays(m: Manifest, rtc: bool) -> dict[str, tuple[tuple[int, ...], str]]:
    """Array name -> the shape and dtype that it must have in a fixture."""
    text, history, denoiser = (m.graphs[name] for name in ("text", "history", "denoiser"))
    j, s = len(m.joints), len(m.state_joints)
    wanted = {
        t.name: (t.shape, t.dtype)
        for t in (*text.inputs, *text.outputs, *history.outputs, *denoiser.outputs)
    }
    seen = [t for t in denoiser.inputs if t.name in (STATE, FEATURES)]
    wanted |= {t.name: ((1, m.n_obs_steps, *t.shape[1:]), t.dtype) for t in seen}
    wanted |= {
        frame_input(c.name): ((m.n_obs_steps, c.height, c.width, 3), "uint8") for c in m.cameras
    }
    wanted |= dict.fromkeys((PREFIXED, *([RTC] if rtc else [])), wanted[ACTIONS])
    rows = {
        POSITIONS: (m.n_obs_steps, s),
        UNITS: (m.horizon, j),
        NOISE: noise_shape(m.horizon, j, m.sampler.draws),
    }
    return wanted | {name: (shape, "float32") for name, shape in rows.items()}


def recorded(bundle: Bundle) -> Mapping[str, Mapping[str, float]]:
    """Stage -> figures measured at export; empty while the export is still running."""
    stages = bundle.manifest.verification.get("stages", {})
    return stages if isinstance(stages, dict) else {}


@dataclass(frozen=True)
class Guide:
    """The target of the guided graph, shaped as its inputs."""

    actions: Array  # (1, T, A) normalised
    weights: Array  # (1, T, 1) in 0..1


def prefix_rows(actions: Array) -> Array:
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
