"""fp16 and int8 against LeRobot's own policy on frames of the twin, in degrees, beside how far that
policy varies.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from lerobot_policy import LeRobot, lerobot_noise
from workshop import CAMERA, STEPS, TASKS

from mtdit.checkpoint.read import open_checkpoint
from mtdit.data.lerobot_dataset import open_dataset
from mtdit_export.export import export
from mtdit_export.options import ExportOptions
from mtdit_export.reference import dataset_probes
from mtdit_runtime.bundle.bundle import open_bundle
from mtdit_runtime.simulate import simulate
from mtdit_runtime.verify.candidate import EngineRunner
from mtdit_runtime.verify.fixtures import Probe

SEEDS = 6
LIMITS = {
    "fp16": (0.02, 0.1),
    "int8": (0.1, np.inf),
}  # rms error as a share of the spread, largest error in degrees


@pytest.fixture(scope="module")
def demonstrations(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("twin") / "demonstrations"
    simulate(list(TASKS), 1, folder, image_size=CAMERA)
    return folder


@pytest.mark.parametrize("precision", LIMITS)
def test_chunks_are_lerobots_within_a_share_of_their_spread(
    precision: str, checkpoint: Path, demonstrations: Path, tmp_path: Path
) -> None:
    out = tmp_path / "p.mtdit"
    export(checkpoint, out, ExportOptions(steps=STEPS, dataset=demonstrations, precision=precision))
    candidate, lerobot, m = (
        EngineRunner(open_bundle(out)),
        LeRobot(checkpoint),
        open_bundle(out).manifest,
    )
    assert m.precision == precision
    executed = slice(m.n_obs_steps - 1, m.n_obs_steps - 1 + m.n_action_steps)
    wanted, errors = [], []
    for probe in dataset_probes(
        open_dataset(str(demonstrations)), open_checkpoint(checkpoint).config, count=3, seed=2
    ):
        noises = [next(lerobot_noise(seed, m.horizon)) for seed in range(SEEDS)]
        chunks = np.stack(
            [lerobot.stages(probe, seed)["degrees"][executed] for seed in range(SEEDS)]
        )
        ours = [
            candidate.positions(Probe(probe.frames, probe.positions, probe.task, n))[executed]
            for n in noises
        ]
        wanted.append(chunks - chunks.mean(0))
        errors.append(np.stack(ours) - chunks)
    spread, rms = (float(np.sqrt(np.mean(np.square(values)))) for values in (wanted, errors))
    share, largest = LIMITS[precision]
    assert rms > 1e-5, "nothing was rounded"
    assert rms <= share * spread
    assert np.abs(errors).max() <= largest
