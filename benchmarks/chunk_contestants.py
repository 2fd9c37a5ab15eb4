"""The contestants of `chunk_latency.py`, all from one checkpoint: LeRobot's policy, its plain ONNX
export, and our bundle. `chunk_latency.py` measures them.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch
from lerobot.policies.multi_task_dit.configuration_multi_task_dit import MultiTaskDiTConfig
from lerobot.policies.multi_task_dit.modeling_multi_task_dit import MultiTaskDiTPolicy
from numpy.typing import NDArray
from torch import Tensor, nn

from mtdit.checkpoint.read import open_checkpoint
from mtdit.checkpoint.write import PretrainedFiles, save_pretrained
from mtdit.config import Feature
from mtdit.policies.multi_task_dit.clip import ClipShape, TextShape, VisionShape
from mtdit.policies.multi_task_dit.clip_lookup import load_tokenizer
from mtdit.policies.multi_task_dit.config import PolicyConfig
from mtdit.policies.multi_task_dit.policy import MultiTaskDiT
from mtdit.policies.multi_task_dit.tiny_clip import make_tiny_clip
from mtdit.stats import DatasetFacts
from mtdit_export.export import example_inputs
from mtdit_export.fold.fold import fold
from mtdit_export.quantize import quantize
from mtdit_export.trace import quiet, trace, write
from mtdit_export.trt_compat import OPSET
from mtdit_robots.features import ACTION, IMAGES, STATE
from mtdit_robots.so101.joints import JOINTS
from mtdit_runtime.bundle.bundle import Bundle
from mtdit_runtime.bundle.manifest import FEATURES
from mtdit_runtime.engines.engine import Arrays, Engine, Engines
from mtdit_runtime.engines.ort import OnnxEngine
from mtdit_runtime.policy.bundle_policy import BundlePolicy
from mtdit_runtime.policy.policy import prefix_inputs

TASK, CAMERAS = "open the drawer", ("top", "wrist")
STEPS = 10
CALIBRATION = 8  # random observations for int8; latency does not depend on the pictures
STACKED_IMAGES = IMAGES.rstrip(".")  # LeRobot's key for the images of all cameras in a batch
TOKENS, MASK = "observation.language.tokens", "observation.language.attention_mask"

Batch = dict[str, Tensor]
Array = NDArray[np.float32]


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


def make_checkpoint(folder: Path, size: Size) -> Path:
    """A checkpoint of random weights in LeRobot's format. AdaLN, which starts at zero, is random as
    well.
    """
    clip = make_tiny_clip(folder / "clip", size.clip)
    images = {IMAGES + name: Feature("VISUAL", (3, *size.camera)) for name in CAMERAS}
    config = PolicyConfig(
        input_features={STATE: Feature("STATE", (6,)), **images},
        output_features={"action": Feature("ACTION", (6,))},
        vision_encoder_name=str(clip),
        text_encoder_name=str(clip),
        **size.policy,
    )
    torch.manual_seed(0)
    policy = MultiTaskDiT.pretrained(config).eval()
    for name, parameter in policy.named_parameters():
        if "adaLN" in name:
            torch.nn.init.normal_(parameter, std=0.02)
    vector = {"min": np.full(6, -50, np.float32), "max": np.full(6, 50, np.float32)}
    pixels = {
        "mean": np.full((3, 1, 1), 0.45, np.float32),
        "std": np.full((3, 1, 1), 0.23, np.float32),
    }
    stats = {STATE: vector, ACTION: vector, **dict.fromkeys(images, pixels)}
    facts = DatasetFacts("random", 30, JOINTS, (TASK,), (90.0,) * 6)
    files = PretrainedFiles(policy, policy.state_dict(), stats, facts, load_tokenizer(clip), {})
    save_pretrained(folder / "pretrained_model", files)
    return folder / "pretrained_model"


# -- LeRobot --


def lerobot_policy(checkpoint: Path, scheduler: str, steps: int | None) -> MultiTaskDiTPolicy:
    config = MultiTaskDiTConfig.from_pretrained(str(checkpoint))
    config = replace(config, noise_scheduler_type=scheduler, num_inference_steps=steps)
    return MultiTaskDiTPolicy.from_pretrained(str(checkpoint), config=config).eval()


def lerobot_batch(policy: MultiTaskDiTPolicy, size: Size) -> Batch:
    """An observation that is already normalised and tokenised: LeRobot's processors are not
    measured.
    """
    tokens = torch.full((1, 77), 49407)
    tokens[0, :4] = torch.tensor([49406, 1488, 518, 23219])
    generator = torch.Generator().manual_seed(0)
    return {
        STATE: torch.rand(1, policy.config.n_obs_steps, 6, generator=generator) * 2 - 1,
        STACKED_IMAGES: torch.rand(
            1, policy.config.n_obs_steps, len(CAMERAS), 3, *size.camera, generator=generator
        ),
        TOKENS: tokens,
        MASK: (tokens != 49407) | (torch.arange(77) == 4),
    }


def compiled(policy: MultiTaskDiTPolicy) -> MultiTaskDiTPolicy:
    """Put LeRobot's encoder and denoiser under torch.compile, in place. They are compiled at the
    first chunk.
    """
    policy.observation_encoder.encode = torch.compile(
        policy.observation_encoder.encode, dynamic=False
    )
    policy.noise_predictor = torch.compile(policy.noise_predictor, dynamic=False)
    return policy


def denoise(policy: MultiTaskDiTPolicy, condition: Tensor) -> Tensor:
    """The denoiser's part of a chunk: all steps, starting from noise."""
    actions: Tensor = policy.objective.conditional_sample(policy.noise_predictor, 1, condition)
    return actions


