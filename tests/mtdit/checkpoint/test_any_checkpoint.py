"""Any checkpoint gives LeRobot's own chunk, from its policy and its processors, or is refused by
what is wrong and what to do.
"""

from __future__ import annotations

import re
import shutil
import traceback
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from changed_checkpoints import FAULTS, LIBERTIES, Change
from checkpoint_files import state_file
from drawn_checkpoints import STATE, TEXTS, drawn_policy, drawn_stats, one_of, save, small_clip
from lerobot.configs.policies import PreTrainedConfig
from lerobot.policies.factory import make_pre_post_processors
from lerobot.policies.multi_task_dit.modeling_multi_task_dit import MultiTaskDiTPolicy
from lerobot.policies.utils import populate_queues
from safetensors.torch import load_file

from mtdit import load
from mtdit.checkpoint.read import open_checkpoint
from mtdit.checkpoint.write import PretrainedFiles, save_pretrained
from mtdit.stats import DatasetFacts
from mtdit.torch_policy import TorchPolicy
from mtdit_robots.errors import UserError

Seen = list[tuple[np.ndarray, dict[str, np.ndarray]]]  # positions, frames by the robot's key
REMEDY = re.compile(  # what a person can do, or what is right instead
    r"`[^`]+`|--[a-z]|(copy|use|run|save|give|pass|load|train|delete|name|export|merge|leave|set|"
    r"shorten|correct|rename|restore|record|put|recompute|did you mean|must)\b"
)


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two that number their tokens differently."""
    folder = tmp_path_factory.mktemp("models")
    return [small_clip(folder / f"clip-{seed}", seed) for seed in range(2)]


@dataclass
class Case:
    """A policy's folder as we get it and as LeRobot gets it, and what was changed."""

    ours: Path
    theirs: Path
    changes: list[Change]

    @property
    def fault(self) -> Change | None:
        return next((change for change in self.changes if change.says is not None), None)


def drawn_changes(rng: np.random.Generator) -> list[Change]:
    """Some liberties and perhaps one fault. What comes after the fault needs whole files."""
    chosen = [LIBERTIES[i] for i in rng.permutation(len(LIBERTIES))[: rng.integers(5)]]
    if rng.random() < 0.55:
        return chosen
    fault = one_of(rng, *FAULTS)
    return [c for c in chosen if c.is_lerobots or fault.says] + [fault]


def changed(rng: np.random.Generator, saved: Path, folder: Path, changes: list[Change]) -> Case:
    """A copy for us and one for LeRobot. Liberties come first, what LeRobot does not get last."""
    case = Case(folder / "ours" / "pretrained_model", folder / "theirs", changes)
    for copy in (case.ours, case.theirs):
        shutil.copytree(saved, copy)
    for change in sorted(changes, key=lambda c: (not c.is_lerobots, c.says is not None)):
        seed = int(rng.integers(1 << 30))
        for copy in (case.ours, case.theirs)[: 1 + change.is_lerobots]:
            change.apply(np.random.default_rng(seed), copy)
    return case


class Theirs:
    """LeRobot's policy and processors, loaded as lerobot-eval loads them."""

    def __init__(self, folder: Path) -> None:
        config = PreTrainedConfig.from_pretrained(folder, cli_overrides=["--device=cpu"])
        self.policy = MultiTaskDiTPolicy.from_pretrained(folder, config=config)
        here = {"device_processor": {"device": "cpu"}}
        self.before, self.after = make_pre_post_processors(
            config, str(folder), preprocessor_overrides=here, postprocessor_overrides=here
        )

    def chunk(self, task: str, seen: Seen, seed: int) -> np.ndarray:
        """The executed part of the chunk after these observations."""
        for positions, frames in seen:
            item: dict[str, Any] = {STATE: torch.from_numpy(positions), "task": task}
            for key, frame in frames.items():
                item[key] = torch.from_numpy(frame).permute(2, 0, 1).float() / 255
            batch = self.policy._prepare_batch(self.before(item))
            del batch["action"]  # nothing is under it
            self.policy._queues = populate_queues(self.policy._queues, batch)
        torch.manual_seed(seed)
        return np.asarray(self.after(self.policy.predict_action_chunk(batch))[0])


def our_chunk(
    policy: TorchPolicy, task: str, seen: Seen, seed: int, more: float = 0.0
) -> np.ndarray:
    """The same, with the same noise; `more`: how much larger the noise is."""
    config = policy.policy.config
    policy.reset(task, seed=0)
    for positions, frames in seen:
        policy.observe(positions, {c: frames[key] for c, key in config.image_keys.items()})
    torch.manual_seed(seed)
    size, draws = (policy.horizon, config.action_dim), policy.policy.objective.draws
    noise = np.stack([torch.randn(1, *size)[0].numpy() for _ in range(draws)]) * (1 + more)
    chunk = policy.chunk(noise.astype(np.float32)[0 if draws == 1 else slice(None)])
    start = policy.n_obs_steps - 1
    return chunk[start : start + policy.n_action_steps]


def observations(rng: np.random.Generator, folder: Path, policy: TorchPolicy) -> Seen:
    """Positions within their range, a little beyond, and at rest where the joint never moved;
    frames of every camera.
    """
    stats = load_file(state_file(folder))
    size = policy.policy.config.state_dim
    ends = [stats.get(f"{STATE}.{name}", torch.zeros(size)).float() for name in ("min", "max")]
    low, high = (np.nan_to_num(np.resize(end, size)).clip(-999, 999) for end in ends)
    keys = policy.policy.config.image_keys
    sizes = {keys[camera]: size for camera, size in policy.frame_sizes.items()}
    return [
        (
            (low + (high - low) * rng.uniform(-0.1, 1.1, low.shape)).astype(np.float32),
            {key: rng.integers(0, 256, (*size, 3), np.uint8) for key, size in sizes.items()},
        )
        for _ in range(3)
    ]


