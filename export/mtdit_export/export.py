"""Exports a checkpoint as a bundle: check the options, fold, trace, verify, write. Either a
complete, verified bundle appears or nothing does.

Holds the order of the steps and writes the files. The algebra is in `fold`, the ONNX exporter in
`trace` and `unroll`, the content of the manifest in `manifest`; the gates are in
`mtdit_runtime.verify.gates`.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from mtdit.checkpoint.read import Checkpoint, open_checkpoint
from mtdit.data.lerobot_dataset import Dataset
from mtdit.policies.multi_task_dit.config import PolicyConfig
from mtdit.policies.multi_task_dit.policy import MultiTaskDiT
from mtdit_export.effort import expected_effort
from mtdit_export.flops import cost
from mtdit_export.fold.denoiser import FoldedDenoiser
from mtdit_export.fold.fold import Folded, fold
from mtdit_export.manifest import graph_metadata, make_manifest
from mtdit_export.options import FP16, FP32, INT8, ExportOptions
from mtdit_export.padding import pad_mlps
from mtdit_export.precision import to_fp16
from mtdit_export.preflight import (
    check_calibration,
    checked_tokenizer,
    choose_sampler,
    joints_of,
    known_units,
    matching_dataset,
    reach_notes,
    robot_facts,
)
from mtdit_export.quantize import quantize
from mtdit_export.reference import (
    Comparison,
    Reference,
    calibration_frames,
    compared_with,
    write_reference_frames,
)
from mtdit_export.rtc import unroll_guided
from mtdit_export.trace import trace, write
from mtdit_export.unroll import unroll
from mtdit_robots.errors import ExportError
from mtdit_robots.extras import require
from mtdit_robots.features import ACTION, STATE
from mtdit_runtime.bundle import manifest as names
from mtdit_runtime.bundle.bundle import Bundle, open_bundle, save_task_features
from mtdit_runtime.bundle.manifest import Graph, Manifest, Sampler, write_manifest
from mtdit_runtime.bundle.publish import bundle_place, new_bundle
from mtdit_runtime.engines.choose import choose_engines
from mtdit_runtime.joint_order import difference
from mtdit_runtime.normalize import save_stats
from mtdit_runtime.verify.fixtures import write_golden
from mtdit_runtime.verify.gates import check_outputs

log = logging.getLogger(__name__)

FILES = {
    "vision": names.VISION,
    "text": names.TEXT,
    "history": names.HISTORY,
    "denoiser": names.DENOISER,
    "guided": names.RTC,
}
OUTPUTS = {
    "vision": names.FEATURES,
    "text": names.TEXT_FEATURE,
    "history": names.HISTORY_MODULATION,
    "denoiser": names.ACTIONS,
}
GOLDEN_COUNT = 2

Stages = dict[str, dict[str, float]]  # stage -> figure -> value
Say = Callable[[str], None]


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
    checkpoint: str | Path,
    out: str | Path,
    options: ExportOptions = ExportOptions(),  # noqa: B008
    *,
    say: Say | None = None,
    on_stage: Callable[[str], None] | None = None,
) -> ExportReport:
    """Turn a checkpoint into a bundle: ONNX graphs and all that a robot computer needs, without
    torch. The bundle is compared with the torch policy before it is written.

    checkpoint: a training run (its last checkpoint), a checkpoint, a pretrained_model folder or a
    Hub repo id. out: the bundle folder, NAME.mtdit; a bundle that is there is replaced, and its
    engines are kept. say: called with one line at the end of each stage; without it the lines go to
    this module's logger. on_stage: called with the name of the stage at its start: fold, quantize,
    trace, verify.

    UserError for an invalid argument, ExportError when the outputs of the graphs differ from the
    policy; nothing is written then.

        mtdit.export("outputs/train", "policy.mtdit", mtdit.ExportOptions(precision="fp16"))
    """
    require("mtdit export", "onnxruntime")  # it verifies the graphs, minutes later
    say, on_stage = say or log.info, on_stage or (lambda stage: None)
    began, place = time.perf_counter(), bundle_place(Path(out))
    opened = open_checkpoint(Path(checkpoint), options.rename_map)
    for note in opened.notes:
        say(note)
    opened = replace(opened, config=choose_sampler(opened.config, options.sampler, options.steps))
    dataset = (
        None
        if options.dataset is None
        else matching_dataset(options.dataset, opened.config, opened.facts)
    )
    facts = robot_facts(opened, dataset)
    facts = replace(facts, units=known_units(opened, facts, dataset, options.units, say))
    joints = joints_of(opened, facts)
    if orders := difference(facts.state_joints, facts.joints):
        say(orders)
    check_calibration(options.precision, opened.config, dataset)
    for note in reach_notes(opened, facts):
        say(note)
    with new_bundle(place, say) as folder, opened.tokenizer_folder() as tokenizer:
        on_stage("fold")
        policy = opened.policy()
        reference = Reference(
            policy,
            opened,
            checked_tokenizer(tokenizer, policy),
            options.rtc,
            half=options.precision == FP16,
        )
        say(expected_effort(reference, options.precision, facts.tasks))
        folded = fold_policy(policy, opened, options.precision)
        say(f"folded {opened.folder}")
        if options.precision == INT8:
            on_stage("quantize")
            token_ids = [reference.text(task)[0] for task in facts.tasks or ("",)]
            quantize_towers(folded, dataset, token_ids, say)
        on_stage("trace")
        manifest = make_manifest(place.stem, opened, facts, joints, folded, options.precision)
        modules = traced_modules(folded, options.rtc)
        graphs = write_graphs(folder, modules, folded, manifest, say)
        manifest = replace(manifest, graphs=graphs)

        on_stage("verify")
        source = "synthetic frames" if dataset is None else f"frames of {dataset.root.name}"
        compared = compared_with(reference, facts.tasks, dataset, options.precision)
        vocabulary = json.loads((tokenizer / names.TOKENIZER).read_text())
        compact = json.dumps(vocabulary, separators=(",", ":"), ensure_ascii=False)  # half the size
        (folder / names.TOKENIZER).write_text(compact, encoding="utf-8")
        save_stats(
            folder / names.STATS,
            {STATE: opened.state_stats, ACTION: opened.action_stats},
        )
        save_task_features(
            folder / names.TASKS, {task: reference.text(task)[1][0] for task in facts.tasks}
        )
        kept = compared.probes[:GOLDEN_COUNT], compared.expected[:GOLDEN_COUNT]
        write_golden(folder / names.GOLDEN, *kept)
        if dataset is not None:
            write_reference_frames(folder / names.REFERENCE, compared.probes[0])
        checked = record_checks(folder, manifest, compared, source)
        say(f"verified on {compared.extent}, {source}")
        weights = {name: sizes(module, folder / FILES[name]) for name, module in modules.items()}
    stages = {name: {**weights.get(name, {}), **figures} for name, figures in checked.items()}
    took, task = time.perf_counter() - began, next(iter(facts.tasks), "")
    return ExportReport(str(out), task, options.precision, manifest.sampler, stages, took)


# -- the files of the bundle --


def fold_policy(policy: MultiTaskDiT, checkpoint: Checkpoint, precision: str) -> Folded:
    folded = fold(
        policy, {camera: checkpoint.image_scaling(camera) for camera in checkpoint.config.cameras}
    )
    for module in folded.modules().values():
        to_fp16(module) if precision == FP16 else pad_mlps(module)
    return folded


def quantize_towers(
    folded: Folded,
    dataset: Dataset | None,
    token_ids: Sequence[NDArray[np.int64]],
    say: Say,
) -> None:
    """Quantise both towers to int8 in place, calibrated on frames of the dataset and on the token
    ids (1, L) of the tasks.
    """
    began, cameras = time.perf_counter(), list(folded.denoiser.config.cameras)
    samples = [] if dataset is None else calibration_frames(dataset, cameras)
    if folded.vision is not None:
        quantize(folded.vision, [list(map(torch.from_numpy, frames)) for frames in samples])
    quantize(folded.text, [[torch.from_numpy(ids)] for ids in token_ids])
    took = time.perf_counter() - began
    say(
        f"calibrated int8 on {len(samples)} frames per camera and {len(token_ids)} tasks "
        f"in {took:.0f} s"
    )


def traced_modules(folded: Folded, rtc: bool) -> dict[str, nn.Module]:
    """Graph name -> module; the guided graph is made from the same denoiser."""
    return {**folded.modules(), **({"guided": folded.denoiser} if rtc else {})}


def write_graphs(
    folder: Path,
    modules: Mapping[str, nn.Module],
    folded: Folded,
    manifest: Manifest,
    say: Say,
) -> dict[str, Graph]:
    """Write one ONNX file per module; graph name -> its entry in the manifest."""
    graphs = {}
    for name, module in modules.items():
        began, path = time.perf_counter(), folder / FILES[name]
        inputs = example_inputs(name, folded, folded.denoiser.config)
        if isinstance(module, FoldedDenoiser):
            model = unroll_guided(module, inputs) if name == "guided" else unroll(module, inputs)
        else:
            model = trace(module, inputs, OUTPUTS[name])
        graph = write(model, path, graph_metadata(name, manifest))
        graphs[name] = replace(graph, **cost(module, inputs)._asdict())
        megabytes, took = path.stat().st_size / 1e6, time.perf_counter() - began
        say(f"traced {path.name}: {megabytes:.1f} MB in {took:.0f} s")
    return graphs


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
            names.HISTORY_MODULATION: (1, 6 * config.num_layers * config.hidden_dim),
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
    compared: Comparison,
    source: str,
) -> Stages:
    """Compare the files, run by ONNX Runtime on the CPU, with the expected outputs, and write the
    manifest with the figures: stage -> figure -> value. `source` says which frames were compared.
    ExportError when a gate fails.
    """
    bundle = Bundle(folder, write_manifest(folder, manifest))
    result = check_outputs(
        bundle,
        choose_engines(bundle, "onnx"),
        compared.probes,
        compared.expected,
        trials=compared.trials,
    )
    if result.failures:
        precision = manifest.precision
        hint = "" if precision == FP32 else f" (export without --{precision})"
        raise ExportError(
            f"the outputs of the {precision} graphs differ from the trained policy: "
            f"{'; '.join(result.failures)}{hint}",
            result.stages,
        )
    record = {"compared": compared.extent, "frames": source, "stages": result.stages}
    write_manifest(folder, replace(manifest, verification=record))
    open_bundle(folder)  # the same check that the robot computer makes
    return result.stages


def sizes(module: nn.Module, file: Path) -> dict[str, float]:
    return {
        "parameters": sum(p.numel() for p in module.parameters()),
        "megabytes": file.stat().st_size / 1e6,
    }