# -- the plain ONNX export: an encoder, and a denoiser that is called once per step --


class _Encoder(nn.Module):
    def __init__(self, policy: MultiTaskDiTPolicy) -> None:
        super().__init__()
        self.encoder = policy.observation_encoder

    def forward(self, state: Tensor, images: Tensor, tokens: Tensor, mask: Tensor) -> Tensor:
        return self.encoder.encode(
            {STATE: state, STACKED_IMAGES: images, TOKENS: tokens, MASK: mask}
        )


class PlainOnnx:
    """LeRobot's own modules as two graphs in ONNX Runtime with its default settings; the sampler
    around them is numpy.
    """

    def __init__(
        self, policy: MultiTaskDiTPolicy, batch: Batch, folder: Path, threads: int
    ) -> None:
        scheduler = policy.objective.noise_scheduler
        scheduler.set_timesteps(policy.objective.num_inference_steps)
        self.times = [int(t) for t in scheduler.timesteps]
        signal = [float(scheduler.alphas_cumprod[t]) for t in self.times] + [1.0]
        self.signals = list(itertools.pairwise(signal))
        self.most, self.batch = (
            policy.config.clip_sample_range,
            {key: value.numpy() for key, value in batch.items()},
        )
        condition = policy.observation_encoder.encode(batch)
        self.shape = (1, policy.config.horizon, 6)
        step = (torch.zeros(self.shape), torch.zeros(1, dtype=torch.int64), condition)
        self.encoder = _plain(
            _Encoder(policy), tuple(batch.values()), folder / "plain_encoder.onnx", threads
        )
        self.step = _plain(policy.noise_predictor, step, folder / "plain_step.onnx", threads)

    def encode(self) -> Array:
        return _call(self.encoder, *self.batch.values())

    def denoise(self, noise: Array, condition: Array) -> Array:
        """DDIM; clips the predicted clean actions as LeRobot does by default. (1, T, A) -> the
        same.
        """
        x = noise
        for time, (now, then) in zip(self.times, self.signals, strict=True):
            predicted = _call(self.step, x, np.array([time]), condition)
            clean = ((x - (1 - now) ** 0.5 * predicted) / now**0.5).clip(-self.most, self.most)
            x = (then**0.5 * clean + (1 - then) ** 0.5 * predicted).astype(np.float32)
        return x

    def chunk(self) -> Array:
        return self.denoise(
            np.random.default_rng(0).standard_normal(self.shape, np.float32), self.encode()
        )


