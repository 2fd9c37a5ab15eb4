"""One batch of a loader, made in this thread."""

from __future__ import annotations

from mtdit.data.loader import Loader
from mtdit.data.sampler import Shard
from mtdit.policies.multi_task_dit.policy import Batch

WHOLE = Shard()


def batch_of(loader: Loader, step: int, part: Shard = WHOLE) -> Batch:
    """The batch of one part of training step `step`, on the loader's device."""
    (host,) = loader.host_batches(step, [part])
    return loader.on_device(host)
