"""A training says which unit its positions are in, and the checkpoint and the bundle state it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from small_cache import write_cache
from small_run import Watcher, config_for

from mtdit.checkpoint.names import FACTS, PRETRAINED
from mtdit.checkpoint.read import open_checkpoint
from mtdit.training.run import train
from mtdit_robots.errors import UserError

Kind = Callable[[np.ndarray], np.ndarray]


def scaled_cache(folder: Path, kind: Kind) -> Path:
    """The cache written by hand, with other body joints."""
    write_cache(folder)
    stats = json.loads((folder / "stats.json").read_text())
    for name, key in (("state", "observation.state"), ("action", "action")):
        rows = np.load(folder / f"{name}.npy")
        rows[:, :5] = kind(rows[:, :5])
        np.save(folder / f"{name}.npy", rows)
        stats[key] = {n: getattr(rows, n)(0).tolist() for n in ("min", "max", "mean", "std")}
    (folder / "stats.json").write_text(json.dumps(stats))
    return folder


@pytest.mark.parametrize(
    ("kind", "units", "says"),
    [
        (lambda rows: rows * 3, "degrees", ""),
        (lambda rows: np.clip(rows * 3, -100, 100), "normalized", "use_degrees=false"),
        (lambda rows: np.deg2rad(rows), "radians", "look like radians"),
        (lambda rows: rows, "unknown", "the unit of the positions is unknown"),
    ],
    ids=["degrees", "normalized", "radians", "unknown"],
)
def test_the_checkpoint_states_the_unit(
    kind: Kind, units: str, says: str, clip_folder: Path, tmp_path: Path
) -> None:
    frames, watcher = scaled_cache(tmp_path / "frames", kind), Watcher()
    checkpoint = train(config_for(frames, tmp_path / "run", clip_folder, steps=1), watcher)
    facts = open_checkpoint(checkpoint).facts
    assert facts is not None
    assert facts.units == units
    lines = [line for line in watcher.lines if "--units degrees" in line]
    assert len(lines) == bool(says)
    assert all(says in line for line in lines)


def test_a_person_says_it(clip_folder: Path, tmp_path: Path) -> None:
    frames, watcher = write_cache(tmp_path / "frames"), Watcher()
    config = config_for(frames, tmp_path / "run", clip_folder, steps=1, units="normalized")
    checkpoint = train(config, watcher)
    facts = open_checkpoint(checkpoint).facts
    assert facts is not None
    assert facts.units == "normalized"
    assert not [line for line in watcher.lines if "--units" in line]


def test_numbers_that_contradict_the_person_are_named(clip_folder: Path, tmp_path: Path) -> None:
    frames = scaled_cache(tmp_path / "frames", lambda rows: rows * 3)
    with pytest.raises(UserError, match=r"small is in degrees \(state \w+ reaches .* --units out"):
        train(config_for(frames, tmp_path / "run", clip_folder, units="normalized"))
    with pytest.raises(UserError, match="units must be one of degrees, normalized, got 'ticks'"):
        config_for(frames, tmp_path / "run", clip_folder, units="ticks")


def test_a_policy_does_not_go_on_in_another_unit(clip_folder: Path, tmp_path: Path) -> None:
    frames = write_cache(tmp_path / "frames")
    first = config_for(frames, tmp_path / "a", clip_folder, steps=1, units="degrees")
    checkpoint = train(first, Watcher())
    more = {"init_from": checkpoint, "steps": 1}
    train(config_for(frames, tmp_path / "b", clip_folder, units="degrees", **more), Watcher())
    with pytest.raises(UserError, match="trained on positions in degrees, but small is in norm"):
        train(config_for(frames, tmp_path / "c", clip_folder, units="normalized", **more))


def test_a_checkpoint_of_an_earlier_mtdit_does_not_know_it(
    frames: Path, clip_folder: Path, tmp_path: Path
) -> None:
    checkpoint = train(config_for(frames, tmp_path / "run", clip_folder, steps=1), Watcher())
    path = checkpoint / PRETRAINED / FACTS
    facts = json.loads(path.read_text())
    del facts["units"]
    path.write_text(json.dumps(facts))
    opened = open_checkpoint(checkpoint).facts
    assert opened is not None
    assert opened.units == "unknown"
    path.write_text(json.dumps({**facts, "units": "ticks"}))
    with pytest.raises(UserError, match=r"mtdit\.json is not valid \(facts\.units is 'ticks'\)"):
        open_checkpoint(checkpoint)
