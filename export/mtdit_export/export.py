"""Exports a checkpoint as a bundle: check the options, fold, trace, verify, write. Either a
complete, verified bundle appears or nothing does.

Holds the order of the steps and the content of the manifest. The algebra is in `fold`, the ONNX
exporter in `trace` and `unroll`, the gates are in `mtdit_runtime.verify.gates`.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from mtdit.checkpoint.read import Checkpoint, open_checkpoint
from mtdit.data.lerobot_dataset import Dataset
from mtdit.policies.multi_task_dit.config import PolicyConfig
from mtdit.policies.multi_task_dit.policy import MultiTaskDiT
from mtdit.stats import DatasetFacts
from mtdit_export.flops import cost
from mtdit_export.fold.denoiser import FoldedDenoiser
from mtdit_export.fold.fold import Folded, fold
from mtdit_export.manifest import describe, metadata
from mtdit_export.padding import widen
from mtdit_export.precision import FP16, FP32, INT8, halve
from mtdit_export.preflight import (
    checked_tokenizer,
    chosen_precision,
    joints_of,
    known_facts,
    matching_dataset,
    sampled,
)
from mtdit_export.quantize import quantize
from mtdit_export.reference import (
    Reference,
    calibration_frames,
    dataset_probes,
    synthetic_probes,
    verify,
    write_reference,
)
from mtdit_export.rtc import unroll_guided
from mtdit_export.trace import trace, write
from mtdit_export.unroll import unroll
from mtdit_robots.errors import ExportError
from mtdit_robots.features import ACTION, STATE
from mtdit_runtime.bundle import bundle as bundle_bundle
from mtdit_runtime.bundle import manifest as names
from mtdit_runtime.bundle.bundle import Bundle, open_bundle
from mtdit_runtime.bundle.manifest import Graph, Manifest, Sampler, write_manifest
from mtdit_runtime.bundle.publish import bundle_place, new_bundle
from mtdit_runtime.normalize import save_stats
from mtdit_runtime.verify.fixtures import Probe, ReferenceOutputs, write_golden

FILES = {
    "vision": names.VISION,
    "text": names.TEXT,
    "history": names.HISTORY,
    "denoiser": names.DENOISER,
    "guided": names.GUIDED,
}
OUTPUTS = {
    "vision": names.FEATURES,
    "text": names.TEXT_FEATURE,
    "history": names.KNOWN,
    "denoiser": names.ACTIONS,
}
GOLDEN_COUNT = 2

Stages = dict[str, dict[str, float]]  # stage -> figure -> value
OnStage = Callable[[str], None]


@dataclass(frozen=True)
class ExportReport:
    """What was written and how closely it matches the trained policy."""

    bundle: str
    task: str  # one of the training tasks
    precision: str
    sampler: Sampler
    stages: Stages  # parameters, megabytes, max_error, mean_error, latency_ms, ...
    seconds: float

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def export(
    checkpoint: Path,
    out: Path,
    steps: int = 10,
    sampler: str | None = None,
    fp16: bool = False,
    dataset: Path | None = None,
    on_stage: OnStage = lambda line: None,
    rtc: bool = False,
    int8: bool = False,
) -> ExportReport:
    """Write the bundle `out` for a training run, a checkpoint or a pretrained_model folder.

    `steps`: sampler steps per chunk. `sampler`: ddim or ddpm, for flow matching euler or rk4; None
    takes the policy's default. `fp16`: float16 weights. `int8`: int8 vision and text towers,
    calibrated on `dataset`, which a policy with cameras then needs. `dataset`: verify on its frames
    instead of synthetic ones, and read from it the joints, rate and tasks that a checkpoint of
    LeRobot lacks. `rtc`: also export the guided denoiser of real-time chunking. `on_stage` is
    called with one line at the end of each stage.

    UserError for an invalid argument, ExportError when the outputs of the graphs differ from the
    policy.
    """
    began, place = time.perf_counter(), bundle_place(out)
    opened = open_checkpoint(checkpoint)
    opened = replace(opened, config=sampled(opened.config, sampler, steps))
    recorded = (
        None if dataset is None else matching_dataset(str(dataset), opened.config, opened.facts)
    )
    facts = known_facts(opened, recorded)
    joints = joints_of(opened, facts)
    precision = chosen_precision(fp16, int8, opened.config, recorded)
    with new_bundle(place, on_stage) as folder, opened.tokenizer_folder() as tokenizer:
        policy = opened.policy()
        reference = Reference(policy, opened, checked_tokenizer(tokenizer, policy), guided=rtc)
        folded = folded_for(policy, opened, precision)
        on_stage(f"folded {opened.folder}")
        if precision == INT8:
            token_ids = [reference.text(task)[0] for task in facts.tasks or ("",)]
            quantize_towers(folded, recorded, token_ids, on_stage)
        manifest = describe(place.stem, opened, facts, joints, folded, precision)
        graphs = write_graphs(folder, folded, opened.config, manifest, on_stage, rtc)
        manifest = replace(manifest, graphs=graphs)

        probes = make_probes(opened, facts, recorded)
        expected = [reference(probe) for probe in probes]
        shutil.copyfile(tokenizer / names.TOKENIZER, folder / names.TOKENIZER)
        save_stats(
            folder / names.STATS,
            {STATE: opened.state_stats, ACTION: opened.action_stats},
        )
        bundle_bundle.save_task_features(
            folder / names.TASKS, {task: reference.text(task)[1][0] for task in facts.tasks}
        )
        write_golden(folder / names.GOLDEN, probes[:GOLDEN_COUNT], expected[:GOLDEN_COUNT])
        if recorded is not None:
            write_reference(folder / names.REFERENCE, probes[0])
        seen = "synthetic frames" if recorded is None else f"frames of {recorded.root.name}"
        checked = record_checks(folder, manifest, probes, expected, seen)
        on_stage(f"verified on {len(probes)} observations, {seen}")
        weights = {
            name: sizes(module, folder / FILES[name])
            for name, module in traced_modules(folded, rtc).items()
        }
    stages = {name: {**weights.get(name, {}), **figures} for name, figures in checked.items()}
    took, task = time.perf_counter() - began, next(iter(facts.tasks), "")
    return ExportReport(str(out), task, precision, manifest.sampler, stages, took)


# -- the files of the bundle --


def folded_for(policy: MultiTaskDiT, checkpoint: Checkpoint, precision: str) -> Folded:
    folded = fold(
        policy, {camera: checkpoint.image_scaling(camera) for camera in checkpoint.config.cameras}
    )
    for module in folded.modules().values():
        halve(module) if precision == FP16 else widen(module)
    return folded


def make_probes(
    checkpoint: Checkpoint, facts: DatasetFacts, dataset: Dataset | None
) -> list[Probe]:
    if dataset is not None:
        return dataset_probes(dataset, checkpoint.config)
    return synthetic_probes(checkpoint, facts.tasks or ("",))


def quantize_towers(
    folded: Folded,
    dataset: Dataset | None,
    token_ids: Sequence[NDArray[np.int64]],
    on_stage: OnStage,
) -> None:
    """Quantise both towers to int8 in place, calibrated on frames of the dataset and on the token
    ids (1, L) of the tasks.
    """
    began, config = time.perf_counter(), folded.denoiser.config
    seen = [] if dataset is None else calibration_frames(dataset, list(config.cameras))
    if folded.vision is not None:
        quantize(folded.vision, [[torch.from_numpy(frame) for frame in frames] for frames in seen])
    quantize(folded.text, [[torch.from_numpy(ids)] for ids in token_ids])
    took = time.perf_counter() - began
    on_stage(
        f"calibrated int8 on {len(seen)} frames per camera and {len(token_ids)} tasks "
        f"in {took:.0f} s"
    )


def traced_modules(folded: Folded, rtc: bool) -> dict[str, nn.Module]:
    """Graph name -> module; the guided graph is made from the same denoiser."""
    return {**folded.modules(), **({"guided": folded.denoiser} if rtc else {})}


def write_graphs(
    folder: Path,
    folded: Folded,
    config: PolicyConfig,
    manifest: Manifest,
    on_stage: OnStage,
    rtc: bool,
) -> dict[str, Graph]:
    graphs = {}
    for name, module in traced_modules(folded, rtc).items():
        began, path = time.perf_counter(), folder / FILES[name]
        inputs = example_inputs(name, folded, config)
        graph = write(as_graph(name, module, inputs), path, metadata(name, manifest))
        graphs[name] = replace(graph, **cost(module, inputs)._asdict())
        megabytes, took = path.stat().st_size / 1e6, time.perf_counter() - began
        on_stage(f"traced {path.name}: {megabytes:.1f} MB in {took:.0f} s")
    return graphs


def as_graph(name: str, module: nn.Module, inputs: Mapping[str, Tensor]) -> onnx.ModelProto:
    if isinstance(module, FoldedDenoiser):
        return unroll_guided(module, inputs) if name == "guided" else unroll(module, inputs)
    return trace(module, inputs, OUTPUTS[name])


def example_inputs(name: str, folded: Folded, config: PolicyConfig) -> dict[str, Tensor]:
    """Tensor name -> zeros of its shape, in the order of the module's arguments."""
    if name == "vision":
        return {
            names.frame_input(c): torch.zeros(size, dtype=torch.uint8)
            for c, size in config.cameras.items()
        }
    if name == "text":
        return {names.TOKEN_IDS: torch.zeros(1, config.tokenizer_max_length, dtype=torch.int64)}
    denoiser, earlier = folded.denoiser, config.n_obs_steps - 1
    in_history = {
        names.TEXT_FEATURE: (1, config.hidden_dim),
        names.EARLIER_FEATURES: (1, earlier, denoiser.feature_dim),
        names.EARLIER_STATE: (1, earlier, config.state_dim),
    }
    shapes = (
        in_history
        if name == "history"
        else {
            names.KNOWN: (1, 6 * config.num_layers * config.hidden_dim),
            names.STATE: (1, config.state_dim),
            names.NOISE: (1, config.horizon, config.action_dim),
            names.PREFIX: (1, config.horizon, config.action_dim),
            names.PREFIX_WEIGHTS if name == "guided" else names.PREFIX_MASK: (1, config.horizon, 1),
            names.FEATURES: (1, denoiser.feature_dim),
            names.STEP_NOISE: (1, denoiser.objective.draws - 1, config.horizon, config.action_dim),
        }
    )
    return {key: torch.zeros(shape) for key, shape in shapes.items() if 0 not in shape}


