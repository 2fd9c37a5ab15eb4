"""Makes training batches ahead, in threads."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import count
from types import TracebackType
from typing import Any

import torch
from torch import Tensor

from mtdit.data.batch import HostBatch
from mtdit.data.loader import Loader
from mtdit.data.sampler import (
    Shard,
)
from mtdit.policies.multi_task_dit.policy import Batch

# --- background threads


class Batches:
    """The batches of one process, step after step, made ahead of time by threads.

    Use it as a context manager: leaving it ends the threads.
    """

    def __init__(
        self,
        loader: Loader,
        first_step: int,
        parts: int = 1,
        rank: int = 0,
        world: int = 1,
        workers: int = 2,
    ) -> None:
        self.loader, self.parts = loader, [Shard(rank, world, i, parts) for i in range(parts)]
        self.wait_s = 0.0  # time that `next` has waited for the threads so far
        self.copying = torch.cuda.Stream(loader.device) if loader.device.type == "cuda" else None
        self.pool = ThreadPoolExecutor(workers, thread_name_prefix="batches")
        self.steps = count(first_step)
        # Each result is a list of HostBatch if the device is a GPU, else of Batch.
        self.ahead: deque[Future[list[Any]]] = deque()
        for _ in range(workers + 1):
            self._start_one()

    def next(self) -> list[Batch]:
        """The parts of the next step, on the device. An error in a thread is raised here."""
        began = time.perf_counter()
        made = self.ahead.popleft().result()
        self.wait_s += time.perf_counter() - began
        self._start_one()
        return made if self.copying is None else self._fetched(made, self.copying)

    def close(self) -> None:
        """Ends the threads; each one finishes at most its current batch."""
        self.pool.shutdown(wait=True, cancel_futures=True)

    def __enter__(self) -> Batches:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        self.close()

    def _start_one(self) -> None:
        self.ahead.append(self.pool.submit(self._make, next(self.steps)))

    def _make(self, step: int) -> list[Any]:
        made = self.loader.parts(step, self.parts)
        return (
            [self.loader.on_device(host) for host in made] if self.copying is None else list(made)
        )

    def _fetched(self, made: list[HostBatch], copying: torch.cuda.Stream) -> list[Batch]:
        """Copies to the GPU on a separate stream, so that it overlaps with the previous step."""
        with torch.cuda.stream(copying):
            batches = [self.loader.on_device(host) for host in made]
        computing = torch.cuda.current_stream(self.loader.device)
        computing.wait_stream(copying)
        for tensor in (t for batch in batches for t in _tensors(batch) if t.is_cuda):
            tensor.record_stream(computing)
        return batches


def _tensors(batch: Batch) -> Iterator[Tensor]:
    for value in vars(batch).values():
        yield from (
            t
            for t in (value.values() if isinstance(value, Mapping) else [value])
            if isinstance(t, Tensor)
        )
