"""`--rename_map`: the files of a run have the policy's names, everything else the dataset's."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from small_run import Watcher, config_for, run

from mtdit.checkpoint.names import PRETRAINED
from mtdit.checkpoint.read import open_checkpoint
from mtdit.training.run import train
from mtdit_robots.errors import UserError

TOP, NEW = "observation.images.top", "observation.images.camera1"


def test_the_checkpoint_carries_the_map(frames: Path, clip_folder: Path, tmp_path: Path) -> None:
    from lerobot.configs.policies import PreTrainedConfig
    from lerobot.policies.factory import make_pre_post_processors

    config = config_for(frames, tmp_path / "run", clip_folder, steps=2, rename_map={TOP: NEW})
    folder = run(config)[0] / PRETRAINED
    theirs = PreTrainedConfig.from_pretrained(folder)
    assert NEW in theirs.input_features
    assert TOP not in theirs.input_features
    before, _ = make_pre_post_processors(theirs, pretrained_path=str(folder))
    assert before.steps[0].rename_map == {TOP: NEW}
    assert {NEW} <= before.steps[4].stats.keys()
    assert "top" in open_checkpoint(folder).config.cameras
    run(replace(config, resume=True, steps=3, rename_map={}))
    last = tmp_path / "run/checkpoints/last" / PRETRAINED
    assert open_checkpoint(last).rename_map == {TOP: NEW}
    moved = config_for(frames, tmp_path / "b", clip_folder, steps=1, init_from=tmp_path / "run")
    run(moved)
    kept = json.loads((tmp_path / "b/checkpoints/last" / PRETRAINED / "config.json").read_text())
    assert NEW in kept["input_features"]


@pytest.mark.parametrize(
    ("names", "says"),
    [
        ({"observation.images.tpo": NEW}, "did you mean 'observation.images.top'"),
        ({TOP: "observation.images.wrist"}, "calls two"),
        ({TOP: "observation.images.a/b"}, "not a valid camera"),
        ({"observation.state": "observation.qpos"}, "leave it out of the map"),
        ({"observation.qpos": "observation.state"}, "renamed in meta/info.json"),
    ],
)
def test_maps_that_do_not_fit(
    names: dict[str, str], says: str, frames: Path, clip_folder: Path, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=says):
        train(config_for(frames, tmp_path, clip_folder, rename_map=names), Watcher())


def test_a_policy_with_other_names_says_which_map_fits(
    frames: Path, clip_folder: Path, tmp_path: Path
) -> None:
    run(config_for(frames, tmp_path / "a", clip_folder, steps=1, rename_map={TOP: NEW}))
    config = config_for(frames, tmp_path / "b", clip_folder, steps=1, init_from=tmp_path / "a")
    with pytest.raises(UserError, match=f"add --rename-map {TOP}=observation.images.side"):
        run(replace(config, rename_map={"observation.images.side": NEW}))