# -- verification --


def record_checks(
    folder: Path,
    manifest: Manifest,
    probes: Sequence[Probe],
    expected: Sequence[ReferenceOutputs],
    seen: str,
) -> Stages:
    """Compare the files with the expected outputs and write the manifest with the figures.
    ExportError when a gate fails.
    """
    checked = checked_stages(Bundle(folder, write_manifest(folder, manifest)), probes, expected)
    record = {"observations": len(probes), "frames": seen, "stages": checked}
    write_manifest(folder, replace(manifest, verification=record))
    open_bundle(folder)  # the same check that the robot computer makes
    return checked


def checked_stages(
    bundle: Bundle, probes: Sequence[Probe], expected: Sequence[ReferenceOutputs]
) -> Stages:
    """Stage -> figures. ExportError when a gate fails."""
    result = verify(bundle, probes, expected)
    if result.failures:
        precision = bundle.manifest.precision
        hint = "" if precision == FP32 else f" (export without --{precision})"
        raise ExportError(
            f"the outputs of the {precision} graphs differ from the trained policy: "
            f"{'; '.join(result.failures)}{hint}"
        )
    return result.stages


def sizes(module: nn.Module, file: Path) -> dict[str, float]:
    return {
        "parameters": sum(p.numel() for p in module.parameters()),
        "megabytes": file.stat().st_size / 1e6,
    }
