"""The Hugging Face Hub: which word names a repository, and its files on this disk.

Knows repository ids, the Hub's own client and the ways a download fails. Refuses to know what the
files mean. A folder always wins over the Hub, and a mistyped folder is not looked up there: what
stands before the slash must not be a folder either.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from mtdit.terminal import console
from mtdit_robots.errors import UserError

CONFIG = "config.json"
CHECKPOINT_FILES = [CONFIG, "model.safetensors", "policy_p*", "train_config.json", "mtdit.json", "dataset_stats.json",
                    "clip/*", "tokenizer/*"]  # fmt: skip
PATIENCE_S = 5.0  # for the first answer

_REPO_ID = re.compile(r"\w[\w.-]*/\w[\w.-]*", re.ASCII)
_OURS = "outputs"  # where runs are by default: a path also before there is any


@dataclass(frozen=True)
class Hub:
    """Where files come from and where they are kept; None: as huggingface_hub is set up."""

    endpoint: str | None = None
    kept_in: Path | None = None

    def file(self, repo_id: str, name: str) -> Path:
        """One file, downloaded once. What the client raises is the caller's to explain."""
        from huggingface_hub import hf_hub_download

        kept_only = not self._answers(repo_id, name)
        return Path(
            hf_hub_download(
                repo_id, name, endpoint=self.endpoint, cache_dir=self.kept_in, local_files_only=kept_only
            )
        )  # fmt: skip

    def checkpoint(self, repo_id: str) -> Path:
        """A folder with all that a checkpoint may consist of."""
        from huggingface_hub import snapshot_download

        kept_only = not self._answers(repo_id, CONFIG)
        return Path(
            snapshot_download(
                repo_id, allow_patterns=CHECKPOINT_FILES, endpoint=self.endpoint, cache_dir=self.kept_in,
                local_files_only=kept_only,
            )
        )  # fmt: skip

    def _answers(self, repo_id: str, name: str) -> bool:
        """Asked once: without a network the client would try for half a minute before it looks at
        what it kept.
        """
        import httpx
        from huggingface_hub import get_hf_file_metadata, hf_hub_url

        try:
            get_hf_file_metadata(
                hf_hub_url(repo_id, name, endpoint=self.endpoint), timeout=PATIENCE_S
            )
        except (httpx.TransportError, ConnectionError):  # the second: HF_HUB_OFFLINE is set
            return False
        return True


def is_repo_id(path: Path) -> bool:
    """Whether this can only be owner/name of a Hub repository."""
    owner = path.parts[0] if path.parts else ""
    return bool(_REPO_ID.fullmatch(str(path))) and owner != _OURS and not Path(owner).exists()


@cache
def fetch(repo_id: str, check: Callable[[Path], object], hub: Hub = Hub()) -> Path:
    """The folder with a checkpoint of the Hub. `check` sees its config.json before the weights
    come.

    UserError: no such repository, not allowed to see it, no policy in it, or no network and not
    downloaded before.
    """
    from huggingface_hub.errors import (
        EntryNotFoundError,
        GatedRepoError,
        HFValidationError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
    )

    console.print(f"no folder {repo_id} here: asking the Hugging Face Hub for it")
    try:
        check(hub.file(repo_id, CONFIG))
        return hub.checkpoint(repo_id)
    except GatedRepoError:
        why = (
            f"is closed: accept its terms at https://huggingface.co/{repo_id}, then `hf auth login`"
        )
    except RepositoryNotFoundError:
        why = "is neither a folder here nor on the Hub: check the name; for a private one `hf auth login` first"
    except LocalEntryNotFoundError:
        why = "is no folder here, and the Hub cannot be reached: check the path, or try again with a network"
    except EntryNotFoundError:
        why = f"on the Hub has no {CONFIG}, so it is no policy: give another"
    except (HFValidationError, OSError) as error:
        why = f"cannot be had from the Hub ({str(error).strip().partition(chr(10))[0]}): try again, or give a folder"
    raise UserError(f"{repo_id} {why}")
