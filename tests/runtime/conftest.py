"""A small bundle whose chunks can be computed by hand, and a scripted robot."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from mtdit_robots.features import ACTION, STATE
from mtdit_robots.robot import Observation
from mtdit_runtime.bundle import bundle as bundle_bundle
from mtdit_runtime.bundle import manifest as bundles
from mtdit_runtime.bundle.bundle import Bundle, open_bundle
from mtdit_runtime.bundle.manifest import Camera, Graph, Joint, Manifest, Sampler, Tensor
from mtdit_runtime.bundle.publish import new_bundle
from mtdit_runtime.engines.choose import choose_engines
from mtdit_runtime.normalize import Stats, save_stats
from mtdit_runtime.policy.bundle_policy import BundlePolicy

JOINTS = ("pan", "lift", "grip")
CAMERAS = ("top", "wrist")
SHAPE = (4, 6, 3)
N_OBS, HORIZON, N_ACT, FPS = 2, 12, 6, 30
FEATURE, TEXT = 3, 5  # per camera; text feature
LOW, HIGH = np.array([-90.0, -60.0, 0.0]), np.array([90.0, 60.0, 100.0])
TASK, OTHER = "open the drawer", "close the drawer"
A = len(JOINTS)


@dataclass(frozen=True)
class Toy:
    """The weights of the toy policy and, in numpy, what its graphs compute."""

    weight: NDArray[np.float32]
    bias: NDArray[np.float32]
    token_weight: NDArray[np.float32]
    tasks: dict[str, NDArray[np.float32]]

    def vision(self, frames: Mapping[str, NDArray[np.uint8]]) -> NDArray[np.float32]:
        return np.concatenate([frames[c].astype(np.float32).mean(axis=(0, 1)) for c in CAMERAS])

    def chunk(
        self,
        moments: list[tuple[NDArray[np.float64], Mapping[str, NDArray[np.uint8]]]],
        task: str,
        noise: Any,
    ) -> NDArray[np.float64]:
        """(HORIZON, A) in degrees from N_OBS (positions, frames), oldest first. Nothing is
        committed.
        """
        features = np.concatenate([self.vision(frames) for _, frames in moments])
        states = np.concatenate(
            [2 * (positions - LOW) / (HIGH - LOW) - 1 for positions, _ in moments]
        )
        x = np.concatenate([features, states, self.tasks[task]])
        actions = (x @ self.weight + self.bias).reshape(HORIZON, A) + 0.01 * np.asarray(noise)
        return (actions + 1) / 2 * (HIGH - LOW) + LOW

    @property
    def split_weight(self) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """The rows for [earlier features, earlier state, text], and for the newest [features,
        state].
        """
        features, state, text = np.split(
            self.weight, np.cumsum([N_OBS * len(CAMERAS) * FEATURE, N_OBS * A])
        )
        (*earlier, newest), (*earlier_state, newest_state) = (
            np.split(features, N_OBS),
            np.split(state, N_OBS),
        )
        return np.concatenate([*earlier, *earlier_state, text]), np.concatenate(
            [newest, newest_state]
        )

    def known(
        self, features: NDArray[np.float32], state: NDArray[np.float32], text: NDArray[np.float32]
    ) -> Any:
        """(1, HORIZON * A) of features (1, N_OBS, ...), state (1, N_OBS, A) normalised, and text
        (1, TEXT).
        """
        return (
            np.concatenate([features[0, :-1].ravel(), state[0, :-1].ravel(), text[0]])[None]
            @ self.split_weight[0]
        )


@pytest.fixture(scope="session")
def toy() -> Toy:
    rng = np.random.default_rng(7)
    n = N_OBS * len(CAMERAS) * FEATURE + N_OBS * A + TEXT
    weight = (
        rng.normal(size=(n, HORIZON * A))
        * np.r_[np.full(N_OBS * 6, 1e-3), np.full(n - N_OBS * 6, 2e-2)][:, None]
    )
    ramp = np.linspace(-0.1, 0.1, HORIZON)[:, None] * np.ones(A)
    tasks = {name: rng.normal(size=TEXT).astype(np.float32) for name in (TASK, OTHER)}
    token_weight = rng.normal(size=(77, TEXT)) * 1e-3
    return Toy(
        weight.astype(np.float32),
        ramp.ravel().astype(np.float32),
        token_weight.astype(np.float32),
        tasks,
    )


@pytest.fixture(scope="session")
def bundle_folder(toy: Toy, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle on disk. Shared: copy it before changing it."""
    folder = tmp_path_factory.mktemp("bundles") / "toy.mtdit"
    with new_bundle(folder) as scratch:
        _write_graphs(scratch, toy)
        save_stats(scratch / bundles.STATS, {k: _minmax() for k in (STATE, ACTION)})
        bundle_bundle.save_task_features(scratch / bundles.TASKS, toy.tasks)
        (scratch / bundles.TOKENIZER).write_text(json.dumps(_tokenizer()))
        bundles.write_manifest(scratch, _manifest())
    return folder


