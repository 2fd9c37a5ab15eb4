"""Two processes on a CPU train what one process with the double batch trains: losses, weights, and
how they end.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from small_cache import write_cache

from mtdit.checkpoint.names import PRETRAINED, TRAINING_STATE, WEIGHTS
from mtdit.checkpoint.tensors import read_tensors
from mtdit.training.config import TrainConfig
from mtdit.training.metrics import LOG
from mtdit.training.reporters import Silent
from mtdit.training.run import train
from mtdit_robots.errors import UserError

# eps: Adam makes a step of full size of a gradient that is zero but for rounding (the bias of
# CLIP's keys) if it may
POLICY = {
    "hidden_dim": 32,
    "num_layers": 1,
    "num_heads": 2,
    "timestep_embed_dim": 16,
    "scheduler_warmup_steps": 2,
    "dropout": 0.0,
    "optimizer_eps": 1e-4,
}
MASKED = {"do_mask_loss_for_padding": True, "objective": "flow_matching"}
RUINED = 30  # a row of the cache whose action is infinite
TOGETHER = {
    "plain": {"batch_size": 2},
    "parts": {"batch_size": 1, "grad_accumulation": 2, "policy": MASKED},
}
ALONE = {"plain": {"batch_size": 4}, "parts": {"batch_size": 4, "policy": MASKED}}


@dataclass(frozen=True)
class Launched:
    """Where the runs of two processes lie, and how to make the same of one."""

    folder: Path
    base: dict[str, Any]

    def run(self, name: str, **options: Any) -> Path:
        return train(
            TrainConfig(**{**fields(self.base, **options), "output_dir": self.folder / name}),
            Silent(),
        )

    def ends(self, name: str) -> list[str]:
        return [(self.folder / f"{name}.{rank}").read_text() for rank in range(2)]


def fields(base: dict[str, Any], **options: Any) -> dict[str, Any]:
    return {**base, **options, "policy": {**base["policy"], **options.get("policy", {})}}


@pytest.fixture(scope="module")
def launched(clip_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Launched]:
    folder = tmp_path_factory.mktemp("parallel")
    clip = {"vision_encoder_name": str(clip_folder), "text_encoder_name": str(clip_folder)}
    base = {
        "dataset": str(write_cache(folder / "frames")),
        "preset": "tiny",
        "policy": {**POLICY, **clip},
        "device": "cpu",
        "steps": 4,
        "save_every": 2,
        "log_every": 1,
        "val_every": 2,
        "val_split": 0.3,
        "noise_samples": 2,
        "random_shift_px": 2,
    }
    ruined = str(write_cache(folder / "ruined", ruined=[RUINED]))
    endless = {"steps": 100_000, "save_every": 100_000, "val_every": 100_000}
    runs = [
        *(
            {**fields(base, **options), "output_dir": str(folder / name)}
            for name, options in TOGETHER.items()
        ),
        {
            **fields(base, **TOGETHER["plain"]),
            "dataset": ruined,
            **endless,
            "log_every": 7,
            "output_dir": str(folder / "ruined-run"),
        },
        {**base, **endless, "output_dir": str(folder / "stopped")},
    ]
    (folder / "runs.json").write_text(json.dumps(runs))
    launcher = start(folder)
    try:
        until(launcher, folder / "stopped" / LOG, lines=3)
        launcher.send_signal(signal.SIGTERM)  # which hands it on to both
        launcher.wait(60)
        yield Launched(folder, base)
    finally:
        launcher.kill()


def start(folder: Path) -> subprocess.Popen[bytes]:
    script = Path(__file__).with_name("train_in_parallel.py")
    launch = [
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node",
        "2",
        script,
        folder / "runs.json",
    ]
    with (folder / "output").open("wb") as output:
        return subprocess.Popen(
            [sys.executable, *map(str, launch)],
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            stdout=output,
            stderr=output,
        )


def until(
    launcher: subprocess.Popen[bytes], log: Path, lines: int, patience_s: float = 180.0
) -> None:
    end = time.monotonic() + patience_s
    while not log.is_file() or log.read_text().count("\n") < lines:
        output = log.parents[1] / "output"
        assert launcher.poll() is None, output.read_text()[-3000:]
        assert time.monotonic() < end, output.read_text()[-3000:]
        time.sleep(0.05)


def logged(run: Path) -> list[tuple[int, str, float]]:
    """Every loss and held-out loss of a run."""
    lines = [json.loads(line) for line in (run / LOG).read_text().splitlines()]
    return [
        (line["step"], kind, line[kind])
        for line in lines
        for kind in ("loss", "val_loss")
        if kind in line
    ]


def assert_same_run(one: Path, two: Path) -> None:
    expected, found = logged(one), logged(two)
    assert [x[:2] for x in found] == [x[:2] for x in expected]
    assert len(expected) == 6
    for (step, kind, a), (_, _, b) in zip(expected, found, strict=True):
        assert abs(a - b) < 1e-6, f"{kind} of step {step}: {a} alone, {b} together"
    for file in (f"{PRETRAINED}/{WEIGHTS}", f"{TRAINING_STATE}/optimizer_state.safetensors"):
        a, b = (read_tensors(run / "checkpoints/000004" / file) for run in (one, two))
        assert a.keys() == b.keys()
        worst = max((float((a[k] - b[k]).abs().max()), k) for k in a)
        assert worst[0] < 1e-6, f"{file}: {worst}"


@pytest.mark.parametrize("name", TOGETHER)
def test_two_processes_train_what_one_trains(launched: Launched, name: str) -> None:
    assert launched.ends(name) == ["000004", "000004"]
    launched.run(f"{name}-alone", **ALONE[name])
    assert_same_run(launched.folder / f"{name}-alone", launched.folder / name)


def test_one_process_goes_on_with_what_two_began(launched: Launched) -> None:
    """The same samples per step, hence the same run."""
    launched.run("half", **{**ALONE["plain"], "steps": 4})
    run = launched.folder / "plain"
    (run / "checkpoints/000004").rename(launched.folder / "000004-of-two")
    (run / "checkpoints/last").unlink()
    launched.run("plain", **ALONE["plain"], resume=True)
    assert_same_run(launched.folder / "half", run)


def test_a_ruined_sample_is_found_in_whatever_process_it_is(launched: Launched) -> None:
    main, other = launched.ends("ruined-run")
    assert other == "exit 2", "one line is enough"
    assert re.search(
        r"the loss is not finite at step \d+, trained on .*episode 1 frame \d", main
    ), main
    ruined = {
        "dataset": str(launched.folder / "ruined"),
        "steps": 100_000,
        "log_every": 7,
        "val_every": 100_000,
    }
    with pytest.raises(UserError) as alone:
        launched.run("ruined-alone", **ALONE["plain"], **ruined)
    assert str(alone.value) == main


def test_a_signal_stops_all_after_the_same_step(launched: Launched) -> None:
    first, second = launched.ends("stopped")
    assert first == second
    assert os.readlink(launched.folder / "stopped/checkpoints/last") == first
    assert logged(launched.folder / "stopped")[-1][0] == int(first)


def test_a_checkpoint_says_how_many_shared_a_step(launched: Launched) -> None:
    path = launched.folder / "parts/checkpoints/000002" / TRAINING_STATE / "training_step.json"
    numbers = json.loads(path.read_text())
    assert (numbers["num_processes"], numbers["batch_size"], numbers["grad_accum_steps"]) == (
        2,
        1,
        2,
    )


def test_the_main_process_comes_first(launched: Launched) -> None:
    assert launched.ends("turn") == ["False", "True"]
