"""What fp16 must never let pass: faults whose actions stay within the tolerance of rounding."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from command_line import mtdit
from graph_faults import edit, faults, in_int8, louder
from workshop import overflow_half

from mtdit.checkpoint.names import STEP, TRAIN_CONFIG, TRAINING_STATE
from mtdit.checkpoint.read import open_checkpoint
from mtdit_export.effort import check_memory, expected_effort, expected_seconds, more_memory
from mtdit_export.manifest import training_steps
from mtdit_export.reference import Reference
from mtdit_robots.errors import UserError
from mtdit_runtime.bundle.bundle import Bundle, open_bundle
from mtdit_runtime.bundle.manifest import PRECISIONS, STATS, write_manifest
from mtdit_runtime.normalize import load_stats, save_stats
from mtdit_runtime.verify.gates import TRAINED_STEPS, is_trained

ADALN = "noise_predictor.transformer_blocks.0.adaLN_modulation.1.bias"


@pytest.fixture
def half(half_bundle: Path, tmp_path: Path) -> Bundle:
    return open_bundle(Path(shutil.copytree(half_bundle, tmp_path / "changed.mtdit")))


def test_the_bundle_itself_passes(half: Bundle) -> None:
    assert faults(half) == []


@pytest.mark.parametrize("part", ["attention.qkv", "attention.out", "up", "down"])
@pytest.mark.parametrize(("graph", "tower"), [("vision", "towers.0."), ("text", "")])
def test_a_layer_scaled_by_a_fiftieth_is_refused(
    half: Bundle, graph: str, tower: str, part: str
) -> None:
    edit(half, graph, f"{tower}blocks.0.{part}.weight", louder)
    assert graph in faults(half)


@pytest.mark.parametrize("block", [0, 1])
def test_a_missing_bias_of_the_modulation_is_refused(
    half: Bundle, checkpoint: Path, block: int
) -> None:
    weights = open_checkpoint(checkpoint).weights()
    bias = weights[ADALN.replace(".0.", f".{block}.")].numpy()

    def without(table: np.ndarray) -> np.ndarray:
        table = table.copy()
        table[:, block * len(bias) : (block + 1) * len(bias)] -= bias
        return table

    edit(half, "denoiser", "modulation.of_time", without)
    assert "denoiser" in faults(half)


@pytest.mark.parametrize(
    ("graph", "weight", "stage"),
    [
        ("denoiser", "network.output.weight", "denoiser"),
        ("text", "projection.weight", "text"),
    ],
)
def test_a_last_projection_in_int8_is_refused(
    half: Bundle, graph: str, weight: str, stage: str
) -> None:
    edit(half, graph, weight, in_int8)
    assert stage in faults(half)


@pytest.mark.parametrize(("key", "stage"), [("observation.state", "state"), ("action", "units")])
def test_statistics_of_another_dataset_are_refused(half: Bundle, key: str, stage: str) -> None:
    """Of one whose first joint went half a degree further."""
    stats = load_stats(half.path(STATS))
    high = stats[key].high.copy()
    high[0] += 0.5
    save_stats(half.path(STATS), {**stats, key: replace(stats[key], high=high)})
    assert stage in faults(half)


def test_the_same_faults_are_found_against_the_checkpoint(half: Bundle, checkpoint: Path) -> None:
    edit(half, "vision", "towers.0.blocks.1.up.weight", louder)
    write_manifest(half.folder, half.manifest)
    done = mtdit("verify", half.folder, "--checkpoint", checkpoint)
    assert done.returncode == 1
    assert done.stdout.count("fail: vision: rms error") == 2, "golden fixtures, and the checkpoint"


def test_a_refused_export_shows_the_table_of_stages(workshop: Any, tmp_path: Path) -> None:
    config = workshop.config(cameras=(), num_layers=1, num_train_timesteps=10)
    policy = overflow_half(workshop.checkpoint(tmp_path / "wild", config))
    done = mtdit("export", policy, "--fp16", "--steps", 1, "--out", tmp_path / "p.mtdit")
    assert done.returncode == 1
    assert "refused: compared with the trained policy" in done.stdout
    for stage in ("text", "denoiser", "robot, degrees"):
        assert any(stage in line for line in done.stdout.splitlines())
    assert "differ from the trained policy" in done.stderr
    assert not (tmp_path / "p.mtdit").exists()


def test_an_export_says_what_it_was_compared_with(half_bundle: Path, bundle: Path) -> None:
    compared = [open_bundle(b).manifest.verification["compared"] for b in (half_bundle, bundle)]
    assert compared == ["64 observations with 4 noises each", "4 observations"]


@pytest.mark.parametrize(
    ("state", "config", "steps"),
    [(5000, 20000, 5000), (None, 20000, 20000), (None, None, None)],
)
def test_steps_are_those_done_else_those_planned(
    tmp_path: Path, state: int | None, config: int | None, steps: int | None
) -> None:
    folder = tmp_path / "pretrained_model"
    (tmp_path / TRAINING_STATE).mkdir()
    folder.mkdir()
    if state is not None:
        (tmp_path / TRAINING_STATE / STEP).write_text(json.dumps({"step": state}))
    (folder / TRAIN_CONFIG).write_text(json.dumps({} if config is None else {"steps": config}))
    assert training_steps(folder) == steps


def test_a_policy_counts_as_trained_by_its_steps(bundle: Path) -> None:
    manifest = open_bundle(bundle).manifest
    assert not is_trained(manifest), "nothing says how long it was trained"
    for steps, trained in ((TRAINED_STEPS - 1, False), (TRAINED_STEPS, True)):
        said = replace(manifest, provenance={**manifest.provenance, "steps": steps})
        assert is_trained(said) == trained


@pytest.mark.parametrize("cameras", [("top", "wrist"), ()])
def test_memory_grows_with_weights_and_frames(workshop: Any, tmp_path: Path, cameras: Any) -> None:
    opened = open_checkpoint(
        workshop.checkpoint(tmp_path / "pretrained_model", workshop.config(cameras=cameras))
    )
    reference = Reference(opened.policy(), opened, opened.tokenizer())
    pixels = 64 * 2 * 60 * 80 * 3 * len(cameras)
    weights = 4 * sum(p.numel() for p in reference.policy.parameters())
    assert more_memory(reference) == pytest.approx(2.5 * weights + pixels, abs=1)
    line = expected_effort(reference, "fp16", ())
    assert re.fullmatch(r"expect about \d+ s and \d\.\d GB of memory", line)


def test_an_export_that_does_not_fit_into_memory_is_refused() -> None:
    check_memory(3_400_000_000, 3_500_000_000)
    with pytest.raises(UserError, match=r"needs 3\.6 GB more memory, and 3\.5 GB are free: close"):
        check_memory(3_600_000_000, 3_500_000_000)


def test_rounded_exports_take_longer() -> None:
    fp32, fp16, int8 = (expected_seconds(2.0, precision) for precision in PRECISIONS)
    assert fp32 < fp16 < int8 < 10 * fp32