@pytest.fixture
def bundle(bundle_folder: Path) -> Bundle:
    return open_bundle(bundle_folder)


@pytest.fixture
def policy(bundle: Bundle) -> BundlePolicy:
    return BundlePolicy(bundle, choose_engines(bundle, "onnx"))


def _minmax() -> Stats:
    return Stats("MIN_MAX", LOW.astype(np.float32), HIGH.astype(np.float32))


def _tokenizer() -> dict[str, Any]:
    """CLIP's tokenizer with a vocabulary of single letters."""
    letters = [chr(c) for c in range(ord("a"), ord("z") + 1)]
    words = ["<|startoftext|>", "<|endoftext|>", *letters, *(f"{c}</w>" for c in letters)]
    model = {
        "type": "BPE",
        "vocab": {w: i for i, w in enumerate(words)},
        "merges": [],
        "end_of_word_suffix": "</w>",
    }
    words_of_clip = r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"
    return {
        "version": "1.0",
        "normalizer": {"normalizers": [{"type": t} for t in ("NFC", "Replace", "Lowercase")]},
        "pre_tokenizer": {"pretokenizers": [{"pattern": {"Regex": words_of_clip}}]},
        "added_tokens": [],
        "model": model,
    }


def _manifest() -> Manifest:
    width = len(CAMERAS) * FEATURE
    frames = tuple(Tensor(bundles.frame_input(c), SHAPE, "uint8") for c in CAMERAS)
    features, text = Tensor("features", (1, width), "float32"), Tensor("text", (1, TEXT), "float32")
    actions, known = (
        Tensor("actions", (1, HORIZON, A), "float32"),
        Tensor("known", (1, HORIZON * A), "float32"),
    )
    newest = features, Tensor("state", (1, A), "float32")
    earlier = [("earlier_features", width), ("earlier_state", A)]
    history = (text, *(Tensor(name, (1, N_OBS - 1, size), "float32") for name, size in earlier))
    noise, prefix = (
        Tensor("noise", (1, HORIZON, A), "float32"),
        Tensor("prefix", (1, HORIZON, A), "float32"),
    )
    mask = Tensor("prefix_mask", (1, HORIZON, 1), "float32")
    graphs = {
        "vision": Graph(bundles.VISION, frames, (features,)),
        "text": Graph(bundles.TEXT, (Tensor("token_ids", (1, 77), "int64"),), (text,)),
        "history": Graph(bundles.HISTORY, history, (known,)),
        "denoiser": Graph(bundles.DENOISER, (*newest, known, noise, prefix, mask), (actions,)),
    }
    units = ("degrees", "degrees", "percent")
    joints = tuple(
        Joint(n, u, float(lo), float(hi), 300.0)
        for n, u, lo, hi in zip(JOINTS, units, LOW, HIGH, strict=True)
    )
    return Manifest(
        name="toy",
        graphs=graphs,
        sampler=Sampler("ddim", 1, (0.0,), 1.0),
        joints=joints,
        state_joints=JOINTS,
        cameras=tuple(Camera(c, SHAPE[0], SHAPE[1], None, None) for c in CAMERAS),
        n_obs_steps=N_OBS,
        horizon=HORIZON,
        n_action_steps=N_ACT,
        fps=FPS,
        tasks=(TASK, OTHER),
        precision="fp32",
        opset=20,
        requirements={"onnxruntime": ">=1.18"},
        verification={},
        provenance={},
    )


def _write_graphs(folder: Path, toy: Toy) -> None:
    _save(
        folder / bundles.VISION,
        _vision_nodes(),
        [(f"frame.{c}", TensorProto.UINT8, SHAPE) for c in CAMERAS],
        ("features", (1, len(CAMERAS) * FEATURE)),
        {"axes": np.array([0, 1])},
    )
    text = [
        helper.make_node("Cast", ["token_ids"], ["ids"], to=TensorProto.FLOAT),
        helper.make_node("MatMul", ["ids", "w"], ["text"]),
    ]
    _save(
        folder / bundles.TEXT,
        text,
        [("token_ids", TensorProto.INT64, (1, 77))],
        ("text", (1, TEXT)),
        {"w": toy.token_weight},
    )
    before, newest = toy.split_weight
    earlier = [
        ("earlier_features", TensorProto.FLOAT, (1, N_OBS - 1, len(CAMERAS) * FEATURE)),
        ("earlier_state", TensorProto.FLOAT, (1, N_OBS - 1, A)),
        ("text", TensorProto.FLOAT, (1, TEXT)),
    ]
    _save(
        folder / bundles.HISTORY,
        _history_nodes(),
        earlier,
        ("known", (1, HORIZON * A)),
        {"w": before},
    )
    inputs = [
        ("features", TensorProto.FLOAT, (1, len(CAMERAS) * FEATURE)),
        ("state", TensorProto.FLOAT, (1, A)),
        ("known", TensorProto.FLOAT, (1, HORIZON * A)),
        ("noise", TensorProto.FLOAT, (1, HORIZON, A)),
        ("prefix", TensorProto.FLOAT, (1, HORIZON, A)),
        ("prefix_mask", TensorProto.FLOAT, (1, HORIZON, 1)),
    ]
    constants = {"w": newest, "b": toy.bias, "shape": np.array([1, HORIZON, A])}
    constants |= {"small": np.float32(0.01), "one": np.float32(1)}
    _save(
        folder / bundles.DENOISER,
        _denoiser_nodes(),
        inputs,
        ("actions", (1, HORIZON, A)),
        constants,
    )


