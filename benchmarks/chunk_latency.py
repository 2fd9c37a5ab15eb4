"""How long one action chunk takes: LeRobot's policy in eager torch against the exported bundle, same weights, one run.

    python benchmarks/chunk_latency.py [--size base|tiny] [--repeats 5] [--threads N] [--out table.md]

`base` is LeRobot's default of 249 M parameters: CLIP ViT-B/16 shapes, two 640x480 cameras, six layers, 512 wide. The
weights are random; latency does not depend on them. LeRobot gets a batch that is already normalised and tokenised, so
its processors cost nothing here; ours starts from the cameras' bytes. All contestants take turns, so that a busy moment
of the machine hits all of them. Ends with one line of JSON.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import math
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from hardware import cpu_name
from lerobot.policies.multi_task_dit.configuration_multi_task_dit import MultiTaskDiTConfig
from lerobot.policies.multi_task_dit.modeling_multi_task_dit import MultiTaskDiTPolicy
from safetensors import safe_open

from mtdit.checkpoint import WEIGHTS, DatasetFacts, PretrainedFiles, save_pretrained
from mtdit.config import Feature, PolicyConfig
from mtdit.encoders import ClipShape, TextShape, VisionShape, load_tokenizer
from mtdit.policy import Policy
from mtdit.tiny import make_tiny_clip
from mtdit_export.export import export
from mtdit_robots.so101 import JOINTS
from mtdit_runtime.bundle import (
    ACTIONS,
    FEATURES,
    NOISE,
    PREFIX,
    PREFIX_MASK,
    STATE,
    TEXT_FEATURE,
    Bundle,
    open_bundle,
)
from mtdit_runtime.engine import Engines, OnnxEngine
from mtdit_runtime.policy import BundlePolicy, prefix_inputs

TASK = "open the drawer"
STEPS = 10
PACKAGES = ("torch", "lerobot", "transformers", "onnxruntime", "onnx")


@dataclass(frozen=True)
class Size:
    clip: ClipShape
    camera: tuple[int, int]  # height, width
    policy: Mapping[str, Any]  # what differs from LeRobot's defaults


SIZES = {
    "base": Size(ClipShape(VisionShape(patch_size=16), TextShape(eos_token_id=2)), (480, 640), {}),
    "tiny": Size(
        ClipShape(VisionShape(64, 128, 2, 4, image_size=32, patch_size=8), TextShape(32, 64, 2, 2)),
        (60, 80),
        {"hidden_dim": 32, "num_heads": 2, "num_layers": 1, "image_crop_shape": (32, 32)},
    ),
}


# -- the two contestants, from one checkpoint --


def make_checkpoint(folder: Path, size: Size) -> Path:
    """Random weights, AdaLN awake, in LeRobot's layout."""
    clip = make_tiny_clip(folder / "clip", size.clip)
    images = {f"observation.images.{name}": Feature("VISUAL", (3, *size.camera)) for name in ("top", "wrist")}
    config = PolicyConfig(
        input_features={"observation.state": Feature("STATE", (6,)), **images},
        output_features={"action": Feature("ACTION", (6,))},
        vision_encoder_name=str(clip),
        text_encoder_name=str(clip),
        **size.policy,
    )
    torch.manual_seed(0)
    policy = Policy.pretrained(config).eval()
    for name, parameter in policy.named_parameters():
        if "adaLN" in name:
            torch.nn.init.normal_(parameter, std=0.02)
    vector = {"min": np.full(6, -50, np.float32), "max": np.full(6, 50, np.float32)}
    pixels = {"mean": np.full((3, 1, 1), 0.45, np.float32), "std": np.full((3, 1, 1), 0.23, np.float32)}
    stats = {"observation.state": vector, "action": vector, **dict.fromkeys(images, pixels)}
    facts = DatasetFacts("random", 30, JOINTS, (TASK,), (90.0,) * 6)
    files = PretrainedFiles(policy, policy.state_dict(), stats, facts, load_tokenizer(clip), {})
    save_pretrained(folder / "pretrained_model", files)
    return folder / "pretrained_model"


