"""LeRobot's default network at its full size, exported in fp16 and int8: as it is drawn, and after
200 steps of training. Prints minutes and memory.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from exported import record_drawer
from graph_faults import Change, edit, faults, in_int8, louder
from repository import ROOT

from mtdit.checkpoint.read import open_checkpoint
from mtdit.checkpoint.write import PretrainedFiles, save_pretrained
from mtdit.policies.multi_task_dit.policy import MultiTaskDiT
from mtdit_export.reference import Reference, synthetic_probes
from mtdit_runtime.bundle.bundle import open_bundle

sys.path.append(str(ROOT / "benchmarks"))
from chunk_contestants import SIZES, make_checkpoint

STEPS, OBSERVATIONS, BATCH = 200, 8, 16
ENOUGH_GB = 12.0  # of memory for an export: a desktop computer has more


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint(tmp_path_factory.mktemp("base"), SIZES["base"])


@pytest.fixture(scope="module")
def trained(drawn: Path) -> Path:
    """The same after STEPS steps of Adam with frozen towers: go where the arm is, and stay."""
    opened = open_checkpoint(drawn)
    policy, began = opened.policy(), time.perf_counter()
    train_denoiser(policy, conditionings(Reference(policy, opened, opened.tokenizer())))
    print(f"{STEPS} steps: {(time.perf_counter() - began) / 60:.1f} minutes")
    assert opened.facts is not None
    stats, tokenizer = opened.dataset_stats, opened.tokenizer()
    files = PretrainedFiles(
        policy, policy.state_dict(), stats, opened.facts, tokenizer, {"steps": STEPS}
    )
    save_pretrained(drawn.parent / "trained", files)
    return drawn.parent / "trained"


@torch.no_grad()
def conditionings(reference: Reference) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """(conditioning (1, C), normalised actions (1, T, A)) of random observations."""
    probes = synthetic_probes(reference.checkpoint, ("open the drawer",), OBSERVATIONS)
    seen = [reference._observed(probe) for probe in probes]
    horizon = reference.config.horizon
    return [(c, state[:, -1:].expand(-1, horizon, -1)) for state, _, c in seen]


def train_denoiser(policy: MultiTaskDiT, seen: list[tuple[torch.Tensor, torch.Tensor]]) -> None:
    torch.manual_seed(1)
    conditioning, actions = (torch.cat(part) for part in zip(*seen, strict=True))
    optimizer = torch.optim.Adam(policy.noise_predictor.parameters(), lr=1e-4)
    for _ in range(STEPS):
        rows = torch.randint(0, OBSERVATIONS, (BATCH,))
        noise, at = policy.objective.draw(actions[rows])
        condition = conditioning[rows]

        def denoise(x: torch.Tensor, t: torch.Tensor, c: torch.Tensor = condition) -> torch.Tensor:
            return policy.noise_predictor(x, t, c)

        loss = policy.objective.loss(denoise, actions[rows], noise, at, None, None)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


@pytest.fixture(scope="module")
def drawer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return record_drawer(tmp_path_factory.mktemp("recordings") / "drawer", SIZES["base"].camera)


def measured(*words: Any) -> tuple[str, float]:
    """`mtdit WORDS` in a process of its own: what it said, and its largest memory in GB."""
    command = [sys.executable, "-m", "mtdit.cli", *map(str, words)]
    began = time.perf_counter()
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as running:
        assert running.stdout is not None
        said = running.stdout.read()
        _, status, used = os.wait4(running.pid, 0)  # its memory, which Popen's own wait drops
        running.returncode = os.waitstatus_to_exitcode(status)
    assert running.returncode == 0, said
    gigabytes = used.ru_maxrss * 1024 / 1e9
    print(said, f"{(time.perf_counter() - began) / 60:.1f} minutes, {gigabytes:.1f} GB")
    return said, gigabytes


def exported(checkpoint: Path, out: Path, *options: Any) -> Path:
    """The bundle, whose export took no more memory than it said before."""
    said, gigabytes = measured("export", checkpoint, *options, "--out", out)
    expected = re.search(r"expect about .* and ([\d.]+) GB", said)
    assert expected is not None
    assert gigabytes < 1.15 * float(expected[1])
    assert gigabytes < ENOUGH_GB
    assert open_bundle(out).manifest.verification["compared"].startswith("64 observations with 4")
    return out


@pytest.mark.slow(minutes=10)
def test_faults_are_refused_at_full_size(drawn: Path, tmp_path: Path) -> None:
    bundle = open_bundle(exported(drawn, tmp_path / "p.mtdit", "--fp16"))
    weights = open_checkpoint(drawn).weights()
    bias = weights["noise_predictor.transformer_blocks.0.adaLN_modulation.1.bias"].numpy()

    def without(table: Any) -> Any:
        return table - np.pad(bias, (0, table.shape[1] - len(bias)))

    changes: list[tuple[str, str, Change]] = [
        ("vision", "towers.0.blocks.5.attention.out.weight", louder),
        ("text", "blocks.11.down.weight", louder),
        ("text", "projection.weight", in_int8),
        ("denoiser", "modulation.of_time", without),
        ("denoiser", "network.output.weight", in_int8),
    ]
    assert faults(bundle) == []
    for graph, weight, change in changes:
        sound = bundle.path(f"{graph}.onnx").read_bytes()
        edit(bundle, graph, weight, change)
        assert graph in faults(bundle), (graph, weight)
        bundle.path(f"{graph}.onnx").write_bytes(sound)


@pytest.mark.slow(minutes=8)
def test_int8_is_exported_at_full_size(drawn: Path, drawer: Path, tmp_path: Path) -> None:
    exported(drawn, tmp_path / "p.mtdit", "--int8", "--dataset", drawer)


@pytest.mark.slow(minutes=20)
def test_a_trained_policy_is_exported_at_full_size(
    trained: Path, drawer: Path, tmp_path: Path
) -> None:
    half = open_bundle(exported(trained, tmp_path / "half.mtdit", "--fp16"))
    assert half.manifest.provenance["steps"] == STEPS
    exported(trained, tmp_path / "int8.mtdit", "--int8", "--dataset", drawer)
