"""Compares a bundle's opened engines with its golden fixtures: do they compute the trained policy?

A fixture is one observation with its noise and what torch computed from it. The same gates judge an
export, `mtdit verify` and an engine that was just built on the robot computer. Needs no torch.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from mtdit_runtime.bundle.bundle import Bundle
from mtdit_runtime.bundle.manifest import Manifest
from mtdit_runtime.engines.engine import Engines
from mtdit_runtime.verify.candidate import EngineRunner, WrongOutputError
from mtdit_runtime.verify.compare import Pair, compare, compare_tasks, compare_trial
from mtdit_runtime.verify.fixtures import (
    ROUNDING,
    SPREAD,
    Probe,
    ReferenceOutputs,
    Trial,
    read_golden,
    recorded,
)

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
TAIL_TOL = {"fp16": 0.1}  # the same for the error that one action in a thousand exceeds
NEGLIGIBLE_UNITS = 0.02  # a quarter of a servo tick, for policies that hardly vary
# degrees, or percent for the gripper: about a servo tick (0.088). A trained policy's error exceeds
# it in at most one action in a hundred. Of an untrained one, which wanders over half of the range,
# a fixed limit says nothing.
TICK_UNITS = {"fp16": 0.1}
TRAINED_STEPS = 1000
# A stage's rms error, as a multiple of what rounding its products costs in torch. Measured at
# LeRobot's default size and at the tests': 0.5 to 0.9; with one layer of a tower scaled by 1.02:
# 2.6 to 18, but 1.4 for the queries of the last block alone, which hardly count.
ROUNDING_RATIO = 2
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
    trials: Sequence[Trial] = (),
) -> Verification:
    """Compare opened engines with what torch computed, stage by stage.

    - "state", "units": the bundle's statistics applied to positions and to the reference's actions.
    - "tasks": the stored text features of the probes' tasks; "all tasks": the text graph against
      all stored features.
    - "vision", "text", "history": each graph alone, with the reference's inputs.
    - "denoiser", "held" (with a committed prefix), "guided": normalised actions, likewise with the
      reference's inputs. "chunk": normalised actions with everything computed by the graphs.
    - "robot": the executed actions in units, as the robot computes them, of probes and trials (many
      observations and noises, which tell how often an error occurs). "held robot", "guided
      robot": those of "held" and "guided". "text robot": those of "chunk", whose text feature
      comes from the text graph, as for a task that is not in tasks.npz.

    text=False leaves the text encoder out.
    """
    candidate = EngineRunner(bundle, engines)
    try:
        per_probe = [compare(candidate, p, e, text) for p, e in zip(probes, expected, strict=True)]
        tried = [compare_trial(candidate, trial) for trial in trials]
    except WrongOutputError as error:
        return Verification({}, [str(error)], engines.reason)
    pairs = {stage: [of_probe[stage] for of_probe in per_probe] for stage in per_probe[0]}
    pairs |= compare_tasks(candidate, probes, expected, text)
    pairs["robot"] += tried
    stages = {stage: figures(some) for stage, some in pairs.items()}
    for stage, seconds in candidate.seconds.items():
        stages[stage]["latency_ms"] = 1e3 * statistics.median(seconds)
    stages["robot"][SPREAD] = spread_of(trials) if trials else rms([e.spread for e in expected])
    if not engines.half_sums:  # else rounding products is not all that the engines do
        for stage in expected[0].rounding:
            stages[stage][ROUNDING] = rms([e.rounding[stage] for e in expected])
    found = failures(stages, bundle.manifest.precision, is_trained(bundle.manifest))
    if found and all(line.partition(":")[0].endswith("robot") for line in found):
        found += suspects(stages, recorded(bundle))
    return Verification(stages, found, engines.reason)


def check_bundle(bundle: Bundle, engines: Engines, text: bool = True) -> Verification:
    """`check_outputs` against the fixtures in the bundle."""
    return check_outputs(bundle, engines, *read_golden(bundle), text=text)


def figures(pairs: Sequence[Pair]) -> dict[str, float]:
    """Errors of a stage over all probes, and its largest expected value. NaN counts as an infinite
    error.
    """
    each = [np.abs(np.asarray(got, np.float64) - wanted).ravel() for got, wanted in pairs]
    errors = np.concatenate(each)
    errors = np.where(np.isfinite(errors), errors, np.inf)
    # quantiles are errors that occurred: of fewer than a thousand numbers p99.9 is the largest
    p99, p999 = (float(q) for q in np.quantile(errors, (0.99, 0.999), method="higher"))
    return {
        "max_error": float(errors.max()),
        "p99.9_error": p999,
        "p99_error": p99,
        "mean_error": float(errors.mean()),
        "rms_error": rms(errors),
        "largest": float(max(np.abs(wanted).max() for _, wanted in pairs)),
    }


def rms(values: ArrayLike) -> float:
    return float(np.sqrt(np.mean(np.square(values))))


def spread_of(trials: Sequence[Trial]) -> float:
    """Units: rms deviation of the executed actions over the noises of each observation."""
    deviations = np.stack([t.executed - t.executed.mean(0) for t in trials])
    noises = deviations.shape[1]
    return rms(deviations) * (noises / (noises - 1)) ** 0.5


def is_trained(manifest: Manifest) -> bool:
    """Whether the checkpoint said that it had been trained for long enough to be judged as such."""
    steps = manifest.provenance.get("steps")
    return isinstance(steps, int) and steps >= TRAINED_STEPS


def failures(
    stages: Mapping[str, Mapping[str, float]], precision: str, trained: bool = False
) -> list[str]:
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
        found += [line for stage in stages for line in _beyond_rounding(stage, stages[stage])]
        spread = stages["robot"][SPREAD] if in_units else 0.0
        for stage in in_units:
            found += _off(stage, stages[stage], precision, spread)
            found += _beyond_a_tick(stage, stages[stage], precision) if trained else []
        return found
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


def _beyond_rounding(stage: str, f: Mapping[str, float]) -> list[str]:
    if ROUNDING not in f:
        return []
    if not np.isfinite(f[ROUNDING]):  # ONNX Runtime on a CPU need not notice, a GPU does
        return [f"{stage}: a value is beyond the range of float16"]
    limit = max(ROUNDING_RATIO * f[ROUNDING], FP32_LIMIT)
    if f["rms_error"] <= limit:
        return []
    return [
        f"{stage}: rms error {f['rms_error']:.2g} exceeds {limit:.2g}, "
        f"{ROUNDING_RATIO} times what rounding to float16 costs"
    ]


def _off(stage: str, f: Mapping[str, float], precision: str, spread: float) -> list[str]:
    shares = [("rms error", "rms_error", SPREAD_TOL[precision])]
    if precision in TAIL_TOL:
        shares.append(("p99.9 error", "p99.9_error", TAIL_TOL[precision]))
    found = []
    for name, figure, share in shares:
        limit = share * max(spread, NEGLIGIBLE_UNITS / SPREAD_TOL[precision])
        if not f[figure] <= limit:
            found.append(
                f"{stage}: {name} {f[figure]:.2g} exceeds {limit:.2g} degrees, "
                f"{share:.0%} of the spread over noise"
            )
    return found


def _beyond_a_tick(stage: str, f: Mapping[str, float], precision: str) -> list[str]:
    error, limit = f["p99_error"], TICK_UNITS.get(precision, np.inf)
    return [] if error <= limit else [f"{stage}: p99 error {error:.2g} exceeds {limit} degrees"]


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
