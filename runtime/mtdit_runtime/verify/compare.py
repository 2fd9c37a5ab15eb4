"""Runs what a bundle computes beside what torch computed, stage by stage: pairs of arrays, which
`mtdit_runtime.verify.gates` judges.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from mtdit_robots.features import ACTION, STATE
from mtdit_runtime.verify.candidate import EngineRunner, WrongOutputError
from mtdit_runtime.verify.fixtures import (
    Array,
    Probe,
    ReferenceOutputs,
    Trial,
    guide_for,
    prefix_rows,
)

Pair = tuple[Array, Array]  # got, wanted


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
    executed = executed_rows(candidate)
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


def compare_trial(candidate: EngineRunner, trial: Trial) -> Pair:
    """The executed actions of a trial, (K, n_action_steps, J) units each."""
    chunks = candidate.positions(trial.probe, trial.noises)
    return chunks[:, executed_rows(candidate)], trial.executed


def executed_rows(candidate: EngineRunner) -> slice:
    m = candidate.bundle.manifest
    return slice(m.n_obs_steps - 1, m.n_obs_steps - 1 + m.n_action_steps)