def count_parameters(checkpoint: Path) -> int:
    with safe_open(str(checkpoint / WEIGHTS), framework="numpy") as file:
        return sum(math.prod(file.get_slice(name).get_shape()) for name in file.keys())  # noqa: SIM118, not a mapping


def lerobot_policy(checkpoint: Path, scheduler: str, steps: int | None) -> MultiTaskDiTPolicy:
    config = MultiTaskDiTConfig.from_pretrained(str(checkpoint))
    config = replace(config, noise_scheduler_type=scheduler, num_inference_steps=steps)
    return MultiTaskDiTPolicy.from_pretrained(str(checkpoint), config=config).eval()


def lerobot_batch(policy: MultiTaskDiTPolicy, size: Size) -> dict[str, torch.Tensor]:
    tokens = torch.full((1, 77), 49407)
    tokens[0, :4] = torch.tensor([49406, 1488, 518, 23219])
    return {
        "observation.state": torch.rand(1, policy.config.n_obs_steps, 6) * 2 - 1,
        "observation.images": torch.rand(1, policy.config.n_obs_steps, 2, 3, *size.camera),
        "observation.language.tokens": tokens,
        "observation.language.attention_mask": (tokens != 49407) | (torch.arange(77) == 4),
    }


def open_engines(bundle: Bundle, threads: int) -> Engines:
    def engine(name: str) -> OnnxEngine:
        graph = bundle.manifest.graphs[name]
        return OnnxEngine(bundle.path(graph.file), graph, name, threads=threads)

    return Engines(engine("vision"), engine("denoiser"), lambda: engine("text"), "benchmark")


def contestants(checkpoint: Path, bundle: Bundle, size: Size, threads: int) -> dict[str, Callable[[], Any]]:
    """Name -> what is timed."""
    ddpm, ddim = lerobot_policy(checkpoint, "DDPM", None), lerobot_policy(checkpoint, "DDIM", STEPS)
    batch = lerobot_batch(ddim, size)
    condition = ddim.observation_encoder.encode(batch)
    engines = open_engines(bundle, threads)
    ours, rng = BundlePolicy(bundle, engines), np.random.default_rng(0)
    scenes = [{name: rng.integers(0, 256, (*size.camera, 3), np.uint8) for name in ours.cameras} for _ in range(4)]
    ours.reset(TASK, seed=0)
    ours.observe(np.zeros(6), scenes[0])

    def tick() -> None:
        ours.observe(np.zeros(6), scenes[rng.integers(4)])
        ours.chunk()

    def cold() -> None:
        ours.reset(TASK, seed=0)
        for scene in scenes[:2]:
            ours.observe(np.zeros(6), scene)
        ours.chunk()

    inputs = {
        tensor.name: rng.standard_normal(tensor.shape, np.float32)
        for tensor in bundle.manifest.graphs["denoiser"].inputs
    } | prefix_inputs(np.zeros((0, 6), np.float32), ours.horizon)
    assert set(inputs) == {STATE, TEXT_FEATURE, NOISE, PREFIX, PREFIX_MASK, FEATURES}
    return {
        "LeRobot, DDPM 100 (its default)": lambda: ddpm._generate_actions(batch),
        f"LeRobot, DDIM {STEPS}": lambda: ddim._generate_actions(batch),
        "ours, cold: two frames per camera": cold,
        "ours, per tick: one new frame per camera": tick,
        f"LeRobot, DDIM {STEPS}, denoiser alone": lambda: ddim.objective.conditional_sample(
            ddim.noise_predictor, 1, condition
        ),
        "ours, denoiser alone": lambda: engines.denoiser(inputs)[ACTIONS],
    }


# -- measuring --