def _plain(
    module: nn.Module, inputs: tuple[Tensor, ...], path: Path, threads: int
) -> onnxruntime.InferenceSession:
    with quiet():
        torch.onnx.export(
            module.eval(), inputs, str(path), opset_version=OPSET, dynamo=True, verbose=False
        )
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = threads, 3
    # threads that keep spinning after a call would slow down the next contestant
    options.add_session_config_entry("session.force_spinning_stop", "1")
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def _call(session: onnxruntime.InferenceSession, *values: NDArray[Any]) -> Array:
    feeds = {given.name: value for given, value in zip(session.get_inputs(), values, strict=True)}
    result: Array = session.run(None, feeds)[0]
    return result


# -- ours --


class Ours:
    """The runtime's policy on random camera frames. Every call checks that no frame and no task is
    encoded twice.
    """

    def __init__(
        self, bundle: Bundle, vision: Engine, history: Engine, denoiser: Engine, size: Size
    ) -> None:
        self._policy = BundlePolicy(
            bundle, Engines(vision, history, denoiser, _no_text, "benchmark")
        )
        self._rng = np.random.default_rng(0)
        self._scenes = [
            {name: self._rng.integers(0, 256, (*size.camera, 3), np.uint8) for name in CAMERAS}
            for _ in range(4)
        ]
        self.cold()

    def ahead(self) -> None:
        """The work that the control loop does in the tick before it requests a chunk."""
        self._policy.prepare()()

    def tick(self) -> Array:
        """The critical path: one new frame per camera; the older one and the task are cached."""
        return self._encoding(1, self._observe)

    def cold(self) -> Array:
        """The first chunk of a task: two new frames per camera."""

        def start() -> None:
            self._policy.reset(TASK, seed=0)
            for _ in range(2):
                self._observe()

        return self._encoding(2, start)

    def _observe(self) -> None:
        self._policy.observe(np.zeros(6), self._scenes[self._rng.integers(4)])

    def _encoding(self, moments: int, see: Callable[[], None]) -> Array:
        before = self._policy.frames_encoded
        see()
        chunk = self._policy.chunk()
        encoded, texts = self._policy.frames_encoded - before, self._policy.texts_encoded
        if (encoded, texts) != (moments * len(CAMERAS), 0):
            raise AssertionError(f"a chunk encoded {encoded} frames and {texts} texts")
        return chunk


def _no_text() -> Engine:
    raise AssertionError("the bundle contains the text features of every trained task")


def engine(bundle: Bundle, name: str, threads: int) -> OnnxEngine:
    graph = bundle.manifest.graphs[name]
    return OnnxEngine(bundle.path(graph.file), graph, name, threads=threads)


def graph_call(bundle: Bundle, name: str, graph: Engine) -> Callable[[], Arrays]:
    """A call of one graph on random inputs, without committed actions."""
    rng, manifest = np.random.default_rng(0), bundle.manifest
    asked = {t.name: rng.standard_normal(t.shape, np.float32) for t in manifest.graphs[name].inputs}
    nothing = prefix_inputs(np.zeros((0, 6), np.float32), manifest.horizon)
    inputs: Arrays = asked | {key: value for key, value in nothing.items() if key in asked}
    return lambda: graph(inputs)


def int8_vision(checkpoint: Path, folder: Path, size: Size, threads: int) -> OnnxEngine:
    """The vision graph as `mtdit export --int8` makes it, but calibrated on random frames."""
    opened = open_checkpoint(checkpoint)
    folded = fold(opened.policy(), {camera: opened.image_scaling(camera) for camera in CAMERAS})
    assert folded.vision is not None
    generator = torch.Generator().manual_seed(0)
    shape = (*size.camera, 3)
    quantize(
        folded.vision,
        (
            [torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator) for _ in CAMERAS]
            for _ in range(CALIBRATION)
        ),
    )
    inputs, path = example_inputs("vision", folded, opened.config), folder / "vision.int8.onnx"
    return OnnxEngine(
        path, write(trace(folded.vision, inputs, FEATURES), path, {}), "vision", threads=threads
    )
