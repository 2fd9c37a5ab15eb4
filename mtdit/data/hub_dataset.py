"""Downloads LeRobotDatasets from the Hugging Face Hub, to the folders and from the revision that
LeRobot uses (0.6.1, datasets/dataset_metadata.py): either trains on what the other downloaded.

A dataset that was recorded here is in HF_LEROBOT_HOME/owner/name and wins. A download is in the
client's cache HF_LEROBOT_HOME/hub, of the newest tag v3.x. Earlier versions of LeRobot and mtdit
downloaded to HF_LEROBOT_HOME/owner/name; such a folder may be incomplete or of another revision,
so it is used only when the Hub cannot be asked.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable
from functools import cache
from pathlib import Path

import pyarrow.parquet as pq

from mtdit.hub import TIMEOUT_S, client_errors, explained
from mtdit_robots.errors import UserError
from mtdit_robots.so101.calibration_places import lerobot_home
from mtdit_runtime.recording.dataset_layout import INFO, TASKS
from mtdit_runtime.recording.dataset_reader import (
    DATA,
    EPISODES,
    damage_named,
    read_episodes,
    read_info,
    table_files,
)
from mtdit_runtime.recording.dataset_videos import video_keys, video_piece

FORMAT = 3  # major version of the dataset format
NEWEST = "v3.0"  # the tag that LeRobot 0.6.1 writes
BRANCH = "main"
CONVERTER = "python -m lerobot.scripts.convert_dataset_v21_to_v30"

log = logging.getLogger(__name__)


@cache  # one process trains on one revision, and asks the Hub once
def fetch_dataset(repo_id: str) -> Path:
    """The folder of the dataset with this Hub repo id, downloaded if needed.

    A download that was interrupted goes on. UserError: the repository does not exist, is not
    accessible or has no dataset of format v3, or there is no network and no complete copy.
    """
    own = lerobot_home() / repo_id
    if (own / INFO).is_file() and not _is_download(own):
        return own
    log.warning("%s is not a local folder: looking for it on the Hugging Face Hub", repo_id)
    kept_in = lerobot_home() / "hub"
    try:
        revision = _revision(repo_id)
    except client_errors() as error:
        with explained(repo_id, "dataset", f"no {INFO}, so it is not a LeRobotDataset"):
            return _kept(repo_id, [*_snapshots(repo_id, kept_in), own], error)
    if _is_download(own):
        log.warning(
            "%s is a download of an earlier LeRobot or mtdit and is not used, as in LeRobot: "
            "to train on it as it is, pass this folder",
            own,
        )
    with explained(repo_id, "dataset", f"no {INFO}, so it is not a LeRobotDataset"):
        return _download(repo_id, revision, kept_in)


def _is_download(folder: Path) -> bool:
    """Whether the Hub's client filled this folder, which says nothing of completeness."""
    return (folder / ".cache/huggingface/download").exists()


def _download(repo_id: str, revision: str, kept_in: Path) -> Path:
    from huggingface_hub import snapshot_download

    return Path(
        snapshot_download(
            repo_id,
            repo_type="dataset",
            revision=revision,
            cache_dir=kept_in,
        )
    )


# --- the revision


def _revision(repo_id: str) -> str:
    """The tag or branch of the newest format v3.x; the main branch if nothing is tagged.

    UserError for a dataset of another format. The client's errors are for the caller.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, RepositoryNotFoundError

    api = HfApi()
    try:
        api.repo_info(repo_id, repo_type="dataset", revision=NEWEST, timeout=TIMEOUT_S)
        return NEWEST
    except HfHubHTTPError as error:
        if isinstance(error, RepositoryNotFoundError) or error.response.status_code != 404:
            raise
    refs = api.list_repo_refs(repo_id, repo_type="dataset")
    return _newest(repo_id, [ref.name for ref in (*refs.branches, *refs.tags)])


def _newest(repo_id: str, names: Iterable[str]) -> str:
    versions = sorted((version, name) for name in names if (version := _version(name)))
    fitting = [name for version, name in versions if version[0] == FORMAT]
    if fitting:
        return fitting[-1]
    if not versions:
        log.warning(
            "%s has no tag with the version of its format, which LeRobot needs: "
            "its branch %s is used",
            repo_id,
            BRANCH,
        )
        return BRANCH
    name = versions[-1][1]
    fix = "use a newer mtdit"
    if versions[-1][0][0] < FORMAT:
        fix = f"convert it with `{CONVERTER} --repo-id={repo_id} --push-to-hub=false`"
    raise UserError(
        f"{repo_id} on the Hub is in format {name} of LeRobot, but mtdit reads v{FORMAT}: {fix}"
    )


def _version(name: str) -> tuple[int, ...]:
    """(3, 0) of "v3.0"; empty for a name that is no version."""
    found = re.fullmatch(r"v?(\d+)\.(\d+)(?:\.(\d+))?", name)
    return tuple(int(number or 0) for number in found.groups()) if found else ()


# --- without the Hub


def _snapshots(repo_id: str, kept_in: Path) -> list[Path]:
    """The folders of earlier downloads in the client's cache, newest format first."""
    storage = kept_in / f"datasets--{repo_id.replace('/', '--')}"
    refs = [ref for ref in (storage / "refs").glob("*") if ref.is_file()]
    named = {ref.name: storage / "snapshots" / ref.read_text().strip() for ref in refs}
    of_format = sorted((v, name) for name in named if (v := _version(name))[:1] == (FORMAT,))
    names = [name for _, name in reversed(of_format)] + [n for n in (BRANCH,) if n in named]
    return [named[name] for name in names]


def _kept(repo_id: str, folders: Iterable[Path], error: Exception) -> Path:
    """The first of the folders that holds a complete copy.

    UserError names what the best one lacks; `error` is raised if there is none.
    """
    incomplete = ""
    for folder in folders:
        if not (folder / INFO).is_file():
            continue
        lacks = _lacks(folder)
        if not lacks:
            log.warning("%s cannot be read on the Hub: using the copy in %s", repo_id, folder)
            return folder
        incomplete = incomplete or f"{folder} lacks {lacks}"
    if not incomplete:
        raise error
    raise UserError(
        f"{repo_id} was not downloaded completely ({incomplete}), and the Hub does not give the "
        "rest: run the same command again with a network, and the download goes on"
    )


def _lacks(root: Path) -> str:
    """The first part that a download lacks, going by the dataset's own tables; "" for a whole one.

    UserError when what is there is damaged.
    """
    with damage_named(root):
        info, episodes = read_info(root), read_episodes(root)
        if not (root / TASKS).is_file():
            return TASKS
        if len(episodes) < int(info["total_episodes"]):
            return f"{int(info['total_episodes']) - len(episodes)} episodes of {EPISODES}"
        rows = sum(pq.read_metadata(file).num_rows for file in table_files(root, DATA))
        wanted = sum(episode["length"] for episode in episodes)
        if rows < wanted:
            return f"{wanted - rows} of {wanted} frames in {DATA}"
        videos = {
            video_piece(root, info, episode, key).path
            for key in video_keys(info, episodes)
            for episode in episodes
        }
        return next((path for path in sorted(videos) if not (root / path).is_file()), "")