def outcome(case: Case, rng: np.random.Generator) -> str:
    """same, refused or lerobot fails; AssertionError for anything else."""
    fault = case.fault
    try:
        policy = load(one_of(rng, case.ours, case.ours.parent), backend="cpu")
    except UserError as error:
        said = str(error)
        assert fault is not None, f"refused: {said}"
        assert re.search(str(fault.says), said), f"refused, but not by {fault.says!r}: {said}"
        assert "\n" not in said, said
        assert REMEDY.search(said), f"no remedy: {said}"
        return "refused"
    assert fault is None or fault.may_pass, "accepted"
    assert isinstance(policy, TorchPolicy)
    task, seed = str(one_of(rng, *TEXTS)), int(rng.integers(1 << 30))
    seen = observations(rng, case.ours, policy)
    ours = our_chunk(policy, task, seen, seed)
    try:
        theirs = Theirs(case.theirs).chunk(task, seen, seed)
    except Exception:
        if fault is None:
            raise
        return f"LeRobot fails: {fault.name}"
    assert ours.shape == theirs.shape
    wavering = np.abs(our_chunk(policy, task, seen, seed, more=1e-6) - ours).max()
    allowed = 1e-5 * (1 + np.abs(theirs).max()) + 30 * wavering
    error = np.abs(ours - theirs).max()
    assert error <= allowed, f"differs by {error:.1e}, more than {allowed:.1e}"
    return "same"


def try_copies(
    rng: np.random.Generator, clips: list[Path], folder: Path, copies: list[list[Change]]
) -> Counter[str]:
    """One policy, changed in each of these ways. Returns how often each outcome came."""
    policy, found = drawn_policy(rng, clips), Counter[str]()
    save(policy, drawn_stats(rng, policy.config), folder / "saved")
    for number, changes in enumerate(copies):
        try:
            found[outcome(changed(rng, folder / "saved", folder / "copy", changes), rng)] += 1
        except Exception as error:
            names = ", ".join(change.name for change in changes)
            last = traceback.format_exc().splitlines()[-3:]
            raise AssertionError(f"copy {number} ({names}): {error!r} {last}") from error
        finally:
            shutil.rmtree(folder / "copy")
    shutil.rmtree(folder / "saved")
    return found


def test_each_liberty_gives_lerobots_chunk(clips: list[Path], tmp_path: Path) -> None:
    """All of them, five at a time."""
    print("seed", seed := 17)
    rng = np.random.default_rng(seed)
    chosen = [LIBERTIES[i] for i in rng.permutation(len(LIBERTIES))]
    copies = [chosen[i::6] for i in range(6)]
    assert try_copies(rng, clips, tmp_path, copies) == {"same": 6}


def test_each_fault_is_refused_by_name(clips: list[Path], tmp_path: Path) -> None:
    """One at a time. Some are none, where the policy does not need what is wrong."""
    print("seed", seed := 18)
    found = try_copies(np.random.default_rng(seed), clips, tmp_path, [[f] for f in FAULTS])
    assert found["refused"] >= sum(not fault.may_pass for fault in FAULTS), found


def test_a_mixture_is_lerobots_or_refused(clips: list[Path], tmp_path: Path) -> None:
    print("seed", seed := 14)
    rng = np.random.default_rng(seed)
    found = try_copies(rng, clips, tmp_path, [drawn_changes(rng) for _ in range(8)])
    assert {"same", "refused"} <= set(found), found


def test_what_we_save_of_it_is_lerobots_too(clips: list[Path], tmp_path: Path) -> None:
    """As a training that goes on from it does: names, modes and the tokenizer are kept."""
    kept = ("words of another CLIP", "renamed, with statistics", "other modes in the steps")
    changes = [change for change in LIBERTIES if change.name in kept]
    print("seed", seed := 17)
    rng = np.random.default_rng(seed)
    policy = drawn_policy(rng, clips)
    save(policy, drawn_stats(rng, policy.config), tmp_path / "saved")
    case = changed(rng, tmp_path / "saved", tmp_path / "copy", changes)
    ours = TorchPolicy(open_checkpoint(case.ours))
    opened, joints = ours.checkpoint, (ours.joints, ours.state_joints)
    facts = DatasetFacts("set", 30, joints[0], ("go",), (1.0,) * len(joints[0]), "", "", joints[1])
    files = PretrainedFiles(
        *(ours.policy, ours.policy.state_dict(), opened.dataset_stats, facts, opened.tokenizer()),
        *({}, opened.rename_map, opened.tokenizer_name),
    )
    save_pretrained(tmp_path / "again", files)
    for task in TEXTS[:2]:
        seen = observations(rng, case.ours, ours)
        before, after = (Theirs(p).chunk(task, seen, 5) for p in (case.theirs, tmp_path / "again"))
        np.testing.assert_allclose(after, before, rtol=1e-4, atol=1e-4)


@pytest.mark.slow(minutes=10)
def test_very_many_mixtures(clips: list[Path], tmp_path: Path) -> None:
    print("seed", seed := int(np.random.default_rng().integers(1 << 32)))
    rng = np.random.default_rng(seed)
    for _ in range(200):
        try_copies(rng, clips, tmp_path, [drawn_changes(rng) for _ in range(8)])
