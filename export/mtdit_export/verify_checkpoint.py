"""Compares a finished bundle with its checkpoint, on any backend and on more observations than the
bundle contains. It first makes sure that the bundle was made from this checkpoint.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from mtdit.checkpoint.names import WEIGHTS
from mtdit.checkpoint.read import Checkpoint, open_checkpoint
from mtdit.policies.multi_task_dit.clip_lookup import load_tokenizer
from mtdit_export.fold.denoiser import network_times
from mtdit_export.manifest import cameras_of, sampler_of
from mtdit_export.options import FP16
from mtdit_export.preflight import choose_sampler, joints_of, matching_dataset
from mtdit_export.reference import Reference, compared_with
from mtdit_robots.errors import UserError
from mtdit_runtime.bundle.bundle import Bundle, as_bundle
from mtdit_runtime.engines.choose import choose_engines
from mtdit_runtime.files import sha256
from mtdit_runtime.text import printable
from mtdit_runtime.verify.gates import Verification, check_outputs


def verify_checkpoint(
    bundle: Bundle | str | Path,
    checkpoint: str | Path,
    dataset: str | Path | None = None,
    backend: str = "auto",
) -> Verification:
    """Compare the bundle's engines with the torch policy of the checkpoint, on the same noise and
    observations (synthetic, or frames of `dataset`).

    UserError when the bundle was made from other weights or another config, or when the dataset is
    from another robot.
    """
    bundle = as_bundle(bundle)
    m = bundle.manifest
    names = m.provenance.get("rename_map")  # as the export was told
    opened = open_checkpoint(Path(checkpoint), names if isinstance(names, dict) else None)
    _check_weights(bundle, opened)
    opened = replace(opened, config=choose_sampler(opened.config, m.sampler.kind, m.sampler.steps))
    _check_config(bundle, opened)
    frames = None
    if dataset is not None:
        frames = matching_dataset(dataset, opened.config, opened.facts)
    with opened.tokenizer_folder() as folder:
        reference = Reference(
            opened.policy(),
            opened,
            load_tokenizer(folder),
            rtc="guided" in m.graphs,
            half=m.precision == FP16,
        )
    found = compared_with(reference, m.tasks, frames, m.precision)
    engines = choose_engines(bundle, backend)
    return check_outputs(bundle, engines, found.probes, found.expected, trials=found.trials)


def _check_weights(bundle: Bundle, checkpoint: Checkpoint) -> None:
    made_from = bundle.manifest.provenance
    if made_from.get("weights_sha256") != sha256(checkpoint.folder / WEIGHTS):
        raise UserError(
            f"{bundle.folder} was made from other weights "
            f"({made_from.get('checkpoint', 'unknown')}) than {checkpoint.folder}: "
            "pass that checkpoint, or run `mtdit export` again"
        )


def _check_config(bundle: Bundle, checkpoint: Checkpoint) -> None:
    """The same weights may have another horizon, other cameras, another sampler or other joints."""
    m, config, facts = bundle.manifest, checkpoint.config, checkpoint.facts
    wanted: dict[str, Any] = {
        name: getattr(config, name) for name in ("n_obs_steps", "horizon", "n_action_steps")
    }
    wanted |= {"cameras": cameras_of(config), "sampler": sampler_of(config, network_times(config))}
    if facts is not None:
        wanted |= {"joints": joints_of(checkpoint, facts), "state_joints": facts.state_joints}
        wanted |= {"fps": facts.fps, "tasks": facts.tasks}
    for name, value in wanted.items():
        if (exported := getattr(m, name)) != value:
            there, here = printable(exported, 80), printable(value, 80)
            raise UserError(
                f"{bundle.folder} has {name} {there}, {checkpoint.folder} has {here}: "
                "run `mtdit export` again"
            )
