"""Compares a bundle's opened engines with its golden fixtures: do they compute the trained policy?

A fixture is one observation with its noise and what torch computed from it. The same gates judge an
export, `mtdit verify` and an engine that was just built on the robot computer. Needs no torch.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from mtdit_robots.features import ACTION, STATE
from mtdit_runtime.bundle.bundle import Bundle
from mtdit_runtime.engines.engine import Engines
from mtdit_runtime.verify.candidate import EngineRunner, WrongOutputError
from mtdit_runtime.verify.fixtures import (
    Array,
    Probe,
    ReferenceOutputs,
    guide_for,
    prefix_rows,
    read_golden,
    recorded,
)

Pair = tuple[Array, Array]  # got, wanted

FP32_LIMIT = 1e-4  # normalised; for features relative to their largest value
FEATURE_STAGES = ("tasks", "vision", "text", "all tasks", "history")  # limits scale with "largest"
EXACT = {  # precision -> stages that are float32 and must stay within FP32_LIMIT
    "fp32": ("state", *FEATURE_STAGES, "denoiser", "held", "guided", "chunk"),
    "fp16": ("state", "tasks"),
    "int8": ("state", "tasks", "history", "denoiser", "held", "guided"),
}
# largest error of a feature, relative to its largest value, even if the actions are still close
FEATURE_TOL = {"fp16": 0.02, "int8": 0.25}
# rms error of the executed actions, relative to their rms deviation over noise seeds
SPREAD_TOL = {"fp16": 0.02, "int8": 0.1}
LIMIT_UNITS = {"fp16": 0.1}  # degrees, or percent for the gripper
NEGLIGIBLE_UNITS = 0.02  # a quarter of a servo tick, for policies that hardly vary
SUSPECT_RATIO = 10  # a stage whose error is this many times that at export is named in the failure


@dataclass(frozen=True)
class Verification:
    """Stage -> figures. `failures` is empty when every gate passed. backend: which one computed the
    outputs, and why it was chosen.
    """

    stages: dict[str, dict[str, float]]
    failures: list[str]
    backend: str

    @property
    def ok(self) -> bool:
        return not self.failures


# -- the gates --


def labelled(stage: str) -> str:
    """A stage's name in a table, with the unit of its errors where they are in degrees."""
    return f"{stage}, degrees" if stage == "units" or stage.endswith("robot") else stage


def check_outputs(
    bundle: Bundle,
    engines: Engines,
    probes: Sequence[Probe],
    expected: Sequence[ReferenceOutputs],
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
    candidate = EngineRunner(bundle, engines)
    try:
        per_probe = [compare(candidate, p, e, text) for p, e in zip(probes, expected, strict=True)]
    except WrongOutputError as error:
        return Verification({}, [str(error)], engines.reason)
    pairs = {stage: [of_probe[stage] for of_probe in per_probe] for stage in per_probe[0]}
    pairs |= compare_tasks(candidate, probes, expected, text)
    stages = {stage: figures(some) for stage, some in pairs.items()}
    for stage, seconds in candidate.seconds.items():
        stages[stage]["latency_ms"] = 1e3 * statistics.median(seconds)
    stages["robot"]["spread"] = float(np.sqrt(np.mean([e.spread**2 for e in expected])))
    found = failures(stages, bundle.manifest.precision)
    if found and all(line.partition(":")[0].endswith("robot") for line in found):
        found += suspects(stages, recorded(bundle))
    return Verification(stages, found, engines.reason)


def check_bundle(bundle: Bundle, engines: Engines, text: bool = True) -> Verification:
    """`check_outputs` against the fixtures in the bundle."""
    return check_outputs(bundle, engines, *read_golden(bundle), text=text)


def compare(
    candidate: EngineRunner, probe: Probe, e: ReferenceOutputs, with_text: bool = True
) -> dict[str, Pair]:
    """Stage -> (got, wanted) for one probe. WrongOutputError when the token ids differ."""
    features, stats = candidate.features(probe), candidate.bundle.stats
    pairs = {
        "state": (stats[STATE].normalize(probe.positions)[None], e.state),
        "units": (stats[ACTION].unnormalize(e.actions[0]), e.positions),
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
    pairs["history"] = (
        candidate.history_modulation(e.state, e.text, e.features),
        e.history_modulation,
    )
    given = e.state, e.history_modulation, probe.noise, e.features
    pairs["denoiser"] = (candidate.actions(*given), e.actions)
    pairs["held"] = (candidate.actions(*given, prefix=prefix_rows(e.actions)), e.prefixed)
    if candidate.rtc_engine is not None and e.rtc is not None:
        pairs["guided"] = (candidate.rtc(*given, guide_for(e.actions)), e.rtc)
    m = candidate.bundle.manifest
    executed = slice(m.n_obs_steps - 1, m.n_obs_steps - 1 + m.n_action_steps)
    modulation = candidate.history_modulation(e.state, text, features)
    pairs["chunk"] = (candidate.actions(e.state, modulation, probe.noise, features), e.actions)
    pairs["robot"] = (candidate.positions(probe)[executed], e.positions[executed])
    for stage, name in (
        ("chunk", "text robot"),
        ("held", "held robot"),
        ("guided", "guided robot"),
    ):
        if stage in pairs and (with_text or stage != "chunk"):
            got, wanted = (stats[ACTION].unnormalize(actions[0]) for actions in pairs[stage])
            pairs[name] = (got[executed], wanted[executed])
    return pairs


def compare_tasks(
    candidate: EngineRunner,
    probes: Sequence[Probe],
    expected: Sequence[ReferenceOutputs],
    with_text: bool,
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
    if precision in SPREAD_TOL:
        features = [
            stage for stage in FEATURE_STAGES if stage in stages and stage not in EXACT[precision]
        ]
        found += [
            line
            for stage in features
            for line in _rough(stage, stages[stage], FEATURE_TOL[precision])
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
    share, found = SPREAD_TOL[precision], []
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
        and stages[stage]["rms_error"] > SUSPECT_RATIO * at_export[stage].get("rms_error", np.inf)
    ]
