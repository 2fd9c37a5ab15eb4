"""Makes the training batches of the next steps ahead of time, in threads."""

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
from mtdit.data.sampler import Shard
from mtdit.policies.multi_task_dit.policy import Batch


class Prefetcher:
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
        on_gpu = loader.device.type == "cuda"
        self.copy_stream = torch.cuda.Stream(loader.device) if on_gpu else None
        self.pool = ThreadPoolExecutor(workers, thread_name_prefix="batches")
        self.steps = count(first_step)
        # Each result is a list of HostBatch if the device is a GPU, else of Batch.
        self.pending: deque[Future[list[Any]]] = deque()
        for _ in range(workers + 1):
            self._submit()

    def next(self) -> list[Batch]:
        """The parts of the next step, on the device. An error in a thread is raised here."""
        began = time.perf_counter()
        made = self.pending.popleft().result()
        self.wait_s += time.perf_counter() - began
        self._submit()
        return made if self.copy_stream is None else self._to_device(made, self.copy_stream)

    def close(self) -> None:
        """Ends the threads; each one finishes at most its current batch."""
        self.pool.shutdown(wait=True, cancel_futures=True)

    def __enter__(self) -> Prefetcher:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        self.close()

    def _submit(self) -> None:
        self.pending.append(self.pool.submit(self._make, next(self.steps)))

    def _make(self, step: int) -> list[Any]:
        made = self.loader.host_batches(step, self.parts)
        if self.copy_stream is not None:
            return list(made)
        return [self.loader.on_device(host) for host in made]

    def _to_device(self, made: list[HostBatch], copy_stream: torch.cuda.Stream) -> list[Batch]:
        """Copies to the GPU on a separate stream, so that it overlaps with the previous step."""
        with torch.cuda.stream(copy_stream):
            batches = [self.loader.on_device(host) for host in made]
        compute_stream = torch.cuda.current_stream(self.loader.device)
        compute_stream.wait_stream(copy_stream)
        for tensor in (t for batch in batches for t in _tensors(batch) if t.is_cuda):
            tensor.record_stream(compute_stream)
        return batches


def _tensors(batch: Batch) -> Iterator[Tensor]:
    for value in vars(batch).values():
        yield from (
            t
            for t in (value.values() if isinstance(value, Mapping) else [value])
            if isinstance(t, Tensor)
        )
