"""Downloads checkpoints and CLIP files from the Hugging Face Hub, and explains failed downloads.

A local folder always wins over the Hub. A mistyped folder is not looked up there: in `owner/name`,
`owner` must not be a local folder.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from mtdit_robots.errors import UserError

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

        kept_only = not self._answers(repo_id, name)
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

        kept_only = not self._answers(repo_id, CONFIG)
        return Path(
            snapshot_download(
                repo_id,
                allow_patterns=CHECKPOINT_FILES,
                endpoint=self.endpoint,
                cache_dir=self.kept_in,
                local_files_only=kept_only,
            )
        )

    def _answers(self, repo_id: str, name: str) -> bool:
        """Whether the Hub can be reached, tried once with a short timeout.

        Without a network the client would try for half a minute before it uses its cache.
        """
        import httpx
        from huggingface_hub import get_hf_file_metadata, hf_hub_url

        try:
            get_hf_file_metadata(
                hf_hub_url(repo_id, name, endpoint=self.endpoint), timeout=TIMEOUT_S
            )
        except (httpx.TransportError, ConnectionError):  # ConnectionError: HF_HUB_OFFLINE is set
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
    from huggingface_hub.errors import (
        EntryNotFoundError,
        GatedRepoError,
        HFValidationError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
    )

    log.warning("%s is not a local folder: looking for it on the Hugging Face Hub", repo_id)
    try:
        check(hub.file(repo_id, CONFIG))
        return hub.checkpoint(repo_id)
    except GatedRepoError:
        why = (
            f"is gated: accept its terms at https://huggingface.co/{repo_id}, then run "
            "`hf auth login`"
        )
    except RepositoryNotFoundError:
        why = (
            "is neither a local folder nor on the Hub: check the name; for a private repository "
            "run `hf auth login` first"
        )
    except LocalEntryNotFoundError:
        why = (
            "is not a local folder, and the Hub cannot be reached: check the path, or try again "
            "with a network"
        )
    except EntryNotFoundError:
        why = f"on the Hub has no {CONFIG}, so it is not a policy: give another repository"
    except (HFValidationError, OSError) as error:
        reason = str(error).strip().partition("\n")[0]
        why = f"cannot be downloaded from the Hub ({reason}): try again, or give a local folder"
    raise UserError(f"{repo_id} {why}")
