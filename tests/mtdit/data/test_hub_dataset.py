"""Datasets of the Hub, with the real client and with LeRobot's own download as the oracle."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
from hub import Repository, SmallHub, folder_files, serving, use, use_in_lerobot
from small_recording import write

from mtdit.data.frame_cache import StoredDataset
from mtdit.data.hub_dataset import fetch_dataset
from mtdit.data.lerobot_dataset import find_dataset, open_dataset
from mtdit_robots.errors import UserError

NAME = "some/drawer"
INFO, DATA = "meta/info.json", "data/chunk-000/file-000.parquet"
TOP = "videos/observation.images.top/chunk-000/file-000.mp4"


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, bytes]:
    """A dataset as it is uploaded."""
    folder = write(tmp_path_factory.mktemp("recorded") / "drawer")
    return {"README.md": b"a drawer", **folder_files(folder)}


@pytest.fixture
def hub(
    files: Mapping[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[SmallHub]:
    """The tag v3.0 holds the dataset; its main branch has moved on to something unreadable."""
    newer = {INFO: b'{"codebase_version": "v4.0"}'}
    with serving(SmallHub(datasets={NAME: Repository({"main": newer, "v3.0": files})})) as hub:
        use(hub, tmp_path, monkeypatch)
        fetch_dataset.cache_clear()
        yield hub


def again(hub: SmallHub) -> Path:
    """The folder that a new process finds."""
    fetch_dataset.cache_clear()
    hub.asked.clear()
    hub.whole.clear()
    return find_dataset(NAME)


def test_the_tag_of_the_format_comes_into_lerobots_folder(hub: SmallHub, tmp_path: Path) -> None:
    dataset = open_dataset(NAME)
    assert len(dataset.episode_ends) == 3
    commit = hub.datasets[NAME].commit("v3.0")
    cache = tmp_path / "hub/datasets--some--drawer"
    assert dataset.root == cache / "snapshots" / commit
    assert sum(1 for _ in StoredDataset(dataset, None).decoded("top")) == len(dataset.state)
    asked = len(hub.asked)
    assert find_dataset(NAME) == dataset.root
    assert len(hub.asked) == asked, "asked once per process"
    assert again(hub) == dataset.root
    assert not hub.whole, "nothing comes twice"


def test_a_download_that_was_cut_goes_on(hub: SmallHub, files: Mapping[str, bytes]) -> None:
    hub.cut_after = sum(map(len, files.values())) // 2
    with pytest.raises(UserError, match=f"^{NAME} .*(goes on|is kept)"):
        find_dataset(NAME)
    came = set(hub.whole)
    assert came
    assert came < set(files)
    with pytest.raises(UserError, match=r"was not downloaded completely|Hub cannot be reached"):
        again(hub)  # it is still out of order
    hub.out_of_order, hub.cut_after = False, None
    folder = again(hub)
    assert set(hub.whole) == set(files) - came
    assert folder_files(folder) == dict(files)
    assert len(open_dataset(NAME).episode_ends) == 3


@pytest.mark.parametrize("lost", [TOP, DATA, "meta/tasks.parquet"])
def test_without_the_hub_a_complete_copy_is_used(
    hub: SmallHub, lost: str, caplog: pytest.LogCaptureFixture
) -> None:
    folder = find_dataset(NAME)
    hub.out_of_order = True
    assert again(hub) == folder
    assert f"using the copy in {folder}" in caplog.text
    (folder / lost).unlink()
    with pytest.raises(UserError, match=r"was not downloaded completely .*the download goes on"):
        again(hub)
    hub.out_of_order = False
    assert again(hub) == folder
    assert (folder / lost).is_file()


def test_what_lerobot_downloaded_is_used_and_the_other_way_round(
    hub: SmallHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from lerobot.datasets.lerobot_dataset import LeRobotDataset

    use_in_lerobot(tmp_path, monkeypatch)
    theirs = LeRobotDataset(NAME, video_backend="pyav")
    assert again(hub) == Path(theirs.root)
    assert not hub.whole
    hub.out_of_order = True
    assert again(hub) == Path(theirs.root)
    hub.out_of_order = False
    shutil.rmtree(Path(theirs.root).parents[1])
    ours = again(hub)
    hub.whole.clear()
    assert Path(LeRobotDataset(NAME, video_backend="pyav").root) == ours
    assert not hub.whole


def test_what_lerobot_downloaded_in_part_is_completed(
    hub: SmallHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from lerobot.datasets.dataset_metadata import LeRobotDatasetMetadata

    use_in_lerobot(tmp_path, monkeypatch)
    begun = Path(LeRobotDatasetMetadata(NAME).root)
    assert not (begun / DATA).exists()
    hub.out_of_order = True
    with pytest.raises(UserError, match="lacks 38 of 38 frames in data"):
        again(hub)
    hub.out_of_order = False
    assert again(hub) == begun
    assert len(open_dataset(NAME).episode_ends) == 3


def test_a_recording_of_this_computer_wins(
    hub: SmallHub, files: Mapping[str, bytes], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    own = tmp_path / NAME
    for name, content in files.items():
        (own / name).parent.mkdir(parents=True, exist_ok=True)
        (own / name).write_bytes(content)
    assert find_dataset(NAME) == own
    assert not hub.asked
    # the same folder, filled by an earlier LeRobot or mtdit, which may have been interrupted
    (own / ".cache/huggingface/download").mkdir(parents=True)
    assert again(hub) == tmp_path / "hub/datasets--some--drawer/snapshots" / hub.datasets[
        NAME
    ].commit("v3.0")
    assert f"{own} is a download of an earlier LeRobot or mtdit" in caplog.text
    shutil.rmtree(tmp_path / "hub")
    hub.out_of_order = True
    assert again(hub) == own
    (own / TOP).unlink()
    with pytest.raises(UserError, match=f"lacks {TOP}"):
        again(hub)


@pytest.mark.parametrize(
    ("tags", "chosen"),
    [
        (("v2.1", "v3.0"), "v3.0"),
        (("v2.1", "v3.1"), "v3.1"),
        (("v4.0", "v3.0"), "v3.0"),
        ((), "main"),
        (("demo", "final"), "main"),
    ],
)
def test_which_revision(hub: SmallHub, tags: tuple[str, ...], chosen: str) -> None:
    contents = {name: {INFO: name.encode()} for name in ("main", *tags)}
    hub.datasets[NAME] = Repository(contents)
    assert (find_dataset(NAME) / INFO).read_text() == chosen


@pytest.mark.parametrize(
    ("repository", "name", "says"),
    [
        (None, "some/typo", "is neither a local folder nor a dataset on the Hub: check the name"),
        (None, "some/..", r"nor a name of the Hub \(owner/name\)"),
        (
            Repository({"main": {}, "v3.0": {INFO: b"{}"}}, gated=True),
            NAME,
            f"is gated: accept its terms at https://huggingface.co/datasets/{NAME}",
        ),
        (Repository({"main": {}, "v2.1": {}}), NAME, f"format v2.1 .*v30 --repo-id={NAME} "),
        (Repository({"main": {}, "v4.0": {}}), NAME, "format v4.0 .*use a newer mtdit"),
    ],
)
def test_what_gives_no_dataset(
    repository: Repository | None, name: str, says: str, hub: SmallHub
) -> None:
    if repository is not None:
        hub.datasets[NAME] = repository
    with pytest.raises(UserError, match=says) as refused:
        find_dataset(name)
    assert "\n" not in str(refused.value)


def test_the_converter_that_is_named_exists() -> None:
    import importlib.util

    from mtdit.data.hub_dataset import CONVERTER

    assert importlib.util.find_spec(CONVERTER.split()[-1]) is not None


def test_the_variables_that_the_packages_read(hub: SmallHub, tmp_path: Path) -> None:
    """A process of its own, with nothing set but the environment; offline the second time."""
    say = f"from mtdit.data.lerobot_dataset import find_dataset; print(find_dataset({NAME!r}))"
    variables = {**os.environ, "HF_ENDPOINT": hub.url, "HF_LEROBOT_HOME": str(tmp_path / "own")}
    commit = hub.datasets[NAME].commit("v3.0")
    for offline in ("0", "1"):
        done = subprocess.run(
            [sys.executable, "-c", say],
            env={**variables, "HF_HUB_OFFLINE": offline},
            capture_output=True,
            text=True,
            check=True,
        )
        place = tmp_path / "own/hub/datasets--some--drawer/snapshots" / commit
        assert done.stdout.strip() == str(place)
