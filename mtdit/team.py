"""The processes of one training: who they are, whose turn it is, and what they agree on.

Knows accelerate, torch.distributed and signals. Refuses to know what is trained. One process is a
team too.

Processes tell each other things on the host, over gloo, beside the gradients: asking whether to
stop makes no GPU wait. When one process fails it says why and ends; the others then leave without a
word, and the launcher ends the job.
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

from mtdit_robots.errors import UserError

PATIENCE = timedelta(days=30)  # the main process may decode frames for hours while the others wait
AGAIN_S = 2.0  # launchers pass a Ctrl-C on to processes that had it already; a later one is meant
T = TypeVar("T")


@dataclass(frozen=True)
class Team:
    """This process among those that train together."""

    accelerator: Accelerator
    device: torch.device
    group: Any = None  # gloo; None when alone

    @property
    def rank(self) -> int:
        return self.accelerator.process_index

    @property
    def world(self) -> int:
        return self.accelerator.num_processes

    @property
    def main(self) -> bool:
        """Whether this process speaks and writes."""
        return self.accelerator.is_main_process

    def agree(self, *values: float) -> tuple[float, ...]:
        """The highest of each value among the processes, the same on all of them. Waits for all."""
        if self.group is None:
            return values
        told = torch.tensor(
            [0.0, *values], dtype=torch.float64
        )  # never empty: gloo waits for nobody then
        with self.listening():
            dist.all_reduce(told, dist.ReduceOp.MAX, group=self.group)
        return tuple(told[1:].tolist())

    def in_turn(self, work: Callable[[], T]) -> T:
        """The main process first, then the first one of every other machine, then the rest: these
        find things done.
        """
        turn = 0 if self.main else 1 if self.accelerator.is_local_main_process else 2
        for now in range(3):
            if now == turn:
                result = work()
            self.agree()
        return result

    def mean(self, values: torch.Tensor) -> torch.Tensor:
        """The mean over the processes, of values on the device."""
        with self.listening():
            return self.accelerator.reduce(values, "mean")

    def fail(self, message: str) -> NoReturn:
        """For what every process has found out: the main one says it."""
        raise UserError(message) if self.main else SystemExit(2)

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Leaves without a word when another process has gone, and on a signal that the main
        process answers too.
        """
        try:
            yield
        except KeyboardInterrupt:
            if self.main:
                raise
            raise SystemExit(130) from None
        except RuntimeError as error:
            if self.world > 1 and _is_about_another_process(error):
                raise SystemExit(1) from None
            raise


@contextmanager
def said_once() -> Iterator[None]:
    """For mistakes that every process finds out alike, before they are a team: one of them says it."""
    try:
        yield
    except UserError:
        if int(os.environ.get("RANK", 0)):
            raise SystemExit(2) from None
        raise


def _is_about_another_process(error: RuntimeError) -> bool:
    return isinstance(error, dist.DistError) or "gloo" in str(error)


def gather(device: torch.device, amp: str) -> Team:
    """The team this process was started in: alone, or by `accelerate launch` or `torchrun`.

    UserError when processes were started that cannot train together.
    """
    _check_launch(device)
    # one process may train twice, in another precision or on another device
    AcceleratorState._reset_state(reset_partial_state=not dist.is_initialized())
    ddp = DistributedDataParallelKwargs(broadcast_buffers=False, gradient_as_bucket_view=True)
    cpu = device.type == "cpu"
    accelerator = Accelerator(
        mixed_precision=amp, cpu=cpu, device_placement=False, kwargs_handlers=[ddp]
    )
    if accelerator.num_processes == 1:
        return Team(accelerator, device)
    atexit.register(_leave)
    return Team(accelerator, accelerator.device, dist.new_group(backend="gloo", timeout=PATIENCE))


def _check_launch(device: torch.device) -> None:
    local = int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    if int(os.environ.get("WORLD_SIZE", 1)) == 1 or device.type == "cpu":
        return
    if device.type != "cuda":
        raise UserError(
            f"several processes cannot train on {device.type}; start one, or use --device cpu"
        )
    if local > torch.cuda.device_count():
        raise UserError(
            f"{local} processes were started for {torch.cuda.device_count()} GPUs; start one for each GPU"
        )


def _leave() -> None:
    if dist.is_initialized():
        dist.destroy_process_group()


# --- signals


class Stop:
    """SIGINT and SIGTERM: they interrupt what goes before the training, and ask the training to end
    in order.
    """

    def __init__(self) -> None:
        self.training = False
        self.first_s: float | None = None

    @property
    def wanted(self) -> bool:
        return self.first_s is not None

    def note(self, number: int, _frame: object) -> None:
        again = (
            self.first_s is not None
            and time.monotonic() - self.first_s > AGAIN_S
            and number == signal.SIGINT
        )
        if not self.training or again:
            raise KeyboardInterrupt
        self.first_s = self.first_s or time.monotonic()


@contextmanager
def stop_requests() -> Iterator[Stop]:
    """Inside, the two signals go to the Stop; afterwards they mean again what they meant before."""
    stop = Stop()
    try:
        before = {s: signal.signal(s, stop.note) for s in (signal.SIGINT, signal.SIGTERM)}
    except ValueError:  # not the main thread: whoever runs us there stops us in another way
        before = {}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