def _vision_nodes() -> list[onnx.NodeProto]:
    nodes = []
    for c in CAMERAS:
        nodes += [
            helper.make_node("Cast", [f"frame.{c}"], [f"float.{c}"], to=TensorProto.FLOAT),
            helper.make_node("ReduceMean", [f"float.{c}", "axes"], [f"mean.{c}"], keepdims=0),
        ]
    nodes.append(helper.make_node("Concat", [f"mean.{c}" for c in CAMERAS], ["flat"], axis=0))
    return [*nodes, helper.make_node("Flatten", ["flat"], ["features"], axis=0)]


def _history_nodes() -> list[onnx.NodeProto]:
    return [
        helper.make_node("Flatten", ["earlier_features"], ["f"], axis=1),
        helper.make_node("Flatten", ["earlier_state"], ["s"], axis=1),
        helper.make_node("Concat", ["f", "s", "text"], ["x"], axis=1),
        helper.make_node("MatMul", ["x", "w"], ["known"]),
    ]


def _denoiser_nodes() -> list[onnx.NodeProto]:
    return [
        helper.make_node("Concat", ["features", "state"], ["x"], axis=1),
        helper.make_node("MatMul", ["x", "w"], ["of_newest"]),
        helper.make_node("Add", ["of_newest", "known"], ["xw"]),
        helper.make_node("Add", ["xw", "b"], ["flat"]),
        helper.make_node("Reshape", ["flat", "shape"], ["mean"]),
        helper.make_node("Mul", ["noise", "small"], ["spread"]),
        helper.make_node("Add", ["mean", "spread"], ["drawn"]),
        helper.make_node("Sub", ["one", "prefix_mask"], ["free"]),
        helper.make_node("Mul", ["free", "drawn"], ["free_rows"]),
        helper.make_node("Mul", ["prefix_mask", "prefix"], ["held_rows"]),
        helper.make_node("Add", ["free_rows", "held_rows"], ["actions"]),
    ]


def _save(
    path: Path,
    nodes: list[onnx.NodeProto],
    inputs: list[Any],
    output: Any,
    constants: dict[str, Any],
) -> None:
    graph = helper.make_graph(
        nodes,
        path.stem,
        [helper.make_tensor_value_info(*spec) for spec in inputs],
        [helper.make_tensor_value_info(output[0], TensorProto.FLOAT, output[1])],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    onnx.checker.check_model(model)
    onnx.save(model, path)


@dataclass
class ScriptedRobot:
    """A Robot that follows its commands with a lag, shows frames drawn from its tick, and fails
    when told to.
    """

    joints: tuple[str, ...] = JOINTS
    cameras: tuple[str, ...] = CAMERAS
    follow: float = 0.7  # share of the way to the goal per tick; 0: blocked
    start: NDArray[np.float64] = field(default_factory=lambda: np.array([10.0, -5.0, 20.0]))
    failing: frozenset[int] = frozenset()  # observations that raise
    stale: Mapping[int, float] = field(default_factory=dict)  # observation -> age of its frames
    on_observe: Callable[[int], None] = lambda tick: None
    connected: bool = False
    observed: int = 0
    commands: list[NDArray[np.float64]] = field(default_factory=list)
    holds: int = 0
    errors: Mapping[str, Mapping[str, int]] = field(default_factory=dict)

    is_real: bool = True
    units: str = "degrees"

    def use_units(self, units: str) -> NDArray[np.float64]:
        self.units = units
        return np.ones(len(self.joints))

    def connect(self) -> None:
        self.connected = True
        self.pose = self.goal = self.start.copy()

    def observe(self) -> Observation:
        tick, self.observed = self.observed, self.observed + 1
        self.on_observe(tick)
        if tick in self.failing:
            raise OSError(f"no answer in observation {tick}")
        self.pose = self.pose + self.follow * (self.goal - self.pose)
        rng = np.random.default_rng(tick)
        frames = {c: rng.integers(0, 256, SHAPE, np.uint8) for c in self.cameras}
        return Observation(
            self.pose.copy(), frames, dict.fromkeys(self.cameras, self.stale.get(tick, 0.0)), 0.0
        )

    def command(self, positions: NDArray[np.float64]) -> NDArray[np.float64]:
        self.goal = positions.copy()
        self.commands.append(positions.copy())
        return positions

    def hold(self) -> None:
        self.holds += 1

    def close(self) -> None:
        self.connected = False


@pytest.fixture
def scripted_robot() -> type[ScriptedRobot]:
    return ScriptedRobot


@pytest.fixture
def robot() -> Iterator[ScriptedRobot]:
    robot = ScriptedRobot()
    robot.connect()
    yield robot
    robot.close()
