"""Recorded demonstrations: repeatable, readable by LeRobot, and in the order in which the runtime
acts.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from lerobot.datasets.lerobot_dataset import LeRobotDataset

from mtdit_robots.errors import UserError
from mtdit_robots.extras import install
from mtdit_robots.so101.joints import JOINTS
from mtdit_robots.twin.tasks import find_task
from mtdit_robots.twin.world import World
from mtdit_runtime.simulate import SimulateReport, record, simulate

TASKS = ("open the drawer", "push the red cube to the left")
SIZE = (32, 48)

Recorded = tuple[Path, SimulateReport, list[tuple[int, int]]]  # folder, report, progress calls


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Recorded:
    out, seen = tmp_path_factory.mktemp("simulate") / "set", []
    report = simulate(
        TASKS,
        2,
        out,
        seed=5,
        image_size=SIZE,
        on_progress=lambda done, total: seen.append((done, total)),
    )
    return out, report, seen


def rows(out: Path) -> dict[str, np.ndarray]:
    files = sorted((out / "data").rglob("*.parquet"))
    table = pa.concat_tables(pq.read_table(file) for file in files)
    return {name: np.array(table[name].to_pylist()) for name in table.column_names}


def test_an_interrupted_recording_leaves_nothing(tmp_path: Path) -> None:
    def interrupt(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        simulate(TASKS[:1], 2, tmp_path / "set", image_size=SIZE, on_progress=interrupt)
    assert list(tmp_path.iterdir()) == []


def test_an_empty_folder_is_taken(tmp_path: Path) -> None:
    (tmp_path / "set").mkdir()
    simulate(TASKS[:1], 1, tmp_path / "set", image_size=SIZE)
    assert (tmp_path / "set/meta/info.json").is_file()


def test_report_and_progress(recorded: Recorded) -> None:
    out, report, seen = recorded
    assert report.kept == dict.fromkeys(TASKS, 2)
    assert seen == [(1, 4), (2, 4), (3, 4), (4, 4)]
    assert report.frames == len(rows(out)["index"])
    assert str(out) in report.summary()


def test_lerobot_reads_it(recorded: Recorded) -> None:
    out, report, _ = recorded
    dataset = LeRobotDataset("mtdit/set", root=out)
    assert (len(dataset), dataset.num_episodes, dataset.fps) == (report.frames, 4, 30)
    assert dataset.meta.robot_type == "so_follower"
    assert dataset.meta.features["action"]["names"] == [f"{joint}.pos" for joint in JOINTS]
    assert [dataset[int(i)]["task"] for i in dataset.meta.episodes["dataset_from_index"]] == [
        *TASKS,
        *TASKS,
    ]
    cameras = ["observation.images.top", "observation.images.wrist"]
    assert list(dataset.meta.features)[:4] == ["action", "observation.state", *cameras]
    stored = dataset.meta.features[cameras[0]]["info"]
    assert (stored["video.codec"], stored["video.g"], stored["video.crf"]) == ("h264", 2, 18)
    frame = dataset[10]
    assert (
        frame["observation.images.top"].shape
        == frame["observation.images.wrist"].shape
        == (3, *SIZE)
    )
    assert set(dataset.meta.stats) >= {"action", "observation.state", "observation.images.top"}


def test_equal_seeds_give_equal_values(recorded: Recorded, tmp_path: Path) -> None:
    out, _, _ = recorded
    simulate(TASKS, 2, tmp_path / "again", seed=5, image_size=SIZE)
    simulate(TASKS, 2, tmp_path / "other", seed=6, image_size=SIZE)
    first, again, other = rows(out), rows(tmp_path / "again"), rows(tmp_path / "other")
    assert first.keys() == again.keys()
    assert all((first[name] == again[name]).all() for name in first)
    assert not np.array_equal(first["observation.state"], other["observation.state"])


def test_videos_hold_what_the_cameras_saw_tick_by_tick(recorded: Recorded) -> None:
    """Frame t of the file is the picture before command t, up to compression."""
    out, _, _ = recorded
    dataset, world = LeRobotDataset("mtdit/set", root=out), World(find_task("open the drawer"))
    world.energise()
    world.reset(find_task(TASKS[0]), 5)
    moments = list(record(world, 0.0, SIZE))
    world.close()
    for tick in (0, 40, len(moments) - 1):
        row, (state, action, frames) = dataset[tick], moments[tick]
        assert (row["observation.state"].numpy() == state.astype(np.float32)).all()
        assert (row["action"].numpy() == action.astype(np.float32)).all()
        seen = (row["observation.images.wrist"].permute(1, 2, 0).numpy() * 255).astype(int)
        assert np.abs(seen - frames["wrist"]).mean() < 8


def test_states_are_whole_ticks_and_actions_lead(recorded: Recorded) -> None:
    data = rows(recorded[0])
    ticks = data["observation.state"][:, :4] * 4095 / 360  # wrist_roll's middle is half a tick
    assert np.abs(ticks - ticks.round()).max() < 1e-3
    assert (data["observation.state"][:, 5] >= 0).all()
    assert (data["observation.state"][:, 5] <= 100).all()
    moved = np.abs(data["action"][:, 0] - data["observation.state"][:, 0])
    assert 1 < moved.max() < 60


@pytest.mark.parametrize("module", ["av", "pyarrow.parquet"])
def test_a_missing_package_is_named_before_an_earlier_dataset_is_replaced(
    module: str, recorded: Recorded, monkeypatch: pytest.MonkeyPatch, refused: Callable[..., str]
) -> None:
    out = recorded[0]
    monkeypatch.setitem(sys.modules, module, None)
    line = refused("simulate", "--task", TASKS[0], "--out", str(out), "--overwrite")
    assert install("record") in line
    assert (out / "meta/info.json").is_file()


def test_missing_packages_are_named_together_and_before_the_progress_bar(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, refused: Callable[..., str]
) -> None:
    for module in ("mujoco", "pyarrow", "av"):
        monkeypatch.setitem(sys.modules, module, None)
    monkeypatch.setattr("mtdit.cli.commands.simulate.progress", None)  # not to be called
    line = refused("simulate", "--task", TASKS[0], "--out", str(tmp_path / "set"))
    said = "simulate needs mujoco, pyarrow and av, which are not installed"
    assert line == f"mtdit: {said}: {install('twin,record')}"
    with pytest.raises(UserError, match=said):
        simulate(TASKS[0], 1, tmp_path / "set")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"tasks": ["open drawer"]}, "did you mean 'open the drawer'"),
        ({"tasks": "open drawer"}, "did you mean 'open the drawer'"),
        ({"tasks": []}, "name at least one"),
        ({"tasks": ["open the drawer"] * 2}, "named twice"),
        ({"episodes": 0}, "episodes must be at least 1, got 0"),
        ({"image_size": (33, 32)}, "use even numbers"),
        ({"out": Path("/tmp")}, "exists already"),
    ],
)
def test_mistakes_are_named_before_anything_is_recorded(
    arguments: dict, message: str, tmp_path: Path
) -> None:
    options = {"tasks": ["open the drawer"], "episodes": 1, "out": tmp_path / "set", **arguments}
    with pytest.raises(UserError, match=message):
        simulate(**options)
    assert list(tmp_path.iterdir()) == []
