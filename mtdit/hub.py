"""Downloads checkpoints and CLIP files from the Hugging Face Hub, and explains failed downloads.

A local folder always wins over the Hub. A mistyped folder is not looked up there: in `owner/name`,
`owner` must not be a local folder. Files that came whole are kept, so a download that was
interrupted goes on. Datasets are in `mtdit.data.hub_dataset`.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from mtdit_robots.errors import UserError
from mtdit_runtime.text import first_line

CONFIG = "config.json"
CHECKPOINT_FILES = [
    CONFIG,
    "model.safetensors",
    "policy_p*",
    "train_config.json",
    "mtdit.json",
    "dataset_stats.json",
    "clip/*",
    "tokenizer/*",
]
TIMEOUT_S = 5.0  # timeout of the first request

log = logging.getLogger(__name__)

_REPO_ID = re.compile(r"\w[\w.-]*/\w[\w.-]*", re.ASCII)
_OURS = "outputs"  # the default folder of runs: always a path, even before it exists


@dataclass(frozen=True)
class Hub:
    """The Hub's address and the local cache folder; None: the settings of huggingface_hub."""

    endpoint: str | None = None
    kept_in: Path | None = None

    def file(self, repo_id: str, name: str) -> Path:
        """One file, downloaded once. The caller handles the client's errors."""
        from huggingface_hub import hf_hub_download

        kept_only = not self.answers(repo_id, name)
        return Path(
            hf_hub_download(
                repo_id,
                name,
                endpoint=self.endpoint,
                cache_dir=self.kept_in,
                local_files_only=kept_only,
            )
        )

    def checkpoint(self, repo_id: str) -> Path:
        """A folder with all files of the checkpoint."""
        from huggingface_hub import snapshot_download

        kept_only = not self.answers(repo_id, CONFIG)
        return Path(
            snapshot_download(
                repo_id,
                allow_patterns=CHECKPOINT_FILES,
                endpoint=self.endpoint,
                cache_dir=self.kept_in,
                local_files_only=kept_only,
            )
        )

    def answers(self, repo_id: str, name: str) -> bool:
        """Whether the Hub can be reached, tried once with a short timeout.

        Without a network the client would try for half a minute before it uses its cache.
        """
        from huggingface_hub import get_hf_file_metadata, hf_hub_url

        try:
            get_hf_file_metadata(
                hf_hub_url(repo_id, name, endpoint=self.endpoint), timeout=TIMEOUT_S
            )
        except Exception as error:
            if not is_unreachable(error):
                raise
            return False
        return True


def is_repo_id(path: Path) -> bool:
    """Whether this can only be the owner/name of a Hub repository, not a local path."""
    owner = path.parts[0] if path.parts else ""
    return bool(_REPO_ID.fullmatch(str(path))) and owner != _OURS and not Path(owner).exists()


@cache
def fetch(repo_id: str, check: Callable[[Path], object], hub: Hub = Hub()) -> Path:
    """Downloads a checkpoint from the Hub and returns its folder.

    `check` gets the path of its config.json before the weights are downloaded. UserError: the
    repository does not exist, is not accessible or contains no policy, or there is no network and
    it was not downloaded before.
    """
    log.warning("%s is not a local folder: looking for it on the Hugging Face Hub", repo_id)
    lacking = f"no {CONFIG}, so it is not a policy"
    with explained(repo_id, "model", lacking):
        config = hub.file(repo_id, CONFIG)
    check(config)
    with explained(repo_id, "model", lacking):
        return hub.checkpoint(repo_id)


def is_unreachable(error: Exception) -> bool:
    """Whether one of the client's errors means that the Hub gives no answer: no network,
    HF_HUB_OFFLINE, or a Hub that is out of order.
    """
    import httpx
    from huggingface_hub.errors import HfHubHTTPError

    if isinstance(error, HfHubHTTPError):
        return error.response.status_code >= 500
    return isinstance(error, (httpx.TransportError, ConnectionError))


def client_errors() -> tuple[type[Exception], ...]:
    """Everything that a failed download raises: in huggingface_hub, in httpx, in hf_xet."""
    import httpx

    return httpx.HTTPError, OSError, ValueError, RuntimeError


@contextmanager
def explained(repo_id: str, kind: str, lacking: str) -> Iterator[None]:
    """Turns the client's errors into a UserError of one line.

    kind: "model" or "dataset". lacking: what is said of a repository that lacks a file.
    """
    try:
        yield
    except client_errors() as error:
        raise UserError(f"{repo_id} {_reason(repo_id, kind, lacking, error)}") from None


def _reason(repo_id: str, kind: str, lacking: str, error: Any) -> str:
    from huggingface_hub.errors import (
        EntryNotFoundError,
        GatedRepoError,
        HFValidationError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
    )

    page = f"https://huggingface.co/{'datasets/' if kind == 'dataset' else ''}{repo_id}"
    if isinstance(error, GatedRepoError):
        return f"is gated: accept its terms at {page}, then run `hf auth login`"
    if isinstance(error, RepositoryNotFoundError):
        return (
            f"is neither a local folder nor a {kind} on the Hub: check the name; for a private "
            "repository run `hf auth login` first"
        )
    if isinstance(error, HFValidationError):
        return "is neither a local folder nor a name of the Hub (owner/name): check it"
    if hasattr(error, "snapshot_path"):  # IncompleteSnapshotError of newer clients
        return (
            "was not downloaded completely, and the Hub cannot be reached: run the same command "
            "again with a network, and the download goes on"
        )
    if isinstance(error, LocalEntryNotFoundError) or is_unreachable(error):
        return (
            "is not a local folder, and the Hub cannot be reached: check the path, or try again "
            "with a network (what came so far is kept)"
        )
    if isinstance(error, EntryNotFoundError):
        return f"on the Hub has {lacking}: give another repository"
    return (
        f"cannot be downloaded from the Hub ({first_line(error)}): run the same command again, "
        "and the download goes on, or give a local folder"
    )
