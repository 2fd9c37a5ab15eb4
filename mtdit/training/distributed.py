"""Distributed training: the processes of a run, how they synchronise, and stop signals.

It uses accelerate and torch.distributed; a single process works the same way.

Processes exchange small values on the host with gloo, separately from the gradients, so asking
whether to stop makes no GPU wait. A process that fails prints the reason and ends; the others then
exit silently, and the launcher ends the job.
"""

from __future__ import annotations

import atexit
import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, NoReturn, TypeVar

import torch
import torch.distributed as dist
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import DistributedDataParallelKwargs

from mtdit.training.rank import rank
from mtdit_robots.errors import UserError

TIMEOUT = timedelta(days=30)  # the main process may decode frames for hours while the others wait
# A second Ctrl-C within this time is ignored: launchers forward one that a process already got.
INTERRUPT_GRACE_S = 2.0
T = TypeVar("T")


@dataclass(frozen=True)
class ProcessGroup:
    """This process, as one of the processes that train together."""

    accelerator: Accelerator
    device: torch.device
    gloo: Any = None  # torch's process group on the host; None for a single process

    @property
    def rank(self) -> int:
        return self.accelerator.process_index

    @property
    def world(self) -> int:
        return self.accelerator.num_processes

    @property
    def main(self) -> bool:
        """Whether this is the process that prints and writes files."""
        return self.accelerator.is_main_process

    def all_reduce_max(self, *values: float) -> tuple[float, ...]:
        """The maximum of each value over the processes, the same on all. Waits for all of them."""
        if self.gloo is None:
            return values
        # Never empty: gloo does not synchronise on an empty tensor.
        highest = torch.tensor([0.0, *values], dtype=torch.float64)
        with self.exit_on_peer_failure():
            dist.all_reduce(highest, dist.ReduceOp.MAX, group=self.gloo)
        return tuple(highest[1:].tolist())

    def rank0_first(self, work: Callable[[], T]) -> T:
        """Runs `work` in the main process first, then in one process of every other computer, then
        in the rest, which find files and caches already written.
        """
        turn = 0 if self.main else 1 if self.accelerator.is_local_main_process else 2
        for now in range(3):
            if now == turn:
                result = work()
            self.all_reduce_max()
        return result

    def mean(self, values: torch.Tensor) -> torch.Tensor:
        """The mean over the processes; values are on the device."""
        with self.exit_on_peer_failure():
            return self.accelerator.reduce(values, "mean")

    def fail(self, message: str) -> NoReturn:
        """Ends all processes with an error that all have found; only the main one prints it."""
        raise UserError(message) if self.main else SystemExit(2)

    @contextmanager
    def exit_on_peer_failure(self) -> Iterator[None]:
        """Inside the block, exits silently when another process has ended, or on a signal.

        The main process raises KeyboardInterrupt for the signal instead.
        """
        try:
            yield
        except KeyboardInterrupt:
            if self.main:
                raise
            raise SystemExit(130) from None
        except RuntimeError as error:
            if self.world > 1 and _is_peer_failure(error):
                raise SystemExit(1) from None
            raise


@contextmanager
def rank0_errors() -> Iterator[None]:
    """For a UserError that all processes raise before they are connected: only rank 0 prints it."""
    try:
        yield
    except UserError:
        if rank():
            raise SystemExit(2) from None
        raise


def _is_peer_failure(error: RuntimeError) -> bool:
    return isinstance(error, dist.DistError) or "gloo" in str(error)


def init_distributed(device: torch.device, amp: str) -> ProcessGroup:
    """The ProcessGroup of this process: alone, or with those of `accelerate launch` or `torchrun`.

    UserError when the started processes cannot train together.
    """
    _check_launch(device)
    # A process may train twice, with another precision or on another device.
    AcceleratorState._reset_state(reset_partial_state=not dist.is_initialized())
    ddp = DistributedDataParallelKwargs(broadcast_buffers=False, gradient_as_bucket_view=True)
    cpu = device.type == "cpu"
    accelerator = Accelerator(
        mixed_precision=amp, cpu=cpu, device_placement=False, kwargs_handlers=[ddp]
    )
    if accelerator.num_processes == 1:
        return ProcessGroup(accelerator, device)
    atexit.register(_leave)
    return ProcessGroup(
        accelerator, accelerator.device, dist.new_group(backend="gloo", timeout=TIMEOUT)
    )


def _check_launch(device: torch.device) -> None:
    local = int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    if int(os.environ.get("WORLD_SIZE", 1)) == 1 or device.type == "cpu":
        return
    if device.type != "cuda":
        raise UserError(
            f"several processes cannot train on {device.type}; start one process, or use "
            "--device cpu"
        )
    if local > torch.cuda.device_count():
        raise UserError(
            f"{local} processes were started for {torch.cuda.device_count()} GPUs; "
            "start one process per GPU"
        )


def _leave() -> None:
    if dist.is_initialized():
        dist.destroy_process_group()


# --- signals


class StopRequest:
    """Handles SIGINT and SIGTERM: they interrupt the preparation, and ask the training to end.

    During training a second Ctrl-C after INTERRUPT_GRACE_S interrupts at once.
    """

    def __init__(self) -> None:
        self.training = False
        self.first_s: float | None = None

    @property
    def requested(self) -> bool:
        return self.first_s is not None

    def handle(self, number: int, _frame: object) -> None:
        again = (
            self.first_s is not None
            and time.monotonic() - self.first_s > INTERRUPT_GRACE_S
            and number == signal.SIGINT
        )
        if not self.training or again:
            raise KeyboardInterrupt
        self.first_s = self.first_s or time.monotonic()


@contextmanager
def stop_requests() -> Iterator[StopRequest]:
    """Inside the block the StopRequest handles both signals; afterwards the old handlers do."""
    stop = StopRequest()
    try:
        before = {s: signal.signal(s, stop.handle) for s in (signal.SIGINT, signal.SIGTERM)}
    except ValueError:  # not the main thread, where Python sets no signal handlers
        before = {}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
