"""What the exported bundle's manifest says: joints, cameras, sampler, graphs, origin."""

from __future__ import annotations

import datetime
import importlib.metadata
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mtdit.checkpoint.names import STEP, TRAIN_CONFIG, TRAINING_STATE, WEIGHTS
from mtdit.checkpoint.read import Checkpoint
from mtdit.policies.multi_task_dit.config import PolicyConfig
from mtdit.stats import DatasetFacts
from mtdit_export.fold.fold import Folded
from mtdit_export.trt_compat import OPSET
from mtdit_runtime import files
from mtdit_runtime.bundle.manifest import Camera, Joint, Manifest, Sampler

VERSIONS_OF = ("mtdit", "torch", "onnx", "onnxruntime")
REQUIREMENTS = {"onnxruntime": ">=1.18", "tensorrt": ">=10.3"}


def graph_metadata(name: str, manifest: Manifest) -> dict[str, str]:
    """Key -> value to store inside each ONNX file, so that it can be identified on its own."""
    sampler = manifest.sampler
    facts = {
        "bundle": manifest.name,
        "graph": name,
        "schema_version": manifest.schema_version,
        "precision": manifest.precision,
        "sampler": f"{sampler.kind} {sampler.steps}",
        "joints": ",".join(joint.name for joint in manifest.joints),
        "state_joints": ",".join(manifest.state_joints),
        "cameras": ",".join(camera.name for camera in manifest.cameras),
        "tasks": json.dumps(manifest.tasks),
    }
    return {f"mtdit.{key}": str(value) for key, value in facts.items()}


def make_manifest(
    name: str,
    checkpoint: Checkpoint,
    facts: DatasetFacts,
    joints: tuple[Joint, ...],
    folded: Folded,
    precision: str,
) -> Manifest:
    """The manifest, still without graphs, verification and checksums."""
    config = checkpoint.config
    return Manifest(
        name=name,
        graphs={},
        sampler=sampler_of(config, folded.denoiser.times),
        joints=joints,
        state_joints=facts.state_joints,
        cameras=cameras_of(config),
        n_obs_steps=config.n_obs_steps,
        horizon=config.horizon,
        n_action_steps=config.n_action_steps,
        fps=facts.fps,
        tasks=facts.tasks,
        precision=precision,
        opset=OPSET,
        requirements=REQUIREMENTS,
        verification={},
        provenance=provenance(checkpoint, facts),
    )


def cameras_of(config: PolicyConfig) -> tuple[Camera, ...]:
    sizes = config.cameras.items()
    return tuple(
        Camera(name, h, w, config.image_resize_shape, config.image_crop_shape)
        for name, (h, w, _) in sizes
    )


def sampler_of(config: PolicyConfig, times: Sequence[float]) -> Sampler:
    if config.objective == "flow_matching":
        return Sampler(config.integration_method, config.num_integration_steps, tuple(times), None)
    clip = config.clip_sample_range if config.clip_sample else None
    return Sampler(config.noise_scheduler_type.lower(), config.inference_steps, tuple(times), clip)


def training_steps(folder: Path) -> int | None:
    """How many steps the policy of a pretrained_model folder was trained for: what its training
    state says, else what its run was told to do. None when neither is there.
    """
    for path, key in (
        (folder.parent / TRAINING_STATE / STEP, "step"),
        (folder / TRAIN_CONFIG, "steps"),
    ):
        said = files.read_json(path) if path.is_file() else None
        steps = said.get(key) if isinstance(said, dict) else None
        if isinstance(steps, int):
            return steps
    return None


def provenance(checkpoint: Checkpoint, facts: DatasetFacts) -> dict[str, Any]:
    # the target of a link such as "last", and only the end of the path
    folder = "/".join(checkpoint.folder.resolve().parts[-3:]).encode(errors="replace").decode()
    return {
        "checkpoint": folder,
        "weights_sha256": files.sha256(checkpoint.folder / WEIGHTS),
        "steps": training_steps(checkpoint.folder),
        "dataset": facts.dataset,
        "robot_type": facts.robot_type,
        "rename_map": dict(checkpoint.rename_map),
        "versions": {package: importlib.metadata.version(package) for package in VERSIONS_OF},
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }
