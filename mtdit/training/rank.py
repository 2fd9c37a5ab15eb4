"""The rank of this process, without torch: the command line asks before torch is imported."""

from __future__ import annotations

import os


def rank() -> int:
    """Rank of this training process, as `accelerate launch` and `torchrun` set it; only rank 0
    prints.
    """
    return int(os.environ.get("RANK", 0))
