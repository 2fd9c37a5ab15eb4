"""What of a dataset a policy is trained on: `--cameras`, and one line about what is left out."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from command_line import assert_one_line, mtdit
from dataset_liberties import LIBERTIES
from made_dataset import IMAGES, JOINTS, Made, plain
from small_run import Watcher, config_for, run

from mtdit.checkpoint.read import open_checkpoint
from mtdit.training.run import train
from mtdit_robots.errors import UserError

MORE = ("depth_video", "depth_pictures", "velocities", "sound", "rewards_and_flags")


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two cameras, and of everything else that a recorder may add."""
    made = next(
        m for seed in range(99) if len((m := plain(np.random.default_rng(seed))).videos()) == 2
    )
    for name in MORE:
        LIBERTIES[name].change(made, np.random.default_rng(0))
    return _written(made, tmp_path_factory.mktemp("datasets") / "more")


def _written(made: Made, root: Path) -> Path:
    assert [f"{joint}.pos" for joint in JOINTS] == made.features["action"]["names"]
    return made.write(root)


def cameras_of(dataset: Path) -> list[str]:
    return sorted(path.name.removeprefix(IMAGES) for path in (dataset / "videos").iterdir())


def test_a_policy_of_one_camera(dataset: Path, clip_folder: Path, tmp_path: Path) -> None:
    """It goes on with that camera, from the dataset and from its own frames."""
    one, other = cameras_of(dataset)
    watcher = Watcher()
    options = {"steps": 1, "cameras": (one,), "policy": {"image_crop_shape": None}}
    config = config_for(dataset, tmp_path / "run", clip_folder, **options)
    first = train(config, watcher)
    (line,) = [line for line in watcher.lines if "left out" in line]
    for part in (
        f"{IMAGES}{other} (not chosen)",
        "a depth map)",
        "observation.velocity, ",
        "audio",
    ):
        assert part in line
    assert list(open_checkpoint(first).config.cameras) == [one]
    assert not (tmp_path / f"run/frames/frames.{other}.npy").exists()
    run(replace(config, resume=True, steps=2, cameras=None))
    for number, place in enumerate((dataset, _frames_of_all(dataset, clip_folder, tmp_path))):
        goes_on = config_for(
            place, tmp_path / f"on-{number}", clip_folder, **{**options, "cameras": None}
        )
        last, _ = run(replace(goes_on, init_from=first))
        assert list(open_checkpoint(last).config.cameras) == [one]


def _frames_of_all(dataset: Path, clip_folder: Path, tmp_path: Path) -> Path:
    config = config_for(dataset, tmp_path / "all", clip_folder, steps=1)
    last, _ = run(config)
    assert sorted(open_checkpoint(last).config.cameras) == cameras_of(dataset)
    return tmp_path / "all/frames"


@pytest.mark.parametrize(
    ("cameras", "says"),
    [
        ("front", "has no camera 'front'; it has "),
        ("top_depth", r"has no camera 'top_depth' that a policy can use \(a depth map\); it has"),
        ("observation.velocity", r"can use \(not an input of this policy\)"),
        ("", "has no camera ''; it has"),
    ],
)
def test_a_camera_that_cannot_be_had(
    cameras: str, says: str, dataset: Path, clip_folder: Path, tmp_path: Path
) -> None:
    config = config_for(dataset, tmp_path / "run", clip_folder, cameras=cameras)
    with pytest.raises(UserError, match=says):
        train(config, Watcher())


def test_words_of_the_command_line(dataset: Path, tmp_path: Path) -> None:
    one, other = cameras_of(dataset)
    features = (
        f'{{"{IMAGES}{one}": {{"type": "VISUAL"}}, "observation.state": {{"type": "STATE"}}}}'
    )
    tiny = ("--preset", "tiny", "--steps", "1", "--batch-size", "2", "--device", "cpu")
    for number, words in enumerate(
        (("--cameras", f"{one}, {other}"), (f"--policy.input_features={features}",))
    ):
        out = tmp_path / str(number)
        done = mtdit("train", "--dataset", dataset, *tiny, "--out", out, *words, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        kept = open_checkpoint(out).config.cameras
        assert sorted(kept) == ([one, other], [one])[number]
        assert done.stdout.count("left out of the dataset: ") == 1
    done = mtdit("train", "--dataset", dataset, *tiny, "--out", "c", "--cameras", "x", cwd=tmp_path)
    assert_one_line(done, "has no camera 'x'")