@torch.inference_mode()
def measure(timed: Mapping[str, Callable[[], Any]], repeats: int) -> dict[str, list[float]]:
    """Milliseconds of every call, taken in turns after one round to warm up."""
    for call in timed.values():
        call()
    taken: dict[str, list[float]] = {name: [] for name in timed}
    for _ in range(repeats):
        for name, call in timed.items():
            began = time.perf_counter()
            call()
            taken[name].append(1e3 * (time.perf_counter() - began))
    return taken


def summary(taken: Mapping[str, list[float]], about: Mapping[str, Any]) -> dict[str, Any]:
    default, ddim, cold, tick, eager, ours = (statistics.median(values) for values in taken.values())
    return {
        "ratio_vs_lerobot_ddim10": round(ddim / tick, 2),
        "ratio_vs_lerobot_default": round(default / tick, 2),
        "denoiser_ratio": round(eager / ours, 2),
        "cold_ratio_vs_lerobot_ddim10": round(ddim / cold, 2),
        "median_ms": {name: round(statistics.median(values), 2) for name, values in taken.items()},
        "fastest_ms": {name: round(min(values), 2) for name, values in taken.items()},
        **about,
    }


def machine(threads: int, repeats: int) -> dict[str, Any]:
    return {
        "hardware": {
            "cpu": cpu_name(),
            "cores": os.cpu_count(),
            "threads": threads,
            "load_before": round(os.getloadavg()[0], 2),
        },
        "versions": {
            "python": platform.python_version(),
            **{name: importlib.metadata.version(name) for name in PACKAGES},
        },
        "repeats": repeats,
    }


def markdown(result: Mapping[str, Any]) -> str:
    hardware, versions = result["hardware"], result["versions"]
    rows = [f"| {name} | {ms:.1f} | {result['fastest_ms'][name]:.1f} |" for name, ms in result["median_ms"].items()]
    return "\n".join(
        [
            f"# One action chunk, {result['parameters'] / 1e6:.0f} M parameters, batch 1, fp32",
            "",
            "| | median ms | fastest ms |",
            "|---|---:|---:|",
            *rows,
            "",
            f"LeRobot DDIM {STEPS} / ours per tick: **{result['ratio_vs_lerobot_ddim10']:.1f}x**; "
            f"LeRobot's default / ours per tick: **{result['ratio_vs_lerobot_default']:.1f}x**; "
            f"denoiser alone: **{result['denoiser_ratio']:.1f}x**.",
            "",
            f"{hardware['cpu']}, {hardware['cores']} cores, {hardware['threads']} thread(s) for either side, "
            f"load average {hardware['load_before']} when it began; {result['repeats']} repeats, taken in turns.",
            ", ".join(f"{name} {version}" for name, version in versions.items()) + ".",
            "Made by `python benchmarks/chunk_latency.py`.",
            "",
        ]
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=SIZES, default="base")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--out", type=Path, help="write the table here as markdown")
    arguments = parser.parse_args()
    if arguments.repeats < 1 or arguments.threads < 1:
        parser.error("--repeats and --threads must be at least 1")
    torch.set_num_threads(arguments.threads)
    transformers.logging.set_verbosity_error()
    about, size = machine(arguments.threads, arguments.repeats), SIZES[arguments.size]
    with tempfile.TemporaryDirectory() as scratch:
        checkpoint = make_checkpoint(Path(scratch), size)
        report = export(checkpoint, Path(scratch) / "bench.mtdit", steps=STEPS, on_stage=print)
        bundle = open_bundle(Path(report.bundle), check_files=False)
        timed = contestants(checkpoint, bundle, size, arguments.threads)
        taken = measure(timed, arguments.repeats)
        parameters = count_parameters(checkpoint)
    result = summary(taken, {**about, "parameters": parameters})
    print(markdown(result))
    if arguments.out:
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        arguments.out.write_text(markdown(result))
    print(json.dumps(result))


if __name__ == "__main__":
    main()
